"""Focus policy: who may move the focus, how often, and where it goes when the room that had it dies.

Pure: two tables and a rule. Time arrives as integer milliseconds since the last hand-over.
Never: touches a room; `organs/freezer/focus.py` carries out what is allowed here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

# A room may pass the focus on this long after it moved last. A person may move it at any time: no program can
# keep a person from their own screen, and no two rooms can toss the focus to each other all day.
ROOM_INTERVAL_MS: Final = 1000

PERSON: Final = None
"""Who asks: the person at the machine. A room is named by its own name."""


class Refusal(Enum):
    """Why the focus does not move."""

    NO_SUCH_ROOM = "there is no such room"
    MOVING = "the focus is moving already"
    NOT_ABLE = "the room is being made, is stuck or is ending"
    NOT_YOURS = "only the room that has the focus may pass it on"
    TOO_SOON = "the focus moved a moment ago"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One wish to move the focus, as the tables see it."""

    exists: bool
    able: bool
    moving: bool
    by_person: bool
    by_focused: bool
    elapsed_ms: int


# What a person is not refused for: it passes by itself, so the wish waits and is asked again.
WAITS: Final = frozenset({Refusal.MOVING})

# The first row whose question is answered with yes decides; if none is, the focus may move.
MAY_NOT: Final[tuple[tuple[Refusal, Callable[[Asked], bool]], ...]] = (
    (Refusal.NO_SUCH_ROOM, lambda asked: not asked.exists),
    (Refusal.NOT_YOURS, lambda asked: not asked.by_person and not asked.by_focused),
    (Refusal.MOVING, lambda asked: asked.moving),
    (Refusal.NOT_ABLE, lambda asked: not asked.able),
    (Refusal.TOO_SOON, lambda asked: not asked.by_person and asked.elapsed_ms < ROOM_INTERVAL_MS),
)


def refusal(asked: Asked) -> Refusal | None:
    """Why this wish is not granted, or None."""
    return next((reason for reason, applies in MAY_NOT if applies(asked)), None)  # INV-FOCUS-5


def successor(recent: Sequence[str], able: Collection[str]) -> str | None:
    """The room that gets the focus after the death of the one that had it: the one that had it before.

    `recent` is in the order of the last time each room had the focus, latest first. A room that never had it
    is not chosen: nobody asked for it. None: the focus is nobody's until somebody asks.
    """
    return next((room for room in recent if room in able), None)
