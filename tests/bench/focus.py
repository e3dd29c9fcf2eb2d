"""The focus handed over between two rooms, end to end and in parts, beside a bare freeze and thaw.

Ours is asked for by a person at the port: operator, freezer, umbilical, network and devices have their part.
The bare one is what the kernel needs to freeze as many processes of one cgroup and to thaw those of another.
The parts come from the tap: how long the umbilical took to hush, and what lies between that and the answer.

Needs root. Touches: a container ground of its own, cgroups and sleeping processes that it makes and ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from bus.envelope import Kind
from bus.tap import Side, unpack_record
from spine.ground.port import Port, schemas
from spine.tap.view import Reader
from spine.tap.view import Row as Seen
from tests.bench.bench import Absent, Bench
from tests.bench.figures import Goal, Measured, Rounds
from tests.bench.ground import PATIENCE_S, POLL_S, Ground, Images, asserted, crowd
from tests.bench.table import OURS, Row
from tests.builder.household import BUSYBOX, CGROUPS

ABOUT = "a hand-over of the focus between two rooms of as many processes, from the wish to its answer"
BARE: Final = "bare freeze and thaw"
CROWDS: Final = (1, 20, 200)
PAIR: Final = ("a", "b")
NETWORK_CROWD: Final = 20
PARTS: Final = {
    "asked": "from the wish at the port until the freezer has it",
    "hush": "from there until the umbilical has come to rest",
    "kernel": "from there until the freezer answers: devices, freeze, thaw",
    "told": "from the freezer's answer until the person has it",
}


def rows(quick: bool) -> Sequence[Row]:
    """The rows."""
    del quick
    return (
        *(
            Row(
                f"hand-over-{processes}",
                f"a hand-over, {processes} process{'es' if processes > 1 else ''} in each room",
                "ms",
                (BARE,),
                {BARE: Goal(at_most=2)},
                plot="A hand-over of the focus over processes in each room",
                at=float(processes),
            )
            for processes in CROWDS
        ),
        Row(
            "network",
            f"the same with a network in both rooms, {NETWORK_CROWD} processes in each",
            "ms",
            (BARE,),
        ),
        *(
            Row(f"part-{name}", f"of a hand-over with {NETWORK_CROWD} processes: {what}", "ms")
            for name, what in PARTS.items()
        ),
    )


def measure(bench: Bench, wanted: frozenset[str]) -> Iterator[tuple[str, Mapping[str, Measured]]]:
    """Measure."""
    images = Images(bench.folder("images"))
    times, rounds = bench.count(10, 4), bench.count(9, 2)
    parts = {f"part-{name}" for name in PARTS}
    kinds = [(processes, False) for processes in CROWDS if _asked(processes, wanted)]
    kinds += [(NETWORK_CROWD, True)] if "network" in wanted else []
    personas = {
        name(side, *kind): images.of(name(side, *kind), crowd(kind[0]), network=kind[1])
        for kind in kinds
        for side in PAIR
    }
    with Ground(bench, personas) as ground, ground.port() as port:
        for processes, network in kinds:
            row = f"hand-over-{processes}"
            both = parts & wanted if processes == NETWORK_CROWD else frozenset()
            if not network:
                with _standing(ground, port, processes), _bare(processes) as bare:
                    ours = _handed(port, processes, False, times)
                    if row in wanted:
                        yield row, bench.alternate({OURS: ours, BARE: _frozen(bare, times)}, rounds)
                    if both:
                        found = _parts(ground, ours, rounds)
                        for part in sorted(both):
                            yield part, {OURS: found[part.removeprefix("part-")]}
        if "network" in wanted:
            if ground.spine.container.wire is None:
                raise Absent("this ground has no network")
            with _standing(ground, port, NETWORK_CROWD, network=True), _bare(NETWORK_CROWD) as bare:
                ours = _handed(port, NETWORK_CROWD, True, times)
                yield "network", bench.alternate({OURS: ours, BARE: _frozen(bare, times)}, rounds)


def _asked(processes: int, wanted: frozenset[str]) -> bool:
    """Whether rooms of so many processes are needed."""
    parts = {f"part-{part}" for part in PARTS}
    return f"hand-over-{processes}" in wanted or (processes == NETWORK_CROWD and bool(parts & wanted))


def name(side: str, processes: int, network: bool) -> str:
    """A persona's."""
    return f"{side}{processes}{'n' if network else ''}"


@contextlib.contextmanager
def _standing(ground: Ground, port: Port, processes: int, *, network: bool = False) -> Iterator[None]:
    """Both rooms are there, with all their processes; the first has the focus."""
    rooms = [name(side, processes, network) for side in PAIR]
    try:
        for room in rooms:
            port.call("freezer.start", {"persona": room})
        for room in reversed(rooms):
            port.call("freezer.focus", {"persona": room})
            ground.began(port, room)
        yield
    finally:
        for room in rooms:
            port.call("freezer.stop", {"persona": room})


