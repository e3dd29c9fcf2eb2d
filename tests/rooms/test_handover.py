"""The focus under fire: a short campaign of hand-overs and kills, and the harness proved on seeded bugs."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.fire.bugs import Bug
from tests.fire.rig import development
from tests.rooms.handover import BUGS, EVIDENCE, LONGEST, VICTIMS, Evidence, Result, notices, round_of
from tests.rooms.house import NAMES, images

HAND_OVERS, KILLS = 30, 6


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory, and an XDG_STATE_HOME in it so that nobody else's spine is touched."""
    folder = tmp_path_factory.mktemp("handover")
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    yield folder
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def made(home: Path) -> Mapping[str, bytes]:
    """The images of the three rooms."""
    return images(home)


@pytest.mark.container
@pytest.mark.timeout(900)
@pytest.mark.proves("INV-FOCUS-1")
@pytest.mark.proves("INV-FOCUS-4")
def test_under_fire_never_two_rooms_are_awake(home: Path, made: Mapping[str, bytes]) -> None:
    result = round_of(home, HAND_OVERS, KILLS, "suite", development(), made)
    assert not result.violations, "\n".join(result.violations)
    assert sum(result.hand_overs.values()) == HAND_OVERS
    assert sum(result.kills.values()) == KILLS
    assert result.kills["freezer"] >= 1
    assert result.ends["freezer.focus answered"] > HAND_OVERS / 3
    assert result.watched["rooms"] >= len(NAMES)
    assert result.watched["frozenSpansCompared"] > 0


@pytest.mark.container
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_the_harness_notices(home: Path, made: Mapping[str, bytes], bug: Bug) -> None:
    after, said = notices(home, bug, "bugs", made)
    assert said, f"not noticed in {after} hand-overs"


def test_a_campaign_resumes_from_what_it_wrote(tmp_path: Path) -> None:
    file = tmp_path / "handover.json"
    first = Evidence("1", "a command")
    for longest in (9, 7):
        counts = (Counter({"person": 2}), Counter({"freezer": 1}), Counter({"answered": 9}))
        first.add(Result(*counts, Counter({"sweeps": 5, LONGEST: longest}), []))
    assert first.counters["watched"] == {"sweeps": 10, LONGEST: 9}
    first.write(file)
    again = Evidence("1", "a command")
    again.resume(file)
    assert vars(again) == vars(first)
    other = Evidence("2", "a command")
    other.resume(file)
    assert other.total("handOvers") == 0


def test_the_evidence_adds_up() -> None:
    found = json.loads(EVIDENCE.read_text())
    counts = found["counts"]
    assert counts["handOvers"] == sum(found["handOvers"].values()) >= 300
    assert counts["kills"] == sum(found["kills"].values()) >= 60
    assert found["kills"].keys() <= set(VICTIMS)
    assert found["kills"].keys() >= set(VICTIMS[:4])
    assert found["seededBugsCaughtAfterHandOvers"].keys() == {bug.name for bug in BUGS}
    assert found["watched"]["violations"] == 0
    assert not found["commit"].endswith("-dirty")
