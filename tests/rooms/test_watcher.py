"""The watcher itself: what its readings mean, and real cgroups in which the promise is kept and broken."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spine.ground import cgroups
from tests.rooms.house import Watching
from tests.rooms.watcher import AWAKE, BRACKET_NS, CLOSE_NS, Reading, State, awake_between, state

SPINNERS = 6
HAND_OVERS = 40
# Many sweeps of a watcher that is above everybody else.
OVERLAP_S = 0.05
PATIENCE_S = 60

THAWED = Reading(populated=True, frozen=False, asked=False)
FREEZING = Reading(populated=True, frozen=False, asked=True)
FROZEN = Reading(populated=True, frozen=True, asked=True)
WAKING = Reading(populated=True, frozen=True, asked=False)
EMPTY = Reading(populated=False, frozen=True, asked=True)


@pytest.mark.parametrize(
    ("reading", "before", "now"),
    [
        (EMPTY, None, State.EMPTY),
        (EMPTY, State.THAWED, State.EMPTY),
        (FROZEN, State.EMPTY, State.FROZEN),
        (WAKING, State.FROZEN, State.THAWED),
        (THAWED, State.FROZEN, State.THAWED),
        (FREEZING, State.THAWED, State.FREEZING),
        (FREEZING, State.FREEZING, State.FREEZING),
        (FREEZING, None, State.FREEZING),
        (FROZEN, State.FREEZING, State.FROZEN),
        (FREEZING, State.FROZEN, State.LEAVING),
        (FREEZING, State.LEAVING, State.LEAVING),
        (THAWED, State.LEAVING, State.THAWED),
    ],
)
def test_what_a_reading_means(reading: Reading, before: State | None, now: State) -> None:
    assert state(reading, before) is now


def test_told_to_run_counts_as_awake_and_dying_does_not() -> None:
    assert {State.THAWED, State.FREEZING} == AWAKE


def told(reading: Reading, usec: int | None) -> Reading:
    return Reading(reading.populated, reading.frozen, reading.asked, usec)


@pytest.mark.parametrize(
    ("first", "second", "inner_us", "outer_us", "awake"),
    [
        # Told to run at both, and never told to freeze between them; however long that took.
        (told(THAWED, 70), told(THAWED, 70), 10, 900_000, True),
        # It was frozen in between.
        (told(THAWED, 70), told(THAWED, 75), 10, 12, False),
        # Told to freeze all the while, and not frozen at either end.
        (told(FREEZING, 70), told(FREEZING, 80), 10, 12, True),
        # It was thawed in between, and told to freeze again.
        (told(FREEZING, 70), told(FREEZING, 400), 1000, 1010, False),
        # Frozen at one end, or nothing lives in it.
        (told(FREEZING, 70), told(FROZEN, 80), 10, 12, False),
        (told(THAWED, 70), told(EMPTY, 70), 10, 12, False),
        # It was told to freeze between the two: one cannot know.
        (told(THAWED, 70), told(FREEZING, 75), 10, 12, False),
        # So long that it could have been frozen, and then killed.
        (told(FREEZING, 70), told(FREEZING, 20_070), 20_000, 20_010, False),
        # A kernel without a count: only what lies close together.
        (told(THAWED, None), told(THAWED, None), 10, CLOSE_NS // 1000, True),
        (told(THAWED, None), told(THAWED, None), 10, CLOSE_NS // 1000 + 1, False),
    ],
)
def test_when_a_room_was_awake_all_the_while(
    first: Reading, second: Reading, inner_us: int, outer_us: int, awake: bool
) -> None:
    assert outer_us * 1000 <= BRACKET_NS or not first.asked or not awake
    assert awake_between(first, second, inner_us * 1000, outer_us * 1000) is awake


@pytest.fixture(name="root")
def _root() -> Iterator[Path]:
    """A directory of cgroups with two rooms that never rest, both frozen."""
    mount = cgroups.mounted(Path("/proc/self/mountinfo").read_text())
    assert mount is not None
    root = Path(mount) / f"watched-{os.getpid()}"
    root.mkdir()
    pids: list[int] = []
    try:
        for name in ("a", "b"):
            (root / name).mkdir()
            (root / name / "cgroup.freeze").write_text("1")
            pids += [spinning(root / name) for _ in range(SPINNERS)]
        yield root
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for name in ("a", "b"):
            with contextlib.suppress(FileNotFoundError):
                (root / name).rmdir()
        root.rmdir()


def spinning(cgroup: Path) -> int:
    """A process that never rests, in a frozen cgroup."""
    pid = os.fork()
    if pid == 0:
        try:
            (cgroup / "cgroup.procs").write_text("0")
            while True:
                pass
        finally:
            os._exit(1)
    end = time.monotonic() + PATIENCE_S
    while str(pid) not in (cgroup / "cgroup.procs").read_text().split():
        assert time.monotonic() < end
    return pid


def freeze(room: Path, yes: bool) -> None:
    (room / "cgroup.freeze").write_text(str(int(yes)))


def confirmed(room: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while "frozen 1" not in (room / "cgroup.events").read_text():
        assert time.monotonic() < end


@pytest.mark.container
def test_hand_overs_in_the_right_order_are_seen_and_are_no_violation(root: Path) -> None:
    a, b = root / "a", root / "b"
    confirmed(a)
    confirmed(b)
    watching = Watching(root)
    try:
        for _ in range(HAND_OVERS):
            freeze(a, False)
            time.sleep(0.002)
            freeze(a, True)
            confirmed(a)
            freeze(b, False)
            time.sleep(0.002)
            freeze(b, True)
            confirmed(b)
    finally:
        watching.end()
    assert watching.violations == []
    # Each room came and went through thawed, freezing, frozen; a slow host may hide a few of them.
    assert watching.summary["changes"] + watching.summary["unseen"] > HAND_OVERS
    assert watching.summary["rooms"] == 2


@pytest.mark.container
def test_two_rooms_awake_at_one_moment_are_seen(root: Path) -> None:
    a, b = root / "a", root / "b"
    watching = Watching(root)
    try:
        freeze(a, False)
        freeze(b, False)
        time.sleep(OVERLAP_S)
        freeze(b, True)
        freeze(a, True)
        confirmed(a)
    finally:
        watching.end()
    assert any("awake at one moment" in said for said in watching.violations)


@pytest.mark.container
def test_a_frozen_room_is_compared_and_a_room_that_goes_is_let_go(root: Path) -> None:
    confirmed(root / "a")
    watching = Watching(root)
    try:
        (root / "c").mkdir()
        time.sleep(OVERLAP_S)
        (root / "c").rmdir()
        time.sleep(4 * OVERLAP_S)
    finally:
        watching.end()
    assert watching.violations == []
    assert watching.summary["frozenSpansCompared"] > 0
    assert watching.summary["rooms"] >= 2
