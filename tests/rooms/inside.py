"""Two rooms of one image, for the tests that look from inside a room: how they are made and spoken with.

The image carries `attack` (also as a program with the setuid bit), `noise` and the umbilical's client, and
nothing else; both personas have the same bytes but for their names and their manifests. All goes through
`./spine` as a person has it: install, start, focus, exec.
Touches: files in a folder of the test's, the spine that is booted.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from spine import paths
from spine.ground.port import schemas
from spine.image import commands, keys
from spine.image.root import SQUASH, SQUASH_FIXED
from spine.persona import image, programs, recipe
from tests.rooms.attacks import Answer, Attack, answers
from tests.rooms.controls import KEY, MARK, PORT, compiled

HERE = Path(__file__).parent
# Who attacks and who is attacked; the roles change in some tests.
ALPHA, BETA = "alphatest", "betatest"
ATTACK, NOISE, UMBILICAL, SETUID = (f"/usr/bin/{name}" for name in ("attack", "noise", "umbilical", "setuid"))
PIDS, WRITABLE = 64, "8 MiB"
LIMIT_S = 900

RECIPE = """
summary = "attacks from inside, for the tests"
version = {version}
packages = []
programs = ["umbilical"]
init = ["{attack}", "idle"]
console = true
devices = []
grants = ["focus"]
autostart = false
on-focus-loss = "freeze"
[limits]
memory = "64 MiB"
pids = {pids}
writable = "{writable}"
[network]
use = true
inbound = []
[files]
[links]
"""

# Where the spine keeps what is its own, and by what ways it has been reached out of a room before.
SPINE_FILES = (
    "/usr/lib/spine",
    "/usr/bin/bay0",
    "/usr/bin/python3",
    "/run/spine",
    "/run/bus",
    "/persist",
    "/proc/1/root/usr/lib/spine",
    "/proc/1/cwd/usr/lib/spine",
    "/proc/self/fd/3",
    "/../usr/lib/spine",
    "/dev/dm-0",
    "/dev/vda",
    "/etc/os-release",
)
DISKS = "7:0 7:1 254:0 253:0 254:1 253:1 252:0 259:0 8:0"


@cache
def made_programs() -> Mapping[str, bytes]:
    """The programs of the image, by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = {each: compiled(HERE / f"{each}.c", folder / each).read_bytes() for each in ("attack", "noise")}
        place = folder / "client"
        place.mkdir()
        client = programs.compile_program("umbilical", programs.source("umbilical"), place)
    return {**own, "setuid": own["attack"], "umbilical": client}


