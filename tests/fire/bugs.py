"""Seeded bugs: spines that break a promise in one place, which the harness must notice."""

from __future__ import annotations

from dataclasses import dataclass

from tests.fire.rig import Overlay, edited

GATE = "organs/gate/organ.py"
CLIENT = "bus/client.py"
EACH_PENDING = "        for pending in list(self._pending.values()):\n"


@dataclass(frozen=True)
class Bug:
    """A text of a file that is replaced by another, and what the harness says then."""

    name: str
    path: str
    edits: dict[str, str]
    noticed: str

    def overlay(self, base: Overlay) -> dict[str, bytes]:
        """The base with the bug in it."""
        return {**base, self.path: edited(self.path, self.edits, base)}


BUGS = (
    Bug(
        "a gate that acknowledges before the commit",
        GATE,
        {
            "        try:\n            await answered.wait()\n": "        if isinstance(operation, Put):\n"
            "            return Stored(seq=1)\n"
            "        try:\n            await answered.wait()\n"
        },
        "lost what was acknowledged",
    ),
    Bug(
        "a bus client that forgets the calls of a dead peer",
        CLIENT,
        {
            EACH_PENDING + "            self._happened(pending, Event.LOST)\n": EACH_PENDING
            + "            pending.deadline_ns = NEVER\n",
        },
        "has no end",
    ),
)
