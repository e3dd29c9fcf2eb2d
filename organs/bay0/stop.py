"""Stopping: how the children are brought to an end before the power goes.

Pure. Asks all, waits, kills the rest, waits once more, then ends whatever is left.
Never: waits longer than two deadlines. A child that cannot be killed does not keep the machine on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Effect(Enum):
    """What the shell must do now."""

    KILL_ALL = "kill every child whole"
    FINISH = "let go of the disks and end"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All children were asked to end, or killed, `age_ms` ago."""

    killed: bool = False
    age_ms: int = 0


def tick(state: State, elapsed_ms: int, deadline_ms: int, alive: int) -> tuple[State, Effect | None]:
    """The next state after `elapsed_ms` with so many children still there, and what to do."""
    assert elapsed_ms >= 0
    age_ms = state.age_ms + elapsed_ms
    if alive == 0:
        return state, Effect.FINISH
    if age_ms <= deadline_ms:
        return replace(state, age_ms=age_ms), None
    if state.killed:
        return state, Effect.FINISH
    return State(killed=True), Effect.KILL_ALL


def due_ms(state: State, deadline_ms: int) -> int:
    """After how long a `tick` has something to do, if no child ends before."""
    return max(0, deadline_ms - state.age_ms + 1)
