"""What is done about the two pairs of slot and boot volume: which to arm, wipe, replace, leave. Pure.

A pair is a slot and the boot volume with its program. Once the boot is healthy, what was read of both pairs
is brought under one of a few names each (`Own`, `Other`), and `TABLE` has one row for every two of them. The
organ carries out the row's step, looks again and asks again, until nothing is left to do.

The rules that the table keeps, each tried on all inputs:
the partition of the slot that runs is never written; nothing is written from a source that was not verified;
a pair is written only while the other can start, or runs; a running slot that is not verified gets no tries
back; a reboot is asked only into a verified pair with tries, after our own have been taken away, so that two
bad pairs cannot send the machine back and forth.
Never: repairs in part. What is wrong is written anew from the first byte to the last.
Fails: not at all; every input has a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from organs.integrity.rearm import LEFT

A: Final = "a"
B: Final = "b"
LETTERS: Final = (A, B)
# A part of a version: nine digits fit in what systemd-boot compares.
_DIGITS_MAX: Final = 9


class Slot(Enum):
    """What reading a slot came to. ABSENT: there is no such device, so nothing can be written to it
    either."""

    PENDING = "pending"
    VERIFIED = "verified"
    BAD = "bad"
    ABSENT = "absent"


class Boot(Enum):
    """What reading a boot volume came to, held against the slot that it belongs to. EMPTY: it begins with
    zeros, as one that was wiped, so that nothing can be started from it."""

    PENDING = "pending"
    GOOD = "good"
    BAD = "bad"
    EMPTY = "empty"
    ABSENT = "absent"


class Order(Enum):
    """How the releases in the two slots are related; means something only when both are verified."""

    SAME = "same"  # the same bytes
    APART = "apart"  # other bytes of the same version
    A_NEWER = "a newer"
    B_NEWER = "b newer"


@dataclass(frozen=True, slots=True)
class Pair:
    """What is known of a pair.

    `tries` is what its program's name has left. None: no counter was found, so that the boot loader may start
    the program for ever.
    `failed`: the device did not take what was to be written to this pair.
    """

    slot: Slot
    boot: Boot
    tries: int | None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is decided from. `running` is a letter, or empty where no slot was started (a container);
    `leaving`: a reboot was asked for."""

    running: str
    healthy: bool
    a: Pair
    b: Pair
    order: Order
    leaving: bool = False

    def pair(self, letter: str) -> Pair:
        """The pair of that letter."""
        return self.a if letter == A else self.b


class Act(Enum):
    """One thing to do. Each is done whole and looked at afterwards."""

    ARM = "arm"  # all tries again
    DISARM = "disarm"  # no try left
    WIPE_BOOT = "wipe boot"  # the boot volume, so that nothing can be started from it
    REPLACE = "replace"  # slot and boot volume
    REPLACE_BOOT = "replace boot"  # the boot volume alone
    REBOOT = "reboot"


WRITES_SLOT: Final = frozenset({Act.REPLACE})
WRITES_BOOT: Final = frozenset({Act.REPLACE, Act.REPLACE_BOOT, Act.WIPE_BOOT})


@dataclass(frozen=True, slots=True)
class Step:
    """`act` on the pair `pair`, with the bytes of the slot `source` where there is something to write."""

    act: Act
    pair: str
    source: str = ""


class Standing(Enum):
    """Where things stand while the plan is carried out, or when there is none."""

    WAITING = "waiting"  # for bay0 to call the boot healthy
    READING = "reading"
    WORKING = "working"
    BLESSED = "blessed"  # both pairs verified, the same bytes, all tries
    UPDATE = "update"  # the other pair holds a newer release that was not started yet
    IRREPLACEABLE = "irreplaceable"  # what is wrong cannot be written
    LOST = "lost"  # no verified slot to go on with
    LEAVING = "leaving"
    NONE = "none"  # there are no slots here


