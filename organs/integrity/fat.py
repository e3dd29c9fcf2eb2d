"""What lies on a FAT volume: its directories, the places of its files' bytes, and nothing more.

Decides: from the bytes of an unmounted FAT16 or FAT32 volume, which entries `EFI/Linux` has, and at which
byte of the volume each character of each long name lies (`entries`); which files and directories the whole
volume has (`tree`), and where each file's bytes are (`stretches`). Bytes come through a callable, so the same
code reads a partition, an image and a test's mutation.
Never: writes, trusts a number it read without a bound; a chain that loops or a directory without end is an
error, not a wait.
Fails: with `BadVolume`, whatever the bytes are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

Read = Callable[[int, int], bytes]

DIRECTORY: Final = ("EFI", "Linux")
# A directory of 8192 entries. EFI/Linux holds a handful; what is larger is not ours and is not walked.
DIRECTORY_BYTES_MAX: Final = 256 * 1024
# Files and directories of a whole volume. A release has four of each; a rename that was cut short adds one.
NODES_MAX: Final = 64
# What `stretches` gives at once, at least: neighbouring clusters are joined until they are this long.
STRETCH_BYTES: Final = 1024 * 1024

_BOOT_BYTES: Final = 512
_ENTRY_BYTES: Final = 32
_SECTOR_BYTES: Final = frozenset({512, 1024, 2048, 4096})
_FREE: Final = 0xE5
_END: Final = 0x00
_LONG: Final = 0x0F
_ATTRIBUTES: Final = 0x3F
_VOLUME: Final = 0x08
_SUBDIRECTORY: Final = 0x10
# Set by whoever writes a file, and by a firmware on the directories above a name that it changed.
_ARCHIVE: Final = 0x20
_LAST_PART: Final = 0x40
_LOWER_STEM: Final = 0x08
_LOWER_EXTENSION: Final = 0x10
# A long name has at most 255 UTF-16 units, 13 in each entry.
_PARTS_MAX: Final = 20
# Where an entry of a long name keeps its 13 units.
_UNITS: Final = (*range(1, 11, 2), *range(14, 26, 2), *range(28, 32, 2))
# FAT16 below this count of clusters would be FAT12, which no firmware volume of this size uses.
_FAT16_CLUSTERS_MIN: Final = 4085
_FAT16_CLUSTERS_MAX: Final = 65524
# How much of the table is read at once when a file's chain is followed.
_TABLE_BYTES: Final = 4096


class BadVolume(Exception):
    """The bytes are not a FAT volume with an EFI/Linux that can be walked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One name in a directory. `at[i]` is the byte of the volume where unit i of a long name begins; a short
    name has no positions."""

    name: str
    at: tuple[int, ...]
    cluster: int
    directory: bool
    size: int
    # Of the attribute bits those that no directory of ours and no renaming firmware sets.
    odd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A file or directory of the volume. `path` has one name for each level, since a name may hold any
    character, and "/" as well."""

    path: tuple[str, ...]
    directory: bool
    size: int
    cluster: int
    odd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """The geometry, in bytes and clusters."""

    cluster_bytes: int
    clusters: int
    table_at: int
    data_at: int
    # The root directory of FAT16 is a region, that of FAT32 a chain.
    root_at: int
    root_bytes: int
    root_cluster: int
    wide: bool


def entries(read: Read) -> tuple[Entry, ...]:
    """The entries of EFI/Linux, files and all. Raises BadVolume, and what `read` raises."""
    volume = _volume(read)
    found: list[Entry] = list(_parse(_root(read, volume), volume.wide))
    for wanted in DIRECTORY:
        inner = [e for e in found if e.directory and e.name.lower() == wanted.lower()]
        if not inner:
            raise BadVolume(f"no directory {wanted}")
        found = list(_parse(_chain(read, volume, inner[0].cluster), volume.wide))
    return tuple(found)


def tree(read: Read) -> tuple[Volume, tuple[Node, ...]]:
    """The geometry, and everything on the volume, directories before what they hold.

    Raises BadVolume, and what `read` raises.
    """
    volume = _volume(read)
    nodes: list[Node] = []
    todo: list[tuple[tuple[str, ...], Iterator[_Stretch]]] = [((), _root(read, volume))]
    while todo:
        above, directory = todo.pop(0)
        for entry in _parse(directory, volume.wide):
            if entry.directory and not entry.at and entry.name in {".", ".."}:
                continue
            if len(nodes) == NODES_MAX:
                raise BadVolume(f"there is more on it than {NODES_MAX} files and directories")  # INV-SLOT-3
            path = (*above, entry.name)
            nodes.append(
                Node(
                    path=path,
                    directory=entry.directory,
                    size=entry.size,
                    cluster=entry.cluster,
                    odd=entry.odd,
                )
            )
            if entry.directory:
                todo.append((path, _chain(read, volume, entry.cluster)))
    # Two names on one chain are what a rename that was cut short leaves; nothing of ours shares more.
    if sum(node.size for node in nodes if not node.directory) > 2 * volume.clusters * volume.cluster_bytes:
        raise BadVolume("its files are larger than it is")  # INV-SLOT-3
    return volume, tuple(nodes)


