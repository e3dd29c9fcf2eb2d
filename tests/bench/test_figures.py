"""The arithmetic of the bench, on numbers whose result can be seen."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import noise
from tests.bench.figures import Goal, Rounds, median, percentile, ratio, shown, summary

FLOATS = st.floats(0.001, 1e9)


def rounds(*medians: float) -> Rounds:
    """Rounds of one sample each."""
    return Rounds(tuple((value,) for value in medians))


def test_a_median_is_the_middle_or_between_the_middle_two() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    with pytest.raises(ValueError, match="no values"):
        median([])


def test_a_percentile_is_one_of_the_values() -> None:
    hundred = [float(number) for number in range(1, 101)]
    assert percentile(hundred, 0.99) == 99.0
    assert percentile(hundred, 1.0) == 100.0
    assert percentile(hundred, 0.0) == 1.0
    assert percentile([7.0], 0.999) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@given(st.lists(FLOATS, min_size=1), st.floats(0, 1))
def test_a_percentile_has_that_share_at_or_below_it(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)


@given(st.lists(FLOATS, min_size=1))
def test_a_median_has_half_on_either_side(values: list[float]) -> None:
    found = median(values)
    assert sum(value <= found for value in values) * 2 >= len(values)
    assert sum(value >= found for value in values) * 2 >= len(values)


def test_a_round_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="without samples"):
        Rounds(())
    with pytest.raises(ValueError, match="without samples"):
        Rounds(((1.0,), ()))


def test_a_summary_tells_the_rounds_apart_from_the_samples() -> None:
    found = summary(Rounds(((1.0, 2.0, 9.0), (3.0, 4.0, 5.0)), "warm"))
    assert (found.median, found.low, found.high) == (3.0, 2.0, 4.0)
    assert (found.p99, found.rounds, found.samples, found.note) == (9.0, 2, 6, "warm")


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine became ten times slower in the second round: the ratio does not see it.
    found = ratio(rounds(2.0, 20.0, 2.2), rounds(1.0, 10.0, 1.0))
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.2)


def test_a_ratio_counts_the_common_rounds_only() -> None:
    assert ratio(rounds(2.0, 4.0, 100.0), rounds(1.0, 1.0)).high == 4.0
    assert ratio(rounds(1.0), rounds(0.0)).median == math.inf


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (Goal(at_most=1.5), 1.5, True),
        (Goal(at_most=1.5), 1.51, False),
        (Goal(at_least=0.8), 0.8, True),
        (Goal(at_least=0.8), 0.79, False),
        (Goal(at_most=2, at_least=1), 3, False),
        (Goal(), 99, True),
    ],
)
def test_a_goal_is_a_bound(goal: Goal, value: float, met: bool) -> None:
    assert goal.met(value) is met


def test_a_figure_has_three_digits_that_matter() -> None:
    assert [shown(v) for v in (0, 0.12345, 1.2345, 12.345, 123.45, 12345.6, math.inf)] == [
        "0",
        "0.123",
        "1.23",
        "12.3",
        "123",
        "12 346",
        "∞",
    ]


def test_a_machine_is_noisy_for_each_reason() -> None:
    def look(loop: float = 500, slow: float = 505, steal: int = 0, total: int = 1000) -> noise.Look:
        return noise.Look(loop, slow, steal, total, 0.5)

    assert noise.verdict([look(), look(total=2000)])["quiet"]
    assert not noise.verdict([look(), look(loop=600, slow=606, total=2000)])["quiet"]
    assert not noise.verdict([look(slow=600), look(slow=600, total=2000)])["quiet"]
    found = noise.verdict([look(), look(steal=100, total=2000)])
    assert not found["quiet"]
    assert "stolen time 10.0 %" in str(found["words"])


def test_a_look_at_this_machine_has_its_counters() -> None:
    seen = noise.look()
    assert 0 < seen.loop_us <= seen.slow_us
    assert 0 <= seen.steal <= seen.total
