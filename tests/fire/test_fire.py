"""Supervision under fire: a short campaign, the harness proved on seeded bugs, the real manifest's limit."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from spine.ground import state
from tests.fire.bugs import BUGS, Bug
from tests.fire.campaign import Evidence, notices
from tests.fire.evidence import percentile
from tests.fire.rig import Result, Spine, development, round_of

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

KILLS = 40
# The manifest's deaths_max, and the one that is too many.
DEATHS = 4


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory, and an XDG_STATE_HOME in it so that nobody else's spine is touched."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path / "state")
    yield tmp_path
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.proves("INV-BUS-2")
@pytest.mark.proves("INV-GATE-2")
@pytest.mark.proves("INV-REAP-2")
def test_under_fire_every_call_ends_and_nothing_acknowledged_is_lost(home: Path) -> None:
    result = round_of(home, KILLS, "suite", development(), spare_port=False)
    assert not result.violations
    assert sum(result.kills.values()) >= KILLS
    assert result.acknowledged > KILLS
    assert result.ends["answered"] > result.acknowledged


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_the_harness_notices(home: Path, bug: Bug) -> None:
    after, said = notices(home, bug, "bugs")
    assert said, f"not noticed in {after} kills"


@pytest.mark.proves("INV-REAP-1")
def test_the_real_manifest_panics_at_the_death_that_is_too_many(home: Path) -> None:
    spine = Spine(home, {})
    try:
        for death in range(1, DEATHS + 1):
            before = spine.children()["netroom"]
            assert before["deaths"] == death - 1
            assert spine.hit(int(str(before["pid"])), 9)
            if death < DEATHS:
                spine.wait_risen("netroom", before)
        assert spine.container.wait_exit(60) == state.EXIT_PANIC
        assert f"netroom died {DEATHS} times" in spine.container.console.text()
    finally:
        spine.close()


def test_a_campaign_resumes_from_what_it_wrote(home: Path) -> None:
    file = home / "fire.json"
    first = Evidence("1", "a command")
    first.add(Result(Counter({"gate kill": 2}), Counter({"answered": 9}), 5, [10, 12], [1500], []))
    first.write(file)
    again = Evidence("1", "a command")
    again.resume(file)
    assert vars(again) == vars(first)
    other = Evidence("2", "a command")
    other.resume(file)
    assert other.total == 0


def test_percentiles_are_of_the_sorted_times() -> None:
    times = Counter({5: 50, 7: 49, 900: 1})
    assert [percentile(times, share) for share in (0.5, 0.51, 0.99, 1.0)] == [5, 7, 7, 900]
    assert percentile(Counter(), 0.5) == 0
