"""From a case to the bytes that change on a disk.

Pure but for the callable that reads the whole disk as it was. The same seed, case and disk give the same
edits; none of them is without effect.
Fails: with `NoEffect` where a damage cannot change what is there, `KeyError` for a region that is not there.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.faults.cases import Case, Damage, Fault
from tests.faults.places import CONF, FIRST, LOADER, RESCUE, SECTOR, Places, Read, Stretch
from tests.faults.volume import GONE, File

# Where in a short entry of a directory the size of the file stands.
SIZE_AT = 28


class NoEffect(ValueError):
    """Nothing would change."""


@dataclass(frozen=True)
class Edit:
    """These bytes at this place of the disk."""

    at: int
    data: bytes


def edits(case: Case, places: Places, read: Read, seed: str) -> list[Edit]:
    """What to write, in order. NoEffect, KeyError."""
    return [edit for fault in case.faults for edit in _fault(fault, places, read, seed)]


def _fault(fault: Fault, places: Places, read: Read, seed: str) -> list[Edit]:
    chance = random.Random(f"{seed}/{fault.name}")
    region, _, place = fault.region.partition("/")
    if fault.damage is Damage.SPENT:
        found = list(_spent(places, region))
    elif fault.damage is Damage.MISSING:
        start, file = places.partitions[region].start, _file(places, region, place)
        found = [Edit(start + at, bytes([GONE])) for at in file.at]
    elif fault.damage is Damage.SHORT:
        start, file = places.partitions[region].start, _file(places, region, place)
        found = [Edit(start + file.at[-1] + SIZE_AT, (file.size // 2).to_bytes(4, "little"))]
    else:
        found = list(_bytes(fault.damage, places.regions[fault.region], read, chance))
    found = [edit for edit in found if read(edit.at, len(edit.data)) != edit.data]
    if not found:
        raise NoEffect(f"{fault.name}: it is so already")
    return found


def _file(places: Places, region: str, place: str) -> File:
    pair = region.removeprefix("boot-")
    if place.startswith("uki-"):
        return places.program(pair)
    paths = {"first": FIRST, "loader": LOADER, "loader-conf": CONF, "rescue": RESCUE}
    return places.volumes[pair].file(paths[place])


def _spent(places: Places, region: str) -> Iterator[Edit]:
    start, file = places.partitions[region].start, places.program(region.removeprefix("boot-"))
    name = file.path.rpartition("/")[2]
    plus = name.index("+")
    for index, digit in ((plus + 1, "0"), (plus + 3, "3")):
        yield Edit(start + file.letters[index], digit.encode("utf-16-le"))


def _bytes(damage: Damage, stretches: Sequence[Stretch], read: Read, chance: random.Random) -> Iterator[Edit]:
    if damage is Damage.ZERO:
        yield from (Edit(at, bytes(length)) for at, length in stretches)
    elif damage is Damage.TAIL:
        # Half of what stands there: of a table that is mostly free, the half that is used.
        used = len(b"".join(read(at, length) for at, length in stretches).rstrip(b"\0"))
        skip = used // 2
        for at, length in stretches:
            if skip < length:
                yield Edit(at + skip, bytes(length - skip))
            skip = max(0, skip - length)
    elif damage is Damage.BIT:
        at, _ = _sector(stretches, read, chance, damage)
        yield Edit(at, bytes([read(at, 1)[0] ^ 1 << chance.randrange(8)]))
    else:
        at, length = _sector(stretches, read, chance, damage)
        yield Edit(at, chance.randbytes(length) if damage is Damage.NOISE else bytes(length))


def _sector(stretches: Sequence[Stretch], read: Read, chance: random.Random, damage: Damage) -> Stretch:
    """A byte of the region, or what the region has of a sector; where something stands, if that is anywhere.

    A bit in a part of a region that nothing ever reads would say little.
    """
    found: list[Stretch] = []
    for start, length in stretches:
        data = read(start, length)
        for at in range(0, length, SECTOR):
            piece = data[at : at + SECTOR]
            if any(piece):
                found.append((start + at, len(piece)))
    if not found:
        if damage is Damage.SECTOR:
            raise NoEffect("there are zeros already")
        total = [(at, length) for at, length in stretches if length]
        start, length = total[chance.randrange(len(total))]
        at = start + SECTOR * chance.randrange(-(-length // SECTOR))
        found = [(at, min(SECTOR, start + length - at))]
    at, length = chance.choice(found)
    return (at + chance.randrange(length), 1) if damage is Damage.BIT else (at, length)
