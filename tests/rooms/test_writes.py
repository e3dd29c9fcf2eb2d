"""A write is counted wherever it touches: one that strays from its partition is seen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spine.ground.gpt import Partition
from spine.ground.powercut import FLUSH, Entry
from tests.rooms.writes import NOWHERE, places

TABLE = {
    name: Partition(name, start, 1000)
    for name, start in (("boot-a", 1000), ("slot", 2000), ("persist", 4000))
}


def write(start: int, size: int) -> Entry:
    return Entry(start, size, 0, 0)


def test_a_write_is_counted_in_every_partition_that_it_touches() -> None:
    assert places([write(4000, 1000), write(4999, 1), Entry(0, 0, FLUSH, 0)], TABLE) == {"persist": 2}
    assert places([write(1500, 1000)], TABLE) == {"boot-a": 1, "slot": 1}
    assert places([write(0, 512)], TABLE) == {NOWHERE: 1}
    assert places([write(4990, 20)], TABLE) == {"persist": 1, NOWHERE: 1}
    assert places([write(3999, 2)], TABLE) == {"persist": 1, NOWHERE: 1}
    assert not places([], TABLE)


@given(st.integers(0, 6000), st.integers(1, 3000))
def test_each_byte_of_a_write_is_accounted_for(start: int, size: int) -> None:
    bytes_of = set(range(start, start + size))
    expected = {
        name for name, part in TABLE.items() if bytes_of & set(range(part.start, part.start + part.size))
    }
    covered = set().union(*(range(part.start, part.start + part.size) for part in TABLE.values()))
    if bytes_of - covered:
        expected.add(NOWHERE)
    assert places([write(start, size)], TABLE).keys() == expected
