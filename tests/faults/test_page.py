"""docs/faults.md is what the evidence makes of it, and the evidence is one that the harness wrote."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.faults.cases import AREAS, REGIONS, every
from tests.faults.judge import Verdict
from tests.faults.matrix import EVIDENCE
from tests.faults.page import PAGE, render

# What is promised of a campaign.
CASES_MIN, EACH_MIN = 120, 5

evidence_is_there = pytest.mark.skipif(not EVIDENCE.exists(), reason="no campaign of the matrix was run yet")


@evidence_is_there
def test_the_page_is_made_from_the_evidence() -> None:
    assert PAGE.read_text() == render(json.loads(EVIDENCE.read_text())), "python -m tests.faults.page"


@evidence_is_there
def test_the_counts_of_the_evidence_are_those_of_its_cases() -> None:
    evidence = json.loads(EVIDENCE.read_text())
    rows = evidence["cases"]
    found = Counter(row["verdict"] for row in rows)
    assert evidence["counts"] == {"cases": len(rows), **{one.value: found[one.value] for one in Verdict}}
    assert len({row["name"] for row in rows}) == len(rows)
    known = {case.name for case in every()}
    assert all(row["name"] in known for row in rows if row["region"] in REGIONS)


@evidence_is_there
def test_the_campaign_was_long_enough_and_hit_every_area_often_enough() -> None:
    rows = json.loads(EVIDENCE.read_text())["cases"]
    assert len(rows) >= CASES_MIN
    hit = {area: sum(row["region"] in regions for row in rows) for area, regions in AREAS.items()}
    assert min(hit.values()) >= EACH_MIN, hit


def test_the_page_shows_what_broke_the_promise_and_what_was_not_caught() -> None:
    row = {"region": "gpt/mbr", "boots": 1, "why": "because", "attempts": "b", "pressed": 0}
    cases = [
        {**row, "name": "gpt/mbr bit", "damage": "bit", "verdict": "blessed"},
        {**row, "name": "gpt/mbr zero", "damage": "zero", "verdict": "dead"},
        {**row, "name": "x + y", "region": "several", "damage": "combined", "verdict": "rescue"},
        {**row, "name": "cut z", "region": "cut boot", "damage": "power cut", "verdict": "loop"},
    ]
    counts = {
        "cases": 4,
        **{one.value: 0 for one in Verdict},
        "blessed": 1,
        "dead": 1,
        "rescue": 1,
        "loop": 1,
    }
    bug = {"case": "x + y", "verdict": "blessed", "boots": 1, "caught": False}
    page = render(
        {
            "cases": cases,
            "counts": counts,
            "seed": "1",
            "firmware": "secure",
            "image": "0" * 64,
            "seededBugs": {"a bug": bug},
        }
    )
    broken = page.partition("## Where the promise was broken")[2].partition("## Damage")[0]
    assert "| gpt/mbr zero | dead | 1 | because |" in broken
    assert "| cut z | loop | 1 | because |" in broken
    assert "gpt/mbr bit" not in broken
    assert "| gpt/mbr | blessed |  |  | dead |" in page
    assert "| GPT: protective MBR | 2 | 1 |" in page
    assert "| a bug | x + y | blessed | NO |" in page
