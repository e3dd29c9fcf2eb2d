"""Where each link should be, and the steps from where it is.

Pure. Every link but loopback belongs into the parking namespace, and every link, loopback too, is down. A
plan first takes down what is up, then moves; so after any number of its steps no more is up, and no more is
in the spine's namespace, than before it.
Never: takes anything up or brings anything back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum


class Place(Enum):
    """A network namespace."""

    SPINE = "where the organs are"
    PARKING = "where nobody is"


@dataclass(frozen=True, slots=True)
class Nic:
    """One link where it is now. `fixed`: the kernel refuses to move it, as it does with some of its own."""

    place: Place
    index: int
    name: str
    up: bool
    loopback: bool
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a link should be and how it is called there. It should always be down."""

    place: Place
    name: str


@dataclass(frozen=True, slots=True)
class Down:
    """Take a link down where it is."""

    nic: Nic


@dataclass(frozen=True, slots=True)
class Park:
    """Move a link into the parking namespace under this name."""

    nic: Nic
    name: str


Step = Down | Park


def wanted(present: Iterable[Nic]) -> dict[Nic, Spot]:
    """The spot of each link that is there. Names keep; one that is taken in the parking becomes `nicN`."""
    present = list(present)
    taken = {nic.name for nic in present if nic.place is Place.PARKING}
    spots: dict[Nic, Spot] = {}
    for nic in present:
        if nic.place is Place.PARKING or nic.loopback or nic.fixed:
            spots[nic] = Spot(nic.place, nic.name)
            continue
        name = nic.name if nic.name not in taken else _free(taken)
        taken.add(name)
        spots[nic] = Spot(Place.PARKING, name)  # INV-NET-1
    return spots


def plan(spots: Mapping[Nic, Spot], present: Iterable[Nic]) -> tuple[Step, ...]:
    """The steps that bring each link to its spot, in an order in which each of them is safe."""
    present = list(present)
    downs = [Down(nic) for nic in present if nic.up]  # INV-NET-3
    moves = [Park(nic, spots[nic].name) for nic in present if spots[nic].place is not nic.place]
    return (*downs, *moves)


def _free(taken: set[str]) -> str:
    """The first name of ours that is not taken; there is one among one more than are taken."""
    return next(name for name in (f"nic{n}" for n in range(len(taken) + 1)) if name not in taken)
