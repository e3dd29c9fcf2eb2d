"""Admission as a table: every rule at its edge, and an answer for every input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.envelope import Code
from organs.gate.verdict import (
    ADMIT,
    KEY_BYTES_MAX,
    LIST_KEYS_MAX,
    OPERATION_BYTES,
    PERSONA_FIRST,
    PERSONA_LENGTH_MAX,
    PERSONA_REST,
    QUEUE_BYTES_MAX,
    QUEUE_OPERATIONS_MAX,
    STORES_MAX,
    VALUE_BYTES_MAX,
    Delete,
    Get,
    List,
    Operation,
    Put,
    Refuse,
    Usage,
    admit,
    admit_growth,
    admit_persona,
    admit_queued,
    admit_store,
    growth_bytes_max,
    page_limit,
    queued_bytes,
    surely_fits,
)

HOSTILE = [
    "",
    "-a",
    "9",
    "A",
    "linda ",
    " linda",
    "linda\0",
    "linda\n",
    "../linda",
    "..",
    ".",
    "/",
    "a/b",
    "a_b",
    "a.b",
    "linda'",
    'linda"; DROP TABLE record; --',
    "%6cinda",
    "incoming",
    "ballast",
    "lіnda",  # the second letter is Cyrillic
    "ａ",
    "é",
    "a\u0301",
    "\ud800",
    "a" * (PERSONA_LENGTH_MAX + 1),
    "a" * 1_000_000,
]
# Names that look like files of the gate but are plain labels.
PLAIN_LABELS = {"incoming", "ballast"}


def code(operation: Operation) -> Code | None:
    verdict = admit(operation)
    return verdict.code if isinstance(verdict, Refuse) else None


@pytest.mark.proves("INV-GATE-5")
@pytest.mark.parametrize("persona", HOSTILE)
def test_names_of_personas(persona: str) -> None:
    expected = None if persona in PLAIN_LABELS else Code.INVALID
    for operation in (
        Put(persona=persona, key=b"k", value=b""),
        Get(persona=persona, key=b"k"),
        Delete(persona=persona, key=b"k"),
        List(persona=persona, after=b"", limit=1),
        Usage(persona=persona),
    ):
        assert code(operation) == expected


@given(st.text(max_size=70))
def test_any_name_has_an_answer(persona: str) -> None:
    admitted = admit_persona(persona) is ADMIT
    assert admitted == (
        1 <= len(persona) <= PERSONA_LENGTH_MAX
        and persona[0] in "abcdefghijklmnopqrstuvwxyz"
        and all(c in "abcdefghijklmnopqrstuvwxyz0123456789-@" for c in persona)
    )
    assert not admitted or persona.isascii()


@given(st.sampled_from(sorted(PERSONA_FIRST)), st.text(sorted(PERSONA_REST), max_size=PERSONA_LENGTH_MAX - 1))
def test_good_names_are_admitted(first: str, rest: str) -> None:
    assert admit_persona(first + rest) is ADMIT


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (b"", b"", Code.INVALID),
        (b"\0", b"", None),
        (b"k" * KEY_BYTES_MAX, b"", None),
        (b"k" * (KEY_BYTES_MAX + 1), b"", Code.INVALID),
        (b"k", b"v" * VALUE_BYTES_MAX, None),
        (b"k", b"v" * (VALUE_BYTES_MAX + 1), Code.TOO_LARGE),
        (b"", b"v" * (VALUE_BYTES_MAX + 1), Code.TOO_LARGE),
    ],
)
def test_keys_and_values(key: bytes, value: bytes, expected: Code | None) -> None:
    assert code(Put(persona="a", key=key, value=value)) == expected
    if len(value) <= VALUE_BYTES_MAX:
        assert code(Get(persona="a", key=key)) == expected
        assert code(Delete(persona="a", key=key)) == expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [(b"", None), (b"k" * KEY_BYTES_MAX, None), (b"k" * (KEY_BYTES_MAX + 1), Code.INVALID)],
)
def test_listing(after: bytes, expected: Code | None) -> None:
    assert code(List(persona="a", after=after, limit=0)) == expected


@pytest.mark.parametrize(
    ("asked", "given_"),
    [
        (0, LIST_KEYS_MAX),
        (1, 1),
        (LIST_KEYS_MAX, LIST_KEYS_MAX),
        (LIST_KEYS_MAX + 1, LIST_KEYS_MAX),
        (2**32 - 1, LIST_KEYS_MAX),
    ],
)
def test_page_limit(asked: int, given_: int) -> None:
    assert page_limit(asked) == given_


@pytest.mark.parametrize(
    ("waiting", "waiting_bytes", "size", "admitted"),
    [
        (0, 0, 0, True),
        (0, 0, VALUE_BYTES_MAX, True),
        (QUEUE_OPERATIONS_MAX - 1, 0, 0, True),
        (QUEUE_OPERATIONS_MAX, 0, 0, False),
        (1, QUEUE_BYTES_MAX - OPERATION_BYTES - 1, 0, True),
        (1, QUEUE_BYTES_MAX - OPERATION_BYTES, 0, False),
    ],
)
def test_queue(waiting: int, waiting_bytes: int, size: int, admitted: bool) -> None:
    put = Put(persona="a", key=b"k", value=b"v" * size)
    verdict = admit_queued(put, waiting, waiting_bytes)
    assert (verdict is ADMIT) == admitted
    if isinstance(verdict, Refuse):
        assert verdict.code is Code.BUSY


@pytest.mark.parametrize(
    ("operation", "size"),
    [
        (Put(persona="a", key=b"kk", value=b"vvv"), 5),
        (Get(persona="a", key=b"kk"), 2),
        (Delete(persona="a", key=b"kk"), 2),
        (List(persona="a", after=b"kkk", limit=9), 3),
        (Usage(persona="a"), 0),
    ],
)
def test_queued_bytes(operation: Operation, size: int) -> None:
    assert queued_bytes(operation) == OPERATION_BYTES + size


@pytest.mark.proves("INV-GATE-4")
@pytest.mark.parametrize(
    ("before", "after", "admitted"),
    [
        (0, 100, True),
        (100, 100, True),
        (99, 101, False),
        (100, 101, False),
        (200, 200, True),
        (200, 150, True),
        (200, 201, False),
    ],
)
def test_growth(before: int, after: int, admitted: bool) -> None:
    verdict = admit_growth(before, after, 100)
    assert (verdict is ADMIT) == admitted
    if isinstance(verdict, Refuse):
        assert verdict.code is Code.QUOTA
        assert f"{before} of 100" in verdict.message


@pytest.mark.parametrize(("stores", "admitted"), [(0, True), (STORES_MAX - 1, True), (STORES_MAX, False)])
def test_stores(stores: int, admitted: bool) -> None:
    assert (admit_store(stores) is ADMIT) == admitted


@pytest.mark.proves("INV-GATE-4")
@given(st.integers(0, 1 << 30), st.integers(1, KEY_BYTES_MAX), st.integers(0, VALUE_BYTES_MAX), st.data())
def test_what_surely_fits_would_be_admitted(used: int, key: int, value: int, data: st.DataObject) -> None:
    """By whatever it grows, up to the most that it can."""
    most = growth_bytes_max(key, value)
    quota = data.draw(st.integers(used, used + 2 * most))
    grown = data.draw(st.integers(0, most))
    if surely_fits(used, most, quota):
        assert admit_growth(used, used + grown, quota) is ADMIT
    else:
        assert used + most > quota
