"""The decision about the two pairs: every input there is, and every history of boots and power cuts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from organs.integrity.slots import (
    LETTERS,
    TABLE,
    WRITES_BOOT,
    WRITES_SLOT,
    Act,
    Boot,
    Facts,
    Order,
    Other,
    Own,
    Pair,
    Plan,
    Slot,
    Standing,
    Step,
    Update,
    decide,
    may_install,
    name_other,
    name_own,
    order,
    target,
    trusted,
)

TRIES = (None, 0, 2, 3)
PAIRS = [Pair(*facts) for facts in itertools.product(Slot, Boot, TRIES, (False, True))]


def inputs(*, healthy: bool = True, leaving: bool = False) -> Iterator[Facts]:
    for running, a, b, related in itertools.product(("", "a", "b"), PAIRS, PAIRS, Order):
        yield Facts(running, healthy, a, b, related, leaving)


def starts(pair: Pair) -> bool:
    return pair.slot is Slot.VERIFIED and pair.boot is Boot.GOOD and bool(pair.tries)


def opposite(letter: str) -> str:
    return "b" if letter == "a" else "a"


def is_newer(facts: Facts, letter: str) -> bool:
    return facts.order is (Order.A_NEWER if letter == "a" else Order.B_NEWER)


def test_every_two_names_have_one_row() -> None:
    assert set(TABLE) == set(itertools.product(Own, Other))


@pytest.mark.proves("INV-SLOT-10")
@pytest.mark.proves("INV-SLOT-11")
@pytest.mark.proves("INV-SLOT-12")
@pytest.mark.proves("INV-SLOT-13")
def test_the_rules_hold_for_every_input() -> None:
    names: set[tuple[Own, Other]] = set()
    for facts in inputs():
        plan = decide(facts)
        own = trusted(facts)
        assert plan.own == own
        names.add((name_own(facts, own), name_other(facts, own or "a")))
        step = plan.step
        assert (step is not None) == (plan.standing is Standing.WORKING)
        if step is None:
            assert_quiet(facts, plan)
            continue
        assert own
        mine, pair, across = facts.pair(own), facts.pair(step.pair), facts.pair(opposite(step.pair))
        # Nothing is written that is not known, or that the device refused before.
        assert Slot.PENDING not in (mine.slot, pair.slot)
        assert Boot.PENDING is not pair.boot
        if step.act is not Act.REBOOT:
            assert not pair.failed
        # Never the partition that runs.
        if step.act in WRITES_SLOT:
            assert step.pair != facts.running
            assert step.pair != own
        # Never from an unverified source, and from what runs only when it is verified.
        assert bool(step.source) == (step.act in (Act.REPLACE, Act.REPLACE_BOOT))
        if step.source:
            assert facts.pair(step.source).slot is Slot.VERIFIED
        # Never both pairs at once: the other can start, or runs and is no worse for it.
        if step.act in WRITES_BOOT:
            assert starts(across) or step.pair != own
            if step.pair != own:
                assert facts.running in ("", opposite(step.pair))
        if step.act in WRITES_SLOT:
            assert mine.slot is Slot.VERIFIED
        # A running slot that is bad gets no tries back.
        if step.act is Act.ARM:
            assert pair.slot is Slot.VERIFIED
            assert mine.slot is Slot.VERIFIED
            assert pair.tries != 3
        if step.act in (Act.DISARM, Act.WIPE_BOOT):
            assert step.pair == own
            assert mine.slot in (Slot.BAD, Slot.ABSENT)
            assert starts(facts.pair(opposite(own)))
        if step.act is Act.REBOOT:
            assert facts.running
            assert step.pair == opposite(facts.running)
            assert mine.slot is not Slot.VERIFIED
            assert starts(pair)
            assert mine.boot is Boot.EMPTY or (mine.boot is Boot.GOOD and mine.tries == 0)
        # An update that was not started yet is left alone; one that failed is written over.
        if mine.slot is Slot.VERIFIED and step.pair == opposite(own) and is_newer(facts, step.pair):
            assert not starts(pair)
    # Every name there is comes up; what is fit is asked by a bad slot only.
    assert {own for own, _ in names} == set(Own)
    assert {other for _, other in names} == set(Other)
    rotten = {Own.ROTTEN_ARMED, Own.ROTTEN_UNCOUNTED, Own.ROTTEN_SPENT, Own.ROTTEN_STUCK}
    assert {own for own, other in names if other is Other.FIT} - {Own.UNREAD} == rotten


def assert_quiet(facts: Facts, plan: Plan) -> None:
    """There is a reason why nothing is done."""
    own = plan.own
    pairs = (facts.a, facts.b)
    if plan.standing is Standing.BLESSED:
        assert all(starts(pair) and pair.tries == 3 for pair in pairs)
        assert facts.order is Order.SAME
    elif plan.standing is Standing.UPDATE:
        assert facts.pair(own).tries == 3
        assert starts(facts.pair(opposite(own)))
        assert is_newer(facts, opposite(own))
        assert plan.update is Update.PENDING
    elif plan.standing is Standing.READING:
        assert any(pair.slot is Slot.PENDING or pair.boot is Boot.PENDING for pair in pairs)
    elif plan.standing is Standing.NONE:
        assert facts.a.slot is facts.b.slot is Slot.ABSENT
    elif plan.standing is Standing.IRREPLACEABLE:
        assert any(pair.failed or Slot.ABSENT is pair.slot or Boot.ABSENT is pair.boot for pair in pairs)
    else:
        assert plan.standing is Standing.LOST
        assert not own or facts.pair(own).slot is not Slot.VERIFIED
        if own:
            assert not starts(facts.pair(opposite(own)))


def test_before_the_word_and_after_the_farewell_nothing_is_done() -> None:
    for healthy, leaving in ((False, False), (False, True), (True, True)):
        standing = Standing.LEAVING if leaving else Standing.WAITING
        for facts in itertools.islice(inputs(healthy=healthy, leaving=leaving), 0, None, 7):
            plan = decide(facts)
            assert plan.step is None
            assert plan.standing is standing


GOOD = Pair(Slot.VERIFIED, Boot.GOOD, 3)
SPENT = replace(GOOD, tries=0)
WORN = replace(GOOD, tries=2)
BAD = replace(GOOD, slot=Slot.BAD)
NO_BOOT = replace(GOOD, boot=Boot.BAD)
EMPTY = Pair(Slot.BAD, Boot.EMPTY, None)


@pytest.mark.parametrize(
    ("facts", "step"),
    [
        (Facts("a", True, GOOD, GOOD, Order.SAME), None),
        (Facts("b", True, GOOD, WORN, Order.SAME), Step(Act.ARM, "b")),
        (Facts("b", True, WORN, GOOD, Order.SAME), Step(Act.ARM, "a")),
        (Facts("a", True, GOOD, BAD, Order.SAME), Step(Act.REPLACE, "b", "a")),
        (Facts("b", True, GOOD, BAD, Order.SAME), Step(Act.DISARM, "b")),
        (Facts("b", True, GOOD, replace(BAD, tries=0), Order.SAME), Step(Act.REBOOT, "a")),
        (Facts("b", True, GOOD, replace(BAD, tries=None), Order.SAME), Step(Act.WIPE_BOOT, "b")),
        (Facts("b", True, GOOD, replace(BAD, boot=Boot.BAD, tries=0), Order.SAME), Step(Act.WIPE_BOOT, "b")),
        (Facts("b", True, GOOD, EMPTY, Order.SAME), Step(Act.REBOOT, "a")),
        (Facts("b", True, NO_BOOT, BAD, Order.SAME), Step(Act.REPLACE_BOOT, "a", "a")),
        (Facts("b", True, BAD, BAD, Order.SAME), None),
        (Facts("b", True, EMPTY, GOOD, Order.APART), Step(Act.REPLACE, "a", "b")),
        (Facts("a", True, GOOD, NO_BOOT, Order.SAME), Step(Act.REPLACE_BOOT, "b", "a")),
        (Facts("a", True, NO_BOOT, NO_BOOT, Order.SAME), Step(Act.REPLACE_BOOT, "b", "a")),
        (Facts("a", True, NO_BOOT, GOOD, Order.SAME), Step(Act.REPLACE_BOOT, "a", "a")),
        # An update that waits, one that failed, one whose writing was cut short, and what came before one.
        (Facts("a", True, GOOD, GOOD, Order.B_NEWER), None),
        (Facts("a", True, GOOD, SPENT, Order.B_NEWER), Step(Act.REPLACE, "b", "a")),
        (Facts("a", True, GOOD, NO_BOOT, Order.B_NEWER), Step(Act.REPLACE, "b", "a")),
        (Facts("a", True, GOOD, GOOD, Order.A_NEWER), Step(Act.REPLACE, "b", "a")),
        # Nothing runs from a slot.
        (Facts("", True, GOOD, BAD, Order.SAME), Step(Act.REPLACE, "b", "a")),
        (Facts("", True, EMPTY, GOOD, Order.SAME), Step(Act.REPLACE, "a", "b")),
        (Facts("", True, GOOD, GOOD, Order.B_NEWER), Step(Act.REPLACE, "a", "b")),
        (Facts("", True, GOOD, SPENT, Order.B_NEWER), Step(Act.REPLACE, "b", "a")),
        (Facts("", True, BAD, BAD, Order.SAME), None),
    ],
)
def test_what_it_comes_to(facts: Facts, step: Step | None) -> None:
    assert decide(facts).step == step


def test_an_update_may_come_where_it_takes_nothing_away() -> None:
    for facts in inputs():
        refused = may_install(facts)
        into = target(facts)
        assert into != facts.running
        if not refused:
            own = opposite(into)
            assert facts.pair(own).slot is Slot.VERIFIED or facts.pair(into).slot is not Slot.VERIFIED
            assert Slot.ABSENT is not facts.pair(into).slot
    assert may_install(Facts("a", True, GOOD, GOOD, Order.SAME)) == ""
    assert may_install(Facts("a", True, BAD, BAD, Order.SAME)) == ""
    assert "only one" in may_install(Facts("a", True, BAD, GOOD, Order.SAME))
    assert "healthy" in may_install(Facts("a", False, GOOD, GOOD, Order.SAME))
    assert "restart" in may_install(Facts("a", True, GOOD, GOOD, Order.SAME, leaving=True))
    unread = replace(GOOD, slot=Slot.PENDING)
    assert "being read" in may_install(Facts("a", True, GOOD, unread, Order.SAME))
    assert "no pair b" in may_install(Facts("a", True, GOOD, replace(BAD, boot=Boot.ABSENT), Order.SAME))
    assert target(Facts("", True, EMPTY, EMPTY, Order.APART)) in LETTERS


def test_versions() -> None:
    texts = ["", "x", "1..2", "1.2-rc1", "-1", "٣", "1" * 10, "0.9", "0.10", "1", "1.0", "1.0.1", "2", "10"]
    keys = [order(text) for text in texts]
    assert keys == sorted(keys)
    assert keys[:7] == [()] * 7
