"""The line's messages: each comes back as it went, and any bytes are a message or refused."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from organs.builder import protocol
from organs.builder.protocol import (
    NUMBER_MAX,
    TEXT_CHARS_MAX,
    Answer,
    Device,
    Exec,
    Hello,
    Made,
    Refusal,
    Refused,
    Release,
    Released,
    Request,
    Room,
    RoomMade,
    Started,
    Unreadable,
    Verity,
    Welcome,
)

NUMBERS = st.integers(0, NUMBER_MAX)
TEXTS = st.text(max_size=TEXT_CHARS_MAX)
HEAD = {"id": NUMBERS, "asker": NUMBERS, "generation": NUMBERS}
VERITY = st.builds(Verity, root_hash=TEXTS, salt=TEXTS, blocks=NUMBERS, hash_offset=NUMBERS)
WORDS = st.lists(st.text(max_size=30), max_size=20).map(tuple)
REQUESTS = st.one_of(
    st.builds(
        Room,
        **HEAD,
        name=TEXTS,
        hostname=TEXTS,
        uid_base=NUMBERS,
        init=WORDS,
        writable_bytes=NUMBERS,
        network=st.booleans(),
        console=st.booleans(),
    ),
    st.builds(Exec, **HEAD, name=TEXTS, argv=WORDS, environment=WORDS, terminal=st.booleans()),
    st.builds(Hello, **HEAD),
    st.builds(Device, **HEAD, offset=NUMBERS, length=NUMBERS, verity=st.none() | VERITY),
    st.builds(Release, **HEAD, name=TEXTS),
)
ANSWERS = st.one_of(
    st.builds(
        Welcome, **HEAD, devices=st.lists(st.text("room-0123456789", max_size=20), max_size=64).map(tuple)
    ),
    st.builds(Made, **HEAD, name=TEXTS, verified=st.booleans()),
    st.builds(Released, **HEAD, name=TEXTS),
    st.builds(RoomMade, **HEAD, name=TEXTS, pid=NUMBERS, holds=WORDS),
    st.builds(Started, **HEAD, name=TEXTS, pid=NUMBERS),
    st.builds(Refused, **HEAD, why=st.sampled_from(Refusal), reason=TEXTS),
)
NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(REQUESTS)
def test_requests_come_back_as_they_went(request: Request) -> None:
    assert protocol.decode_request(protocol.encode(request)) == request


@given(ANSWERS)
def test_answers_come_back_as_they_went(answer: Answer) -> None:
    assert protocol.decode_answer(protocol.encode(answer)) == answer


@given(st.text())
def test_a_long_reason_is_cut(reason: str) -> None:
    refused = Refused(id=1, asker=2, generation=3, why=Refusal.KERNEL, reason=reason * 100)
    assert len(protocol.encode(refused)) <= protocol.DATAGRAM_BYTES_MAX


@given(st.binary(max_size=300) | NONSENSE.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 4000)
@example(
    b'{"kind": "hello", "id": 1, "asker": 1, "generation": 1' + b" " * protocol.DATAGRAM_BYTES_MAX + b"}"
)
def test_any_bytes_are_refused(datagram: bytes) -> None:
    for decode in (protocol.decode_request, protocol.decode_answer):
        with pytest.raises(Unreadable):
            decode(datagram)


def test_the_longest_words_fit_into_a_datagram() -> None:
    words = ("\x01" * protocol.WORDS_BYTES_MAX, *("",) * (protocol.WORDS_MAX - 1))
    asked = Exec(id=1, asker=1, generation=1, name="a", argv=words, environment=words, terminal=True)
    assert protocol.decode_request(protocol.encode(asked)) == asked
    document = json.loads(protocol.encode(asked))
    for wrong in (
        ["x"] * (protocol.WORDS_MAX + 1),
        ["x" * (protocol.WORDS_BYTES_MAX + 1)],
        ["\ud800"],
        [1],
        "x",
    ):
        with pytest.raises(Unreadable):
            protocol.decode_request(json.dumps(document | {"argv": wrong}).encode())


@given(REQUESTS | ANSWERS, st.data())
def test_one_changed_field_is_read_or_refused(message: Request | Answer, data: st.DataObject) -> None:
    document = json.loads(protocol.encode(message))
    key = data.draw(st.sampled_from(sorted(document)) | st.text(max_size=8))
    document[key] = data.draw(NONSENSE)
    for decode in (protocol.decode_request, protocol.decode_answer):
        with contextlib.suppress(Unreadable):
            decode(json.dumps(document).encode())


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": -1},
        {"id": True},
        {"id": 2**63},
        {"generation": 1.0},
        {"name": "x" * 300},
        {"more": 1},
        {"kind": "reboot"},
        {"kind": ["release"]},
    ],
)
def test_a_wrong_field_is_refused(wrong: dict[str, object]) -> None:
    good = {"kind": "release", "id": 1, "asker": 1, "generation": 1, "name": "room-1-1"}
    assert protocol.decode_request(json.dumps(good).encode())
    with pytest.raises(Unreadable):
        protocol.decode_request(json.dumps(good | wrong).encode())
