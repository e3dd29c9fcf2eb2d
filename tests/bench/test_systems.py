"""The families about the whole system: their shape, and the parts of a hand-over. Never how long it took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine.progress import Progress
from tests.bench import focus, run
from tests.bench.figures import Missing, Rounds
from tests.bench.focus import MOMENTS, PARTS, parts_of
from tests.bench.table import OURS

WHOLE = [(1_000_000 * (at + 1), moment) for at, moment in enumerate(MOMENTS)]


def test_a_hand_over_has_a_part_between_each_two_moments() -> None:
    assert len(PARTS) == len(MOMENTS) - 1
    assert parts_of(WHOLE) == {part: [1.0] for part in PARTS}


@given(st.permutations(WHOLE))
def test_the_order_in_which_two_organs_are_heard_does_not_matter(seen: list[tuple[int, str]]) -> None:
    assert parts_of(seen) == {part: [1.0] for part in PARTS}


def test_a_hand_over_of_which_a_moment_was_lost_is_left_out() -> None:
    later = [(time_ns + 100_000_000, moment) for time_ns, moment in WHOLE]
    assert parts_of([*WHOLE[:2], *WHOLE[3:], *later]) == {part: [1.0] for part in PARTS}
    assert parts_of(WHOLE[1:]) == {}


CHEAPEST = [
    "growth/get-1000",
    "growth/bytes-1000",
    "rooms/warm",
    "focus/part-*",
    "memory/sum",
    "memory/rooms-1",
]


@pytest.mark.container
def test_a_quick_run_of_the_cheapest_rows_has_its_shape() -> None:
    document = run.run(CHEAPEST, True, "1", Progress())
    found = {f"{result.family}/{result.row.name}": result for result in run.results_of(document)}
    assert found.keys() == {
        *("growth/get-1000", "growth/bytes-1000", "rooms/warm", "memory/sum", "memory/rooms-1"),
        *(f"focus/part-{part}" for part in focus.PARTS),
    }
    for name, result in found.items():
        own = result.of(OURS)
        assert isinstance(own, Rounds), f"{name}: {own}"
        assert all(value > 0 for value in own.every), name
        for peer in result.row.peers:
            theirs = result.of(peer)
            assert isinstance(theirs, Rounds) or theirs.reason, f"{name}: {peer}"
            assert isinstance(theirs, Missing) or all(value > 0 for value in theirs.every), name
