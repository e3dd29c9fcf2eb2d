"""Where the power is cut: every phase, around its ends and in its middle, whatever lies between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spine.ground.gpt import Partition
from spine.ground.powercut import FLUSH, Entry
from tests.faults.cuts import Phase, choose, phases

PARTITIONS = {
    "boot-a": Partition("boot-a", 1000, 1000),
    "slot-a": Partition("slot-a", 2000, 4000),
    "persist": Partition("persist", 6000, 1000),
}


def write(at: int, size: int = 10) -> Entry:
    return Entry(at, size, 0, 0)


FLUSHED = Entry(0, 0, FLUSH, 0)


def test_phases_are_stretches_of_one_partition_and_the_gate_s_writes_are_none() -> None:
    log = [write(1000), FLUSHED, write(6000), write(1990), write(2000), write(6500), write(5999, 1), write(0)]
    assert phases(log, PARTITIONS) == [Phase("boot-a", 1, 4), Phase("slot-a", 5, 7)]
    assert phases([FLUSHED, write(6000)], PARTITIONS) == []


def test_a_phase_is_cut_around_its_ends_and_in_its_middle_each_time_twice() -> None:
    log = [write(2000 + at) for at in range(9)]
    found = choose("x", log, PARTITIONS, "1")
    assert [(cut.after, cut.keep is None) for cut in found] == [
        (after, flushed) for after in (1, 5, 8, 9) for flushed in (True, False)
    ]
    assert len({cut.name for cut in found}) == len(found)
    assert found == choose("x", log, PARTITIONS, "1") != choose("x", log, PARTITIONS, "2")


def test_a_phase_of_one_write_is_cut_once() -> None:
    assert {cut.after for cut in choose("x", [FLUSHED, write(1500)], PARTITIONS, "1")} == {2}


@given(st.lists(st.integers(0, 8000), max_size=60))
def test_a_cut_comes_after_a_write_of_the_log(places: list[int]) -> None:
    log = [write(at) for at in places]
    for cut in choose("x", log, PARTITIONS, "1"):
        assert 1 <= cut.after <= len(log)
