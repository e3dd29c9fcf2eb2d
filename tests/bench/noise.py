"""How quiet the machine was while the bench ran: one fixed loop, timed before, between and after.

Touches: the clock, /proc/stat, /proc/loadavg. It changes nothing; it only lets a reader judge the figures.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.figures import median

LOOPS: Final = 40
LOOP_ADDITIONS: Final = 20_000
"""About half a millisecond of pure Python: long enough to time, short enough to fit between two ticks."""
QUIET_SPREAD: Final = 0.10
"""Up to here the slowest tenth of the loops is noise of the usual kind."""
QUIET_STEAL: Final = 0.01


@dataclass(frozen=True, slots=True)
class Look:
    """The machine at one moment. `steal` and `total` are ticks of all processors since boot."""

    loop_us: float
    slow_us: float
    steal: int
    total: int
    load: float


def look() -> Look:
    """Time the loop and read the counters."""
    took = sorted(_loop() for _ in range(LOOPS))
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    ticks = [int(word) for word in words[:8]]
    return Look(
        loop_us=median(took),
        slow_us=took[int(0.9 * len(took))],
        steal=ticks[7],
        total=sum(ticks),
        load=os.getloadavg()[0],
    )


def _loop() -> float:
    began = time.perf_counter_ns()
    total = 0
    for number in range(LOOP_ADDITIONS):
        total += number
    return (time.perf_counter_ns() - began) / 1000


def verdict(looks: list[Look]) -> dict[str, object]:
    """What they say together: pure."""
    first, last = looks[0], looks[-1]
    loops = [one.loop_us for one in looks]
    spread = (max(loops) - min(loops)) / min(loops)
    tail = median([one.slow_us / one.loop_us - 1 for one in looks])
    steal = (last.steal - first.steal) / max(1, last.total - first.total)
    quiet = spread <= QUIET_SPREAD and tail <= QUIET_SPREAD and steal <= QUIET_STEAL
    words = (
        f"{'quiet' if quiet else 'noisy'}: one fixed loop took {min(loops):.0f} to {max(loops):.0f} us "
        f"({100 * spread:.0f} % apart, slowest tenth {100 * tail:.0f} % over its median), "
        f"stolen time {100 * steal:.1f} %, load {first.load:.1f} before and {last.load:.1f} after"
    )
    return {
        "quiet": quiet,
        "words": words,
        "loopUs": loops,
        "loopSpread": spread,
        "loopTail": tail,
        "steal": steal,
        "loadBefore": first.load,
        "loadAfter": last.load,
    }


def machine() -> dict[str, object]:
    """What it ran on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    return {
        "processor": model,
        "processors": len(os.sched_getaffinity(0)),
        "memoryMB": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1_000_000,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
