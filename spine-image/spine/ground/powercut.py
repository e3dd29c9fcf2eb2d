"""Power cuts: reads the write log of QEMU (`blklogwrites`) and makes the disk as a cut would leave it.

Killing QEMU is no power cut: what the guest wrote and never flushed is on the host's file all the same.
So the disk is put behind QEMU's log, in the format of Linux' dm-log-writes: a sector with the superblock,
then for each write, flush and discard a sector with its header; the data of a write follow it. `replay`
applies to a copy of the disk from before only what was sure to be durable at a chosen entry, and of the
rest nothing, or a seeded part. `begin` and `finish` do that for the disk of a ground.

Touches the files it is given. The superblock's count lags behind (QEMU writes it now and then): entries
below it must be right, or the log is refused with `LogError`; those after it count as far as they are
whole.
"""

import random
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from spine.ground.disk import DISK_NODE, sparse_copy

MAGIC = 0x6A736677736872
VERSION = 1
SUPERBLOCK = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
ALL_FLAGS = FLUSH | FUA | DISCARD | MARK
SECTOR = 512
# dm-log-writes allows sectors up to a page; a larger number is not one.
SECTOR_MAX = 4096
# No guest writes more at once: what claims to is not an entry.
DATA_MAX = 1 << 30
# Beyond any disk, and far below where numbers of 64 bits overflow in bytes.
SECTORS_MAX = 1 << 50
COPY_BYTES = 1 << 20
# The files of a ground whose disk is logged, beside the disk.
BASE_FILE, LOG_FILE = "before.img", "writes.log"


class LogError(ValueError):
    """The bytes are not a write log, or a part that must be whole is not."""


@dataclass(frozen=True)
class Entry:
    """One logged request. `start` and `size` are bytes on the disk, `data` is where they lie in the log."""

    start: int
    size: int
    flags: int
    data: int

    @property
    def is_write(self) -> bool:
        """Whether it changes the disk."""
        return self.size > 0


@dataclass(frozen=True)
class Keep:
    """Which of the writes that were not yet durable happen to survive: a seeded choice.

    Each survives with probability `share`; with `torn`, one that survives may do so sector by sector.
    """

    seed: int
    share: float = 0.5
    torn: bool = True


@dataclass(frozen=True)
class Lost:
    """What a cut came to: how many requests were logged that change the disk, and which of them are gone."""

    writes: int
    lost: int
    lost_bytes: int


def begin(disk: Path, directory: Path) -> list[Mapping[str, object]]:
    """Keep the disk as it is now and give QEMU's nodes that log what is written to it from here on."""
    sparse_copy(disk, directory / BASE_FILE)
    return blockdevs(disk, directory / LOG_FILE)


def logged(directory: Path) -> bool:
    """Whether the last machine of this directory ran with a log."""
    return (directory / BASE_FILE).is_file() and (directory / LOG_FILE).is_file()


def finish(disk: Path, directory: Path) -> Lost:
    """After QEMU was killed: make the disk what was sure to be durable then, whole or not at all.

    LogError, OSError: the disk is as QEMU left it.
    """
    base, log, new = directory / BASE_FILE, directory / LOG_FILE, disk.with_suffix(".cut")
    entries = read(log)
    try:
        replay(base, log, len(entries), new)  # INV-HOST-4
        new.rename(disk)
    finally:
        new.unlink(missing_ok=True)
    gone = [
        entry.size
        for entry, sure in zip(entries, durable(entries, len(entries)), strict=True)
        if entry.is_write and not sure
    ]
    forget(directory)
    return Lost(sum(entry.is_write for entry in entries), len(gone), sum(gone))


def forget(directory: Path) -> None:
    """Remove the files of a log that nobody needs any more."""
    for name in (BASE_FILE, LOG_FILE):
        (directory / name).unlink(missing_ok=True)


def blockdevs(disk: Path, log: Path) -> list[Mapping[str, object]]:
    """QEMU's block nodes for a disk behind a log, for `Machine.start`; makes the empty log file."""
    log.write_bytes(b"")
    return [
        {
            "driver": "raw",
            "node-name": "unlogged",
            "discard": "unmap",
            "file": {"driver": "file", "filename": str(disk), "discard": "unmap"},
        },
        {"driver": "file", "node-name": "log", "filename": str(log)},
        {
            "driver": "blklogwrites",
            "node-name": DISK_NODE,
            "file": "unlogged",
            "log": "log",
            "log-sector-size": SECTOR,
            "discard": "unmap",
        },
    ]


