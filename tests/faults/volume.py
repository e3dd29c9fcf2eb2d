"""A FAT16 volume as the fault matrix sees it: names, where their characters are, where the bytes lie.

Pure: bytes in, facts out. Written for the judge, apart from the reader in the image, so that one mistake
cannot both break a volume and call it whole.
Never: writes; follows a chain further than the volume has clusters.
Fails: with `NotAVolume` for bytes that are no such volume.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

SLOT = 32
SUBDIRECTORY, LABEL, LONG = 0x10, 0x08, 0x0F
GONE = 0xE5
# Where an entry of a long name keeps its characters.
UNITS = (*range(1, 11, 2), *range(14, 26, 2), *range(28, 32, 2))


class NotAVolume(ValueError):
    """The bytes are not a FAT16 volume that can be walked."""


@dataclass(frozen=True)
class File:
    """One name. `at` is where its directory entries are (long parts first), `letters` where each character of
    its long name is, `runs` where the content is, without the rest of the last cluster."""

    path: str
    directory: bool
    attributes: int
    at: tuple[int, ...]
    letters: tuple[int, ...]
    cluster: int
    size: int
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Volume:
    """The geometry in bytes, and all that is on it."""

    table_at: int
    table_bytes: int
    root_at: int
    root_bytes: int
    data_at: int
    files: tuple[File, ...]

    def file(self, path: str) -> File:
        """The file or directory of that path, whatever the case. KeyError."""
        for found in self.files:
            if found.path.lower() == path.lower():
                return found
        raise KeyError(path)


def parse(data: bytes | bytearray) -> Volume:
    """The volume that these bytes are, from their first to their last. NotAVolume."""
    # The signature at the end of the sector is not looked at. Nor does the firmware: it starts programs of a
    # volume without one, and the judge must see their counters.
    if len(data) < 512:
        raise NotAVolume("no boot sector")
    sector, per_cluster, reserved, tables, entries, small = struct.unpack_from("<HBHBHH", data, 11)
    [table_sectors] = struct.unpack_from("<H", data, 22)
    [large] = struct.unpack_from("<I", data, 32)
    if sector != 512 or not per_cluster or not reserved or tables != 2 or not table_sectors or not entries:
        raise NotAVolume("no FAT16 of ours")
    if (small or large) * sector > len(data):
        raise NotAVolume("the volume ends beyond the partition")
    root_at = (reserved + tables * table_sectors) * sector
    walk = _Walk(
        data,
        reserved * sector,
        table_sectors * sector,
        root_at + entries * SLOT,
        per_cluster * sector,
    )
    if walk.data_at > len(data):
        raise NotAVolume("the volume ends before its data")
    files = tuple(walk.directory("", [(root_at, entries * SLOT)], 0))
    return Volume(walk.table_at, walk.table_bytes, root_at, entries * SLOT, walk.data_at, files)


@dataclass(frozen=True)
class _Walk:
    data: bytes | bytearray
    table_at: int
    table_bytes: int
    data_at: int
    cluster_bytes: int

    def chain(self, cluster: int) -> Iterator[int]:
        """Where the clusters of a chain are."""
        for _ in range(self.table_bytes // 2):
            at = self.data_at + (cluster - 2) * self.cluster_bytes
            if cluster < 2 or at + self.cluster_bytes > len(self.data) or 2 * cluster >= self.table_bytes:
                raise NotAVolume(f"a chain leads to cluster {cluster}")
            yield at
            [cluster] = struct.unpack_from("<H", self.data, self.table_at + 2 * cluster)
            if cluster >= 0xFFF8:
                return
        raise NotAVolume("a chain is a loop")

    def runs(self, cluster: int, size: int) -> tuple[tuple[int, int], ...]:
        """The content of a file of that size."""
        found: list[tuple[int, int]] = []
        if not size:
            return ()
        left = size
        for at in self.chain(cluster):
            length = min(self.cluster_bytes, left)
            if found and sum(found[-1]) == at:
                found[-1] = (found[-1][0], found[-1][1] + length)
            else:
                found.append((at, length))
            left -= length
            if not left:
                return tuple(found)
        raise NotAVolume("a chain ends before its file")

    def directory(self, above: str, stretches: list[tuple[int, int]], depth: int) -> Iterator[File]:
        """Everything in a directory and below it."""
        # Ours are two deep; one that leads to itself would never end.
        if depth > 4:
            raise NotAVolume("directories in directories without end")
        parts: list[int] = []
        for start, length in stretches:
            for at in range(start, start + length, SLOT):
                raw = self.data[at : at + SLOT]
                if raw[0] == 0:
                    return
                if raw[0] == GONE:
                    parts = []
                elif raw[11] & 0x3F == LONG:
                    parts.append(at)
                elif raw[11] & LABEL:
                    parts = []
                else:
                    yield from self._entry(above, raw, at, parts, depth)
                    parts = []

    def _entry(
        self, above: str, raw: bytes | bytearray, at: int, parts: list[int], depth: int
    ) -> Iterator[File]:
        stem, extension = (raw[low:high].decode("latin-1").rstrip() for low, high in ((0, 8), (8, 11)))
        name = f"{stem}.{extension}" if extension else stem
        if name in (".", ".."):
            return
        letters: list[int] = []
        if parts:
            letters = [part + unit for part in reversed(parts) for unit in UNITS]
            units = [int.from_bytes(self.data[one : one + 2], "little") for one in letters]
            end = units.index(0) if 0 in units else len(units)
            name, letters = "".join(map(chr, units[:end])), letters[:end]
        path = f"{above}/{name}" if above else name
        directory = bool(raw[11] & SUBDIRECTORY)
        cluster, size = struct.unpack_from("<HI", raw, 26)
        if directory:
            inner = [(start, self.cluster_bytes) for start in self.chain(cluster)]
            runs = tuple(inner)
        else:
            runs = self.runs(cluster, size)
        yield File(path, directory, raw[11], (*parts, at), tuple(letters), cluster, size, runs)
        if directory:
            yield from self.directory(path, inner, depth + 1)
