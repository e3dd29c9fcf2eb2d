"""Judges a machine from outside: what was seen of it, in order, becomes one verdict.

Pure: no clock, no files. The promise is `BLESSED` or `RESCUE`; all others break it. What is seen: resets, the
two counters and what the pairs are (`tests/faults/blessed.py`), the serial line, whether the machine's screen
shows anything. A running system is known by what only it does: bay0 says healthy and integrity sets the
counter of the slot that was started back; both slots and both volumes must then have its bytes.

Never: believes what the system says of itself, but for the rescue program's line, which the screen must bear
out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from tests.faults.blessed import ARMED, Counter, Look

# Three tries of each pair, the rescue program, and the first start.
BOOTS_MAX = 8
# So long nothing may change before a state counts as one that stays.
SETTLED_S = 4.0
# The rescue program and the firmware wait for a person; a reboot would come sooner than this.
STAYS_S = 15.0
# The share of the patience with a boot that one gets with a running system, which only has to read and write.
HEALED_SHARE = 0.5

RESCUE = re.compile(rb"Alpine-Spine: rescue")
# OVMF's last words.
NOTHING = re.compile(
    rb"No bootable option or device was found|Press any key to enter the Boot Manager|Shell>"
)
# The boot loader says once of each program that it could not start it.
NOT_STARTED = re.compile(rb"error loading (EFI binary )?\\EFI\\Linux", re.IGNORECASE)


class Verdict(Enum):
    """How a case ended."""

    BLESSED = "blessed"  # a blessed system runs, and all four parts have its bytes
    RESCUE = "rescue"  # the rescue screen shows, and stays
    LOOP = "loop"  # it started too often
    UNBLESSED = "unblessed"  # a program ran that is not of a release
    UNHEALED = "unhealed"  # a system runs and is healthy, but not all parts have its bytes
    HANG = "hang"  # nothing happens any more
    DEAD = "dead"  # the firmware finds nothing to start
    GONE = "gone"  # QEMU ended

    @property
    def kept(self) -> bool:
        """Whether the promise holds."""
        return self in (Verdict.BLESSED, Verdict.RESCUE)


@dataclass(frozen=True)
class Seen:
    """One look at the machine. `resets` and `written` (bytes to the disk) count from the start, `serial` is
    what came since the last look."""

    at_s: float
    resets: int
    counters: Mapping[str, Counter | None]
    serial: bytes = b""
    written: int = 0
    alive: bool = True
    shows: bool = False


@dataclass(frozen=True)
class Press:
    """Nothing will happen by itself, rightly so: both slots are lost. A person would press reset."""


@dataclass
class Judge:
    """Takes looks, gives a verdict in the end.

    `patience_s` is how long a machine may do nothing, `checks` whether its firmware has Secure Boot.
    """

    patience_s: float
    checks: bool = True
    boots: int = 1
    pressed: int = 0
    attempts: list[str] = field(default_factory=list)
    why: str = ""
    _counters: Mapping[str, Counter | None] | None = None
    _resets: int = 0
    _serial: bytes = b""
    _written: int = 0
    _changed_s: float = 0.0
    _busy_s: float = 0.0
    _tried: str = ""
    _doubts: list[str] = field(default_factory=list)
    _loader_doubt: str = ""
    _armed: bool = False
    _unread: dict[str, Counter] = field(default_factory=dict)

    def wants_look(self) -> bool:
        """Whether the next `judge` needs to know what the pairs are."""
        return self._armed

    def take(self, seen: Seen, look: Look | None) -> Verdict | Press | None:
        """One look; `look` is needed when a program was just started, or `wants_look`."""
        if seen.resets > self._resets:
            verdict = self._boot_ended()
            if verdict is not None:
                return verdict
            self.boots += seen.resets - self._resets
            self._resets = seen.resets
            self._serial, self._tried, self._armed = b"", "", False
            self._changed_s = seen.at_s
            if self.boots > BOOTS_MAX:
                self.why = f"{self.boots} starts"
                return Verdict.LOOP
        if seen.serial:
            self._serial += seen.serial
            self._changed_s = seen.at_s
        for pair in sorted(seen.counters):
            self._count(pair, seen.counters[pair], seen.at_s, look)
        if seen.written != self._written:
            self._written, self._busy_s = seen.written, seen.at_s
        if not seen.alive:
            self.why = "QEMU ended"
            return self._boot_ended() or Verdict.GONE
        return self._judge(seen, look)

    def started(self, counters: Mapping[str, Counter | None]) -> str:
        """The pair whose program is being started, judged by what the counters were before; or nothing."""
        before = self._counters or {}
        for pair, now in counters.items():
            was = before.get(pair) or self._unread.get(pair)
            if now and was and now[0] == was[0] - 1 and now[1] == was[1] + 1:
                return pair
        return ""

    def _count(self, pair: str, now: Counter | None, at_s: float, look: Look | None) -> None:
        before = dict(self._counters or {})
        was = before.get(pair) or self._unread.get(pair)
        if self._counters is not None and now != before.get(pair):
            self._changed_s = at_s
        # A name is gone for a moment while it is changed.
        if now is None and was is not None:
            self._unread[pair] = was
        if now is not None and was is not None and self._counters is not None and now != was:
            if now[0] == was[0] - 1 and now[1] == was[1] + 1:
                self._tried = pair
                self.attempts.append(pair)
                self._doubt(pair, look)
            elif now == ARMED and pair == self._tried:
                self._armed = True
        if now is not None:
            self._unread.pop(pair, None)
        before[pair] = now
        self._counters = before

    def _boot_ended(self) -> Verdict | None:
        """What is to be said of a boot that is over: whether something ran that was not blessed."""
        doubts, self._doubts = self._doubts, []
        loader, self._loader_doubt = self._loader_doubt, ""
        if loader:
            self.why = loader
            return Verdict.UNBLESSED
        if len(doubts) > len(NOT_STARTED.findall(self._serial)):
            self.why = doubts[-1]
            return Verdict.UNBLESSED
        return None

    def _doubt(self, pair: str, look: Look | None) -> None:
        """Note why the program that is being started, or what starts it, may be of no release."""
        if look is None:
            return
        if not (_checked(look) if self.checks else _taken(look)):
            self._loader_doubt = "what started it is of no release"
        if look.pairs[pair].program is False:
            self._doubts.append(f"the program of {pair} is of no release")

    def _judge(self, seen: Seen, look: Look | None) -> Verdict | Press | None:
        quiet_s = seen.at_s - self._changed_s
        if self._armed:
            unblessed = self._boot_ended()
            if unblessed is not None:
                return unblessed
            if look is not None and look.whole and look.armed and quiet_s >= SETTLED_S:
                self.why = look.whole
                return Verdict.BLESSED
        if RESCUE.search(self._serial) and seen.shows and quiet_s >= STAYS_S:
            return self._boot_ended() or Verdict.RESCUE
        if NOTHING.search(self._serial) and quiet_s >= STAYS_S:
            self.why = "the firmware finds nothing to start"
            return self._boot_ended() or Verdict.DEAD
        # A pair that is being replaced changes nothing else for a while.
        patience_s = self.patience_s * (HEALED_SHARE if self._armed else 1)
        if seen.at_s - max(self._changed_s, self._busy_s) < patience_s:
            return None
        ended = self._boot_ended()
        if ended is not None:
            return ended
        if self._armed:
            self.why = f"{', '.join(look.differs) if look else 'a part'} differs"
            return Verdict.UNHEALED
        if look is not None and not look.any_slot and self._tried and self.pressed < BOOTS_MAX:
            self.pressed += 1
            self._changed_s = seen.at_s
            return Press()
        self.why = f"nothing for {self.patience_s:.0f} s, last try {self._tried or 'none'}"
        return Verdict.HANG


def _checked(look: Look) -> bool:
    """Whether a firmware that loads only what was signed came this far with programs of a release alone.

    It passes over what it refuses, and so does the first program, without a word.
    """
    pairs = look.pairs.values()
    return any(pair.first for pair in pairs) and any(pair.loader for pair in pairs)


def _taken(look: Look) -> bool:
    """The same of a firmware that takes the first program that it finds."""
    pairs = [pair for _, pair in sorted(look.pairs.items())]
    first = next((pair for pair in pairs if pair.first is not None), None)
    if first is None or not first.first:
        return False
    loaders = [first.loader, *(pair.loader for pair in pairs)]
    return bool(next((loader for loader in loaders if loader is not None), False))