def squashed(folder: Path, links: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """The image that both rooms run: the programs and the directories that are mounted on.

    `links`: what is a symbolic link in it instead, for images that lie.
    """
    laid, packed = folder / "laid", folder / "packed"
    target = laid / "usr/bin"
    target.mkdir(parents=True)
    for name, data in made_programs().items():
        (target / name).write_bytes(data)
        (target / name).chmod(0o4755 if name == "setuid" else 0o755)
    for name in ("dev", "proc", "sys", "run", "tmp", "root", "etc"):
        (laid / name).mkdir()
    (laid / "etc/resolv.conf").touch()
    for name, leads in links.items():
        liar = laid / name
        liar.parent.mkdir(exist_ok=True)
        if liar.is_dir():
            shutil.rmtree(liar)
        liar.unlink(missing_ok=True)
        liar.symlink_to(leads)
    commands.run(["mksquashfs", laid, packed, *SQUASH, *SQUASH_FIXED], what="the image cannot be packed")
    return packed.read_bytes()


def persona_file(folder: Path, name: str, data: bytes, version: int = 1) -> Path:
    """The signed image of a persona of this name around these bytes."""
    text = RECIPE.format(version=version, attack=ATTACK, pids=PIDS, writable=WRITABLE)
    made = image.body(name, data)
    secret = keys.persona_key()
    block = image.seal(
        image.manifest(recipe.decode(name, text), made), keys.public_bytes(secret), secret.sign
    )
    file = folder / f"{name}.persona"
    file.write_bytes(made.image + made.tree + block)
    return file


def request(**values: object) -> bytes:
    """A framed request to the umbilical; what is left out stands at its default."""
    empty = {"id": 1, "verb": "status", "key": b"", "value": b"", "limit": 0, "persona": ""}
    empty |= {"ticket": 0, "bytes": 0, "offset": 0, "reboot": False}
    return schemas().messages["umbilical.Request"].encode({**empty, **values})


@dataclass(frozen=True)
class Rooms:
    """The rooms of one booted spine. `ground`: the word that chooses it."""

    ground: str

    def spine(self, verb: str, *words: str, stdin: bytes = b"", code: int | None = 0) -> bytes:
        """One ./spine verb on this ground; its standard output. Asserts the exit code unless it is None."""
        done = subprocess.run(
            [paths.ROOT / "spine", verb, *words],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=LIMIT_S,
        )
        said = (done.stdout + done.stderr).decode(errors="replace")
        assert code is None or done.returncode == code, f"./spine {verb} {words}: {done.returncode}\n{said}"
        return done.stdout

    def persona(self, *words: str, code: int | None = 0) -> bytes:
        """./spine persona WORD..."""
        return self.spine("persona", *words, f"--{self.ground}", code=code)

    def focus(self, name: str) -> None:
        """Give a room the focus."""
        self.spine("focus", f"--{self.ground}", name)

    def exec(self, name: str, *command: str, stdin: bytes = b"", code: int | None = 0) -> str:
        """Run a program in the room that has the focus; what it printed."""
        words = (f"--{self.ground}", name, "--", *command)
        return self.spine("exec", *words, stdin=stdin, code=code).decode(errors="replace")

    @contextlib.contextmanager
    def started(self, name: str, *command: str, until: str, stdin: bytes = b"") -> Iterator[list[str]]:
        """A program in the room that goes on meanwhile; the lines up to the one that it is waited for.

        Who goes away from ./spine exec leaves the program behind, so it is ended in the room, which has the
        focus afterwards.
        """
        words = [str(paths.ROOT / "spine"), "exec", f"--{self.ground}", name, "--", *command]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(stdin)
                process.stdin.close()
                seen: list[str] = []
                for line in process.stdout:
                    seen.append(line.decode(errors="replace").rstrip("\n"))
                    if seen[-1] == until:
                        break
                else:
                    raise AssertionError(f"{command}: it ended after {seen}")
                yield seen
            finally:
                self.focus(name)
                self.exec(name, ATTACK, "end", command[1])
                process.wait(LIMIT_S)

    def rooms(self) -> dict[str, dict[str, object]]:
        """The rooms as status shows them."""
        status = json.loads(self.spine("status", "--json", f"--{self.ground}"))
        return dict(status["rooms"])

    def tried(self, attacks: Sequence[Attack], name: str, pids: Sequence[int]) -> dict[str, Answer]:
        """Each attack from inside the room. Raises Misused."""
        numbers = " ".join(map(str, pids))
        filled = {
            "victim": f"{MARK} {numbers}",
            "mark": MARK,
            "pids": numbers,
            "folder": "/tmp",
            "port": PORT,
            "key": KEY,
            "spine": " ".join(SPINE_FILES),
            "covered": "/proc/sys",
            "disks": DISKS,
            "setuid": SETUID,
            "outside": "/usr/lib/spine",
        }
        lines = [attack.words.format(**filled) for attack in attacks]
        printed = self.exec(name, ATTACK, "each", stdin=("\n".join(lines) + "\n").encode())
        return dict(zip((attack.name for attack in attacks), answers(printed, len(lines)), strict=True))


@contextlib.contextmanager
def two_rooms(ground: str, folder: Path) -> Iterator[Rooms]:
    """Both personas installed and in their rooms, ALPHA with the focus; all is taken away at the end."""
    rooms = Rooms(ground)
    data = squashed(folder)
    with contextlib.ExitStack() as stack:
        for name in (BETA, ALPHA):
            rooms.persona("install", str(persona_file(folder, name, data)))
            stack.callback(rooms.persona, "remove", name)
            rooms.persona("start", name)
            stack.callback(rooms.persona, "stop", name)
        rooms.focus(ALPHA)
        yield rooms
