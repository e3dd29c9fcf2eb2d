"""Hand-overs of the focus among three rooms while processes of the spine are killed at any step.

`python -m tests.rooms.handover --hand-overs 300 --kills 60` first proves the harness on the seeded bugs, then
hands over in rounds, each on a fresh spine with a seed of its own. Hand-overs are asked for by the person at
the port and by the room that has the focus; now and then a room is ended and made again. Kills fall before,
within and after. After each kill the victim answers again, nobody else was restarted, PID 1 is the same, and
the freezer says what the kernel says; who had the focus has it, or the room that was to get it, or nobody.
An independent watcher (watcher.py) sees all the while that never two rooms are awake.

After each round docs/evidence/handover.json is written; started again with the same seed on the same files it
goes on where it stopped. A violation ends it: nothing is written then, and the round's seed replays it. Needs
root.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from organs.freezer.policy import ROOM_INTERVAL_MS
from spine import paths
from spine.ground.port import schemas
from tests.fire.bugs import Bug
from tests.fire.evidence import commit, covered
from tests.fire.rig import Overlay, answers, development, risen
from tests.rooms.house import NAMES, PATIENCE_S, House, Watching, images

EVIDENCE = paths.ROOT / "docs/evidence/handover.json"
# What is under test, and the harness.
COVERED = (
    *("organs", "bus", "schemas", "tests/fire/rig.py"),
    *("tests/rooms/watcher.py", "tests/rooms/house.py", "tests/rooms/handover.py"),
)
VICTIMS: Final = (
    *("freezer", "builder", "umbilical", "netroom"),  # each has a part in a hand-over
    *("integrity", "gate", "zygote", "operator"),
)
# Of the kills, so many hit one of the four.
PART_SHARE: Final = 0.75
ROUND_HAND_OVERS, ROUND_KILLS = 60, 12
# Acts that a seeded bug gets before it must have been noticed.
BUG_HAND_OVERS, BUG_KILLS = 60, 20
# Of the hand-overs, so many are the wish of a room; and so often one is ended and made again.
WISH_SHARE, ANEW_SHARE = 0.25, 0.08
# A kill within a hand-over falls at most so long after it was asked for. Most take less, so some fall after.
WITHIN_S, ANEW_S = 0.04, 0.15

ORGAN: Final = "organs/freezer/organ.py"
DECISION: Final = "organs/freezer/focus.py"

# Freezers that break a promise in one place, which the harness must notice.
BUGS: Final = (
    Bug(
        "a freezer that takes asked for confirmed",
        ORGAN,
        {"elif standing.asked and standing.frozen and phase": "elif standing.asked and phase"},
        "were awake at one moment",
    ),
    Bug(
        "a restarted freezer that takes every room for frozen",
        DECISION,
        {"Kernel.AWAKE: Phase.RUNNING}": "Kernel.AWAKE: Phase.FROZEN}"},
        "not settled|were awake at one moment",
    ),
    Bug(
        "a restarted freezer that wakes somebody",
        DECISION,
        {
            "    elif awake:\n": "    elif not awake and turn.rooms:\n"
            "        turn.enter(Move(None, min(turn.rooms), Step.THAW, back=True))\n"
            "    elif awake:\n"
        },
        "woke",
    ),
)


@dataclass
class Result:
    """What a round came to."""

    hand_overs: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    watched: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


class Round:
    """One spine and what is done to it."""

    def __init__(self, house: House, seed: str, result: Result) -> None:
        self._house, self._result, self._dice = house, result, random.Random(seed)
        self._table = schemas()
        # Sessions of wishes whose rooms are frozen: the program ends when they run again.
        self._open: list[tuple[str, object]] = []
        # The rooms that may have been awake when the last kill was done.
        self._left: list[str] = []

    @property
    def wrong(self) -> list[str]:
        """What went wrong with calls so far."""
        return self._house.ends.violations

    def act(self, kill: bool) -> None:
        """One hand-over, or a room anew; with a kill before, within or after it."""
        house = self._house
        had = house.focus()
        if self.wrong:
            return
        target = self._dice.choice([name for name in NAMES if name != had])
        anew = self._dice.random() < ANEW_SHARE
        wish = had != "" and self._dice.random() < WISH_SHARE
        victim = self._victim() if kill else ""
        when = self._dice.choice(("before", "within", "within", "after"))
        delay_s = self._dice.random() * (ANEW_S if anew else WITHIN_S)
        if anew:
            doing = threading.Thread(target=self._anew, args=(target,))
        elif wish:
            doing = threading.Thread(target=self._wish, args=(had, target))
        else:
            doing = threading.Thread(target=house.call, args=("freezer.focus",), kwargs={"persona": target})
        if wish:
            time.sleep(ROOM_INTERVAL_MS / 1000)  # a room may not pass it on sooner
        before = house.spine.children()
        if victim and when == "before":
            self._hit(victim, before)
        doing.start()
        if victim and when == "within":
            time.sleep(delay_s)
            self._hit(victim, before)
        doing.join()
        if victim and when == "after":
            self._hit(victim, before)
        self._result.hand_overs["room anew" if anew else "room's wish" if wish else "person"] += 1
        if victim:
            self._consequences(victim, before)
        now = house.focus()
        if now not in (had, target, "") and not wish:
            self.wrong.append(f"{had or 'nobody'} had the focus, {target} was to get it, {now} has it")
        if victim == "freezer" and now not in (*self._left, target, ""):
            self.wrong.append(f"a restarted freezer woke {now}")
        house.furnish()
        if victim:
            house.serves()
        self._drain()

    def _victim(self) -> str:
        part = self._dice.random() < PART_SHARE
        return self._dice.choice(VICTIMS[:4] if part else VICTIMS[4:])

    def _hit(self, victim: str, before: Mapping[str, Mapping[str, object]]) -> None:
        left = self._house.kill(int(str(before[victim]["pid"])))
        if left is None:
            self.wrong.append(f"{victim} was not there to be killed")
            return
        self._result.kills[victim] += 1
        self._left = [name for name, state in left.items() if state in ("thawed", "moving")]

    def prelude(self) -> None:
        """The freezer dies while all rooms are frozen: the next one wakes nobody."""
        before = self._house.spine.children()
        self._hit("freezer", before)
        self._consequences("freezer", before)
        if now := self._house.focus():
            self.wrong.append(f"a restarted freezer woke {now}")

    def _consequences(self, victim: str, before: Mapping[str, Mapping[str, object]]) -> None:
        """The victim answers again, nobody else was restarted, and PID 1 is the same."""
        spine = self._house.spine
        end = time.monotonic() + PATIENCE_S
        while not (risen(spine.children()[victim], before[victim]) and answers(spine, self._table, victim)):
            if time.monotonic() > end or not spine.alive():
                self.wrong.append(f"{victim} did not come back")
                return
            time.sleep(0.002)
        for name, now in spine.children().items():
            if name != victim and now["generation"] != before[name]["generation"]:
                self.wrong.append(f"{name} was restarted when {victim} was killed")

    def _anew(self, name: str) -> None:
        self._house.call("freezer.stop", persona=name)
        self._house.call("freezer.start", persona=name)

    def _wish(self, room: str, target: str) -> None:
        """The room that has the focus passes it on. It is frozen before its program ends."""
        begun = self._house.call("operator.exec", persona=room, argv=["umbilical", "focus", target])
        if begun is not None:
            self._open.append((room, begun["session"]))
            end = time.monotonic() + WISH_S
            while time.monotonic() < end and self._house.kernel.rooms().get(room) == "thawed":
                time.sleep(0.002)

    def _drain(self) -> None:
        """Programs that have ended by now; those of rooms that still run must."""
        still = []
        for room, session in self._open:
            ended = self._house.drained(session, once=True)
            if ended == "":
                still.append((room, session))
            else:
                self._result.ends[f"wish {ended or 'of a session that is gone'}"] += 1
        self._open = still

    def finish(self) -> None:
        """Give the focus to each room in turn: each wakes, is served, and what was begun in it ends.

        Then end all rooms: bay0 holds what it held before there was any.
        """
        for name in NAMES:
            self._house.call("freezer.focus", persona=name)
            if self._house.focus() != name:
                self.wrong.append(f"{name} does not get the focus in the end")
                return
            self._house.serves()
            end = time.monotonic() + PATIENCE_S
            while any(room == name for room, _ in self._open) and not self.wrong:
                self._drain()
                if time.monotonic() > end:
                    self.wrong.append(f"a program of {name} does not end")
        for name in NAMES:
            self._house.call("freezer.stop", persona=name)
        self._house.nothing_left()


# How long a room's wish may take to begin to freeze it. It may also be refused: then the room goes on.
WISH_S: Final = 0.5


def round_of(
    home: Path,
    hand_overs: int,
    kills: int,
    seed: str,
    overlay: Overlay,
    made: Mapping[str, bytes],
    *,
    say: Callable[[str], None] | None = None,
) -> Result:
    """A fresh spine with its rooms, so many hand-overs with kills among them, and the reckoning."""
    result = Result()
    house = House(home, overlay, made)
    try:
        watching = Watching(house.kernel.root)
        try:
            house.furnish()
            turn = Round(house, seed, result)
            if kills:
                turn.prelude()
            killing = set(random.Random(f"{seed} kills").sample(range(hand_overs), max(0, kills - 1)))
            for number in range(hand_overs):
                turn.act(number in killing)
                if turn.wrong or watching.violations:
                    break
                if say is not None:
                    say(f"{number + 1} of {hand_overs} hand-overs, {sum(result.kills.values())} kills")
            else:
                turn.finish()
        finally:
            watching.end()
        result.violations += watching.violations + house.ends.violations
        result.watched.update(watching.summary)
        result.ends.update(house.ends.counts)
        if not house.spine.alive():
            result.violations.append("PID 1 is gone")
        if not house.spine.container.stop() and not result.violations:
            result.violations.append(f"the stop was not orderly: {house.spine.container.exit_code}")
    finally:
        house.spine.close()
    return result


def notices(home: Path, bug: Bug, seed: str, made: Mapping[str, bytes]) -> tuple[int, list[str]]:
    """After how many hand-overs the harness noticed a seeded bug, and what it said; nothing if it did not."""
    found = round_of(home, BUG_HAND_OVERS, BUG_KILLS, seed, bug.overlay(development()), made)
    return sum(found.hand_overs.values()), [said for said in found.violations if re.search(bug.noticed, said)]


class Evidence:
    """What was done so far, and the file that says so."""

    def __init__(self, seed: str, command: str) -> None:
        self.seed, self.command, self.covered = seed, command, covered(COVERED)
        self.rounds = 0
        self.counters = {name: Counter[str]() for name in ("handOvers", "kills", "ends", "watched")}
        self.caught: dict[str, int] = {}

    def resume(self, path: Path) -> None:
        """Go on from a file of the same seed about the same files."""
        try:
            old = json.loads(path.read_text())
        except FileNotFoundError:
            return
        if (old["seed"], old["covered"]["sha256"]) != (self.seed, self.covered):
            return
        self.rounds, self.caught = old["rounds"], old["seededBugsCaughtAfterHandOvers"]
        self.counters = {name: Counter(old[name]) for name in self.counters}

    def add(self, result: Result) -> None:
        """One more round."""
        self.rounds += 1
        parts = (result.hand_overs, result.kills, result.ends, result.watched)
        for counter, part in zip(self.counters.values(), parts, strict=True):
            longest = max(counter[LONGEST], part[LONGEST])
            counter.update(part)
            if longest:
                counter[LONGEST] = longest

    def total(self, name: str) -> int:
        """Hand-overs or kills so far."""
        return sum(self.counters[name].values())

    def write(self, path: Path) -> None:
        """All of it."""
        document = {
            "what": "the focus handed around among three rooms (one forks for ever, one never rests, one "
            "talks on the umbilical) while processes of the spine were killed (SIGKILL) before, within and "
            "after, in the container ground with a development manifest; an independent watcher read the "
            "kernel's state of all rooms all the while",
            "commit": commit(COVERED),
            "seed": self.seed,
            "command": self.command,
            "counts": {
                "handOvers": self.total("handOvers"),
                "kills": self.total("kills"),
                "momentsWithTwoRoomsAwake": 0,
                "frozenRoomsThatUsedProcessorTime": 0,
                "callsWithoutATypedEnd": 0,
                "statesUnlikeTheKernels": 0,
                "deathsOfPid1": 0,
            },
            "seededBugsCaughtAfterHandOvers": self.caught,
            "rounds": self.rounds,
            **{name: dict(sorted(counter.items())) for name, counter in self.counters.items()},
            "covered": {"directories": list(COVERED), "sha256": self.covered},
            "ground": {"kernel": platform.release()},
        }
        path.write_text(json.dumps(document, indent=1) + "\n")


# Of all that the watcher counts this is a maximum, not a sum.
LONGEST: Final = "longestWithoutSweepUsec"


def campaign(
    evidence: Evidence, path: Path, hand_overs: int, kills: int, say: Callable[[str], None]
) -> list[str]:
    """Hand over until there were so many of both; what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        made = images(home)
        for bug in BUGS:
            if bug.name not in evidence.caught:
                after, said = notices(home, bug, evidence.seed, made)
                first = said[0].partition(": {")[0] if said else "MISSED"
                say(f"seeded bug, {bug.name}: {first}, after {after} hand-overs")
                if not said:
                    return [f"the harness missed {bug.name}"]
                evidence.caught[bug.name] = after
        while (done := evidence.total("handOvers")) < hand_overs or evidence.total("kills") < kills:
            count = max(1, min(ROUND_HAND_OVERS, hand_overs - done))
            part = min(count, ROUND_KILLS, max(0, kills - evidence.total("kills")))
            seed = f"{evidence.seed}.{evidence.rounds}"
            result = round_of(home, count, part, seed, development(), made, say=say)
            if result.violations:
                return [f"round {evidence.rounds} (seed {seed}): {said}" for said in result.violations]
            evidence.add(result)
            evidence.write(path)
            say(f"{evidence.total('handOvers')} hand-overs, {evidence.total('kills')} kills, never two awake")
    return []


def main() -> int:
    """The campaign."""
    parser = argparse.ArgumentParser(description="hand the focus around while processes are killed")
    parser.add_argument("--hand-overs", type=int, default=300)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", default="1")
    arguments = parser.parse_args()
    command = f"python -m tests.rooms.handover --hand-overs {arguments.hand_overs} --kills {arguments.kills}"
    evidence = Evidence(arguments.seed, f"{command} --seed {arguments.seed}")
    evidence.resume(EVIDENCE)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    wrong = campaign(evidence, EVIDENCE, arguments.hand_overs, arguments.kills, say)
    for line in wrong:
        say(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
