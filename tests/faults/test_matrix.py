"""The campaign's bookkeeping: what is done stays done for the same image, and for no other."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.faults.judge import Verdict
from tests.faults.matrix import Evidence, Job, Runner
from tests.faults.watch import Outcome

OUTCOME = Outcome(Verdict.BLESSED, "now", 1, "b", 0, 30.0, "", "now")


def job(name: str) -> Job:
    return Job(name, "gpt/mbr", "bit", Path.touch)


def evidence(path: Path, *, seed: str = "1", firmware: str = "secure", image: str = "i") -> Evidence:
    made = Evidence(path, seed, firmware, image, "a command")
    made.resume()
    return made


def test_a_finished_case_is_kept_for_the_same_image_seed_and_firmware(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    one = evidence(path)
    one.add(job("x"), OUTCOME)
    one.add_bug("a bug", job("y"), OUTCOME, False)
    again = evidence(path)
    assert (list(again.cases), list(again.bugs)) == (["x"], ["a bug"])
    again.add(job("z"), OUTCOME)
    document = json.loads(path.read_text())
    assert document["counts"]["cases"] == document["counts"]["blessed"] == 2
    assert {row["name"]: row["seconds"] for row in document["cases"]} == {"x": 30.0, "z": 30.0}
    for other in (
        evidence(path, seed="2"),
        evidence(path, firmware="plain"),
        evidence(path, image="another"),
    ):
        assert not other.cases


def test_after_the_end_of_the_time_nothing_is_begun(tmp_path: Path) -> None:
    made: list[Path] = []
    late = Runner([], {}, tmp_path, 1.0, time.monotonic() - 1)
    late.all([Job("x", "", "", made.append)], 2, lambda _job, _outcome: pytest.fail("it was begun"))
    assert not made
