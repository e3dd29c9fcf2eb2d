"""The list of cases: every region often enough, no name twice, any beginning spread."""

from __future__ import annotations

from collections import Counter

from tests.faults.cases import AREAS, REGIONS, Damage, every, single

# What the promise about the matrix says.
CASES_MIN, EACH_MIN = 120, 5


def test_every_region_is_hit_often_enough_and_each_case_has_a_name_of_its_own() -> None:
    cases = every()
    assert len(cases) >= CASES_MIN
    assert len({case.name for case in cases}) == len(cases)
    hit = Counter(fault.region for case in cases for fault in case.faults)
    assert all(hit[region] >= EACH_MIN for region in REGIONS)
    alone = Counter(case.faults[0].region for case in cases if len(case.faults) == 1)
    assert all(alone[region] >= EACH_MIN for region in REGIONS)
    assert {fault.damage for case in cases for fault in case.faults} == set(Damage)


def test_any_beginning_is_spread_over_areas_and_damages() -> None:
    first = single()[: EACH_MIN * len(AREAS)]
    hit = Counter(case.faults[0].region for case in first)
    assert all(sum(hit[region] for region in regions) == EACH_MIN for regions in AREAS.values())
    assert {case.faults[0].damage for case in first} >= set(Damage) - {Damage.SPENT}


def test_two_slots_two_volumes_and_both_sides_of_a_pair_are_combined() -> None:
    together = [{fault.region.split("/")[0] for fault in case.faults} for case in every()]
    for wanted in ({"slot-a", "slot-b"}, {"boot-a", "boot-b"}, {"slot-a", "boot-a"}, {"slot-a", "boot-b"}):
        assert wanted in together
