"""How long from a verified image to the first instruction of a room, beside what others make a room with.

Ours is the real builder in a process of its own with its stanza's powers: the device of the image, the room
(user, mount, pid, network, ipc, host-name and cgroup namespaces, furnished, confined, born frozen), the thaw,
and the first line of its shell on its console. The peers start the same shell from a directory that lies
unpacked. `whole` is the same asked for by a person at the port, with integrity, freezer, bus and hand-over.

Needs root. Touches: cgroups, devices and rooms that it makes and ends; mount namespaces of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from organs.builder.protocol import Made, Room, RoomMade
from organs.builder.verdict import ERRANDS_MAX, IDS, RANGES, UID_BASE
from tests.bench import peers
from tests.bench.bench import Absent, Bench, Program
from tests.bench.figures import Goal, Measured, Missing
from tests.bench.ground import SAID, SLEEPS, Ground, Images, asserted
from tests.bench.table import OURS, Row
from tests.builder.household import BUSYBOX, CGROUPS, WRITABLE, Household

ABOUT = (
    "from a verified image to the first instruction in the room: the builder's part beside bubblewrap, crun, "
    f"runc and systemd-nspawn with the same shell; a spine has {RANGES} rooms at most"
)
BWRAP, CRUN, RUNC, NSPAWN = "bubblewrap", "crun", "runc", "systemd-nspawn"
PEERS: Final = (BWRAP, CRUN, RUNC, NSPAWN)
GOALS: Final = {BWRAP: Goal(at_most=2), RUNC: Goal(at_most=0.5)}
MANY: Final = (1, 4, RANGES)
STARTS: Final = Path(__file__).parent / "programs/starts.py"
NAME: Final = "bench"


def rows(quick: bool) -> Sequence[Row]:
    """The rows."""
    del quick
    return (
        Row("warm", "one room, its files in memory", "ms", PEERS, GOALS, plot="A room's first instruction"),
        Row(
            "cold", "one room, its files not in memory", "ms", PEERS, GOALS, plot="A room's first instruction"
        ),
        *(
            Row(
                f"many-{rooms}",
                f"{rooms} room{'s' if rooms > 1 else ''} asked for at once, until the last one was heard",
                "ms",
                PEERS,
                plot="Rooms asked for at once",
                at=float(rooms),
            )
            for rooms in MANY
        ),
        Row("whole", "the same, asked for at the operator's port: start and focus", "ms", (BWRAP, RUNC)),
    )


def measure(bench: Bench, wanted: frozenset[str]) -> Iterator[tuple[str, Mapping[str, Measured]]]:
    """Measure."""
    if os.geteuid() != 0:
        raise Absent("rooms need root")
    if not BUSYBOX.exists():
        raise Absent("busybox-static is not installed")
    rounds = bench.count(9, 3)
    tree = laid(bench.folder("tree"))
    with contextlib.ExitStack() as stack:
        theirs = {name: _peer(name, bench, tree, stack) for name in PEERS}
        if {"warm", "cold", *(f"many-{rooms}" for rooms in MANY)} & wanted:
            ours = stack.enter_context(_builder(bench.folder("builder"), tree))
            for name in ("warm", "cold"):
                if name in wanted:
                    contenders = {OURS: _ours(ours, 1, cold=name == "cold")}
                    yield name, bench.alternate({**contenders, **_of(theirs, 1, name == "cold")}, rounds)
            for count in MANY:
                if f"many-{count}" in wanted:
                    found = bench.alternate(
                        {OURS: _ours(ours, count), **_of(theirs, count, False)}, bench.count(5, 1)
                    )
                    yield f"many-{count}", found
        if "whole" in wanted:
            images = Images(bench.folder("images"))
            with Ground(bench, {NAME: images.of(NAME, SLEEPS)}) as ground:
                some = {name: theirs[name] for name in (BWRAP, RUNC)}
                yield (
                    "whole",
                    bench.alternate({OURS: _whole(ground), **_of(some, 1, False)}, bench.count(9, 2)),
                )


def laid(folder: Path) -> Path:
    """The files of a room: a shell, and the places that each contender wants to find."""
    for name in ("bin", "dev", "proc", "sys", "run", "tmp", "etc", "root", "usr/lib"):
        (folder / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, folder / "bin/busybox")
    for applet in ("sh", "sleep"):
        (folder / "bin" / applet).symlink_to("busybox")
    (folder / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (folder / "etc/os-release").write_text("ID=bench\n")
    return folder


# Ours.


@dataclass(frozen=True)
class Builder:
    """A builder that stands, and the image that rooms are made of."""

    house: Household
    image: Path
    numbers: Iterator[int]


@contextlib.contextmanager
def _builder(folder: Path, tree: Path) -> Iterator[Builder]:
    with asserted():
        house = Household(folder, "bench")
        try:
            house.freezer.start()
            yield Builder(house, house.image(tree, "-all-root"), itertools.count())
        finally:
            house.close()


def _ours(builder: Builder, rooms: int, *, cold: bool = False) -> Callable[[], Sequence[float]]:
    def one() -> Sequence[float]:
        if cold:
            fd = os.open(builder.image, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        names = [f"b{next(builder.numbers)}" for _ in range(rooms)]
        with asserted():
            return (_furnished(builder, names),)

    return one


def _furnished(builder: Builder, names: Sequence[str]) -> float:
    """Make these rooms and hear all of them; then they are ended, which is not counted."""
    house, freezer = builder.house, builder.house.freezer
    held: list[int] = []
    devices: list[Made] = []
    waiting = dict(zip(names, itertools.count(), strict=False))
    asked: list[str] = []
    consoles: list[int] = []
    began = time.perf_counter()
    try:
        while waiting or asked:
            if waiting and len(asked) < ERRANDS_MAX:
                name, number = next(iter(waiting.items()))
                del waiting[name]
                home = house.home(name)
                # What was asked before may be answered first.
                made, device = _device(builder, asked, held, consoles)
                devices.append(made)
                held.append(device)
                cgroup = os.open(home, os.O_PATH | os.O_DIRECTORY)
                freezer.say(_room(freezer.head(), name, number), cgroup, device)
                os.close(cgroup)
                asked.append(name)
            else:
                answer, fds = freezer.hear()
                _made(builder, answer, fds, asked, held, consoles)
        for console in consoles:
            heard = b""
            while SAID not in heard:
                heard += os.read(console, 4096)
        return 1000 * (time.perf_counter() - began)
    finally:
        for name in names:
            if (house.homes / name).is_dir():
                house.remove(house.homes / name)
        for fd in held:
            os.close(fd)
        for made in devices:
            house.release(made)


def _room(head: Mapping[str, Any], name: str, number: int) -> Room:
    return Room(
        **head,
        name=name,
        hostname=name,
        uid_base=UID_BASE + number * IDS,
        init=SLEEPS,
        writable_bytes=WRITABLE,
        network=False,
        console=True,
    )


def _device(builder: Builder, asked: list[str], held: list[int], consoles: list[int]) -> tuple[Made, int]:
    """A device of the image. Answers to earlier questions that come before it are taken."""
    from organs.builder.protocol import Device

    freezer = builder.house.freezer
    with open(builder.image, "rb") as file:
        length = builder.image.stat().st_size
        freezer.say(Device(**freezer.head(), offset=0, length=length, verity=None), file.fileno())
    while True:
        answer, fds = freezer.hear()
        if isinstance(answer, Made):
            return answer, fds[0]
        _made(builder, answer, fds, asked, held, consoles)


def _made(
    builder: Builder,
    answer: object,
    fds: Sequence[int],
    asked: list[str],
    held: list[int],
    consoles: list[int],
) -> None:
    """A room is there: let it run."""
    held += fds
    assert isinstance(answer, RoomMade), answer
    asked.remove(answer.name)
    consoles.append(dict(zip(answer.holds, fds, strict=True))["console"])
    (builder.house.homes / answer.name / "cgroup.freeze").write_text("0")


def _whole(ground: Ground) -> Callable[[], Sequence[float]]:
    """From a person's wish to what the room's shell says. The room is ended afterwards."""

    def one() -> Sequence[float]:
        with ground.port() as port:
            began = time.perf_counter()
            port.call("freezer.start", {"persona": NAME})
            port.call("freezer.focus", {"persona": NAME})
            ground.began(port, NAME)
            took = 1000 * (time.perf_counter() - began)
            port.call("freezer.stop", {"persona": NAME})
        return (took,)

    return one


# Theirs.


@dataclass(frozen=True)
class Peer:
    """How a contender starts a room: a command line for a name, and one that ends it where that needs one."""

    program: Program
    words: Callable[[str], list[str]]
    end: Callable[[str], list[str]] | None
    drop: list[str]
    numbers: Iterator[int]

    def started(self, rooms: int, cold: bool) -> Sequence[float]:
        """Milliseconds for so many."""
        names = [f"b{next(self.numbers)}" for _ in range(rooms)]
        answer = self.program.ask(
            words=[self.words(name) for name in names],
            ends=[] if self.end is None else [self.end(name) for name in names],
            drop=self.drop if cold else [],
        )
        if "failed" in answer:
            raise Absent(str(answer["failed"]))
        return (float(str(answer["ms"])),)


def _of(
    theirs: Mapping[str, Peer | Missing], rooms: int, cold: bool
) -> dict[str, Callable[[], Sequence[float]] | Missing]:
    def one(peer: Peer) -> Callable[[], Sequence[float]]:
        return lambda: peer.started(rooms, cold)

    return {name: peer if isinstance(peer, Missing) else one(peer) for name, peer in theirs.items()}


def _peer(name: str, bench: Bench, tree: Path, stack: contextlib.ExitStack) -> Peer | Missing:
    try:
        words, end, environment = MAKERS[name](bench, tree, stack)
        starts = ["unshare", "--mount", str(bench.python), "-P", str(STARTS), str(CGROUPS)]
        program = stack.enter_context(
            Program(starts, bench.scratch, environment={**bench.environment(), **environment})
        )
    except Absent as absent:
        return Missing(str(absent))
    return Peer(program, words, end, [str(tree / "bin/busybox")], itertools.count())


Words = Callable[[str], list[str]]
Maker = Callable[[Bench, Path, contextlib.ExitStack], tuple[Words, Words | None, Mapping[str, str]]]


def _bwrap(
    bench: Bench, tree: Path, stack: contextlib.ExitStack
) -> tuple[Words, Words | None, Mapping[str, str]]:
    del bench, stack
    program, environment = peers.program("bwrap", "bubblewrap")
    words = [str(program), "--unshare-all", "--die-with-parent", "--ro-bind", str(tree), "/"]
    words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--", *SLEEPS]
    return lambda _name: words, None, environment


def _nspawn(
    bench: Bench, tree: Path, stack: contextlib.ExitStack
) -> tuple[Words, Words | None, Mapping[str, str]]:
    del bench, stack
    program, environment = peers.program("systemd-nspawn", "systemd-container", "libsystemd-shared")
    if libraries := environment.get("LD_LIBRARY_PATH"):
        own = [f"{path}/systemd" for path in libraries.split(":")]
        environment = {**environment, "LD_LIBRARY_PATH": ":".join([libraries, *own])}
    words = [str(program), "--quiet", "--register=no", "--keep-unit", "--read-only", "--as-pid2"]
    words += ["--private-network", "--console=pipe", "-D", str(tree)]
    return lambda name: [*words, "-M", name, *SLEEPS], None, environment


def _oci(name: str, *packages: str) -> Maker:
    def make(
        bench: Bench, tree: Path, stack: contextlib.ExitStack
    ) -> tuple[Words, Words | None, Mapping[str, str]]:
        program, environment = peers.program(name, *packages)
        bundle, root = bench.folder("bundle"), Path(tempfile.mkdtemp(prefix=f"bench-{name}-"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        try:
            subprocess.run(
                [program, "spec"],
                cwd=bundle,
                check=True,
                capture_output=True,
                env={**os.environ, **environment},
            )
        except subprocess.CalledProcessError as error:
            raise Absent(error.stderr.decode(errors="replace").strip()[:200]) from None
        config = json.loads((bundle / "config.json").read_text())
        config["process"] |= {"terminal": False, "args": list(SLEEPS)}
        config["root"] = {"path": str(tree), "readonly": True}
        # A limit that crun may not set here, and a filter of devices that it may not load: it does less then.
        config["process"].pop("rlimits", None)
        config["linux"].pop("resources", None)
        (bundle / "config.json").write_text(json.dumps(config))
        base = [str(program), "--root", str(root)]
        more = ["--cgroup-manager=cgroupfs"] if name == "crun" else []
        return (
            lambda room: [*base, *more, "run", "--bundle", str(bundle), f"bench-{os.getpid()}-{room}"],
            lambda room: [*base, *more, "delete", "--force", f"bench-{os.getpid()}-{room}"],
            environment,
        )

    return make


MAKERS: Final[Mapping[str, Maker]] = {
    BWRAP: _bwrap,
    CRUN: _oci("crun", "crun", "libyajl2"),
    RUNC: _oci("runc", "runc", "libseccomp2"),
    NSPAWN: _nspawn,
}
