"""What a disk holds, against the releases that may be there: read from outside, from the disk's file alone.

`Release.of` takes the pristine bytes from a disk as a build left it; `look` compares another disk with them.
A boot volume is compared whole: each file by name (the counter aside) and content, and each byte outside of
directories as it is, so a table or a free cluster that was written over is a difference too.

Touches: the disk's file, to read.
Never: asks the system that runs; that is what is being judged.
Fails: not at all for a damaged disk, on which less is blessed.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from spine.ground.gpt import Partition
from tests.faults import volume
from tests.faults.places import FIRST, LOADER, PAIRS, counted

COUNTER = re.compile(r"\+(\d)-(\d)(?=\.efi$)", re.IGNORECASE)
ARMED = (3, 0)
# The firmware sets this on the directories above a name that it changes, and their times.
ARCHIVE = 0x20
Counter = tuple[int, int]


@dataclass(frozen=True)
class Release:
    """The pristine bytes of one build, as hashes. `partitions` is where they lie."""

    name: str
    slot: str
    volumes: Mapping[str, str]
    programs: Mapping[str, str]
    first: str
    loader: str
    partitions: Mapping[str, Partition]

    @classmethod
    def of(cls, name: str, disk: Path, partitions: Mapping[str, Partition]) -> Release:
        """From a disk that was never booted. ValueError when its two slots differ."""
        with mapped(disk) as data:
            slots = {_sha256(_part(data, partitions[f"slot-{pair}"])) for pair in PAIRS}
            if len(slots) != 1:
                raise ValueError(f"{disk}: two slots that differ")
            raw = {pair: _part(data, partitions[f"boot-{pair}"]) for pair in PAIRS}
            found = {pair: volume.parse(raw[pair]) for pair in PAIRS}
            programs = {pair: content(raw[pair], counted(found[pair], pair)) for pair in PAIRS}
            [first], [loader] = (
                {content(raw[pair], found[pair].file(path)) for pair in PAIRS} for path in (FIRST, LOADER)
            )
            prints = {pair: fingerprint(raw[pair], found[pair]) for pair in PAIRS}
            return cls(name, slots.pop(), prints, programs, first, loader, partitions)


@dataclass(frozen=True)
class Pair:
    """What a slot and its boot volume are: the name of the release whose bytes they have, or nothing.

    `program` (the one with a counter), `first` (what the firmware starts) and `loader` (what that starts) are
    None where there is none; else whether it is one of a release. `counter` is (tries left, tries done).
    """

    slot: str = ""
    volume: str = ""
    counter: Counter | None = None
    program: bool | None = None
    first: bool | None = None
    loader: bool | None = None


@dataclass(frozen=True)
class Look:
    """Both pairs at one time."""

    pairs: Mapping[str, Pair]

    @property
    def whole(self) -> str:
        """The release that both slots and both volumes are, or nothing."""
        names = {name for pair in self.pairs.values() for name in (pair.slot, pair.volume)}
        return names.pop() if len(names) == 1 else ""

    @property
    def differs(self) -> list[str]:
        """The parts that are not what most parts are; of two halves, what pair B is."""
        parts = {
            f"{part}-{name}": getattr(pair, kind)
            for name, pair in sorted(self.pairs.items())
            for part, kind in (("slot", "slot"), ("boot", "volume"))
        }
        held = [release for release in parts.values() if release]
        most = max(reversed(held), key=held.count, default="")
        return [name for name, release in parts.items() if release != most or not most]

    @property
    def armed(self) -> bool:
        """Whether both counters are as a build leaves them."""
        return all(pair.counter == ARMED for pair in self.pairs.values())

    @property
    def any_slot(self) -> bool:
        """Whether a slot is whole."""
        return any(pair.slot for pair in self.pairs.values())


@contextmanager
def mapped(disk: Path) -> Iterator[mmap.mmap]:
    """The disk's bytes as they are now, also while a machine writes to it."""
    with open(disk, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def look(disk: Path, releases: Sequence[Release]) -> Look:
    """Compare all of it."""
    with mapped(disk) as data:
        return Look({pair: _pair(data, pair, releases) for pair in PAIRS})


def counters(disk: Path, release: Release) -> dict[str, Counter | None]:
    """The counters only: quick enough to be asked all the time."""
    found: dict[str, Counter | None] = {}
    with mapped(disk) as data:
        for pair in PAIRS:
            try:
                walked = volume.parse(_part(data, release.partitions[f"boot-{pair}"]))
                found[pair] = _counter(counted(walked, pair))
            except (volume.NotAVolume, KeyError):
                found[pair] = None
    return found


def fingerprint(raw: bytes | bytearray, found: volume.Volume) -> str:
    """One hash for a boot volume, whatever its counters say and wherever in a directory a name stands."""
    rest = bytearray(raw)
    rest[found.root_at : found.root_at + found.root_bytes] = bytes(found.root_bytes)
    rows = []
    for file in found.files:
        rows.append(
            f"{COUNTER.sub('', file.path)} {file.attributes & ~ARCHIVE:02x} {file.cluster} {file.size}"
        )
        if file.directory:
            for at, length in file.runs:
                rest[at : at + length] = bytes(length)
    digest = hashlib.sha256("\n".join(sorted(rows)).encode())
    digest.update(rest)
    return digest.hexdigest()


def content(raw: bytes, file: volume.File) -> str:
    """The hash of a file."""
    digest = hashlib.sha256()
    for at, length in file.runs:
        digest.update(raw[at : at + length])
    return digest.hexdigest()


def _pair(data: mmap.mmap, pair: str, releases: Sequence[Release]) -> Pair:
    # All releases of a matrix have one layout.
    where = releases[0].partitions
    digest = _sha256(_part(data, where[f"slot-{pair}"]))
    slot = next((release.name for release in releases if release.slot == digest), "")
    raw = _part(data, where[f"boot-{pair}"])
    try:
        found = volume.parse(raw)
    except volume.NotAVolume:
        return Pair(slot=slot)
    printed = fingerprint(raw, found)
    name = next((release.name for release in releases if release.volumes[pair] == printed), "")
    program: bool | None = None
    counter: Counter | None = None
    try:
        file = counted(found, pair)
        counter = _counter(file)
        program = content(raw, file) in {release.programs[pair] for release in releases}
    except KeyError:
        program = None
    first = _known(raw, found, FIRST, {release.first for release in releases})
    loader = _known(raw, found, LOADER, {release.loader for release in releases})
    return Pair(slot, name, counter, program, first, loader)


def _known(raw: bytes, found: volume.Volume, path: str, hashes: set[str]) -> bool | None:
    try:
        return content(raw, found.file(path)) in hashes
    except KeyError:
        return None


def _counter(file: volume.File) -> Counter | None:
    found = COUNTER.search(file.path)
    return (int(found[1]), int(found[2])) if found else None


def _part(data: mmap.mmap, partition: Partition) -> bytes:
    return data[partition.start : partition.start + partition.size]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
