"""Reads the partition table (GPT) at the start of a disk image.

Pure but for `read`, which reads the first sectors of a file. Both checksums are held against the table, so
a torn or foreign image is refused with `GptError` and never guessed at.
"""

import binascii
import struct
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
SIGNATURE = b"EFI PART"
HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
ENTRY_BYTES = 128
# The usual table; a larger one is not ours.
ENTRIES_MAX = 128
TABLE_BYTES = 2 * SECTOR + ENTRIES_MAX * ENTRY_BYTES


class GptError(ValueError):
    """The bytes are not a partition table of ours; the text says what is wrong."""


@dataclass(frozen=True)
class Partition:
    """A named stretch of the disk, in bytes."""

    name: str
    start: int
    size: int


def read(disk: Path) -> dict[str, Partition]:
    """The partitions of an image by name. GptError, OSError."""
    with open(disk, "rb") as file:
        return parse(file.read(TABLE_BYTES))


def parse(head: bytes) -> dict[str, Partition]:
    """The partitions described by the first `TABLE_BYTES` bytes of a disk. GptError."""
    if len(head) < SECTOR + HEADER.size:
        raise GptError("too short for a partition table")
    fields = HEADER.unpack_from(head, SECTOR)
    signature, _revision, header_size, header_crc = fields[:4]
    first, last, table_at, count, entry_bytes, table_crc = fields[7], fields[8], *fields[10:14]
    if signature != SIGNATURE:
        raise GptError("no partition table")
    if header_size != HEADER.size:
        raise GptError(f"a header of {header_size} bytes")
    blank = head[SECTOR : SECTOR + 16] + b"\0\0\0\0" + head[SECTOR + 20 : SECTOR + header_size]
    if binascii.crc32(blank) != header_crc:
        raise GptError("the header's checksum is wrong")
    if entry_bytes != ENTRY_BYTES or not 0 < count <= ENTRIES_MAX or table_at != 2:
        raise GptError(f"{count} entries of {entry_bytes} bytes at sector {table_at}")
    table = head[2 * SECTOR : 2 * SECTOR + count * ENTRY_BYTES]
    if len(table) != count * ENTRY_BYTES or binascii.crc32(table) != table_crc:
        raise GptError("the table's checksum is wrong")
    found: dict[str, Partition] = {}
    for at in range(0, len(table), ENTRY_BYTES):
        entry = table[at : at + ENTRY_BYTES]
        if entry[:16] == bytes(16):
            continue
        start, end = struct.unpack_from("<QQ", entry, 32)
        if not first <= start <= end <= last:
            raise GptError(f"a partition from sector {start} to {end} is not on the disk")
        name = entry[56:].decode("utf-16-le", errors="replace").split("\0", 1)[0]
        if name in found:
            raise GptError(f"two partitions are named {name!r}")
        found[name] = Partition(name, start * SECTOR, (end - start + 1) * SECTOR)
    return found
