"""Seeded bugs: freezers that break a promise in one place, which the harness must notice."""

from __future__ import annotations

from tests.fire.bugs import Bug

ORGAN = "organs/freezer/organ.py"
DECISION = "organs/freezer/focus.py"

BUGS = (
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
        "not settled",
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