def stretches(read: Read, volume: Volume, node: Node) -> Iterator[tuple[int, int]]:
    """Where a file's bytes are: offset and length, in order, `node.size` bytes in all.

    Raises BadVolume where the chain ends too early or leads out of the volume, and what `read` raises. It
    asks for no more links than the file's size has clusters, so a loop ends too.
    """
    following = _links(read, volume)
    cluster, left = node.cluster, node.size
    while left > 0:
        first, length = _inside(volume, cluster), volume.cluster_bytes
        while length < left:
            before, cluster = cluster, following(cluster)
            if cluster != before + 1 or length >= STRETCH_BYTES:
                break
            _inside(volume, cluster)
            length += volume.cluster_bytes
        length = min(length, left)
        yield volume.data_at + (first - 2) * volume.cluster_bytes, length
        left -= length


def directories(read: Read, volume: Volume, nodes: Sequence[Node]) -> tuple[tuple[int, int], ...]:
    """Where the directories are: offset and length of each stretch.

    Raises BadVolume, and what `read` raises.
    """
    chains = [_root(read, volume)]
    chains += [_chain(read, volume, node.cluster) for node in nodes if node.directory]
    return tuple((at, len(data)) for chain in chains for at, data in chain)


def _inside(volume: Volume, cluster: int) -> int:
    if not 2 <= cluster < volume.clusters + 2:
        raise BadVolume(f"a file's chain leads to cluster {cluster}")
    return cluster


def _links(read: Read, volume: Volume) -> Callable[[int], int]:
    """What the table says follows a cluster inside the volume. Keeps the last block of the table it read: a
    chain mostly goes on where it is."""
    width = 4 if volume.wide else 2
    end = width * (volume.clusters + 2)
    held: tuple[int, bytes] = (-1, b"")

    def following(cluster: int) -> int:
        nonlocal held
        block, at = divmod(width * cluster, _TABLE_BYTES)
        if held[0] != block:
            start = block * _TABLE_BYTES
            held = block, _exactly(read, volume.table_at + start, min(_TABLE_BYTES, end - start))
        link = int.from_bytes(held[1][at : at + width], "little")
        return link & 0x0FFFFFFF if volume.wide else link

    return following


def _exactly(read: Read, offset: int, length: int) -> bytes:
    data = read(offset, length)
    if len(data) != length:
        raise BadVolume(f"the volume ends before byte {offset + length}")
    return data


