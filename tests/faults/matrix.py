"""The fault matrix: damages the disk of the production image everywhere, boots it, judges what comes of it.

`python -m tests.faults.matrix --seed 1` builds the image, boots it once as it is (the control, which also
says how long a boot takes here), then each case on a disk of its own, two machines at a time, and each power
cut of the writes of a healthy boot, of a repair and of an update; then the seeded bugs. Each finished case is
added to the evidence; started again with the same seed, image and firmware it goes on where it stopped. With
--again, cases that broke the promise are judged anew, and what was said of them before stays beside.
Judged from outside: `tests/faults/judge.py`.

Touches: the cache of the build, the work directory, the evidence file, QEMU.
Fails: with 1 when a case broke the promise, which is in the evidence as it is; 3 when the host lacks
something.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from spine import paths
from spine.errors import SpineError
from spine.ground import powercut
from spine.ground.disk import sparse_copy
from tests.faults import cases, cuts, edits, updates
from tests.faults.blessed import Release
from tests.faults.bugs import BUGS
from tests.faults.cases import Case, Damage, Fault
from tests.faults.judge import Verdict
from tests.faults.stage import Stage, built, secure_options
from tests.faults.watch import Outcome, watch
from tests.fire.evidence import commit, covered

EVIDENCE = paths.ROOT / "docs/evidence/faults.json"
# What is judged, and the judge.
COVERED = ("organs", "bus", "schemas", "spine-image", "tests/faults")
# A machine that does nothing for so many boots' time does nothing more; and never less than this.
PATIENCE_BOOTS, PATIENCE_S = 3, 90.0
# What --only calls the seeded bugs.
SEEDED = "seeded bugs"
CONTROL = Case(())
CONTROL_NAME = "nothing"
# What a log is taken of, by name. In the second, A starts first, so B is replaced.
SCENARIOS: Mapping[str, Case] = {
    "boot": CONTROL,
    "repair-a": Case((Fault("slot-a/data", Damage.BIT),)),
    "repair-b": Case((Fault("boot-b", Damage.SPENT), Fault("slot-b/data", Damage.BIT))),
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One disk to judge: its place in the table, and how it is made."""

    name: str
    region: str
    damage: str
    make: Callable[[Path], None]


def damaged(stage: Stage, case: Case, seed: str, target: Path) -> None:
    """A copy of the disk with the damages of a case."""
    sparse_copy(stage.disk, target)
    with open(target, "r+b") as disk:
        for edit in edits.edits(case, stage.places, stage.read, seed):
            disk.seek(edit.at)
            disk.write(edit.data)


def case_job(stage: Stage, case: Case, seed: str) -> Job:
    """The job of a case."""
    alone = len(case.faults) == 1
    return Job(
        case.name or CONTROL_NAME,
        case.faults[0].region if alone else "several",
        case.faults[0].damage.value if alone else "combined",
        lambda target: damaged(stage, case, seed, target),
    )


def cut_jobs(stage: Stage, scenario: str, directory: Path, seed: str) -> list[Job]:
    """The jobs of the cuts of one log; its disk and log are in `directory`."""
    base, log = directory / powercut.BASE_FILE, directory / powercut.LOG_FILE
    entries = powercut.read(log)

    def job(cut: cuts.Cut) -> Job:
        def make(target: Path) -> None:
            powercut.replay(base, log, cut.after, target, keep=cut.keep)

        return Job(f"cut {cut.name}", f"cut {scenario}", "power cut", make)

    return [job(cut) for cut in cuts.choose(scenario, entries, stage.places.partitions, seed)]


def kept(row: Mapping[str, object]) -> bool:
    """Whether a row of the evidence says that the promise was kept."""
    return Verdict(row["verdict"]).kept


