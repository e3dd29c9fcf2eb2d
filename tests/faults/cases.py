"""Which faults the matrix tries: every region of the disk with at least five damages, and combinations.

Pure data. A case is its name: `boot-a/loader bit`, or two of these joined by ` + `; with the seed it decides
the bytes (`tests/faults/edits.py`). The order is such that any beginning of the list is spread over all
areas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import zip_longest


class Damage(Enum):
    """What is done to a region."""

    BIT = "bit"
    NOISE = "noise"  # one sector of random bytes
    SECTOR = "sector"  # one sector of zeros
    ZERO = "zero"  # all of it
    TAIL = "tail"  # the second half of what stands there is zeros
    MISSING = "missing"  # the file's name is gone
    SHORT = "short"  # the file's size is half of what it was
    SPENT = "spent"  # the name of the program says that no try is left


@dataclass(frozen=True)
class Fault:
    """One damage to one region; `turn` tells two of the same kind apart."""

    region: str
    damage: Damage
    turn: int = 0

    @property
    def name(self) -> str:
        """As it stands in the evidence."""
        return f"{self.region} {self.damage.value}{f' {self.turn}' if self.turn else ''}"


@dataclass(frozen=True)
class Case:
    """What is done to one disk before it is booted."""

    faults: tuple[Fault, ...]

    @property
    def name(self) -> str:
        """Its id."""
        return " + ".join(fault.name for fault in self.faults)


BOOT_AREAS = {
    "file system": ("boot-sector", "fat-1", "fat-2", "root-directory", "linux-directory"),
    "first program": ("first",),
    "systemd-boot": ("loader",),
    "loader.conf": ("loader-conf",),
    "program": ("uki-header", "uki-cmdline", "uki-kernel"),
    "rescue": ("rescue",),
}
# What a directory entry names, so that it can be missing or short. The program is one file of three regions.
FILES = ("first", "loader", "loader-conf", "uki-header", "rescue")
SLOT_AREAS = {
    "data": ("superblock", "tables", "data"),
    "tree": ("tree-top", "tree-leaf"),
    "manifest": ("manifest-text", "manifest-signature"),
    "boot files": ("uki-a", "uki-b", "boot"),
    "zeros": ("zeros",),
}
# The regions by what a reader asks about: each area is hit five times before any is hit more often.
AREAS = {
    "GPT: protective MBR": ("gpt/mbr",),
    "GPT: first copy": ("gpt/header", "gpt/entries"),
    "GPT: second copy": ("gpt/backup-header", "gpt/backup-entries"),
    **{
        f"{name}: {area}": tuple(f"{name}/{place}" for place in places)
        for kind, areas in (("boot", BOOT_AREAS), ("slot", SLOT_AREAS))
        for name in (f"{kind}-a", f"{kind}-b")
        for area, places in areas.items()
    },
    "personas": ("personas",),
    "persist": ("persist/superblock", "persist/journal", "persist/database"),
}
REGIONS = tuple(region for regions in AREAS.values() for region in regions)
EVERYWHERE = (Damage.BIT, Damage.NOISE, Damage.SECTOR, Damage.ZERO, Damage.TAIL)
# Zeroing zeros is no damage.
BLANK = (Damage.BIT, Damage.NOISE, Damage.BIT, Damage.NOISE, Damage.BIT)


def damages(region: str) -> Iterator[tuple[Damage, int]]:
    """The damages of one region, and the turn of each."""
    blank = region == "personas" or region.endswith("/zeros")
    kinds = BLANK if blank else EVERYWHERE
    for at, kind in enumerate(kinds):
        yield kind, kinds[:at].count(kind)
    if region.startswith("boot-") and region.split("/")[1] in FILES:
        yield from ((Damage.MISSING, 0), (Damage.SHORT, 0))


def _alone(number: int, regions: Sequence[str]) -> list[Case]:
    """The cases of one area, its regions in turn; with another `number` they begin with another damage."""
    queues = {region: list(damages(region)) for region in regions}
    cases: list[Case] = []
    turn = 0
    while any(queues.values()):
        for at, (region, queue) in enumerate(queues.items()):
            if queue:
                kind, again = queue.pop((number + at + turn) % len(queue))
                cases.append(Case((Fault(region, kind, again),)))
        turn += 1
    return cases


def single() -> list[Case]:
    """One damage each: first every area once, then again."""
    areas = [_alone(number, regions) for number, regions in enumerate(AREAS.values())]
    return [case for turn in zip_longest(*areas) for case in turn if case is not None]


def _both(place: str, kind: Damage, other: Damage | None = None) -> Case:
    a, b = place.format("a"), place.format("b")
    return Case((Fault(a, kind), Fault(b, other or kind)))


def _pairs(rows: Sequence[tuple[tuple[str, Damage], ...]]) -> list[Case]:
    return [Case(tuple(Fault(region, kind) for region, kind in row)) for row in rows]


def combined() -> list[Case]:
    """Tries spent, a side that is gone, and damage in two places at once."""
    bit, zero, spent = Damage.BIT, Damage.ZERO, Damage.SPENT
    return [
        *_pairs(
            [
                (("boot-a", spent),),
                (("boot-b", spent),),
                (("boot-a", spent), ("boot-b", spent)),
                (("boot-a", spent), ("slot-b/superblock", bit)),
                (("boot-b", spent), ("slot-a/superblock", bit)),
                (("boot-a", zero),),
                (("boot-b", zero),),
                (("slot-a", zero),),
                (("slot-b", zero),),
                (("slot-a", zero), ("boot-a", zero)),
                (("slot-b", zero), ("boot-b", zero)),
                (("slot-a", zero), ("boot-b", zero)),
                (("slot-b", zero), ("boot-a", zero)),
                (("slot-a/data", bit), ("boot-b/first", bit)),
                (("slot-b/data", bit), ("boot-a/first", bit)),
                (("boot-a/first", bit), ("boot-b/loader", bit)),
                (("boot-a/loader", bit), ("boot-b/first", bit)),
                (("slot-a/superblock", bit), ("boot-b/uki-kernel", bit)),
                (("slot-b/superblock", bit), ("boot-a/uki-kernel", bit)),
                (("slot-a/superblock", bit), ("boot-a/rescue", bit), ("slot-b/superblock", bit)),
            ]
        ),
        _both("slot-{}/superblock", bit),
        _both("slot-{}/tree-top", bit, Damage.SECTOR),
        _both("slot-{}/data", Damage.TAIL),
        _both("slot-{}/manifest-signature", bit),
        _both("slot-{}/zeros", bit, Damage.NOISE),
        _both("slot-{}", zero),
        _both("boot-{}/uki-kernel", bit),
        _both("boot-{}/uki-cmdline", bit),
        _both("boot-{}/uki-header", Damage.MISSING),
        _both("boot-{}/first", bit),
        _both("boot-{}/first", Damage.MISSING),
        _both("boot-{}/loader", bit),
        _both("boot-{}/loader-conf", Damage.MISSING),
        _both("boot-{}/rescue", Damage.MISSING),
    ]


def every() -> list[Case]:
    """All cases; combinations are mixed in, so that a short run meets some."""
    one, two = single(), combined()
    step = -(-len(one) // len(two))
    mixed: list[Case] = []
    for at, case in enumerate(one):
        if at % step == 0 and two:
            mixed.append(two.pop(0))
        mixed.append(case)
    return [*mixed, *two]
