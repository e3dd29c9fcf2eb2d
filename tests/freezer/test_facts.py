"""What is kept of a room at its cgroup: there and back, and nothing else is taken for it."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs import persona
from organs.freezer import facts
from organs.freezer.facts import SLOTS, Facts, FactsRefused
from tests import personas

FACTS = st.builds(
    Facts,
    slot=st.integers(0, SLOTS - 1),
    version=st.integers(1, 2**31 - 1),
    store=st.text(max_size=40),
    inbound=st.none() | st.lists(st.integers(1, 65535), max_size=32).map(tuple),
    console=st.booleans(),
    dies_unfocused=st.booleans(),
    may_focus=st.booleans(),
    may_update=st.booleans(),
)
NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(FACTS)
def test_what_was_kept_is_read(known: Facts) -> None:
    assert facts.decode(facts.encode(known)) == known
    assert len(facts.encode(known)) <= facts.BYTES_MAX


@given(FACTS, st.sampled_from(list(Facts.__dataclass_fields__)), NONSENSE)
def test_a_changed_field_is_another_fact_or_none(known: Facts, field: str, value: object) -> None:
    text = json.dumps({**asdict(known), field: value}).encode()
    try:
        read = facts.decode(text)
    except FactsRefused:
        return
    # Nothing was put in the place of what stands there.
    assert json.loads(facts.encode(read)) == json.loads(text)


@given(st.binary(max_size=300) | NONSENSE.map(lambda value: json.dumps(value).encode()))
def test_nothing_else_is_taken_for_facts(text: bytes) -> None:
    with pytest.raises(FactsRefused):
        facts.decode(text)


def test_too_much_is_refused_unread() -> None:
    with pytest.raises(FactsRefused, match="over"):
        facts.decode(b" " * (facts.BYTES_MAX + 1))


@pytest.mark.proves("INV-ROOM-21")
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_another_key_has_other_records(one: bytes, other: bytes) -> None:
    image = persona.verified(personas.block(personas.DOCUMENT), {personas.PUBLIC})
    stores = [facts.of(image, persona.key_id(public), 0).store for public in (one, other)]
    assert stores[0].startswith(f"{image.name}@")
    assert (stores[0] == stores[1]) == (one == other)


@pytest.mark.proves("INV-ROOM-20")
def test_no_two_rooms_share_an_id() -> None:
    taken: set[int] = set()
    ids: set[int] = set()
    while (slot := facts.free_slot(taken)) is not None:
        base = Facts(
            slot=slot,
            version=1,
            store="",
            inbound=None,
            console=False,
            dies_unfocused=False,
            may_focus=False,
            may_update=False,
        ).uid_base
        mine = set(range(base, base + facts.IDS_PER_ROOM, 4096)) | {base + facts.IDS_PER_ROOM - 1}
        assert not mine & ids
        assert base > 65535
        ids |= mine
        taken.add(slot)
    assert len(taken) == SLOTS