def _volume(read: Read) -> Volume:
    boot = _exactly(read, 0, _BOOT_BYTES)
    sector_bytes, cluster_sectors, reserved, tables, root_entries, sectors16 = struct.unpack_from(
        "<HBHBHH", boot, 11
    )
    (table16,) = struct.unpack_from("<H", boot, 22)
    sectors32, table32 = struct.unpack_from("<II", boot, 32)
    (root_cluster,) = struct.unpack_from("<I", boot, 44)
    if boot[510:512] != b"\x55\xaa":
        raise BadVolume("no boot sector signature")
    if sector_bytes not in _SECTOR_BYTES or cluster_sectors not in {1 << i for i in range(8)}:
        raise BadVolume(f"sectors of {sector_bytes} bytes, clusters of {cluster_sectors} sectors")
    # Firmware decides the kind of FAT the same way: FAT32 has no 16-bit length of its table.
    wide = table16 == 0
    table_sectors = table32 if wide else table16
    sectors = sectors16 or sectors32
    if not reserved or not 1 <= tables <= 2 or not table_sectors or (wide and root_entries):
        raise BadVolume("the boot sector contradicts itself")
    root_sectors = -(-root_entries * _ENTRY_BYTES // sector_bytes)
    data_sector = reserved + tables * table_sectors + root_sectors
    clusters = (sectors - data_sector) // cluster_sectors
    if clusters < 1:
        raise BadVolume("no room for data")
    if not wide and not _FAT16_CLUSTERS_MIN <= clusters <= _FAT16_CLUSTERS_MAX:
        raise BadVolume(f"{clusters} clusters are not FAT16")
    if (clusters + 2) * (4 if wide else 2) > table_sectors * sector_bytes:
        raise BadVolume("the table is shorter than the volume")
    return Volume(
        cluster_bytes=cluster_sectors * sector_bytes,
        clusters=clusters,
        table_at=reserved * sector_bytes,
        data_at=data_sector * sector_bytes,
        root_at=(reserved + tables * table_sectors) * sector_bytes,
        root_bytes=root_entries * _ENTRY_BYTES,
        root_cluster=root_cluster,
        wide=wide,
    )


# A stretch of a directory: where it lies and what it holds.
_Stretch = tuple[int, bytes]


def _root(read: Read, volume: Volume) -> Iterator[_Stretch]:
    if volume.wide:
        yield from _chain(read, volume, volume.root_cluster)
    else:
        length = min(volume.root_bytes, DIRECTORY_BYTES_MAX)
        yield volume.root_at, _exactly(read, volume.root_at, length)


def _chain(read: Read, volume: Volume, first: int) -> Iterator[_Stretch]:
    """The clusters of a directory in order."""
    cluster = first
    seen: set[int] = set()
    while True:
        if not 2 <= cluster < volume.clusters + 2:
            raise BadVolume(f"a directory's chain leads to cluster {cluster}")
        if cluster in seen:
            raise BadVolume("a directory's chain is a loop")  # INV-SLOT-3
        seen.add(cluster)
        if len(seen) * volume.cluster_bytes > DIRECTORY_BYTES_MAX:
            raise BadVolume("a directory is longer than any of ours")
        at = volume.data_at + (cluster - 2) * volume.cluster_bytes
        yield at, _exactly(read, at, volume.cluster_bytes)
        if volume.wide:
            cluster = int.from_bytes(_exactly(read, volume.table_at + 4 * cluster, 4), "little") & 0x0FFFFFFF
            ended = cluster >= 0x0FFFFFF8
        else:
            cluster = int.from_bytes(_exactly(read, volume.table_at + 2 * cluster, 2), "little")
            ended = cluster >= 0xFFF8
        if ended:
            return


@dataclass(frozen=True, slots=True)
class _Part:
    """One entry of a long name."""

    number: int
    checksum: int
    units: tuple[int, ...]
    at: tuple[int, ...]


def _parse(stretches: Iterator[_Stretch], wide: bool) -> Iterator[Entry]:
    """The live entries. Parts of a long name that do not belong to the entry behind them are leftovers of
    another writer. Every reader of FAT ignores them, and so must this one, or it would see other names than
    the firmware does."""
    parts: list[_Part] = []
    for base, data in stretches:
        for offset in range(0, len(data), _ENTRY_BYTES):
            raw = data[offset : offset + _ENTRY_BYTES]
            if raw[0] == _END:
                return
            if raw[0] == _FREE:
                parts = []
            elif raw[11] & _ATTRIBUTES == _LONG:
                parts = _extend(parts, raw, base + offset)
            else:
                if not raw[11] & _VOLUME:
                    yield _entry(raw, parts, wide)
                parts = []


def _extend(parts: list[_Part], raw: bytes, at: int) -> list[_Part]:
    """The parts so far and one more, or none when it does not continue them."""
    number = raw[0] & ~_LAST_PART
    part = _Part(
        number,
        raw[13],
        tuple(int.from_bytes(raw[i : i + 2], "little") for i in _UNITS),
        tuple(at + i for i in _UNITS),
    )
    if raw[0] & _LAST_PART:
        return [part] if 1 <= number <= _PARTS_MAX else []
    if parts and number == parts[-1].number - 1 and number >= 1 and part.checksum == parts[-1].checksum:
        return [*parts, part]
    return []


def _entry(raw: bytes, parts: list[_Part], wide: bool) -> Entry:
    high, low = struct.unpack_from("<H", raw, 20)[0], struct.unpack_from("<H", raw, 26)[0]
    cluster = high << 16 | low if wide else low
    directory = bool(raw[11] & _SUBDIRECTORY)
    odd = raw[11] & ~(_SUBDIRECTORY | _ARCHIVE)
    (size,) = struct.unpack_from("<I", raw, 28)
    if parts and parts[-1].number == 1 and parts[-1].checksum == _checksum(raw[:11]):
        # The parts come last first.
        units = [unit for part in reversed(parts) for unit in part.units]
        at = [position for part in reversed(parts) for position in part.at]
        length = units.index(0) if 0 in units else len(units)
        # One character for each unit, so that a name's index is the index of its position.
        name = "".join(map(chr, units[:length]))
        return Entry(
            name=name, at=tuple(at[:length]), cluster=cluster, directory=directory, size=size, odd=odd
        )
    stem, extension = raw[:8].rstrip(b" "), raw[8:11].rstrip(b" ")
    # A short name is upper case; two bits say that a part of it is meant in lower case.
    stem = stem.lower() if raw[12] & _LOWER_STEM else stem
    extension = extension.lower() if raw[12] & _LOWER_EXTENSION else extension
    name = (stem + b"." + extension if extension else stem).decode("latin-1")
    return Entry(name=name, at=(), cluster=cluster, directory=directory, size=size, odd=odd)


def _checksum(short: bytes) -> int:
    total = 0
    for byte in short:
        total = ((total & 1) << 7 | total >> 1) + byte & 0xFF
    return total
