"""The table and the space of the personas: what is read back, what may come in, and where it goes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organs.integrity import shelf
from organs.integrity.shelf import DATA_AT, EMPTY, ROWS_MAX, TABLE_BYTES, Extent, Row, Table, Unreadable
from organs.persona import BLOCK, VERSION_MAX, PersonaRefused, Refusal

SIZE = DATA_AT + 64 * BLOCK
NONE = bytes(TABLE_BYTES)
KEYS = (b"k" * 32, b"o" * 32)


def row(name: str, version: int = 1, at: int | None = 0, *, key: bytes = KEYS[0], blocks: int = 4) -> Row:
    extent = None if at is None else Extent(DATA_AT + at * BLOCK, blocks * BLOCK)
    return Row(name=name, key=key, version=version, digest=bytes([version % 256]) * 32, extent=extent)


ONE = Table(7, (row("linda", 3, 0), row("tom", 1, None), row("uma", 2, 4)))
NEXT = Table(8, (row("linda", 4, 8), row("tom", 1, None), row("uma", 2, 4)))


def test_a_table_is_read_back() -> None:
    for table in (ONE, NEXT, Table(1, ()), Table(2**64 - 1, (row("a"),))):
        copy = shelf.encode(table)
        assert len(copy) == TABLE_BYTES
        assert shelf.decode(copy, SIZE) == table
        assert shelf.read(copy, copy, SIZE) == table


@pytest.mark.proves("INV-PERSONA-4")
def test_which_table_is_in_force() -> None:
    old, new, torn = shelf.encode(ONE), shelf.encode(NEXT), b"x" * TABLE_BYTES
    rows: list[tuple[bytes, bytes, Table | None]] = [
        # start of the partition, the other copy, what is in force
        (NONE, NONE, EMPTY),
        (NONE, torn, EMPTY),  # the very first write was cut
        (NONE, old, ONE),
        (old, new, NEXT),
        (new, old, NEXT),
        (old, torn, ONE),
        (torn, new, NEXT),
        (new, new, NEXT),
        (old, NONE, ONE),
        (torn, NONE, None),
        (torn, torn, None),
        (NONE[:-1], NONE, None),
        (shelf.encode(Table(7, (row("linda", 9),))), old, None),
    ]
    for start, other, expected in rows:
        if expected is None:
            with pytest.raises(Unreadable):
                shelf.read(start, other, SIZE)
        else:
            assert shelf.read(start, other, SIZE) == expected


USED_BITS = (shelf._HEAD.size + len(ONE.rows) * shelf._ROW.size) * 8


def flipped(copy: bytes, bit: int) -> bytes:
    wrong = bytearray(copy)
    wrong[bit // 8] ^= 1 << bit % 8
    return bytes(wrong)


@pytest.mark.proves("INV-PERSONA-4")
def test_each_flipped_bit_is_found_and_costs_one_copy() -> None:
    copy = shelf.encode(ONE)
    for bit in range(USED_BITS):
        wrong = flipped(copy, bit)
        assert shelf.decode(wrong, SIZE) is None
    for bit in range(0, USED_BITS, 61):
        wrong = flipped(copy, bit)
        assert shelf.read(wrong, copy, SIZE) == shelf.read(copy, wrong, SIZE) == ONE
        with pytest.raises(Unreadable):
            shelf.read(wrong, wrong, SIZE)


@given(bit=st.integers(0, TABLE_BYTES * 8 - 1))
def test_a_flipped_bit_behind_the_rows_is_found_too(bit: int) -> None:
    assert shelf.decode(flipped(shelf.encode(ONE), bit), SIZE) is None


@pytest.mark.parametrize(
    "table",
    [
        Table(0, (row("linda"),)),
        Table(1, (row("linda", at=0), row("tom", at=3))),
        Table(1, (row("linda", at=62),)),
        Table(1, (row("linda", at=-1),)),
        Table(1, (row("linda", blocks=2**40),)),
        Table(1, (row("linda"), row("linda", at=4))),
        Table(1, (row("linda"), row("linda", at=4, key=KEYS[1]))),
        Table(1, (row("Linda"),)),
        Table(1, (row(""),)),
        Table(1, (row("linda", 0),)),
        Table(1, (row("linda", VERSION_MAX + 1),)),
        Table(
            1, (Row(name="a", key=KEYS[0], version=1, digest=b"d" * 32, extent=Extent(DATA_AT + 1, BLOCK)),)
        ),
        Table(
            1, (Row(name="a", key=KEYS[0], version=1, digest=b"d" * 32, extent=Extent(DATA_AT, BLOCK + 1)),)
        ),
        Table(1, tuple(row(f"a{n}", at=n, blocks=1) for n in range(shelf.INSTALLED_MAX + 1))),
    ],
)
def test_a_table_that_cannot_be_is_none(table: Table) -> None:
    assert shelf.decode(shelf.encode(table), SIZE) is None


@given(st.binary(max_size=600), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_any_bytes_with_a_right_digest_are_a_table_or_none(rows: bytes, sequence: int, count: int) -> None:
    from hashlib import sha256

    body = sequence.to_bytes(8, "little") + count.to_bytes(4, "little") + rows
    body = body.ljust(TABLE_BYTES - 48, b"\0")
    copy = shelf.MAGIC + sha256(body).digest() + body
    found = shelf.decode(copy, SIZE)
    assert found is None or shelf.encode(found) == copy


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_are_no_table(start: bytes, other: bytes) -> None:
    first = start.ljust(TABLE_BYTES, b"\0")
    try:
        assert shelf.read(first, other.ljust(TABLE_BYTES, b"\0"), SIZE) == EMPTY
        assert first == NONE
    except Unreadable:
        assert first != NONE


def kind(table: Table, name: str, key: bytes, version: int, digest: bytes = b"d" * 32) -> Refusal | None:
    try:
        shelf.admit(table, name, key, version, digest)
    except PersonaRefused as error:
        return error.kind
    return None


@pytest.mark.proves("INV-PERSONA-2")
@pytest.mark.proves("INV-PERSONA-3")
def test_what_may_come_in() -> None:
    same = row("linda", 3).digest
    rows: list[tuple[str, bytes, int, bytes, Refusal | None]] = [
        ("new", KEYS[0], 1, b"d" * 32, None),
        ("new", KEYS[1], VERSION_MAX, b"d" * 32, None),
        ("linda", KEYS[0], 4, b"d" * 32, None),
        ("linda", KEYS[0], 3, same, None),
        ("linda", KEYS[0], 3, b"d" * 32, Refusal.DOWNGRADE),
        ("linda", KEYS[0], 2, b"d" * 32, Refusal.DOWNGRADE),
        ("linda", KEYS[1], 4, b"d" * 32, Refusal.OTHER_IDENTITY),
        ("linda", KEYS[1], 3, same, Refusal.OTHER_IDENTITY),
        # Removed, and remembered.
        ("tom", KEYS[0], 1, row("tom", 1).digest, None),
        ("tom", KEYS[0], 1, b"d" * 32, Refusal.DOWNGRADE),
        ("tom", KEYS[1], 1, b"d" * 32, None),
    ]
    for name, key, version, digest, expected in rows:
        assert kind(ONE, name, key, version, digest) is expected, (name, key, version)


def test_no_more_than_the_limits() -> None:
    many = Table(1, tuple(row(f"a{n}", at=n, blocks=1) for n in range(shelf.INSTALLED_MAX)))
    assert kind(many, "b", KEYS[0], 1) is Refusal.FULL
    assert kind(many, "a3", KEYS[0], 2) is None
    remembered = Table(1, tuple(row(f"a{n}", at=None) for n in range(ROWS_MAX)))
    assert shelf.decode(shelf.encode(remembered), SIZE) == remembered
    assert kind(remembered, "b", KEYS[0], 1) is Refusal.FULL
    assert kind(remembered, "a3", KEYS[0], 2) is None


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["linda", "tom"]),
        st.sampled_from(KEYS),
        st.integers(1, 4),
        st.sampled_from([b"d" * 32, b"e" * 32]),
        st.booleans(),
    ),
    max_size=12,
)


@pytest.mark.proves("INV-PERSONA-2")
@pytest.mark.proves("INV-PERSONA-3")
@given(EVENTS)
def test_no_history_of_installs_and_removals_goes_back(
    events: list[tuple[str, bytes, int, bytes, bool]],
) -> None:
    table = EMPTY
    highest: dict[tuple[str, bytes], int] = {}
    images: dict[tuple[str, bytes, int], bytes] = {}
    for name, key, version, digest, remove in events:
        here = table.find(name)
        if remove:
            if here is not None:
                table = shelf.removed(table, here)
            assert table.find(name) is None
            continue
        if kind(table, name, key, version, digest) is not None:
            continue
        assert here is None or here.key == key
        assert version >= highest.get((name, key), 0)
        assert images.setdefault((name, key, version), digest) == digest
        highest[name, key] = version
        taken = [each.extent for each in table.installed() if each.extent]
        extent = shelf.allocate(SIZE, taken, BLOCK)
        assert extent is not None
        new = Row(name=name, key=key, version=version, digest=digest, extent=extent)
        table = shelf.installed(table, new)
        assert table.find(name) == new
        assert shelf.decode(shelf.encode(table), SIZE) == table
    known = {(each.name, each.key): each.version for each in table.rows}
    assert known == highest


@settings(max_examples=300)
@given(
    blocks=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=6),
    wanted=st.integers(1, 70),
    end=st.integers(0, 64),
)
def test_space_is_the_first_that_is_free(blocks: list[tuple[int, int]], wanted: int, end: int) -> None:
    taken = [Extent(DATA_AT + at * BLOCK, length * BLOCK) for at, length in blocks]
    found = shelf.allocate(DATA_AT + end * BLOCK, taken, wanted * BLOCK)
    # By trying every block in turn.
    used = {at + n for at, length in blocks for n in range(length)}
    free = [at for at in range(end - wanted + 1) if not used & set(range(at, at + wanted))]
    expected = Extent(DATA_AT + free[0] * BLOCK, wanted * BLOCK) if free else None
    assert found == expected


def test_the_copies_and_the_data_lie_apart() -> None:
    places = sorted((*shelf.COPIES, DATA_AT))
    assert all(other - one == TABLE_BYTES for one, other in pairwise(places))