class Evidence:
    """What was done so far, and the file that says so."""

    def __init__(self, path: Path, seed: str, firmware: str, image: str, command: str) -> None:
        self.path, self.seed, self.firmware, self.image, self.command = path, seed, firmware, image, command
        self.covered = covered(COVERED)
        self.cases: dict[str, dict[str, object]] = {}
        self.bugs: dict[str, dict[str, object]] = {}
        self._lock = threading.Lock()

    def resume(self) -> None:
        """Go on from a file about the same image; seeded bugs are kept for the same covered files."""
        try:
            old = json.loads(self.path.read_text())
        except FileNotFoundError:
            return
        if old["covered"]["sha256"] == self.covered:
            self.bugs = old["seededBugs"]
        if (old["seed"], old["firmware"], old["image"]) == (self.seed, self.firmware, self.image):
            self.cases = {row["name"]: row for row in old["cases"]}

    def add(self, job: Job, outcome: Outcome) -> None:
        """One more case."""
        with self._lock:
            before = self.cases.get(job.name, {})
            earlier = [*cast(list[str], before.get("earlier", []))]
            if before and not kept(before):
                earlier.append(f"{before['verdict']}: {before['why']}")
            self.cases[job.name] = {
                "name": job.name,
                "region": job.region,
                "damage": job.damage,
                "verdict": outcome.verdict.value,
                "why": outcome.why,
                "boots": outcome.boots,
                "attempts": outcome.attempts,
                "pressed": outcome.pressed,
                "seconds": outcome.seconds,
                "commit": commit(COVERED),
                **({"earlier": earlier} if earlier else {}),
            }
            self.write()

    def add_bug(self, name: str, job: Job, outcome: Outcome, caught: bool) -> None:
        """A seeded bug, and whether its case caught it."""
        with self._lock:
            self.bugs[name] = {
                "case": job.name,
                "verdict": outcome.verdict.value,
                "boots": outcome.boots,
                "caught": caught,
            }
            self.write()

    def counts(self) -> dict[str, int]:
        """How many cases ended how."""
        found = Counter(str(row["verdict"]) for row in self.cases.values())
        return {verdict.value: found[verdict.value] for verdict in Verdict}

    def write(self) -> None:
        """All of it, whole or not at all."""
        document = {
            "what": "the disk of the production image damaged in one place or several, or left by a power "
            "cut, then booted in QEMU and judged from outside; the promise is kept where the verdict is "
            "blessed or rescue",
            "seed": self.seed,
            "command": self.command,
            "firmware": self.firmware,
            "image": self.image,
            "counts": {"cases": len(self.cases), **self.counts()},
            "covered": {"directories": list(COVERED), "sha256": self.covered},
            "ground": {"kernel": platform.release(), "accel": "tcg"},
            "seededBugs": self.bugs,
            "cases": list(self.cases.values()),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(document, indent=1) + "\n")
        draft.replace(self.path)


