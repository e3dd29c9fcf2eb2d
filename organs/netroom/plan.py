"""Where each link should be, which one carries the rooms, and the steps from what is.

Pure. Every link but loopback belongs into the parking namespace, and every link, loopback too, is down; but
while a room is connected the one that carries it is up, in the parking, where it has no address. A plan first
takes down what should not be up, then moves, and last takes up the one that carries; so after any number of
its steps nothing is exposed that was not, and nothing is up beside that one that was not.
Never: brings anything back, takes up a link that is not parked.
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
    """One link where it is now. `fixed`: the kernel refuses to move it, as it does with some of its own.

    `carries`: rooms can have links of their own above it. It is Ethernet hardware, or an end of a veth pair.
    """

    place: Place
    index: int
    name: str
    up: bool
    loopback: bool
    fixed: bool = False
    carries: bool = False


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a link should be, how it is called there, and whether it is up."""

    place: Place
    name: str
    up: bool = False


@dataclass(frozen=True, slots=True)
class Down:
    """Take a link down where it is."""

    nic: Nic


@dataclass(frozen=True, slots=True)
class Park:
    """Move a link into the parking namespace under this name."""

    nic: Nic
    name: str


@dataclass(frozen=True, slots=True)
class Up:
    """Take a parked link up."""

    nic: Nic


Step = Down | Park | Up


def carrier(present: Iterable[Nic]) -> Nic | None:
    """The parked link that carries the rooms: the one that does already, or the first that came and can."""
    able = [nic for nic in present if nic.place is Place.PARKING and nic.carries and not nic.loopback]
    return min(able, key=lambda nic: (not nic.up, nic.index, nic.name), default=None)


def wanted(present: Iterable[Nic], *, connected: bool = False) -> dict[Nic, Spot]:
    """The spot of each link that is there. Names keep; one that is taken in the parking becomes `nicN`.

    `connected`: whether a room is. What carries it is chosen among what is parked already.
    """
    present = list(present)
    used = carrier(present) if connected else None
    taken = {nic.name for nic in present if nic.place is Place.PARKING}
    spots: dict[Nic, Spot] = {}
    for nic in present:
        if nic.place is Place.PARKING or nic.loopback or nic.fixed:
            spots[nic] = Spot(nic.place, nic.name, up=nic is used)
            continue
        name = nic.name if nic.name not in taken else _free(taken)
        taken.add(name)
        spots[nic] = Spot(Place.PARKING, name)  # INV-NET-1
    return spots


def plan(spots: Mapping[Nic, Spot], present: Iterable[Nic]) -> tuple[Step, ...]:
    """The steps that bring each link to its spot, in an order in which each of them is safe."""
    present = list(present)
    downs = [Down(nic) for nic in present if nic.up and not spots[nic].up]  # INV-NET-3
    moves = [Park(nic, spots[nic].name) for nic in present if spots[nic].place is not nic.place]
    ups = [Up(nic) for nic in present if spots[nic].up and not nic.up]
    return (*downs, *moves, *ups)


def _free(taken: set[str]) -> str:
    """The first name of ours that is not taken; there is one among one more than are taken."""
    return next(name for name in (f"nic{n}" for n in range(len(taken) + 1)) if name not in taken)
