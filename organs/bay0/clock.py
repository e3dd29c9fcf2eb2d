"""The clock: what bay0 makes of a proposal of the time, and of the clock it finds at boot.

Pure. A network can say anything, and who speaks for it can be anybody; so what it says moves the clock only
within bounds, each of which is there for what lies beyond it:

* Never before the image was made: then it was later already. (Old certificates would be good again.)
* Never more than a machine's life after that. (All certificates would be over.)
* The first proposal of a boot may go forward by any amount, for a machine may have no clock that outlasts its
  power; and back by a day, which is what other systems that keep local time in it leave behind.
* A later one moves it by minutes, and one is heard an hour: a day of lies is two hours.

What the network agrees with counts as its proposal: it cannot confirm the clock and then leap.
Never: knows who proposed; reckons with the clock it sets.
Fails: never. What is refused has a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import Final

_SECOND_MS: Final = 1000
_HOUR_MS: Final = 3600 * _SECOND_MS
_DAY_MS: Final = 24 * _HOUR_MS
# No release is run for longer, and no certificate that it trusts lasts as long.
LIFE_MS: Final = 20 * 365 * _DAY_MS
BACK_FIRST_MS_MAX: Final = _DAY_MS
# Any clock of a machine drifts by less than seconds an hour.
STEP_MS_MAX: Final = 5 * 60 * _SECOND_MS
PAUSE_MS: Final = _HOUR_MS
# Nearer than this is right: a network cannot say it better, and each step is seen by all programs.
NEAR_MS: Final = 100


@unique
class Why(Enum):
    """Why a proposal is refused."""

    SOON = "one is heard an hour"
    EARLY = "it is before the image was made"
    LATE = "it is more than twenty years after the image was made"
    BACK = "the first step of a boot goes back by a day at the most"
    FAR = "a later step is five minutes at the most"


@dataclass(frozen=True, slots=True)
class Clock:
    """When a proposal was taken last, on CLOCK_BOOTTIME; None: not in this boot."""

    taken_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Now:
    """Both clocks: the one that is set, since 1970, and the one that is not, since the boot."""

    wall_ms: int
    boot_ms: int


@dataclass(frozen=True, slots=True)
class Move:
    """Move the clock by so much; 0: it is right."""

    by_ms: int


def at_boot(wall_ms: int, built_ms: int) -> int | None:
    """What to set the clock to that the machine came up with, if it is none; else None."""
    return None if built_ms <= wall_ms <= built_ms + LIFE_MS else built_ms  # INV-TIME-2


def decide(clock: Clock, built_ms: int, booted_ms: int, now: Now) -> tuple[Clock, Move | Why]:
    """What follows from the proposal that the machine booted at `booted_ms`."""
    wanted_ms = booted_ms + now.boot_ms
    step_ms = wanted_ms - now.wall_ms
    if clock.taken_ms is not None and now.boot_ms - clock.taken_ms < PAUSE_MS:
        return clock, Why.SOON
    if wanted_ms < built_ms:  # INV-TIME-2
        return clock, Why.EARLY
    if wanted_ms > built_ms + LIFE_MS:
        return clock, Why.LATE
    if clock.taken_ms is None and step_ms < -BACK_FIRST_MS_MAX:  # INV-TIME-3
        return clock, Why.BACK
    if clock.taken_ms is not None and abs(step_ms) > STEP_MS_MAX:
        return clock, Why.FAR
    return Clock(now.boot_ms), Move(0 if abs(step_ms) < NEAR_MS else step_ms)
