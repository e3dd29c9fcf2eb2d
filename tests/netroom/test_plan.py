"""The plan for links, tested whole: each set of up to three links, each prefix of each plan."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.netroom.plan import Down, Nic, Park, Place, Step, Up, carrier, plan, wanted

# Two names, one of them ours, so that they clash in every way; a loopback in each place or in none.
KINDS = [
    Nic(place, 0, name, up, loopback, fixed, carries)
    for place, name, up, loopback, fixed, carries in itertools.product(
        Place, ("eth0", "nic0", "lo"), (False, True), (False, True), (False, True), (False, True)
    )
    if loopback == (name == "lo") and not (fixed and (loopback or place is Place.PARKING))
]


def possible(nics: list[Nic]) -> bool:
    """Whether a kernel could have these: names are unique in a namespace."""
    return len({(nic.place, nic.name) for nic in nics}) == len(nics)


def performed(present: list[Nic], step: Step) -> list[Nic]:
    """What the kernel makes of a step; it refuses a name that is taken."""
    match step:
        case Down(nic):
            # A step names a link by where it is; the plan saw it before it was taken down.
            return [
                replace(n, up=False) if (n.place, n.index) == (nic.place, nic.index) else n for n in present
            ]
        case Park(nic, name):
            assert all(n.name != name for n in present if n.place is Place.PARKING)
            assert not nic.fixed
            # The index may be taken there; the kernel finds another one.
            return [
                replace(n, place=Place.PARKING, name=name, index=n.index + 100, up=False)
                if (n.place, n.index) == (nic.place, nic.index)
                else n
                for n in present
            ]
        case Up(nic):
            assert nic.place is Place.PARKING
            return [
                replace(n, up=True) if (n.place, n.index) == (nic.place, nic.index) else n for n in present
            ]


def exposed(nics: list[Nic]) -> set[str]:
    return {f"{nic.place}{nic.index % 100}" for nic in nics if nic.place is Place.SPINE and not nic.loopback}


def settled(nics: list[Nic], *, connected: bool) -> bool:
    up = [nic for nic in nics if nic.up]
    able = [nic for nic in nics if nic.place is Place.PARKING and nic.carries and not nic.loopback]
    return (
        all(nic.place is Place.PARKING or nic.loopback or nic.fixed for nic in nics)
        and len(up) == (1 if connected and able else 0)
        and all(nic in able for nic in up)
        and possible(nics)
    )


def to_the_end(nics: list[Nic], *, connected: bool) -> list[Nic]:
    """Plans until there is nothing to do; a link that is parked may be what carries, in the next one."""
    for _ in range(3):
        for step in plan(wanted(nics, connected=connected), nics):
            nics = performed(nics, step)
    assert plan(wanted(nics, connected=connected), nics) == ()
    return nics


def check(present: list[Nic], *, connected: bool) -> None:
    steps = plan(wanted(present, connected=connected), present)
    used = carrier(present) if connected else None
    now = present
    for step in steps:
        after = performed(now, step)
        assert exposed(after) <= exposed(now)
        # What is taken up is what carries, and nothing else is up by then.
        assert not isinstance(step, Up) or (step.nic == used and not any(nic.up for nic in now))
        assert isinstance(step, Up) or sum(nic.up for nic in after) <= sum(nic.up for nic in now)
        # Whatever is moved is down by then.
        assert not isinstance(step, Park) or not any(
            nic.up for nic in now if (nic.place, nic.index) == (step.nic.place, step.nic.index)
        )
        # From any prefix a fresh plan ends where it should as well, also when all rooms were cut meanwhile.
        for later in (connected, False):
            assert settled(to_the_end(after, connected=later), connected=later)
        now = after
    now = to_the_end(now, connected=connected)
    assert settled(now, connected=connected)
    assert len(now) == len(present)
    # Nothing but a room's coming and going changes what is up.
    assert {nic.name for nic in now if nic.up} >= {nic.name for nic in (used,) if nic is not None}


@pytest.mark.proves("INV-NET-1")
@pytest.mark.proves("INV-NET-3")
@pytest.mark.parametrize("count", range(4))
def test_every_plan_of_a_few_links(count: int) -> None:
    seen = 0
    for kinds in itertools.product(KINDS, repeat=count):
        present = [replace(nic, index=index) for index, nic in enumerate(kinds, 1)]
        if possible(present):
            for connected in (False, True):
                check(present, connected=connected)
            seen += 1
    assert seen > 0


@given(
    st.lists(
        st.builds(
            Nic,
            place=st.sampled_from(Place),
            index=st.just(0),
            name=st.sampled_from([*(f"nic{n}" for n in range(12)), *(f"eth{n}" for n in range(12))]),
            up=st.booleans(),
            loopback=st.just(False),
            carries=st.booleans(),
        ),
        max_size=30,
        unique_by=lambda nic: (nic.place, nic.name),
    ),
    st.booleans(),
)
def test_a_plan_of_many_links(kinds: list[Nic], connected: bool) -> None:
    check([replace(nic, index=index) for index, nic in enumerate(kinds, 1)], connected=connected)
