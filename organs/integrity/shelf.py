"""The shelf: which personas are installed, where their bytes lie, and which one may come next.

Pure. The partition begins with two copies of one table; behind them lie the images, each in one piece. The
table also remembers the highest version of every persona that was ever installed, removed or not.
Never: chooses by guess. A table that is neither whole nor unwritten is Unreadable, and no image is reachable.
Fails: with PersonaRefused for an image that may not come in, Unreadable for a partition that holds no table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from typing import Final

from organs.persona import BLOCK, NAME, VERSION_MAX, PersonaRefused, Refusal, key_id

MAGIC: Final = b"SPINE-SHELF-1\n\0\0"
# Room for all rows; whole blocks.
TABLE_BYTES: Final = 8 * BLOCK
# Where the two copies lie. They are written in this order, the second one after the first is durable: while
# the copy at the start is all zeros, no table was ever finished, whatever a cut-off write left in the other.
COPIES: Final = (TABLE_BYTES, 0)
DATA_AT: Final = 2 * TABLE_BYTES
# As many rooms as there are ranges of ids for.
INSTALLED_MAX: Final = 16
# Installed or remembered. A row is never dropped: without it an old version could come back.
ROWS_MAX: Final = 256

# Magic; SHA-256 of all that follows it, to the end of the copy; sequence, number of rows.
_HEAD: Final = struct.Struct("<16s32sQI")
_DIGESTED_AT: Final = 48
# Name, public key, version, SHA-256 of the manifest's text, offset and length of the image (0: not here).
_ROW: Final = struct.Struct("<16s32sI32sQQ")

assert _HEAD.size + ROWS_MAX * _ROW.size <= TABLE_BYTES


class Unreadable(Exception):
    """There is something on the partition, and it is no table."""


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """A stretch of the partition, in bytes; whole blocks."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One identity, which is a name and a key; the highest version of it; where that lies, while it does."""

    name: str
    key: bytes
    version: int
    # Of the manifest's text, and thereby of the whole image.
    digest: bytes
    extent: Extent | None


@dataclass(frozen=True, slots=True)
class Table:
    """All rows, and how many tables there were before this one."""

    sequence: int
    rows: tuple[Row, ...]

    def installed(self) -> tuple[Row, ...]:
        """The rows that have an image, by name."""
        return tuple(row for row in self.rows if row.extent is not None)

    def find(self, name: str) -> Row | None:
        """The installed persona of that name."""
        return next((row for row in self.installed() if row.name == name), None)

    def identity(self, name: str, key: bytes) -> Row | None:
        """What is known of that name under that key."""
        return next((row for row in self.rows if (row.name, row.key) == (name, key)), None)


EMPTY: Final = Table(0, ())


def encode(table: Table) -> bytes:
    """One copy of the table."""
    rows = b"".join(
        _ROW.pack(
            row.name.encode("ascii"),
            row.key,
            row.version,
            row.digest,
            row.extent.offset if row.extent else 0,
            row.extent.length if row.extent else 0,
        )
        for row in table.rows
    )
    body = (struct.pack("<QI", table.sequence, len(table.rows)) + rows).ljust(
        TABLE_BYTES - _DIGESTED_AT, b"\0"
    )
    return MAGIC + sha256(body).digest() + body


def decode(copy: bytes, size: int) -> Table | None:
    """The table of one copy on a partition of `size` bytes; None when it is not whole or cannot be."""
    if len(copy) != TABLE_BYTES:
        return None
    magic, digest, sequence, count = _HEAD.unpack_from(copy)
    if magic != MAGIC or sha256(copy[_DIGESTED_AT:]).digest() != digest or count > ROWS_MAX:
        return None
    rows = tuple(_row(copy, _HEAD.size + number * _ROW.size) for number in range(count))
    table = Table(sequence, rows)
    return table if _sound(table, size) and encode(table) == copy else None


def _row(copy: bytes, at: int) -> Row:
    name, key, version, digest, offset, length = _ROW.unpack_from(copy, at)
    extent = Extent(offset, length) if length else None
    text = name.rstrip(b"\0").decode("latin-1")
    return Row(name=text, key=key, version=version, digest=digest, extent=extent)


def _sound(table: Table, size: int) -> bool:
    """Whether a table could be one of ours: a digest says that it is whole, not that it makes sense."""
    installed = table.installed()
    extents = sorted(row.extent for row in installed if row.extent)
    apart = all(one.end <= other.offset for one, other in pairwise(extents))
    inside = all(
        extent.offset >= DATA_AT
        and extent.end <= size
        and not extent.offset % BLOCK
        and not extent.length % BLOCK
        for extent in extents
    )
    return (
        table.sequence > 0
        and apart
        and inside
        and len(installed) <= INSTALLED_MAX
        and len({row.name for row in installed}) == len(installed)
        and len({(row.name, row.key) for row in table.rows}) == len(table.rows)
        and all(NAME.fullmatch(row.name) and 1 <= row.version <= VERSION_MAX for row in table.rows)
    )


def read(start: bytes, other: bytes, size: int) -> Table:
    """The table in force, of the copy at the start of the partition and the other one. Raises Unreadable."""
    found = [table for table in (decode(start, size), decode(other, size)) if table is not None]
    if len(found) == 2 and found[0].sequence == found[1].sequence and found[0] != found[1]:
        raise Unreadable("its two tables contradict one another")
    if found:
        return max(found, key=lambda table: table.sequence)  # INV-PERSONA-4
    if len(start) == TABLE_BYTES and not start.strip(b"\0"):
        return EMPTY
    raise Unreadable("neither of its two tables is whole")


def admit(table: Table, name: str, key: bytes, version: int, digest: bytes) -> None:
    """Return when that image may be installed. Raises PersonaRefused."""
    here, known = table.find(name), table.identity(name, key)
    if here is not None and here.key != key:  # INV-PERSONA-3
        raise PersonaRefused(
            "name",
            f"{name} is installed with the key {key_id(here.key)}; remove it first",
            Refusal.OTHER_IDENTITY,
        )
    if known is not None and version < known.version:  # INV-PERSONA-2
        raise PersonaRefused(
            "version", f"{version} comes after {known.version} was installed", Refusal.DOWNGRADE
        )
    if known is not None and version == known.version and digest != known.digest:
        raise PersonaRefused(
            "version", f"another image of version {version} was installed", Refusal.DOWNGRADE
        )
    if known is None and len(table.rows) >= ROWS_MAX:
        raise PersonaRefused("name", f"{ROWS_MAX} personas are remembered already", Refusal.FULL)
    if here is None and len(table.installed()) >= INSTALLED_MAX:
        raise PersonaRefused("name", f"{INSTALLED_MAX} personas are installed already", Refusal.FULL)


def installed(table: Table, new: Row) -> Table:
    """The table after that row has come, in the place of an earlier version."""
    others = [row for row in table.rows if (row.name, row.key) != (new.name, new.key)]
    return Table(table.sequence + 1, tuple(sorted([*others, new], key=lambda row: (row.name, row.key))))


def removed(table: Table, gone: Row) -> Table:
    """The table after that row's image has gone. Its version stays."""
    rows = tuple(replace(row, extent=None) if row == gone else row for row in table.rows)  # INV-PERSONA-2
    return Table(table.sequence + 1, rows)


def allocate(size: int, taken: Iterable[Extent], length: int) -> Extent | None:
    """The first free stretch of `length` bytes, whole blocks, on a partition of `size` bytes; None: none."""
    at = DATA_AT
    for extent in sorted(taken):
        if extent.offset - at >= length:
            break
        at = max(at, extent.end)
    return Extent(at, length) if at + length <= size else None
