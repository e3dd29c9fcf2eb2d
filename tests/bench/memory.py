"""How much memory the spine's own processes share out, and what it does while nothing happens.

Memory is PSS: a page that several processes map counts for each of them by its share, so the sum is what is
really used. What a room's own programs take is the persona's, and left out of the sum; a room of one sleeping
shell stands for them. Idle is the processor time of the whole cgroup, as the kernel counts it, and how often
its processes went to sleep again.

Needs root. Touches: a container ground of its own; it reads the rest from /proc.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from organs.manifest import load
from spine import paths
from tests.bench.bench import Absent, Bench
from tests.bench.figures import Goal, Measured, Rounds
from tests.bench.ground import SLEEPS, Ground, Images
from tests.bench.table import OURS, Row

ABOUT = "the memory of the spine's processes (PSS), with no room and with many, and what it does when idle"
SETTLE_S: Final = 0.5
"""After a start or a call: what was begun is over by then."""
ROOMS: Final = (0, 1, 4, 8)
LOOKS: Final = 3
FIRST: Final = ("bay0", "zygote")


def organs() -> tuple[str, ...]:
    """The processes of the spine, by name."""
    return (*FIRST, *load(str(paths.ROOT / "organs/manifest.toml")).organs)


def rows(quick: bool) -> Sequence[Row]:
    """The rows."""
    seconds = _seconds(quick)
    return (
        Row("sum", "PSS of all of the spine's processes, no room", "MB", absolute=Goal(at_most=40)),
        *(
            Row(f"process-{name}", f"PSS of {name}", "MB", plot="PSS of each process of the spine")
            for name in organs()
        ),
        *(
            Row(
                f"rooms-{count}",
                f"the same with {count} room{'' if count == 1 else 's'}, all but one frozen",
                "MB",
                plot="PSS of the spine's processes over rooms",
                at=float(count),
            )
            for count in ROOMS
        ),
        Row("room", "PSS of the spine's processes and the room's own shell, for each frozen room", "MB"),
        Row("idle", f"processor time of all of it in {seconds} s, no room", "%", absolute=Goal(at_most=0.2)),
        Row("idle-room", f"the same in {seconds // 3} s, {ROOMS[-1]} rooms, all but one frozen", "%"),
        Row("wake-ups", "how often a process of it woke and slept again, each second, no room", "count"),
    )


def _seconds(quick: bool) -> int:
    return 10 if quick else 60


def measure(bench: Bench, wanted: frozenset[str]) -> Iterator[tuple[str, Mapping[str, Measured]]]:
    """Measure."""
    images = Images(bench.folder("images"))
    names = [f"room{number}" for number in range(ROOMS[-1])]
    with Ground(bench, {name: images.of(name, SLEEPS) for name in names}) as ground:
        time.sleep(SETTLE_S)
        if {"sum", *(f"process-{name}" for name in organs())} & wanted:
            looks = [_looked(ground) for _ in range(LOOKS)]
            found = {"sum": [sum(look.values()) for look in looks]}
            found |= {f"process-{name}": [look[name] for look in looks] for name in organs()}
            for row, values in found.items():
                if row in wanted:
                    yield row, {OURS: _rounds(values)}
        if {"idle", "wake-ups"} & wanted:
            busy, woken = _idle(ground, _seconds(bench.quick))
            for row, value in (("idle", busy), ("wake-ups", woken)):
                if row in wanted:
                    yield row, {OURS: _rounds([value])}
        if {"room", "idle-room", *(f"rooms-{count}" for count in ROOMS)} & wanted:
            yield from _with_rooms(bench, ground, names, wanted)


def _with_rooms(
    bench: Bench, ground: Ground, names: Sequence[str], wanted: frozenset[str]
) -> Iterator[tuple[str, Mapping[str, Measured]]]:
    sums: dict[int, list[float]] = {}
    with ground.port() as port:
        for count in range(ROOMS[-1] + 1):
            if count:
                port.call("freezer.start", {"persona": names[count - 1]})
                port.call("freezer.focus", {"persona": names[count - 1]})
                ground.began(port, names[count - 1])
            if count in ROOMS:
                time.sleep(SETTLE_S)
                looks = [sum(_looked(ground).values()) for _ in range(LOOKS)]
                sums[count] = looks
                if f"rooms-{count}" in wanted:
                    yield f"rooms-{count}", {OURS: _rounds(looks)}
    if "room" in wanted:
        inside = pss(ground.in_rooms())
        each = [
            (last - first + inside) / ROOMS[-1] for first, last in zip(sums[0], sums[ROOMS[-1]], strict=True)
        ]
        yield "room", {OURS: _rounds(each)}
    if "idle-room" in wanted:
        busy, _ = _idle(ground, _seconds(bench.quick) // 3)
        yield "idle-room", {OURS: _rounds([busy])}


def _rounds(values: Iterable[float]) -> Rounds:
    return Rounds(tuple((value,) for value in values))


def _looked(ground: Ground) -> dict[str, float]:
    """PSS of each process of the spine, in MB."""
    found = {name: pss(pids) for name, pids in ground.processes().items()}
    if missing := set(organs()) - found.keys():
        raise Absent(f"there is no process of {', '.join(sorted(missing))}")
    return found


def pss(pids: Sequence[int]) -> float:
    """What these processes use of memory, in MB."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total * 1024 / 1e6


def _idle(ground: Ground, seconds: int) -> tuple[float, float]:
    """Per cent of a processor, and wake-ups each second, while nobody asks for anything."""
    time.sleep(SETTLE_S)
    pids = [pid for found in ground.processes().values() for pid in found] + ground.in_rooms()
    began, used, slept = time.monotonic(), ground.cpu_usec(), sleeps(pids)
    time.sleep(seconds)
    took = time.monotonic() - began
    busy = (ground.cpu_usec() - used) / 1e6 / took * 100
    # A thread that ended meanwhile cannot be asked any more.
    woken = sum(count - slept.get(thread, 0) for thread, count in sleeps(pids).items())
    return busy, woken / took


def sleeps(pids: Sequence[int]) -> dict[tuple[int, str], int]:
    """How often each thread of these processes went to sleep by itself."""
    found: dict[tuple[int, str], int] = {}
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/task/{thread}/status").read_text()
                found[pid, thread] = next(
                    int(line.split()[1]) for line in text.splitlines() if line.startswith("voluntary_ctxt")
                )
    return found
