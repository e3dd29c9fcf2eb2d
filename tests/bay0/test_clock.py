"""What bay0 makes of a proposal of the time: every row of the table, and bounds that no sequence evades."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.bay0 import clock
from organs.bay0.clock import (
    BACK_FIRST_MS_MAX,
    LIFE_MS,
    NEAR_MS,
    PAUSE_MS,
    STEP_MS_MAX,
    Clock,
    Move,
    Now,
    Why,
)

BUILT = 1_767_225_600_000
YEAR = 365 * 24 * 3_600_000
BOOT = 60_000
NEVER, LONG_AGO = Clock(), Clock(BOOT)


@pytest.mark.proves("INV-TIME-2")
@pytest.mark.parametrize(
    ("wall_ms", "set_ms"),
    [
        (0, BUILT),
        (BUILT - 1, BUILT),
        (BUILT, None),
        (BUILT + YEAR, None),
        (BUILT + LIFE_MS, None),
        (BUILT + LIFE_MS + 1, BUILT),
        (1 << 60, BUILT),
    ],
)
def test_the_clock_at_boot(wall_ms: int, set_ms: int | None) -> None:
    assert clock.at_boot(wall_ms, BUILT) == set_ms


# Each row: what was taken before, where the clock stands after the build, where to, and what comes of it.
TABLE = [
    # the first of a boot
    (NEVER, 0, 0, Move(0)),
    (NEVER, 0, YEAR, Move(YEAR)),
    (NEVER, 0, LIFE_MS, Move(LIFE_MS)),
    (NEVER, 0, LIFE_MS + 1, Why.LATE),
    (NEVER, 0, -1, Why.EARLY),
    (NEVER, YEAR, YEAR - BACK_FIRST_MS_MAX, Move(-BACK_FIRST_MS_MAX)),
    (NEVER, YEAR, YEAR - BACK_FIRST_MS_MAX - 1, Why.BACK),
    (NEVER, YEAR, 0, Why.BACK),
    (NEVER, YEAR, -1, Why.EARLY),
    (NEVER, BACK_FIRST_MS_MAX, 0, Move(-BACK_FIRST_MS_MAX)),
    # what is near is right, to both sides
    (NEVER, YEAR, YEAR + NEAR_MS - 1, Move(0)),
    (NEVER, YEAR, YEAR + NEAR_MS, Move(NEAR_MS)),
    (NEVER, YEAR, YEAR - NEAR_MS + 1, Move(0)),
    (NEVER, YEAR, YEAR - NEAR_MS, Move(-NEAR_MS)),
    # later ones
    (LONG_AGO, YEAR, YEAR, Move(0)),
    (LONG_AGO, YEAR, YEAR + STEP_MS_MAX, Move(STEP_MS_MAX)),
    (LONG_AGO, YEAR, YEAR + STEP_MS_MAX + 1, Why.FAR),
    (LONG_AGO, YEAR, YEAR - STEP_MS_MAX, Move(-STEP_MS_MAX)),
    (LONG_AGO, YEAR, YEAR - STEP_MS_MAX - 1, Why.FAR),
    (LONG_AGO, YEAR, YEAR - BACK_FIRST_MS_MAX, Why.FAR),
    (LONG_AGO, 1000, -1, Why.EARLY),
    (LONG_AGO, LIFE_MS, LIFE_MS + 1, Why.LATE),
]


@pytest.mark.proves("INV-TIME-2")
@pytest.mark.proves("INV-TIME-3")
@pytest.mark.parametrize(("before", "stands", "wanted", "expected"), TABLE)
def test_the_table(before: Clock, stands: int, wanted: int, expected: Move | Why) -> None:
    boot_ms = BOOT + PAUSE_MS
    now = Now(BUILT + stands, boot_ms)
    after, what = clock.decide(before, BUILT, BUILT + wanted - boot_ms, now)
    assert what == expected
    # What is refused uses up nothing; what is taken, also where it moved nothing, begins the pause.
    assert after == (Clock(boot_ms) if isinstance(what, Move) else before)


def test_every_reason_and_both_kinds_of_move_stand_in_the_table() -> None:
    reasons = {row[3] for row in TABLE if isinstance(row[3], Why)}
    assert reasons | {Why.SOON} == set(Why)


@pytest.mark.proves("INV-TIME-3")
@pytest.mark.parametrize(("elapsed_ms", "soon"), [(0, True), (PAUSE_MS - 1, True), (PAUSE_MS, False)])
@pytest.mark.parametrize("step_ms", [0, 1000, YEAR, -2 * YEAR])
def test_one_is_heard_an_hour(elapsed_ms: int, soon: bool, step_ms: int) -> None:
    boot_ms = BOOT + elapsed_ms
    proposal = BUILT + YEAR + step_ms - boot_ms
    _, what = clock.decide(LONG_AGO, BUILT, proposal, Now(BUILT + YEAR, boot_ms))
    assert (what is Why.SOON) is soon


PROPOSALS = st.lists(
    st.tuples(
        st.integers(0, 3 * PAUSE_MS),  # the wait before it
        st.integers(-2 * STEP_MS_MAX, 2 * STEP_MS_MAX) | st.integers(-(2**48), 2**48),  # how far it leaps
    ),
    max_size=40,
)


@pytest.mark.proves("INV-TIME-2")
@pytest.mark.proves("INV-TIME-3")
@given(st.integers(0, LIFE_MS), PROPOSALS)
def test_no_sequence_of_proposals_gets_round_the_bounds(start: int, proposals: list[tuple[int, int]]) -> None:
    wall, boot, state = BUILT + start, BOOT, Clock()
    taken: list[tuple[int, int]] = []
    for wait, leap in proposals:
        wall, boot = wall + wait, boot + wait
        state, what = clock.decide(state, BUILT, wall + leap - boot, Now(wall, boot))
        if isinstance(what, Move):
            wall += what.by_ms
            taken.append((boot, what.by_ms))
            assert BUILT <= wall <= BUILT + LIFE_MS + NEAR_MS
    if taken:
        (first, leap), *later = taken
        assert leap >= -BACK_FIRST_MS_MAX
        assert all(abs(step) <= STEP_MS_MAX for _, step in later)
        at = [first, *(when for when, _ in later)]
        assert all(b - a >= PAUSE_MS for a, b in itertools.pairwise(at))


@given(st.integers(0, 2**48), st.integers(0, 2**42), st.integers(0, 2**48))
def test_a_proposal_that_is_heard_twice_moves_the_clock_once(wall: int, boot: int, booted: int) -> None:
    """It names a moment and no distance: a second one that comes late finds the clock where it says."""
    state, what = clock.decide(Clock(), BUILT, booted, Now(wall, boot))
    if isinstance(what, Move) and booted + boot + PAUSE_MS <= BUILT + LIFE_MS:
        now = Now(wall + what.by_ms + PAUSE_MS, boot + PAUSE_MS)
        _, again = clock.decide(state, BUILT, booted, now)
        assert again == Move(0)
