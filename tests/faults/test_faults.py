"""A few cases of the fault matrix, on the production image with Secure Boot: one boot each.

The whole matrix is a campaign (`python -m tests.faults.matrix`), and docs/faults.md what came of it; these
keep it from rotting between two campaigns.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from spine.ground import powercut
from tests.faults.cases import Case, Damage, Fault
from tests.faults.cuts import choose
from tests.faults.judge import Verdict
from tests.faults.matrix import SCENARIOS, Job, Runner, case_job, cut_jobs
from tests.faults.stage import Stage, built, secure_options
from tests.faults.watch import Outcome
from tests.integration.boots import Boot

pytestmark = [pytest.mark.machine, pytest.mark.timeout(1800)]

SEED = "1"
# Only a machine that hangs is waited for so long; and a host that is ten times slower than ours.
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def stage(work: Path) -> Stage:
    """The production image."""
    return built(work)


@pytest.fixture(scope="module")
def runner(stage: Stage, work: Path) -> Runner:
    return Runner([stage.release], secure_options(), work, PATIENCE_S, time.monotonic() + 1800)


def judged(boot: Boot, runner: Runner, job: Job, keep: Path | None = None) -> Outcome:
    """Judge one disk; one boot is all that it may take."""
    outcome = runner.one(job, keep=keep)
    assert outcome.boots == 1, f"{boot.name}: {outcome}"
    return outcome


@pytest.fixture(scope="module")
def repair(stage: Stage, runner: Runner, work: Path) -> tuple[Outcome, Path]:
    """Slot A rotted; B runs and replaces it. What came of it, and its log."""
    keep = work / "log"
    job = case_job(stage, SCENARIOS["repair-a"], SEED)
    return judged(Boot.FAULT_REPAIR, runner, job, keep), keep


def test_a_slot_that_rotted_is_replaced_bit_for_bit(repair: tuple[Outcome, Path]) -> None:
    outcome, _ = repair
    assert (outcome.verdict, outcome.attempts, outcome.at_rest) == (Verdict.BLESSED, "b", "now"), outcome


def test_a_power_cut_in_the_middle_of_that_is_made_good(
    repair: tuple[Outcome, Path], stage: Stage, runner: Runner
) -> None:
    _, log = repair
    cuts = choose("repair-a", powercut.read(log / powercut.LOG_FILE), stage.places.partitions, SEED)
    [name] = [cut.name for cut in cuts if "slot-a middle torn" in cut.name][:1]
    [job] = [job for job in cut_jobs(stage, "repair-a", log, SEED) if job.name == f"cut {name}"]
    outcome = judged(Boot.FAULT_CUT, runner, job)
    assert (outcome.verdict, outcome.at_rest) == (Verdict.BLESSED, "now"), outcome


def test_without_the_first_boot_volume_the_other_starts_and_makes_it_anew(
    stage: Stage, runner: Runner
) -> None:
    job = case_job(stage, Case((Fault("boot-a", Damage.ZERO),)), SEED)
    outcome = judged(Boot.FAULT_VOLUME, runner, job)
    assert (outcome.verdict, outcome.at_rest) == (Verdict.BLESSED, "now"), outcome


def test_with_no_try_left_the_rescue_shows_and_stays(stage: Stage, runner: Runner) -> None:
    job = case_job(stage, Case((Fault("boot-a", Damage.SPENT), Fault("boot-b", Damage.SPENT))), SEED)
    outcome = judged(Boot.FAULT_RESCUE, runner, job)
    assert (outcome.verdict, outcome.attempts) == (Verdict.RESCUE, ""), outcome
