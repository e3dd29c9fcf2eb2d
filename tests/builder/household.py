"""Real rooms for tests: cgroups of their own, images made here, a builder with its stanza's powers."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from organs.builder.protocol import Exec, Made, Refusal, Refused, Release, Room, RoomMade, Started
from organs.builder.verdict import IDS, UID_BASE
from tests.builder.asking import DEADLINE_S, Freezer

UNIFIED = Path("/sys/fs/cgroup/unified")
CGROUPS = UNIFIED if UNIFIED.is_dir() else Path("/sys/fs/cgroup")
# As the freezer's: what it makes is not root's.
FREEZER_UID = 2004
BUSYBOX = Path("/bin/busybox")
PROBE = Path(__file__).with_name("probe.c")
APPLETS = (
    "sh ls cat id ps mount hostname sleep dd mkdir rm ln mv stat true kill mknod df touch chmod chown su tty"
)
BLOCK = 4096
WRITABLE = 16 * 1024**2


def within(what: str, holds: object) -> None:
    """Wait until a function says yes."""
    end = time.monotonic() + DEADLINE_S
    while not holds():  # type: ignore[operator]  # a function without arguments
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.005)


@dataclass
class Living:
    """A room that was made: its first process, its cgroup, and what came with it."""

    name: str
    pid: int
    home: Path
    holds: Mapping[str, int]
    number: int

    @property
    def uid(self) -> int:
        return UID_BASE + self.number * IDS

    def freeze(self, yes: bool) -> None:
        (self.home / "cgroup.freeze").write_text(str(int(yes)))
        within("frozen or thawed", lambda: f"frozen {int(yes)}" in (self.home / "cgroup.events").read_text())

    def thaw(self) -> None:
        """Ask for it, and do not wait: it may end at once."""
        (self.home / "cgroup.freeze").write_text("0")

    def pids(self) -> list[int]:
        return [int(line) for line in (self.home / "cgroup.procs").read_text().split()]

    def cpu(self, key: str = "usage_usec") -> int:
        lines = (self.home / "cpu.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key} "))

    def console(self, until: str) -> str:
        """What the console shows, up to this text."""
        return shown(self.holds["console"], until)

    def status(self, pid: int | None = None) -> dict[str, str]:
        lines = Path(f"/proc/{pid or self.pid}/status").read_text().splitlines()
        return {key: " ".join(value.split()) for key, _, value in (line.partition(":") for line in lines)}


def shown(fd: int, until: str) -> str:
    """What can be read there, up to this text."""
    text = ""
    while until not in text:
        assert select.select([fd], [], [], DEADLINE_S)[0], f"nothing after {text!r}"
        text += os.read(fd, 65536).decode()
    return text


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    ending: str
    out: str
    err: str


class Household:
    """A freezer's end of the line, and the rooms that it asked for."""

    def __init__(self, folder: Path, number: str) -> None:
        self.folder = folder
        self.homes = CGROUPS / f"spine-rooms-{os.getpid()}-{number}"
        self.homes.mkdir()
        os.chown(self.homes, FREEZER_UID, FREEZER_UID)
        self.freezer = Freezer(self.homes)
        self.freezer.ours.settimeout(DEADLINE_S)
        self._images = 0

    def close(self) -> None:
        """Nothing of it stays."""
        for home in [path for path in self.homes.iterdir() if path.is_dir()]:
            self.remove(home)
        self.freezer.end()
        self.freezer.ours.close()
        self.freezer.theirs.close()
        self.homes.rmdir()

    def remove(self, home: Path) -> None:
        """As the freezer ends a room: all of it is killed, and then it is gone."""
        (home / "cgroup.kill").write_text("1")
        within("dead", lambda: "populated 0" in (home / "cgroup.events").read_text())
        home.rmdir()

    def home(self, name: str, frozen: bool = True) -> Path:
        """A cgroup for a room, as the freezer makes it."""
        home = self.homes / name
        home.mkdir()
        (home / "cgroup.freeze").write_text(str(int(frozen)))
        for path in (home, home / "cgroup.procs", home / "cgroup.freeze", home / "cgroup.kill"):
            os.chown(path, FREEZER_UID, FREEZER_UID)
        return home

    def image(self, tree: Path, *words: str) -> Path:
        """A SquashFS of a directory."""
        self._images += 1
        path = self.folder / f"image{self._images}"
        command: list[str | Path] = [
            "mksquashfs",
            tree,
            path,
            "-quiet",
            "-no-progress",
            "-comp",
            "lz4",
            "-b",
            "128K",
            *words,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(path, "ab") as file:
            file.truncate(-(-file.tell() // BLOCK) * BLOCK)
        return path

    def device(self, image: Path) -> tuple[Made, int]:
        """A device of an image, made by the builder."""
        with open(image, "rb") as file:
            return self.freezer.device(file.fileno(), 0, image.stat().st_size)

    def ask(
        self, image: Path | int, name: str, home: Path | None = None, **other: Any
    ) -> tuple[object, list[int]]:
        """Ask for a room; the answer, whatever it is, and its descriptors."""
        home = home or self.home(name)
        device = image if isinstance(image, int) else self.device(image)[1]
        cgroup = os.open(home, os.O_PATH | os.O_DIRECTORY)
        fields: dict[str, Any] = {
            **self.freezer.head(),
            "name": name,
            "hostname": name,
            "uid_base": UID_BASE,
            "init": ("/bin/sh", "-c", "echo begun; exec sleep 1000"),
            "writable_bytes": WRITABLE,
            "network": False,
            "console": True,
            **other,
        }
        try:
            return self.freezer.ask(Room(**fields), cgroup, device)
        finally:
            os.close(cgroup)
            if not isinstance(image, int):
                os.close(device)

    def room(self, image: Path | int, name: str, number: int = 0, **other: Any) -> Living:
        """A room that must be made; it is frozen."""
        answer, fds = self.ask(image, name, uid_base=UID_BASE + number * IDS, **other)
        assert isinstance(answer, RoomMade), answer
        assert answer.name == name
        return Living(name, answer.pid, self.homes / name, dict(zip(answer.holds, fds, strict=True)), number)

    def begun(self, image: Path | int, name: str, number: int = 0, **other: Any) -> Living:
        """A room that runs, past the first line of its first program."""
        room = self.room(image, name, number, **other)
        room.freeze(False)
        room.console("begun")
        return room

    def refused(self, why: Refusal, image: Path | int, name: str = "linda", **other: Any) -> str:
        """The reason why a room is not made; nothing of it stays."""
        answer, fds = self.ask(image, name, **other)
        assert isinstance(answer, Refused), answer
        assert (answer.why, fds) == (why, [])
        self.remove(self.homes / name)
        return answer.reason

    def start(
        self,
        room: Living,
        *argv: str,
        standard: Sequence[int],
        status: int,
        terminal: bool = False,
        environment: Sequence[str] = (),
    ) -> object:
        """Ask for a command in the room."""
        request = Exec(
            **self.freezer.head(),
            name=room.name,
            argv=argv,
            environment=tuple(environment),
            terminal=terminal,
        )
        with opened(room.home) as cgroup:
            answer, fds = self.freezer.ask(request, cgroup, *standard, status)
        assert fds == []
        return answer

    def run(self, room: Living, *argv: str, feed: bytes = b"", environment: Sequence[str] = ()) -> Done:
        """A command in a room, to its end."""
        pipes = [os.pipe() for _ in range(4)]
        (in_, feeding), (out, outward), (err, errward), (status, telling) = pipes
        answer = self.start(
            room, *argv, standard=(in_, outward, errward), status=telling, environment=environment
        )
        assert isinstance(answer, Started), answer
        for fd in (in_, outward, errward, telling):
            os.close(fd)
        os.write(feeding, feed)
        os.close(feeding)
        texts = [whole(fd) for fd in (out, err, status)]
        return Done(texts[2].strip(), texts[0], texts[1])

    def out(self, room: Living, script: str) -> str:
        """What a shell says that must succeed."""
        done = self.run(room, "sh", "-c", script)
        assert (done.ending, done.err) == ("exit 0", ""), done
        return done.out

    def release(self, made: Made) -> None:
        """The builder lets go of a device."""
        self.freezer.ask(Release(**self.freezer.head(), name=made.name))


@contextlib.contextmanager
def opened(home: Path) -> Iterator[int]:
    """A descriptor of a directory, for a while."""
    fd = os.open(home, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def whole(fd: int) -> str:
    """Everything up to the end."""
    with open(fd, "rb") as file:
        return file.read().decode(errors="replace")


@cache
def probe(folder: Path) -> Path:
    """The program of what a room may try, for any root."""
    made = folder / "probe"
    subprocess.run(["gcc", "-static", "-Os", "-Wall", "-o", made, PROBE], check=True)
    return made


def tree(folder: Path, *, places: bool = True) -> Path:
    """The root of a persona: a shell with its programs, the probe, and the usual places."""
    (folder / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, folder / "bin/busybox")
    shutil.copy(probe(folder.parent), folder / "bin/probe")
    for applet in APPLETS.split():
        (folder / "bin" / applet).symlink_to("busybox")
    if places:
        for name in ("dev", "proc", "sys", "run", "tmp", "etc", "root"):
            (folder / name).mkdir()
        (folder / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nlinda:x:1000:1000::/:/bin/sh\n")
    return folder