def _handed(port: Port, processes: int, network: bool, times: int) -> Callable[[], Sequence[float]]:
    """Hand-overs to and fro."""

    def one() -> Sequence[float]:
        took = []
        for _ in range(times // 2):
            for side in reversed(PAIR):
                began = time.perf_counter()
                port.call("freezer.focus", {"persona": name(side, processes, network)})
                took.append(1000 * (time.perf_counter() - began))
        return took

    return one


@contextlib.contextmanager
def _bare(processes: int) -> Iterator[list[Path]]:
    """Two cgroups with so many sleeping processes each, of which the second is frozen."""
    if not BUSYBOX.exists():
        raise Absent("busybox-static is not installed")
    homes = [CGROUPS / f"spine-bench-{os.getpid()}-{side}" for side in PAIR]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for home in homes:
            home.mkdir()
            script = ["sh", "-c", f"read go; {crowd(processes)[2]}"]
            shell = subprocess.Popen(
                [BUSYBOX, *script], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env={"PATH": ""}
            )
            running.append(shell)
            (home / "cgroup.procs").write_text(str(shell.pid))
            assert shell.stdin is not None
            shell.stdin.write(b"go\n")
            shell.stdin.close()
        end = time.monotonic() + PATIENCE_S
        while any(len((home / "cgroup.procs").read_text().split()) < processes for home in homes):
            if time.monotonic() > end:
                raise Absent("the processes to freeze do not start")
            time.sleep(POLL_S)
        _settled(homes[1], True)
        yield homes
    finally:
        for home in homes:
            if home.is_dir():
                (home / "cgroup.kill").write_text("1")
        for shell in running:
            shell.wait()
        end = time.monotonic() + PATIENCE_S
        for home in homes:
            while home.is_dir():
                with contextlib.suppress(OSError):
                    home.rmdir()
                if time.monotonic() > end:
                    raise Absent(f"{home} does not go")
                time.sleep(POLL_S)


def _settled(home: Path, frozen: bool) -> None:
    """Ask for it and wait until the kernel says that it is so; looked at again each millisecond.

    The kernel tells of one cgroup once in ten milliseconds: who only waits for its notice is late.
    """
    with open(home / "cgroup.events", "rb", buffering=0) as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        (home / "cgroup.freeze").write_text(str(int(frozen)))
        while f"frozen {int(frozen)}".encode() not in events.read(256):
            poll.poll(1)
            events.seek(0)


def _frozen(homes: Sequence[Path], times: int) -> Callable[[], Sequence[float]]:
    def one() -> Sequence[float]:
        took = []
        for _ in range(times // 2):
            for leaves, comes in (homes, reversed(homes)):
                began = time.perf_counter()
                _settled(leaves, True)
                _settled(comes, False)
                took.append(1000 * (time.perf_counter() - began))
        return took

    return one


def _parts(ground: Ground, one: Callable[[], Sequence[float]], rounds: int) -> dict[str, Rounds]:
    """The parts of hand-overs, by what the tap saw of them."""
    table = schemas()
    samples: list[dict[str, list[float]]] = []
    with Port(ground.spine.container.tap_path, table=table, shared=True) as tap:
        tap.call("operator.tap")
        for _ in range(rounds):
            one()
            samples.append(_read(tap, Reader(table)))
    with asserted():
        assert all(samples), "the tap showed no hand-over"
    return {part: Rounds(tuple(tuple(one[part]) for one in samples)) for part in PARTS}


QUIET_S: Final = 0.3
"""The tap has shown everything when it has shown nothing for so long."""


def _read(tap: Port, reader: Reader) -> dict[str, list[float]]:
    """The parts of the hand-overs that the tap shows until it is quiet, in milliseconds; nothing for none."""
    seen: list[tuple[int, str]] = []
    while (body := tap.event(time.monotonic() + QUIET_S)) is not None:
        row = reader.read(unpack_record(body))
        if moment := _moment(row):
            seen.append((row.time_ns, moment))
    return parts_of(seen)


def parts_of(seen: Sequence[tuple[int, str]]) -> dict[str, list[float]]:
    """The parts of each hand-over of which every moment was seen, in milliseconds; nothing for none.

    Each organ shows its own messages, so those of two organs come in any order.
    """
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    at: list[int] = []
    for time_ns, moment in sorted(seen):
        if moment == MOMENTS[0]:
            at.clear()
        if len(at) < len(MOMENTS) and moment == MOMENTS[len(at)]:
            at.append(time_ns)
        if len(at) == len(MOMENTS):
            for part, before, after in zip(PARTS, at, at[1:], strict=False):
                found[part].append((after - before) / 1e6)
            at.clear()
    return found if all(found.values()) else {}


MOMENTS: Final = ("wished", "had", "hushed", "answered", "told")


def _moment(seen: Seen) -> str:
    """Which moment of a hand-over a message is, if any."""
    end = (seen.seen_by, seen.side, seen.kind)
    if seen.method == "freezer.focus":
        answers = (Kind.REPLY.name.lower(),)
        if end == ("operator", Side.SENT.name.lower(), "call"):
            return "wished"
        if end == ("freezer", Side.RECEIVED.name.lower(), "call"):
            return "had"
        if seen.kind in answers:
            return "answered" if seen.seen_by == "freezer" else "told"
    if seen.method == "freezer.hushed" and end == ("freezer", Side.RECEIVED.name.lower(), "call"):
        return "hushed"
    return ""
