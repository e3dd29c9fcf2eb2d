"""One sector of a boot volume, changed in place: how a counter is set.

The volume is not mounted, here or anywhere: names are found by `organs/integrity/fat.py`, the digits to
change by `organs/integrity/rearm.py`. A counter's two digits lie in one 512-byte sector, which a device
writes whole or not at all, so a power cut leaves the old name or the new one.

Touches: the device it is given a descriptor of.
Never: writes a byte that is not a digit of a counter.
Fails: `Unpatchable` before anything is written, `NotWritten` when the device does not read back what was
written; OSError from the device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from organs.integrity.fat import Entry
from organs.integrity.rearm import Change

SECTOR_BYTES: Final = 512


class Unpatchable(Exception):
    """The digits do not lie as expected; nothing was written."""


class NotWritten(Exception):
    """The device gave back other bytes than were written."""


def new_name(entry: Entry, change: Change) -> str:
    """The name after the change."""
    characters = list(entry.name)
    characters[change.counted.left_at] = str(change.left)
    characters[change.counted.done_at] = str(change.done)
    return "".join(characters)


def apply(fd: int, entries: Sequence[Entry], changes: Sequence[Change]) -> None:
    """Write the changes, one sector at a time, each synced and read back. Raises as the module says."""
    sectors: dict[int, list[tuple[int, int, int]]] = {}
    for change in changes:
        entry, counted = entries[change.index], change.counted
        if not entry.at:
            raise Unpatchable(f"{entry.name} is a short name")
        digits = [
            (entry.at[counted.left_at], counted.left, change.left),
            (entry.at[counted.done_at], counted.done, change.done),
        ]
        homes = {at // SECTOR_BYTES for at, _, _ in digits}
        if len(homes) != 1:
            raise Unpatchable(f"the counter of {entry.name} lies in two sectors")
        sectors.setdefault(homes.pop(), []).extend(digits)
    for sector, edits in sectors.items():
        _rewrite(fd, sector * SECTOR_BYTES, edits)


def _rewrite(fd: int, at: int, edits: Sequence[tuple[int, int, int]]) -> None:
    old = os.pread(fd, SECTOR_BYTES, at)
    new = bytearray(old)
    for position, was, becomes in edits:
        inside = position - at
        if old[inside : inside + 2] != bytes([ord("0") + was, 0]):  # INV-SLOT-2
            raise Unpatchable(f"byte {position} is not the digit {was}")
        new[inside] = ord("0") + becomes
    if os.pwrite(fd, new, at) != SECTOR_BYTES:
        raise NotWritten(f"sector at {at}: written in part")
    os.fsync(fd)
    # Ask the device, not the memory of what was written.
    os.posix_fadvise(fd, at, SECTOR_BYTES, os.POSIX_FADV_DONTNEED)
    if os.pread(fd, SECTOR_BYTES, at) != new:
        raise NotWritten(f"sector at {at}: reads back differently")