def read(path: Path) -> list[Entry]:
    """All whole entries of a log. LogError, OSError."""
    with open(path, "rb") as log:
        return _walk(log.read(SECTOR_MAX), lambda at: _at(log, at), path.stat().st_size)


def parse(log: bytes) -> list[Entry]:
    """The same for a log in memory. LogError."""
    return _walk(log[:SECTOR_MAX], lambda at: log[at : at + ENTRY.size], len(log))


def durable(entries: Sequence[Entry], cut: int) -> list[bool]:
    """For each of the first `cut` entries, whether it was sure to be durable after them. Pure.

    Sure are the writes that the last flush before the cut came after, and those forced through by themselves.
    A flush that carries data comes before its data.
    """
    last = max((at for at in range(cut) if entries[at].flags & FLUSH), default=-1)
    return [at < last or bool(entries[at].flags & FUA) for at in range(cut)]


def replay(base: Path, log: Path, cut: int, target: Path, *, keep: Keep | None = None) -> None:
    """Make `target` the disk `base` after a power cut right after entry number `cut` of the log.

    Without `keep`, nothing survives but what was durable. LogError: there are fewer than `cut` entries, or an
    entry lies outside of the disk.
    """
    entries = read(log)
    if not 0 <= cut <= len(entries):
        raise LogError(f"there are {len(entries)} entries, not {cut}")
    size = base.stat().st_size
    for entry in entries[:cut]:
        if entry.is_write and entry.start + entry.size > size:
            raise LogError(f"a write ends at {entry.start + entry.size}, the disk at {size}")
    sparse_copy(base, target)
    chance = random.Random(keep.seed if keep else 0)
    with open(log, "rb") as source, open(target, "r+b") as disk:
        for entry, sure in zip(entries, durable(entries, cut), strict=False):
            if not entry.is_write:
                continue
            if sure:
                stretches = [(0, entry.size)]
            elif keep is None or chance.random() >= keep.share:
                continue
            else:
                stretches = (
                    _torn(chance, entry.size) if keep.torn and chance.random() < 0.5 else [(0, entry.size)]
                )
            for offset, length in stretches:
                _apply(source, entry, offset, length, disk)


def _walk(head: bytes, header: Callable[[int], bytes], size: int) -> list[Entry]:
    if len(head) < SUPERBLOCK.size:
        # QEMU writes the superblock with the first entry.
        if head:
            raise LogError("too short for a write log")
        return []
    magic, version, count, sector = SUPERBLOCK.unpack_from(head)
    if magic != MAGIC or version != VERSION:
        raise LogError("not a write log")
    if sector not in (512, 1024, 2048, 4096):
        raise LogError(f"sectors of {sector} bytes")
    entries: list[Entry] = []
    at = sector
    while True:
        entry = _entry(header(at), at, sector, size)
        if entry is None:
            break
        entries.append(entry)
        at = entry.data + _data_length(entry)
    if len(entries) < count:
        raise LogError(f"entry {len(entries)} of {count} is not whole")
    return entries


def _entry(header: bytes, at: int, sector: int, size: int) -> Entry | None:
    """The entry at a place, or None where there is none, or not all of it."""
    if len(header) < ENTRY.size or at + sector > size:
        return None
    start, count, flags, length = ENTRY.unpack(header)
    if flags & ~ALL_FLAGS or start > SECTORS_MAX or count > DATA_MAX // sector:
        return None
    if flags & MARK:
        # A mark's name stands in the sector of its header; it touches nothing on the disk.
        return Entry(0, 0, flags, at + sector) if length <= sector - ENTRY.size else None
    entry = Entry(start * sector, count * sector, flags, at + sector)
    if length or (count == 0 and not flags & FLUSH) or entry.data + _data_length(entry) > size:
        return None
    return entry


def _data_length(entry: Entry) -> int:
    return 0 if entry.flags & DISCARD else entry.size


def _torn(chance: random.Random, size: int) -> list[tuple[int, int]]:
    return [(at, min(SECTOR, size - at)) for at in range(0, size, SECTOR) if chance.random() < 0.5]


def _apply(source: BinaryIO, entry: Entry, offset: int, length: int, disk: BinaryIO) -> None:
    disk.seek(entry.start + offset)
    source.seek(entry.data + offset)
    while length:
        count = min(COPY_BYTES, length)
        # What was discarded reads as zeros in QEMU.
        block = bytes(count) if entry.flags & DISCARD else source.read(count)
        if len(block) != count:
            raise LogError("the log became shorter while it was read")
        disk.write(block)
        length -= count


def _at(log: BinaryIO, at: int) -> bytes:
    log.seek(at)
    return log.read(ENTRY.size)