@dataclass
class Runner:
    """Judges jobs, each with a directory of its own below `work`, until the time is up."""

    releases: Sequence[Release]
    options: Mapping[str, object]
    work: Path
    patience_s: float
    end_s: float

    def one(self, job: Job, *, keep: Path | None = None) -> Outcome:
        """Make the disk, watch it, remove it. With `keep`, the disk from before and the log stay there."""
        with tempfile.TemporaryDirectory(dir=self.work) as name:
            directory = Path(name)
            disk = directory / "disk.img"
            job.make(disk)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                sparse_copy(disk, keep / powercut.BASE_FILE)
            log = directory / powercut.LOG_FILE if keep is not None else None
            outcome = watch(
                disk,
                directory / "machine",
                self.releases,
                options=self.options,
                patience_s=self.patience_s,
                log=log,
            )
            if not outcome.verdict.kept or job.name == CONTROL_NAME:
                self._save(job, directory / "machine")
            if log is not None and keep is not None:
                sparse_copy(log, keep / powercut.LOG_FILE)
            return outcome

    def _save(self, job: Job, machine: Path) -> None:
        """Keep what a case that broke the promise left on its serial line and its screen."""
        target = self.work / "seen" / re.sub(r"[^a-z0-9.-]+", "_", job.name)
        target.mkdir(parents=True, exist_ok=True)
        for name in ("serial.log", "last.ppm"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(machine / name, target / name)

    def all(self, jobs: Iterable[Job], workers: int, done: Callable[[Job, Outcome], None]) -> None:
        """Judge them side by side; what has not begun when the time is up is left."""

        def work(job: Job) -> None:
            if time.monotonic() < self.end_s:
                done(job, self.one(job))

        with ThreadPoolExecutor(workers) as pool:
            for finished in [pool.submit(work, job) for job in jobs]:
                finished.result()


def campaign(arguments: argparse.Namespace, work: Path, command: str, say: Say) -> int:
    """All of it; the number of cases in the evidence that broke the promise."""
    end_s = time.monotonic() + arguments.limit_s
    stage = built(work)
    options = secure_options() if arguments.firmware == "secure" else {}
    evidence = Evidence(arguments.out, arguments.seed, arguments.firmware, stage.image_sha256, command)
    evidence.resume()
    runner = Runner([stage.release], options, work, 10 * PATIENCE_S, end_s)

    def done(job: Job, outcome: Outcome) -> None:
        evidence.add(job, outcome)
        mark = "" if outcome.verdict.kept else f"   !! {outcome.why} [{outcome.attempts}]"
        count = len(evidence.cases)
        say(f"{count}: {job.name}: {outcome.verdict.value}, {outcome.boots} boots, {outcome.seconds} s{mark}")

    def wanted(job: Job) -> bool:
        row = evidence.cases.get(job.name)
        return arguments.only in job.name and (row is None or (arguments.again and not kept(row)))

    control = case_job(stage, CONTROL, arguments.seed)
    logs = work / f"log-{stage.image_sha256[:16]}-{arguments.firmware}"
    outcome = runner.one(control, keep=logs / "boot")
    done(control, outcome)
    if outcome.verdict is not Verdict.BLESSED:
        say("the control is not blessed: nothing else would say anything")
        return 1
    runner.patience_s = max(PATIENCE_S, PATIENCE_BOOTS * outcome.seconds)
    jobs = [case_job(stage, case, arguments.seed) for case in cases.every()]
    runner.all(filter(wanted, jobs), arguments.jobs, done)
    for scenario, case in SCENARIOS.items():
        if time.monotonic() >= end_s or arguments.only not in f"cut {scenario}":
            continue
        if not (logs / scenario / powercut.LOG_FILE).is_file():
            logged = replace(case_job(stage, case, arguments.seed), name=f"logged {scenario}")
            outcome = runner.one(logged, keep=logs / scenario)
            say(f"the log of {scenario}: {outcome.verdict.value}")
        jobs = cut_jobs(stage, scenario, logs / scenario, arguments.seed)
        runner.all(filter(wanted, jobs), arguments.jobs, done)
    if time.monotonic() < end_s and arguments.only in "cut update":
        old, new = updates.stages(work)
        if not (logs / "update" / powercut.LOG_FILE).is_file():
            updates.log(old, new, logs / "update", work, options)
        jobs = cut_jobs(old, "update", logs / "update", arguments.seed)
        both = replace(runner, releases=[old.release, new.release])
        both.all(filter(wanted, jobs), arguments.jobs, done)
    if arguments.only in ("", SEEDED):
        _bugs(evidence, runner, arguments.seed, say)
    say(" ".join(f"{name} {count}" for name, count in evidence.counts().items() if count))
    return sum(not kept(row) for row in evidence.cases.values())


def _bugs(evidence: Evidence, runner: Runner, seed: str, say: Say) -> None:
    """Each seeded bug must be caught by its case, with all else as it is."""
    for number, bug in enumerate(BUGS):
        if bug.name in evidence.bugs or time.monotonic() >= runner.end_s:
            continue
        stage = built(runner.work, replace=bug.overlay(), name=f"bug-{number}")
        if bug.alter is not None:
            bug.alter(stage)
        broken = replace(runner, releases=[stage.release])
        job = case_job(stage, bug.case, seed)
        outcome = broken.one(job)
        caught = outcome.verdict in bug.expected
        evidence.add_bug(bug.name, job, outcome, caught)
        say(f"seeded bug, {bug.name}: {outcome.verdict.value}, {'caught' if caught else 'MISSED'}")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="damage disks of the production image and judge what boots")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--out", type=Path, default=EVIDENCE)
    parser.add_argument("--only", default="", help=f"cases whose name has this in it, or {SEEDED!r}")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--again", action="store_true", help="also the cases that broke the promise; what they were is kept"
    )
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="begin no case after this time")
    parser.add_argument("--firmware", choices=("secure", "plain"), default="secure")
    parser.add_argument("--work", type=Path, help="keep images, logs and what bad cases showed here")
    arguments = parser.parse_args()
    command = f"python -m tests.faults.matrix --seed {arguments.seed} --firmware {arguments.firmware}"

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        if arguments.work is not None:
            arguments.work.mkdir(parents=True, exist_ok=True)
            return 1 if campaign(arguments, arguments.work, command, say) else 0
        with tempfile.TemporaryDirectory() as work:
            return 1 if campaign(arguments, Path(work), command, say) else 0
    except SpineError as error:
        say(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
