"""Kills of random organs under load, as many as one has patience for.

`python -m tests.fire.campaign --kills 2000 --seed 1` first proves the harness on the seeded bugs, then fires
in rounds, each on a fresh spine with a seed of its own; every other round spares the operator. After each
round it writes docs/evidence/fire.json; started again with the same seed on the same files it goes on where
it stopped. A violation ends it: nothing is written then, and the round's seed replays it. Needs root.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from spine import paths
from tests.fire.bugs import BUGS, Bug
from tests.fire.evidence import commit, covered, percentile
from tests.fire.rig import Result, development, round_of

EVIDENCE = paths.ROOT / "docs/evidence/fire.json"
# What is under fire, and the harness.
COVERED = ("organs", "bus", "schemas", "tests/fire")
ROUND_KILLS = 100
# Kills a seeded bug gets before it must have been noticed.
BUG_KILLS = 120


def notices(home: Path, bug: Bug, seed: str) -> tuple[int, list[str]]:
    """After how many kills the harness noticed a seeded bug, and what it said; nothing when it did not."""
    found = round_of(home, BUG_KILLS, seed, bug.overlay(development()), spare_port=True, stop_at_first=True)
    return sum(found.kills.values()), [said for said in found.violations if bug.noticed in said]


class Evidence:
    """What was done so far, and the file that says so."""

    def __init__(self, seed: str, command: str) -> None:
        self.seed, self.command, self.covered = seed, command, covered(COVERED)
        self.rounds = self.acknowledged = 0
        self.kills: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.killed_ms: Counter[int] = Counter()
        self.hung_ms: Counter[int] = Counter()
        self.caught: dict[str, int] = {}

    def resume(self, path: Path) -> None:
        """Go on from a file of the same seed about the same files."""
        try:
            old = json.loads(path.read_text())
        except FileNotFoundError:
            return
        if (old["seed"], old["covered"]["sha256"]) != (self.seed, self.covered):
            return
        self.rounds, self.caught = old["rounds"], old["seededBugsCaughtAfterKills"]
        self.acknowledged = old["counts"]["acknowledgedPuts"]
        self.kills, self.ends = Counter(old["kills"]), Counter(old["ends"])
        for name, histogram in old["histogramsMs"].items():
            setattr(self, f"{name}_ms", Counter({int(ms): count for ms, count in histogram.items()}))

    def add(self, result: Result) -> None:
        """One more round."""
        self.rounds += 1
        self.acknowledged += result.acknowledged
        self.kills.update(result.kills)
        self.ends.update(result.ends)
        self.killed_ms.update(result.killed_ms)
        self.hung_ms.update(result.hung_ms)

    @property
    def total(self) -> int:
        """Kills and hangs so far."""
        return sum(self.kills.values())

    def write(self, path: Path) -> None:
        """All of it."""
        document = {
            "what": "random organs and the zygote killed (SIGKILL) or hung (SIGSTOP) under the load of three "
            "callers, in the container ground with a development manifest: no limit of deaths, no pause "
            "before a restart, a heartbeat of 500 ms; every call must end, every acknowledged put be found",
            "commit": commit(COVERED),
            "seed": self.seed,
            "command": self.command,
            "counts": {
                "kills": self.total,
                "calls": sum(self.ends.values()),
                "callsWithoutAnEnd": 0,
                "acknowledgedPuts": self.acknowledged,
                "acknowledgedPutsLost": 0,
                "deathsOfPid1": 0,
            },
            "restartToAnsweringMs": {
                name: {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99)}
                for name, times in (("killed", self.killed_ms), ("hung", self.hung_ms))
            },
            "seededBugsCaughtAfterKills": self.caught,
            "rounds": self.rounds,
            "kills": dict(sorted(self.kills.items())),
            "ends": dict(sorted(self.ends.items())),
            "histogramsMs": {
                name: {str(ms): times[ms] for ms in sorted(times)}
                for name, times in (("killed", self.killed_ms), ("hung", self.hung_ms))
            },
            "covered": {"directories": list(COVERED), "sha256": self.covered},
            "ground": {"kernel": platform.release()},
        }
        path.write_text(json.dumps(document, indent=1) + "\n")


def campaign(evidence: Evidence, path: Path, kills: int, say: Callable[[str], None]) -> list[str]:
    """Fire until there were so many kills; what went wrong."""
    with tempfile.TemporaryDirectory() as home:
        for bug in BUGS:
            if bug.name not in evidence.caught:
                after, said = notices(Path(home), bug, evidence.seed)
                say(f"seeded bug, {bug.name}: {said[0] if said else 'MISSED'}, after {after} kills")
                if not said:
                    return [f"the harness missed {bug.name}"]
                evidence.caught[bug.name] = after
        while evidence.total < kills:
            count = min(ROUND_KILLS, kills - evidence.total)
            seed = f"{evidence.seed}.{evidence.rounds}"
            result = round_of(Path(home), count, seed, development(), spare_port=evidence.rounds % 2 == 1)
            if result.violations:
                return [f"round {evidence.rounds} (seed {seed}): {said}" for said in result.violations]
            evidence.add(result)
            evidence.write(path)
            say(f"{evidence.total} kills, {evidence.acknowledged} acknowledged puts, nothing lost")
    return []


def main() -> int:
    """The campaign."""
    parser = argparse.ArgumentParser(description="kill organs under load")
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", default="1")
    arguments = parser.parse_args()
    evidence = Evidence(
        arguments.seed, f"python -m tests.fire.campaign --kills {arguments.kills} --seed {arguments.seed}"
    )
    evidence.resume(EVIDENCE)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    wrong = campaign(evidence, EVIDENCE, arguments.kills, say)
    for line in wrong:
        say(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
