"""How the boot counter is set: from the names on a boot volume to the characters that change.

Decides: which names of EFI/Linux count the boots of a slot, and what each must say after a healthy boot.
systemd-boot takes one from the left number and adds one to the right one before each start, by renaming; a
name with nothing left goes last. Dropping the counter, as others do after a good boot, would make a slot that
rots later loop for ever, so it is set back instead. A slot that must not be started again is set to nothing
left.
Never: changes the length of a name, touches another slot's name, makes two equal names.
Fails: not at all; what cannot be decided is `Nothing` with a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "spine-"
SUFFIX: Final = ".efi"
# Attempts a slot gets before the other is tried, and what a slot says that must not be started.
LEFT: Final = 3
ARMED: Final = (LEFT, 0)
DISARMED: Final = (0, LEFT)
# What a further name of the same file says: nothing left, and a count of attempts that the first name cannot
# reach on its way from +3-0 to +0-3, so that no later rename runs into it. Each gets one of its own.
STALE_DONE: Final = (9, 8, 7, 6, 5, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A name of the form `spine-SLOT+L-D.efi`, with one digit each."""

    slot: str
    left: int
    done: int
    # The index of each digit in the name.
    left_at: int
    done_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The entry with this index must read `left` and `done` at the digits' places."""

    index: int
    counted: Counted
    left: int
    done: int


@dataclass(frozen=True, slots=True)
class Nothing:
    """No change is needed or possible; `reason` says which."""

    reason: str
    armed: bool


def parse(name: str) -> Counted | None:
    """The counter in a name, or None for a name of another form."""
    if not name.isascii() or not name.lower().startswith(PREFIX) or not name.lower().endswith(SUFFIX):
        return None
    stem = name[: -len(SUFFIX)]
    plus = len(stem) - 4
    if plus <= len(PREFIX) or stem[plus] != "+" or stem[plus + 2] != "-":
        return None
    left, done = stem[plus + 1], stem[plus + 3]
    slot = stem[len(PREFIX) : plus].lower()
    if not left.isdigit() or not done.isdigit() or not slot.isalnum():
        return None
    return Counted(slot=slot, left=int(left), done=int(done), left_at=plus + 1, done_at=plus + 3)


def plain(name: str, counted: Counted) -> str:
    """The name without its counter."""
    return name[: counted.left_at - 1] + name[counted.done_at + 1 :]


def decide(names: Sequence[str], slot: str, state: tuple[int, int] = ARMED) -> tuple[Change, ...] | Nothing:
    """What must change so that `slot` has all its attempts again, or none (DISARMED). `names` may name one
    file twice: a rename that was cut short leaves the old name and the new one."""
    counted = [(i, c) for i, c in ((i, parse(name)) for i, name in enumerate(names)) if c and c.slot == slot]
    if not counted:
        return Nothing(f"no name of slot {slot!r} carries a counter", armed=False)
    # The best of them stays the slot's name; the first one when they are equal.
    best_index, best = max(counted, key=lambda pair: (pair[1].left, -pair[1].done, -pair[0]))
    changes = [Change(index=best_index, counted=best, left=state[0], done=state[1])]
    stale = [(i, c) for i, c in counted if i != best_index]
    settled = {c.done for _, c in stale if c.left == 0 and c.done in STALE_DONE}
    free = [done for done in STALE_DONE if done not in settled]
    moving = [(i, c) for i, c in stale if c.left != 0 or c.done not in STALE_DONE]
    changes += [Change(index=i, counted=c, left=0, done=d) for (i, c), d in zip(moving, free, strict=False)]
    needed = tuple(c for c in changes if (c.counted.left, c.counted.done) != (c.left, c.done))
    return needed or Nothing("the counter is as it should be", armed=True)
