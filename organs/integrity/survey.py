"""Reads both slots and both boot volumes, side by side, and keeps what is said of each.

Each is read in a thread of its own while the organ beats and answers; `rows` gives what is known so far. What
is found is judged by `organs/integrity/verify.py` and `organs/integrity/volume.py`. A boot volume is held
against the slot that it belongs to; where that one is not verified, against the other.

Touches: the descriptors of the four devices, to read; the release key in the root.
Never: writes, waits for one device before it reads another, repairs. A thread that hangs in a device holds up
nothing but its own verdict.
Fails: it does not; a device that is not there or cannot be read, and a key that is not there, are verdicts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar

import trio

from organs import layout
from organs.integrity import carried, ed25519, examine, fat, slots, volume
from organs.integrity.carried import Release
from organs.integrity.reading import Raw
from organs.integrity.slots import LETTERS, Boot, Order, Pair, Slot
from organs.integrity.verify import Judged, Verdict, judge

KEY = Path(layout.RELEASE_KEY)
SLOTS: Final = {"a": layout.SLOT_A, "b": layout.SLOT_B}
BOOTS: Final = {"a": layout.BOOT_A, "b": layout.BOOT_B}
LETTER: Final = {name: letter for names in (SLOTS, BOOTS) for letter, name in names.items()}
NAMES: Final = (*SLOTS.values(), *BOOTS.values())
# An answer names this many places; what differs everywhere is not made clearer by more.
DIFFERS_MAX: Final = 16
DETAIL_CHARACTERS_MAX: Final = 400
# As much of the start of a volume as must be zero for the firmware to find none. Nobody looks for a FAT
# behind its first sector.
EMPTY_BYTES: Final = 4096

Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What is said of a slot. `how` it was read is empty until it was; `release` is what is in one that was
    verified."""

    judged: Judged
    how: str = ""
    release: Release | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """What was seen on a boot volume, and how it was read. None: it was not read to its end yet."""

    seen: volume.Seen | None = None
    how: str = ""


PENDING: Final = Checked(judged=Judged(Verdict.PENDING))
UNLISTED: Final = Listed()


def release_key() -> bytes:
    """The key that slots are signed with, as the root has it. Raises OSError, ValueError."""
    key = bytes.fromhex(KEY.read_text(encoding="ascii"))
    if len(key) != ed25519.KEY_BYTES:
        raise ValueError(f"{KEY} has {len(key)} bytes")
    return key


def look_at_slot(fd: int, key: bytes) -> Checked:
    """Read a slot to its end and judge it."""
    try:
        raw = Raw(fd, direct=True)
        judged = judge(examine.examine(raw.read, raw.size, key))
        release = None
        if judged.verdict is Verdict.VERIFIED:
            release = carried.Carried(raw.read, raw.size, key).release()
    except (examine.Unsigned, examine.Short, fat.BadVolume) as error:
        # Every part is as it was signed, and does not fit together.
        judged = Judged(Verdict.UNSIGNED, detail=f"what it carries for the boot volumes: {error}")
    except OSError as error:  # INV-SLOT-9
        return Checked(judged=Judged(Verdict.UNREADABLE, detail=str(error)))
    return Checked(judged=judged, how=raw.how, release=release)


def look_at_boot(fd: int) -> Listed:
    """Read every file of a boot volume, and all that is no file.

    Not with O_DIRECT: that is a flag of the open file, which the patch of the boot counter uses as well, with
    memory that is not aligned.
    """
    try:
        raw = Raw(fd, direct=False)
        empty = not any(raw.read(0, EMPTY_BYTES))
        try:
            found, nodes = fat.tree(raw.read)
            files = [volume.File(node.path, _digest(raw, found, node)) for node in nodes]
            files.append(volume.rest(_pieces(raw), fat.directories(raw.read, found, nodes)))
        except fat.BadVolume as error:
            return Listed(volume.Seen(no_volume=str(error), empty=empty), raw.how)
        return Listed(volume.Seen(files=tuple(files)), raw.how)
    except OSError as error:  # INV-SLOT-9
        return Listed(volume.Seen(unreadable=str(error)))


def _pieces(raw: Raw) -> Iterator[bytes]:
    for offset in range(0, raw.size, examine.STEP):
        yield raw.read(offset, examine.STEP)


def _digest(raw: Raw, found: fat.Volume, node: fat.Node) -> str:
    if node.directory:
        return volume.marked(volume.DIRECTORY, node.odd)
    total = sha256()
    try:
        for at, length in fat.stretches(raw.read, found, node):
            total.update(examine.exactly(raw.read, at, length))
    except (fat.BadVolume, examine.Short):
        return volume.BROKEN
    return volume.marked(total.hexdigest(), node.odd)


async def _aside(read: Callable[[], T]) -> T:
    """Read a whole device in a thread that runs when no other of this organ's wants to.

    On a slow machine the hashes take seconds, and the first persona's signature is asked for meanwhile. A
    thread cannot ask for more again, so one that trio uses a second time stays as it is.
    """

    def last() -> T:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return read()

    return await trio.to_thread.run_sync(last, abandon_on_cancel=True)


