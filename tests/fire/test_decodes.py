"""Hostile decodes: a short run of the campaign, and the harness proved on seeded bugs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bus.envelope import PeerError
from bus.wire import Schemas
from spine.ground.port import schemas
from tests.fire.decodes import (
    BUGS,
    EVIDENCE,
    KINDS,
    Evidence,
    block,
    bomb,
    campaign,
    hostile,
    lists_of_structs,
    noticed,
    subjects,
)

COUNT = 4000


@pytest.mark.proves("INV-BUS-5")
def test_nothing_dies_of_a_hostile_message_and_nothing_gives_out_more_than_it_may() -> None:
    report = block("suite", 0, COUNT)
    assert not report.violations
    assert sum(report.outcomes.values()) == COUNT
    assert {name.split()[0] for name in report.outcomes} == set(KINDS)
    assert report.outcomes["bomb refused"] > 0
    assert sum(n for name, n in report.outcomes.items() if name.endswith("decoded")) > COUNT // 20


@pytest.mark.parametrize("name", BUGS)
def test_the_harness_notices(name: str) -> None:
    often, said = noticed(name, "bugs")
    assert often > 0
    assert said


@pytest.mark.proves("INV-BUS-5")
def test_a_list_of_500_000_structs_that_take_no_room_is_refused_for_their_number() -> None:
    """About a hundred bytes, of which Cap'n Proto's own limit would take sixteen times as many elements."""
    tried = 0
    for subject in subjects(schemas()):
        for listed in lists_of_structs(subject):
            dice = random.Random(subject.name)
            few = subject.decode(bomb(dice, subject, listed, 10))[listed.name]
            assert isinstance(few, list)
            assert len(few) == 10
            with pytest.raises(PeerError):
                subject.decode(bomb(dice, subject, listed, 500_000))
            tried += 1
    assert tried >= 3


def test_a_message_is_made_again_from_its_seed_and_number() -> None:
    of = subjects(schemas())
    first = [hostile(of, "again", number) for number in range(200)]
    assert first == [hostile(of, "again", number) for number in range(200)]
    assert first != [hostile(of, "other", number) for number in range(200)]


def test_every_method_is_met() -> None:
    table: Schemas = schemas()
    names = {subject.name for subject in subjects(table)}
    for interface in table.interfaces.values():
        for method in interface.methods:
            assert {f"{interface.name}.{method}", f"{interface.name}.{method} results"} <= names


def test_a_campaign_resumes_from_what_it_wrote(tmp_path: Path) -> None:
    file = tmp_path / "decodes.json"
    first = Evidence("r", "a command")
    first.caught = dict.fromkeys(BUGS, 1)
    assert campaign(first, file, 300, lambda _: None) == []
    again = Evidence("r", "a command")
    again.resume(file)
    assert (again.done, again.report, again.caught) == (300, first.report, first.caught)
    assert campaign(again, file, 500, lambda _: None) == []
    assert json.loads(file.read_text())["counts"]["decodes"] == 500
    other = Evidence("s", "a command")
    other.resume(file)
    assert other.done == 0


def test_the_evidence_adds_up() -> None:
    found = json.loads(EVIDENCE.read_text())
    counts = found["counts"]
    assert counts["decoded"] + counts["refused"] == counts["decodes"] == sum(found["outcomes"].values())
    assert counts["decodes"] >= 240_000
    assert found["seededBugsNoticed"].keys() == BUGS.keys()
    assert not found["commit"].endswith("-dirty")