class Update(Enum):
    """What the other pair is to the one that runs."""

    NONE = "none"
    PENDING = "pending"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next (None: nothing), and what may be said meanwhile. `own` is the pair that everything is
    held against: the one that runs, in a container the one that is trusted."""

    standing: Standing
    step: Step | None = None
    update: Update = Update.NONE
    own: str = ""


class Own(Enum):
    """The pair that runs."""

    NO_SLOTS = "there are no slots"
    NO_SOURCE = "nothing runs from a slot, and none is verified"
    UNREAD = "not read to its end"
    ROTTEN_ARMED = "the slot is bad and has tries"
    ROTTEN_UNCOUNTED = "the slot is bad and its program may be started for ever"
    ROTTEN_SPENT = "the slot is bad and has no tries"
    ROTTEN_STUCK = "the slot is bad and its tries cannot be taken away"
    SPENT = "verified, tries are missing"
    BOOTLESS = "verified, with a bad boot volume"
    STUCK = "verified, with a boot volume that cannot be put right"
    ARMED = "verified, with all tries"


class Other(Enum):
    """The pair that does not run, as seen from the one that does."""

    UNREAD = "not read to its end"
    ABSENT = "not there"
    STUCK = "wrong, and it cannot be written"
    WRONG = "bad, or of another release and not an update"
    BOOTLESS = "verified, with a bad boot volume"
    SPENT = "the same release, tries are missing"
    FIT = "verified, with tries, while the pair that runs is bad"
    UPDATE = "a newer release with tries"
    ARMED = "the same release, with all tries"


class Row(Enum):
    """What is done; `own` and `other` are pairs."""

    NOTHING_HERE = "there are no slots"
    LOST = "lost"
    WAIT = "wait until it is read"
    ARM_OWN = "give own all tries"
    DISARM_OWN = "take own tries away"
    WIPE_OWN_BOOT = "make own boot volume such that nothing can be started from it"
    REBOOT = "go to other"
    STUCK = "irreplaceable"
    UPDATE = "leave the update alone"
    ARM_OTHER = "give other all tries"
    REPLACE_OTHER = "write other from own"
    REPLACE_OTHER_BOOT = "write the boot volume of other from own"
    REVIVE_OTHER_BOOT = "write the boot volume of other from the slot of other"
    REPLACE_OWN_BOOT = "write own boot volume from own"
    BLESSED = "blessed"


def _table() -> dict[tuple[Own, Other], Row]:
    """One row for each two names."""
    rows: dict[tuple[Own, Other], Row] = {}
    for other in Other:
        rows[Own.NO_SLOTS, other] = Row.NOTHING_HERE
        rows[Own.NO_SOURCE, other] = Row.LOST
        rows[Own.UNREAD, other] = Row.WAIT
        rows[Own.SPENT, other] = Row.ARM_OWN  # INV-SLOT-1
    rotten = {
        Own.ROTTEN_ARMED: Row.DISARM_OWN,
        Own.ROTTEN_UNCOUNTED: Row.WIPE_OWN_BOOT,
        Own.ROTTEN_SPENT: Row.REBOOT,
        Own.ROTTEN_STUCK: Row.STUCK,
    }
    for own, leave in rotten.items():
        rows |= {(own, other): Row.LOST for other in Other}
        rows[own, Other.UNREAD] = Row.WAIT
        rows[own, Other.FIT] = leave
        rows[own, Other.BOOTLESS] = Row.REVIVE_OTHER_BOOT
    sound = {
        Own.ARMED: (Row.BLESSED, Row.UPDATE),
        Own.BOOTLESS: (Row.REPLACE_OWN_BOOT, Row.REPLACE_OWN_BOOT),
        Own.STUCK: (Row.STUCK, Row.STUCK),
    }
    for own, (armed, update) in sound.items():
        rows |= {
            (own, Other.UNREAD): Row.WAIT,
            (own, Other.ABSENT): Row.STUCK,
            (own, Other.STUCK): Row.STUCK,  # INV-SLOT-12
            (own, Other.WRONG): Row.REPLACE_OTHER,
            (own, Other.BOOTLESS): Row.REPLACE_OTHER_BOOT,
            (own, Other.SPENT): Row.ARM_OTHER,
            # Only a bad slot asks whether the other is fit.
            (own, Other.FIT): Row.WAIT,
            (own, Other.UPDATE): update,
            (own, Other.ARMED): armed,
        }
    return rows


TABLE: Final[Mapping[tuple[Own, Other], Row]] = _table()  # INV-SLOT-17

_STANDING: Final = {
    Row.NOTHING_HERE: Standing.NONE,
    Row.LOST: Standing.LOST,
    Row.WAIT: Standing.READING,
    Row.STUCK: Standing.IRREPLACEABLE,
    Row.UPDATE: Standing.UPDATE,
    Row.BLESSED: Standing.BLESSED,
}


def decide(facts: Facts) -> Plan:
    """What to do next."""
    own = trusted(facts)
    if facts.leaving:
        return Plan(Standing.LEAVING, own=own)
    if not facts.healthy:
        return Plan(Standing.WAITING, own=own)
    letter = own or A
    other = B if letter == A else A
    row = TABLE[name_own(facts, own), name_other(facts, letter)]
    steps = {
        Row.ARM_OWN: Step(Act.ARM, letter),
        Row.DISARM_OWN: Step(Act.DISARM, letter),
        Row.WIPE_OWN_BOOT: Step(Act.WIPE_BOOT, letter),
        Row.REBOOT: Step(Act.REBOOT, other),  # INV-SLOT-13
        Row.ARM_OTHER: Step(Act.ARM, other),
        Row.REPLACE_OTHER: Step(Act.REPLACE, other, letter),  # INV-SLOT-11
        Row.REPLACE_OTHER_BOOT: Step(Act.REPLACE_BOOT, other, letter),
        Row.REVIVE_OTHER_BOOT: Step(Act.REPLACE_BOOT, other, other),
        Row.REPLACE_OWN_BOOT: Step(Act.REPLACE_BOOT, letter, letter),
    }
    return Plan(_STANDING.get(row, Standing.WORKING), steps.get(row), _update(facts, own), own)


def trusted(facts: Facts) -> str:
    """The pair that all is held against: the one that runs. Where none does, of the verified ones the one
    that can be started, then the newer, then a; empty while there is none."""
    if facts.running:
        return facts.running
    verified = [letter for letter in LETTERS if facts.pair(letter).slot is Slot.VERIFIED]
    if Slot.PENDING in (facts.a.slot, facts.b.slot) or not verified:
        return ""
    newer = {Order.A_NEWER: A, Order.B_NEWER: B}.get(facts.order, "")
    return max(verified, key=lambda letter: (_starts(facts.pair(letter)), letter == newer, letter == A))


def may_install(facts: Facts) -> str:
    """Why an update may not be written to the pair that does not run; empty when it may.

    A bad slot that runs is no reason: then the update is the way out. But it is written over no pair that is
    the only one to go to.
    """
    if facts.leaving:
        return "the machine is about to restart"
    if facts.running and not facts.healthy:
        return "the running system is not confirmed healthy yet"
    if Slot.PENDING in (facts.a.slot, facts.b.slot):
        return "the slots are still being read"
    own = trusted(facts)
    other = target(facts)
    if own and facts.pair(own).slot is not Slot.VERIFIED and facts.pair(other).slot is Slot.VERIFIED:
        return "the running slot is bad and the other is the only one to go to"
    if facts.pair(other).slot is Slot.ABSENT or facts.pair(other).boot is Boot.ABSENT:
        return f"there is no pair {other} here"
    return ""


def target(facts: Facts) -> str:
    """The pair that an update is written to."""
    return A if trusted(facts) == B else B


def name_own(facts: Facts, own: str) -> Own:
    """The name of the pair `own`, which is empty when nothing runs from a slot and none is trusted."""
    if not own:
        both = (facts.a.slot, facts.b.slot)
        if both == (Slot.ABSENT, Slot.ABSENT):
            return Own.NO_SLOTS
        return Own.UNREAD if Slot.PENDING in both else Own.NO_SOURCE
    pair = facts.pair(own)
    if pair.slot is Slot.PENDING or pair.boot is Boot.PENDING:
        return Own.UNREAD
    stuck = pair.boot is Boot.ABSENT or pair.failed
    if pair.slot is not Slot.VERIFIED:
        return _rotten(pair, stuck)
    if pair.boot is Boot.GOOD and pair.tries == LEFT:
        return Own.ARMED
    if stuck:
        return Own.STUCK
    if pair.boot is Boot.EMPTY or pair.tries in (None, LEFT):
        return Own.BOOTLESS
    return Own.SPENT


def _rotten(pair: Pair, stuck: bool) -> Own:
    if pair.boot is Boot.EMPTY or (pair.boot is Boot.GOOD and pair.tries == 0):
        return Own.ROTTEN_SPENT
    if stuck:
        return Own.ROTTEN_STUCK
    # Beside its counter a bad volume may hold a program that nobody counts.
    counted = pair.boot is Boot.GOOD and pair.tries is not None
    return Own.ROTTEN_ARMED if counted else Own.ROTTEN_UNCOUNTED


def name_other(facts: Facts, own: str) -> Other:
    """The name of the pair that is not `own`."""
    other = B if own == A else A
    pair = facts.pair(other)
    if pair.slot is Slot.PENDING or pair.boot is Boot.PENDING:
        return Other.UNREAD
    if Slot.ABSENT is pair.slot or pair.boot is Boot.ABSENT:
        return Other.ABSENT
    if facts.pair(own).slot is not Slot.VERIFIED:
        if _starts(pair):
            return Other.FIT
        dead = pair.slot is not Slot.VERIFIED or pair.boot is Boot.GOOD
        return _unless_failed(pair, Other.WRONG if dead else Other.BOOTLESS)
    if pair.slot is not Slot.VERIFIED:
        return _unless_failed(pair, Other.WRONG)
    if facts.order is Order.SAME:
        if pair.boot is not Boot.GOOD or pair.tries is None:
            return _unless_failed(pair, Other.BOOTLESS)
        return Other.ARMED if pair.tries == LEFT else _unless_failed(pair, Other.SPENT)
    newer = facts.order is (Order.B_NEWER if other == B else Order.A_NEWER)
    return Other.UPDATE if newer and _starts(pair) else _unless_failed(pair, Other.WRONG)


def _unless_failed(pair: Pair, name: Other) -> Other:
    return Other.STUCK if pair.failed else name


def _starts(pair: Pair) -> bool:
    """Whether the boot loader starts it, and it is what it should be."""
    return pair.slot is Slot.VERIFIED and pair.boot is Boot.GOOD and bool(pair.tries)


def _update(facts: Facts, own: str) -> Update:
    if not own or facts.pair(own).slot is not Slot.VERIFIED:
        return Update.NONE
    other = B if own == A else A
    pair = facts.pair(other)
    newer = facts.order is (Order.B_NEWER if other == B else Order.A_NEWER)
    if pair.slot is not Slot.VERIFIED or not newer or pair.boot is not Boot.GOOD:
        return Update.NONE
    return Update.PENDING if pair.tries else Update.FAILED  # INV-UPDATE-7


def order(version: str) -> tuple[int, ...]:
    """What versions are compared by: numbers between dots. What has another form is older than all."""
    parts = version.split(".")
    if all(part.isascii() and part.isdigit() and len(part) <= _DIGITS_MAX for part in parts):
        return tuple(map(int, parts))
    return ()
