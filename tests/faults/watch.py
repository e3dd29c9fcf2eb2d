"""Powers a machine on with a disk, watches it from outside until there is a verdict, and pulls the plug.

Touches: one QEMU process with a directory of its own, and the disk, which the machine writes and this reads.
Nothing in the guest is asked: resets come from QEMU, the rest from the disk's file, the serial line and the
screen. What is seen is judged by `tests/faults/judge.py`.
Fails: with SpineError when QEMU does not start.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spine.ground import powercut
from spine.ground.qemu import Machine
from spine.ground.qmp import Qmp, QmpError
from tests.faults import blessed
from tests.faults.blessed import Release
from tests.faults.judge import Judge, Press, Seen, Verdict

# How often the counters are read. A counter that was taken down stands so for ten seconds and more.
TICK_S = 0.2
# All four parts are hashed this often once a system runs.
LOOK_S = 2.0
SCREEN_S = 5.0
# Of a text page this many pixels are lit, at least.
LIT = 1000
# A case ends, whatever happens: some boots of a slow host.
CASE_S = 900.0
SERIAL_KEPT = 600


@dataclass(frozen=True)
class Outcome:
    """A verdict and how it came to be."""

    verdict: Verdict
    why: str
    boots: int
    attempts: str
    pressed: int
    seconds: float
    serial: str
    at_rest: str


def watch(
    disk: Path,
    directory: Path,
    releases: Sequence[Release],
    *,
    options: Mapping[str, object],
    patience_s: float,
    log: Path | None = None,
) -> Outcome:
    """Boot the disk and say how it ended. `log` is where to log its writes, outside of `directory`."""
    machine = Machine(directory)
    began = time.monotonic()
    judge = Judge(patience_s, bool(options.get("enroll")))
    try:
        nodes = powercut.blockdevs(disk, log) if log is not None else ()
        machine.start(disk, blockdevs=nodes, extra=("-smp", "1"), **options)  # type: ignore[arg-type]
        with machine.qmp() as qmp:
            verdict = _watch(machine, qmp, judge, disk, releases, began)
            _picture(qmp, directory / "last.ppm")
    finally:
        machine.kill()
    # What the file holds now that nobody writes any more is what counts.
    rest = blessed.look(disk, releases)
    if verdict is Verdict.BLESSED and not (rest.whole and rest.armed):
        verdict, judge.why = Verdict.UNHEALED, "not the same at rest"
    return Outcome(
        verdict,
        judge.why,
        judge.boots,
        "".join(judge.attempts),
        judge.pressed,
        round(time.monotonic() - began, 1),
        machine.console.text()[-SERIAL_KEPT:],
        rest.whole,
    )


def _watch(
    machine: Machine, qmp: Qmp, judge: Judge, disk: Path, releases: Sequence[Release], began: float
) -> Verdict:
    resets, serial_at, looked, pictured = 0, 0, -LOOK_S, -SCREEN_S
    look, shows = None, False
    last = blessed.counters(disk, releases[0])
    while True:
        resets += _resets(qmp)
        now = time.monotonic() - began
        said = machine.console.read(serial_at)
        serial_at += len(said)
        counters = blessed.counters(disk, releases[0])
        if now - pictured >= SCREEN_S:
            pictured, shows = now, _picture(qmp, machine.directory / "screen.ppm")
        starts = counters != last and judge.started(counters) != ""
        if starts or now - looked >= (LOOK_S if judge.wants_look() else judge.patience_s / 2):
            looked, look = now, blessed.look(disk, releases)
        last = counters
        seen = Seen(now, resets, counters, said, _written(qmp), machine.alive(), shows)
        found = judge.take(seen, look)
        if isinstance(found, Verdict):
            return found
        if isinstance(found, Press):
            with contextlib.suppress(QmpError):
                qmp.execute("system_reset")
        if now > CASE_S:
            judge.why = f"no verdict in {CASE_S:.0f} s"
            return Verdict.HANG


def _resets(qmp: Qmp) -> int:
    """How many resets there were since the last look; waits a tick for one."""
    count = 0
    with contextlib.suppress(QmpError):
        while True:
            qmp.wait_event("RESET", TICK_S)
            count += 1
    return count


def _written(qmp: Qmp) -> int:
    """How many bytes the guest has written to its disk."""
    try:
        rows = qmp.execute("query-blockstats")
    except QmpError:
        return 0
    assert isinstance(rows, list)
    return sum(int(row["stats"]["wr_bytes"]) for row in rows)


def _picture(qmp: Qmp, target: Path) -> bool:
    """Keep a picture of the screen; whether it shows something."""
    try:
        qmp.execute("screendump", {"filename": str(target.absolute())})
        data = target.read_bytes()
    except (QmpError, OSError):
        return False
    pixels = data[data.find(b"255\n") + 4 :]
    return len(pixels) - pixels.count(b"\0") >= 3 * LIT