class Survey:
    """The four devices by name, and what is said of each."""

    def __init__(self, fds: Mapping[str, int]) -> None:
        self._fds = {name: fd for name in NAMES if (fd := fds.get(f"device:{name}")) is not None}
        self._slots = dict.fromkeys(LETTERS, PENDING)
        self._boots = dict.fromkeys(LETTERS, UNLISTED)
        self._said: dict[str, str] = {}
        try:
            self.key = release_key()
            self._no_key = ""
        except (OSError, ValueError) as error:
            self.key = b""
            self._no_key = f"there is no release key: {error}"

    def fd(self, name: str) -> int | None:
        """The descriptor of a device."""
        return self._fds.get(name)

    def rows(self) -> list[dict[str, object]]:
        """What is said so far, as `integrity.slots` answers it: the slots, then the boot volumes."""
        return [
            {
                "name": name,
                "verdict": judged.verdict.value,
                "detail": judged.detail[:DETAIL_CHARACTERS_MAX],
                "differs": judged.parts[:DIFFERS_MAX],
                "how": how,
            }
            for name in NAMES
            for judged, how in [self._judged(name)]
        ]

    def counters(self) -> list[dict[str, object]]:
        """The boot entries, as they were when their volume was read."""
        return [
            {"name": name, "left": counter.left, "done": counter.done}
            for letter in LETTERS
            if (seen := self._boots[letter].seen) is not None
            for name, counter in volume.counted(seen)
        ]

    def release(self, letter: str) -> Release | None:
        """What is in a verified slot."""
        return self._slots[letter].release

    def pair(self, letter: str, *, failed: bool) -> Pair:
        """What is known of a pair, as `organs/integrity/slots.py` takes it."""
        seen = self._boots[letter].seen
        return Pair(
            self._slot(letter),
            self._boot(letter),
            volume.tries(seen, letter) if seen is not None else None,
            failed,
        )

    def order(self) -> Order:
        """How the two releases are related."""
        a, b = self.release("a"), self.release("b")
        if a is None or b is None:
            return Order.APART
        if a.digest == b.digest:
            return Order.SAME
        first, second = slots.order(a.version), slots.order(b.version)
        if first == second:
            return Order.APART
        return Order.A_NEWER if first > second else Order.B_NEWER

    def _slot(self, letter: str) -> Slot:
        if SLOTS[letter] not in self._fds:
            return Slot.ABSENT
        verdict = self._slots[letter].judged.verdict
        return {Verdict.PENDING: Slot.PENDING, Verdict.VERIFIED: Slot.VERIFIED}.get(verdict, Slot.BAD)

    def _boot(self, letter: str) -> Boot:
        if BOOTS[letter] not in self._fds:
            return Boot.ABSENT
        seen = self._boots[letter].seen
        if seen is not None and seen.empty:
            return Boot.EMPTY
        verdict = self._judged(BOOTS[letter])[0].verdict
        return {Verdict.PENDING: Boot.PENDING, Verdict.VERIFIED: Boot.GOOD}.get(verdict, Boot.BAD)

    def _judged(self, name: str) -> tuple[Judged, str]:
        """The verdict about a device, and how it was read."""
        if name not in self._fds:
            return Judged(Verdict.UNREADABLE, detail=f"there is no device {name} here"), ""
        letter = LETTER[name]
        if name in SLOTS.values():
            return self._slots[letter].judged, self._slots[letter].how
        listed = self._boots[letter]
        other = "b" if letter == "a" else "a"
        for origin in (letter, other):
            if self._slot(origin) is Slot.PENDING:
                return Judged(Verdict.PENDING), ""
            if (release := self.release(origin)) is not None:
                return volume.judge(listed.seen, release.files[letter]), listed.how
        return volume.judge(listed.seen, None), listed.how

    async def look(self, name: str, say: Say) -> None:
        """Read a device and say what it is, where that was not said before."""
        fd = self._fds.get(name)
        letter = LETTER[name]
        if fd is None:
            pass
        elif name in BOOTS.values():
            self._boots[letter] = await _aside(partial(look_at_boot, fd))
        elif self._no_key:
            self._slots[letter] = Checked(judged=Judged(Verdict.UNSIGNED, detail=self._no_key))
        else:
            self._slots[letter] = await _aside(partial(look_at_slot, fd, self.key))
        self._tell(say)

    def settle(self, letter: str, checked: Checked, say: Say) -> None:
        """A slot was read by somebody else."""
        self._slots[letter] = checked
        self._tell(say)

    def forget(self, letter: str) -> None:
        """The pair is about to be written: what was said of it holds no longer."""
        self._slots[letter] = PENDING
        self._boots[letter] = UNLISTED
        for name in (SLOTS[letter], BOOTS[letter]):
            self._said.pop(name, None)

    def _tell(self, say: Say) -> None:
        for name in NAMES:
            judged, how = self._judged(name)
            if judged.verdict is Verdict.PENDING:
                continue
            why = f": {judged.detail[:DETAIL_CHARACTERS_MAX]}" if judged.detail else ""
            sentence = f"{name} is {judged.verdict.value}{why}{f' (read {how})' if how else ''}"
            if self._said.get(name) != sentence:
                self._said[name] = sentence
                say(sentence)
