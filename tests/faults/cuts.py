"""At which writes the power is cut, out of a log of all that a machine wrote.

Pure: from the logged entries to the numbers of those after which the cut comes. The log is QEMU's
(`spine.ground.powercut`), which also says what of it was durable by then. A stretch of writes to one
partition is a phase; each is cut after its first write, in its middle and around its last, each time with
what was not flushed gone, and once more with a seeded part of it left, torn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spine.ground.gpt import Partition
from spine.ground.powercut import Entry, Keep

# Partitions whose writes are no phase of their own: the gate writes at every start.
BESIDE = ("persist", "")


@dataclass(frozen=True)
class Phase:
    """The writes number `first` to `last` of the log, all to one partition (others may come between)."""

    partition: str
    first: int
    last: int


@dataclass(frozen=True)
class Cut:
    """The power goes after entry number `after` (the log's first has number 1)."""

    name: str
    after: int
    keep: Keep | None


def phases(entries: Sequence[Entry], partitions: Mapping[str, Partition]) -> list[Phase]:
    """The stretches of writes, in order."""
    found: list[Phase] = []
    for number, entry in enumerate(entries, start=1):
        if not entry.is_write:
            continue
        name = next(
            (name for name, part in partitions.items() if part.start <= entry.start < part.start + part.size),
            "",
        )
        if name in BESIDE:
            continue
        if found and found[-1].partition == name:
            found[-1] = Phase(name, found[-1].first, number)
        else:
            found.append(Phase(name, number, number))
    return found


def choose(
    scenario: str, entries: Sequence[Entry], partitions: Mapping[str, Partition], seed: str
) -> list[Cut]:
    """The cuts of one log: in a phase of one write before and after it, else three; each twice."""
    cuts: list[Cut] = []
    for at, phase in enumerate(phases(entries, partitions)):
        places = {
            "first": phase.first,
            "middle": (phase.first + phase.last) // 2,
            "last": max(phase.first, phase.last - 1),
            "end": phase.last,
        }
        taken: set[int] = set()
        for where, after in places.items():
            if after in taken:
                continue
            taken.add(after)
            name = f"{scenario} {at}:{phase.partition} {where}"
            chance = random.Random(f"{seed}/{name}").randrange(1 << 32)
            cuts.append(Cut(f"{name} flushed", after, None))
            cuts.append(Cut(f"{name} torn", after, Keep(chance)))
    return cuts
