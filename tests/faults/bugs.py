"""Seeded bugs: systems that break the promise on purpose, and for each a case that must catch it.

Pure data and text: `overlay` makes the bytes of the files that a build lays over the tree. Three are mistakes
in the integrity organ; one is a disk whose programs' names do not count, which is what a boot that drops the
counter after a success leaves.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spine import paths
from tests.faults.blessed import COUNTER
from tests.faults.cases import Case, Damage, Fault
from tests.faults.judge import Verdict
from tests.faults.stage import Stage

REPLACE, PAIRS, VERIFY = (f"organs/integrity/{name}.py" for name in ("replace", "pairs", "verify"))
REPAIR = Case((Fault("slot-a/data", Damage.BIT),))


@dataclass(frozen=True)
class Bug:
    """What is changed in which file (each text stands there once), and the case that shows it.

    `alter` changes the disk instead. `expected` are the verdicts that the bug may come to.
    """

    name: str
    case: Case
    expected: frozenset[Verdict]
    file: str = ""
    changes: tuple[tuple[str, str], ...] = ()
    alter: Callable[[Stage], None] | None = None

    def overlay(self) -> Mapping[str, bytes]:
        """The changed file. ValueError when a text is not there, or more than once."""
        if not self.file:
            return {}
        text = (paths.ROOT / self.file).read_text()
        for old, new in self.changes:
            if text.count(old) != 1:
                raise ValueError(f"{self.file}: {text.count(old)} times {old!r}")
            text = text.replace(old, new)
        return {self.file: text.encode()}


def uncount(stage: Stage) -> None:
    """Take the counter out of both programs' names."""
    for pair in ("a", "b"):
        volume = f"{stage.disk}@@{stage.places.partitions[f'boot-{pair}'].start}"
        path = stage.places.program(pair).path
        plain = COUNTER.sub("", path).rpartition("/")[2]
        env = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
        subprocess.run(["mren", "-i", volume, f"::/{path}", plain], check=True, capture_output=True, env=env)


BUGS = (
    Bug(
        "a write that did not stick is not noticed: no read-back",
        REPAIR,
        frozenset({Verdict.UNHEALED}),
        REPLACE,
        (
            (
                "                self._write(offset + skip, len(piece))\n",
                "                if offset != 3 * STEP or not self.name.startswith('slot'):\n"
                "                    self._write(offset + skip, len(piece))\n",
            ),
            (
                "    checked = look_at_slot(target.slot, source.key)  # INV-SLOT-15\n",
                "    checked = Checked(judged=Judged(Verdict.VERIFIED), release=source.release)\n",
            ),
            (
                "from organs.integrity.verify import Verdict, judge\n",
                "from organs.integrity.verify import Judged, Verdict, judge\n",
            ),
        ),
    ),
    Bug(
        "a slot is trusted without its hashes",
        REPAIR,
        frozenset({Verdict.UNHEALED}),
        VERIFY,
        (("    if wrong or found.stray:\n", "    if False:\n"),),
    ),
    Bug(
        "a healthy boot does not set the counter back",
        Case(()),
        frozenset({Verdict.HANG}),
        PAIRS,
        (
            (
                "            if step.act in (Act.ARM, Act.DISARM):\n",
                "            if step.act is Act.ARM:\n"
                "                return\n"
                "            if step.act is Act.DISARM:\n",
            ),
        ),
    ),
    Bug(
        "the counter was dropped after a healthy boot",
        Case((Fault("slot-b/superblock", Damage.BIT),)),
        frozenset({Verdict.LOOP}),
        alter=uncount,
    ),
)
