"""Every history of boots, repairs and power cuts, from every state of a disk: none goes on without end.

The machine here is the firmware and systemd-boot as they were tried: entries with tries left or without a
counter first, the newer version first, with equal ones b before a; then the rescue program, which is on both
boot volumes; then entries that used up their tries. A slot that is bad may start and stay healthy (the bytes
that are bad are not read), or panic at any time: both are followed. The power may go before and after each
write of a repair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import pytest

from organs.integrity.slots import Act, Boot, Facts, Order, Pair, Slot, Standing, Step, Update, decide
from tests.explore import explore

BAD = 0  # in the place of a release
CUTS_MAX = 2


@dataclass(frozen=True)
class Half:
    """A pair on the disk. `slot`: the release in it, or BAD. `boot`: that of the program, 0 for none that a
    firmware can read; `kind`: what integrity finds of the volume."""

    slot: int
    boot: int
    kind: str  # right, altered (starts nevertheless), uncounted, broken, empty
    tries: int | None


@dataclass(frozen=True)
class World:
    """The disk, what runs (a letter, "off", "rescue", or "" for a firmware that finds nothing), the writes of
    the repair under way, and how often the power may still go. `worse`: release 2 never becomes healthy."""

    a: Half
    b: Half
    power: str = "off"
    todo: tuple[tuple[str, str, object], ...] = ()
    healthy: bool = False
    cuts: int = CUTS_MAX
    worse: bool = False

    def half(self, letter: str) -> Half:
        return self.a if letter == "a" else self.b

    def put(self, letter: str, half: Half) -> World:
        return replace(self, a=half) if letter == "a" else replace(self, b=half)


def facts(world: World) -> Facts:
    """What integrity reads, in the slot that runs."""

    def pair(letter: str) -> Pair:
        own, other = world.half(letter), world.half("b" if letter == "a" else "a")
        origin = own.slot or other.slot
        kind = Boot.EMPTY if own.kind == "empty" else Boot.BAD
        if own.kind == "right" and own.boot == origin != BAD:
            kind = Boot.GOOD
        return Pair(Slot.VERIFIED if own.slot else Slot.BAD, kind, own.tries)

    a, b = world.a.slot, world.b.slot
    order = Order.APART if BAD in (a, b) or a == b else Order.A_NEWER if a > b else Order.B_NEWER
    return Facts(world.power, True, pair("a"), pair("b"), Order.SAME if a == b != BAD else order)


def writes(world: World, step: Step) -> tuple[tuple[str, str, object], ...]:
    """A step as single writes, in the order of organs/integrity/replace.py."""
    if step.act is Act.ARM:
        return (("tries", step.pair, 3),)
    if step.act is Act.DISARM:
        return (("tries", step.pair, 0),)
    if step.act is Act.REBOOT:
        return (("reboot", step.pair, None),)
    release = world.half(step.source).slot if step.source else BAD
    assert release or not step.source
    empty = ("boot", step.pair, (0, "empty", None))
    full = ("boot", step.pair, (release, "right", 3))
    if step.act is Act.WIPE_BOOT:
        return (empty,)
    if step.act is Act.REPLACE_BOOT:
        return (empty, full)
    return (empty, ("slot", step.pair, BAD), ("slot", step.pair, release), full)


def loader(world: World) -> tuple[str, ...]:
    """What is started next: a letter, the rescue program, or nothing."""
    seen = [(letter, half) for letter in "ab" if (half := world.half(letter)).boot]
    ready = [(half.boot, letter) for letter, half in seen if half.tries != 0]
    if ready:
        return (max(ready)[1],)
    if seen:
        return ("rescue",)
    return ("",)


def events(world: World) -> Iterator[World]:
    """What may come next."""
    if world.power == "start":  # the root of all histories
        yield from initial()
        return
    if world.power in ("rescue", ""):
        return
    if world.power == "off":
        for power in loader(world):
            after = replace(world, power=power, healthy=False)
            if power in ("rescue", ""):
                yield after
                continue
            half = world.half(power)
            if half.tries:
                after = after.put(power, replace(half, tries=half.tries - 1))
            dies = half.slot != half.boot or half.slot == BAD or (world.worse and half.slot == 2)
            starts = half.slot in (half.boot, BAD) and not (world.worse and half.slot == 2)
            if dies:
                yield replace(after, power="off")
            if starts:
                yield replace(after, healthy=True)
        return
    if world.cuts:
        yield replace(world, power="off", todo=(), cuts=world.cuts - 1)
    if world.todo:
        (kind, letter, value), *rest = world.todo
        after = replace(world, todo=tuple(rest))
        half = world.half(letter)
        if kind == "reboot":
            yield replace(after, power="off")
        elif kind == "tries":
            assert isinstance(value, int)
            yield after.put(letter, replace(half, tries=value))
        elif kind == "slot":
            assert isinstance(value, int)
            yield after.put(letter, replace(half, slot=value))
        else:
            assert isinstance(value, tuple)
            yield after.put(letter, Half(half.slot, *value))
        return
    plan = decide(facts(world))
    if plan.step is not None:
        yield replace(world, todo=writes(world, plan.step))
    elif plan.standing in (Standing.UPDATE, Standing.LOST):
        # Nothing more is done until somebody restarts it.
        yield replace(world, power="off")


def blessed(world: World) -> bool:
    return world.power in ("a", "b") and decide(facts(world)).standing is Standing.BLESSED


def halves() -> Iterator[Half]:
    for slot in (BAD, 1, 2):
        for boot, tries in product((1, 2), (0, 1, 3)):
            yield Half(slot, boot, "right", tries)
            yield Half(slot, boot, "altered", tries)
        yield Half(slot, 0, "broken", None)
        yield Half(slot, 0, "empty", None)
        if slot:
            # Two faults at once, a bad slot and a program that is not counted, are past what a counter can
            # do: the boot loader starts that program for ever.
            yield Half(slot, slot, "uncounted", None)


def initial() -> Iterator[World]:
    for a, b, worse in product(halves(), halves(), (False, True)):
        if worse and "uncounted" in (a.kind, b.kind):
            continue
        yield World(a, b, worse=worse)


@pytest.mark.proves("INV-SLOT-17")
def test_every_history_ends() -> None:
    root = World(Half(BAD, 0, "empty", None), Half(BAD, 0, "empty", None), power="start")

    def check(before: World, _event: World, after: World, _effect: None) -> None:
        if before.power not in ("a", "b"):
            return
        for letter in "ab":
            # Never the partition that runs.
            assert after.half(letter).slot == before.half(letter).slot or letter != before.power
        if after.power == "off" and before.todo and before.todo[0][0] == "reboot":
            target = before.half("b" if before.power == "a" else "a")
            assert target.slot != BAD
            assert target.kind == "right"
            assert target.tries

    found = explore(root, events, lambda _before, event: (event, None), check, states_max=1_500_000)
    ways_in = Counter(after for nexts in found.edges.values() for after in nexts)
    boots: dict[World, int] = {root: 0}
    ready, done = [root], 0
    while ready:
        world = ready.pop()
        done += 1
        for after in found.edges[world]:
            boots[after] = max(boots.get(after, 0), boots[world] + (world.power == "off"))
            ways_in[after] -= 1
            if not ways_in[after]:
                ready.append(after)
    assert done == len(found.edges), "some history comes back to where it was"
    ends = [world for world, nexts in found.edges.items() if not nexts or blessed(world)]
    for world in ends:
        assert world.power in ("rescue", "") or blessed(world)
    # Both pairs, all tries, twice cut off and once more: a bound that somebody can wait for.
    assert max(boots.values()) <= 20
    assert len(found.edges) > 10_000
    assert {world.power for world in ends} == {"", "a", "b", "rescue"}


SOUND = Half(1, 1, "right", 3)


def spoilt() -> Iterator[Half]:
    """A pair with any damage, of the same release or before; not one that is newer."""
    for half in halves():
        if 2 not in (half.slot, half.boot):
            yield half


@pytest.mark.proves("INV-SLOT-17")
@pytest.mark.parametrize("intact", ["a", "b"])
def test_one_sound_pair_is_enough(intact: str) -> None:
    """Whatever the other pair is, cut off twice: both are the same in the end, and no rescue is needed."""
    for half in spoilt():
        start = World(SOUND, half) if intact == "a" else World(half, SOUND)
        found = explore(start, events, lambda _before, event: (event, None), lambda *_: None)
        ends = [world for world, nexts in found.edges.items() if not nexts]
        assert ends
        for world in ends:
            assert blessed(world), (start, world)
            assert world.a == world.b == SOUND


@pytest.mark.proves("INV-SLOT-17")
@pytest.mark.parametrize("worse", [False, True])
@pytest.mark.parametrize("running", ["a", "b"])
def test_an_update_becomes_the_last_good_one_or_is_gone(running: str, worse: bool) -> None:
    new = Half(2, 2, "right", 3)
    start = World(SOUND, new, worse=worse) if running == "a" else World(new, SOUND, worse=worse)
    assert decide(facts(replace(start, power=running))).update is Update.PENDING
    found = explore(start, events, lambda _before, event: (event, None), lambda *_: None)
    ends = [world for world, nexts in found.edges.items() if not nexts]
    assert {(world.a, world.b) for world in ends} == {(SOUND, SOUND) if worse else (new, new)}
