"""What becomes of a call when something happens to the link, decided without the link.

Pure: a call's state and an event in, an action out, from one table. The client holds the calls and acts. A
call is WAITING until it was handed to a connection whose callee has told its generation, then SENT. That
its deadline passes is no event here: it ends a call in whatever state it is.
"""

from enum import Enum, auto, unique
from typing import Final


@unique
class CallState(Enum):
    """Where a call is. There is no third state: an answered call is forgotten."""

    WAITING = auto()
    SENT = auto()

    __hash__ = (
        object.__hash__
    )  # Enum's own is a function of Python's, and every call looks up the table twice.


@unique
class Event(Enum):
    """What happened."""

    READY = auto()
    """A callee is there and has told its generation."""
    LOST = auto()
    """The connection ended."""
    ANSWER = auto()
    """An answer to this attempt arrived."""
    OLD_ANSWER = auto()
    """An answer to an earlier attempt arrived, or to one that was never made."""

    __hash__ = object.__hash__


@unique
class Action(Enum):
    """What the client does."""

    NOTHING = auto()
    SEND = auto()
    """Send it to this generation; the call is SENT."""
    AGAIN = auto()
    """Count an attempt more; the call is WAITING."""
    FINISH = auto()
    """Give the caller the answer."""
    DIED = auto()
    """Tell the caller that the callee died and nobody knows how far it came."""


_TABLE: Final[dict[tuple[CallState, Event], Action]] = {
    (CallState.WAITING, Event.READY): Action.SEND,
    (CallState.WAITING, Event.LOST): Action.NOTHING,
    (CallState.WAITING, Event.ANSWER): Action.NOTHING,  # Nobody was asked: a peer makes answers up.
    (CallState.WAITING, Event.OLD_ANSWER): Action.NOTHING,
    (CallState.SENT, Event.READY): Action.NOTHING,
    (CallState.SENT, Event.LOST): Action.DIED,
    (CallState.SENT, Event.ANSWER): Action.FINISH,
    (CallState.SENT, Event.OLD_ANSWER): Action.NOTHING,
}


def decide(state: CallState, event: Event, *, idempotent: bool) -> Action:
    """What to do with a call. Only an idempotent one outlives its callee."""
    action = _TABLE[state, event]
    if action is Action.DIED and idempotent:  # INV-BUS-4
        return Action.AGAIN
    return action
