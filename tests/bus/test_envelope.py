"""The envelope: any bytes are a message or a PeerError, any message survives the way, any mixture is
refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.envelope import (
    CHUNK_MAX,
    FAILURE_TEXT_MAX,
    FRAME_MAX,
    HEADER_BYTES,
    MESSAGE_MAX,
    PARTS_MAX,
    Code,
    Envelope,
    Failure,
    Kind,
    PeerError,
    Reassembler,
    frames,
    pack,
    pack_failure,
    unpack,
    unpack_failure,
)


def unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << bits) - 1)


envelopes = st.builds(
    Envelope,
    kind=st.sampled_from(Kind),
    id=unsigned(64),
    generation=unsigned(32),
    deadline_ns=st.integers(-(1 << 63), (1 << 63) - 1),
    interface=unsigned(64),
    ordinal=unsigned(16),
    attempt=unsigned(16),
    more=st.booleans(),
    part=unsigned(8),
    body=st.binary(max_size=200),
)


@given(envelopes)
def test_round_trip(envelope: Envelope) -> None:
    frame = pack(envelope)
    assert unpack(frame) == envelope
    assert len(frame) == HEADER_BYTES + len(envelope.body)


@given(envelopes)
def test_every_truncation_is_refused(envelope: Envelope) -> None:
    frame = pack(envelope)
    for length in range(HEADER_BYTES):
        with pytest.raises(PeerError):
            unpack(frame[:length])
    assert unpack(frame[:HEADER_BYTES]).body == b""


@given(st.binary(max_size=3 * HEADER_BYTES) | st.binary(max_size=80).map(lambda tail: b"SPNE\x01" + tail))
def test_arbitrary_bytes_are_a_frame_or_a_peer_error(data: bytes) -> None:
    try:
        envelope = unpack(data)
    except PeerError:
        return
    assert pack(envelope) == data


@given(envelopes, st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
def test_one_wrong_byte_is_refused_or_read_as_what_it_says(envelope: Envelope, at: int, flip: int) -> None:
    frame = bytearray(pack(envelope))
    frame[at] ^= flip
    try:
        changed = unpack(bytes(frame))
    except PeerError:
        return
    assert changed != envelope
    assert pack(changed) == frame


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": -1},
        {"id": 1 << 64},
        {"generation": 1 << 32},
        {"ordinal": 1 << 16},
        {"attempt": 1 << 16},
        {"part": 256},
        {"deadline_ns": 1 << 63},
        {"interface": -1},
        {"body": bytes(MESSAGE_MAX + 1)},
    ],
    ids=str,
)
def test_our_own_mistakes_are_value_errors(wrong: dict[str, object]) -> None:
    fields: dict[str, object] = {"kind": Kind.CALL, "id": 1, **wrong}
    with pytest.raises(ValueError, match=r"envelope|body"):
        pack(Envelope(**fields))  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    "size",
    [0, 1, CHUNK_MAX - 1, CHUNK_MAX, CHUNK_MAX + 1, 2 * CHUNK_MAX, MESSAGE_MAX - 1, MESSAGE_MAX],
)
def test_a_message_of_any_size_is_cut_and_joined(size: int) -> None:
    message = Envelope(
        kind=Kind.REPLY, id=9, generation=3, interface=7, ordinal=2, attempt=1, body=b"x" * size
    )
    cut = list(frames(message))
    assert all(len(frame) <= FRAME_MAX for frame in cut)
    assert len(cut) <= PARTS_MAX
    reassembler = Reassembler()
    joined = [reassembler.add(unpack(frame)) for frame in cut]
    assert joined == [None] * (len(cut) - 1) + [message]
    assert reassembler.held_bytes == 0


def test_a_message_over_the_limit_is_not_cut() -> None:
    with pytest.raises(ValueError, match="over"):
        list(frames(Envelope(kind=Kind.CALL, id=1, body=bytes(MESSAGE_MAX + 1))))


parts = st.builds(
    Envelope,
    kind=st.sampled_from([Kind.CALL, Kind.REPLY]),
    id=st.integers(1, 2),
    generation=st.integers(1, 2),
    more=st.booleans(),
    part=st.integers(0, 3),
    body=st.integers(0, 3).map(lambda n: b"b" * n),
)


@given(st.lists(parts, max_size=12))
def test_frames_in_any_order_give_whole_messages_only(sequence: list[Envelope]) -> None:
    """A message comes out only where its parts, and nothing else, came in one after the other."""
    reassembler = Reassembler()
    for index, part in enumerate(sequence):
        try:
            whole = reassembler.add(part)
        except PeerError:
            assert reassembler.held_bytes == 0
            continue
        assert reassembler.held_bytes <= MESSAGE_MAX
        if whole is None:
            continue
        own = sequence[index - part.part : index + 1]
        assert [p.part for p in own] == list(range(part.part + 1))
        assert [p.more for p in own] == [True] * part.part + [False]
        assert {(p.kind, p.id, p.generation) for p in own} == {(whole.kind, whole.id, whole.generation)}
        assert whole.body == b"".join(p.body for p in own)


def test_what_is_held_is_limited_and_the_tail_of_a_refused_message_is_no_message() -> None:
    reassembler = Reassembler()
    refused = 0
    for part in range(256):
        frame = Envelope(kind=Kind.CALL, id=5, more=part < 255, part=part, body=bytes(CHUNK_MAX))
        try:
            assert reassembler.add(frame) is None
        except PeerError:
            refused += 1
        assert reassembler.held_bytes <= MESSAGE_MAX
    assert refused == 1
    after = Envelope(kind=Kind.CALL, id=6, body=b"ok")
    assert reassembler.add(after) == after


def test_reset_forgets_the_unfinished_message() -> None:
    reassembler = Reassembler()
    assert reassembler.add(Envelope(kind=Kind.CALL, id=5, more=True, body=b"half")) is None
    reassembler.reset()
    with pytest.raises(PeerError, match="continues no message"):
        reassembler.add(Envelope(kind=Kind.CALL, id=5, part=1, body=b"rest"))


@given(st.sampled_from(Code), st.text(max_size=1000))
def test_failures_round_trip(code: Code, text: str) -> None:
    failure = Failure(code, text)
    again = unpack_failure(pack_failure(failure))
    assert (again.code, again.message) == (failure.code, failure.message)
    assert text.startswith(failure.message)
    assert len(failure.message.encode()) <= FAILURE_TEXT_MAX


@given(st.binary(max_size=600))
def test_arbitrary_failure_bodies_are_a_failure_or_a_peer_error(body: bytes) -> None:
    try:
        failure = unpack_failure(body)
    except PeerError:
        return
    assert pack_failure(failure) == body


def test_the_numbers_on_the_wire_never_change() -> None:
    """Old recordings and the other side of an update know these numbers. New codes go at the end."""
    assert [(kind.name, int(kind)) for kind in Kind] == [
        ("CALL", 1),
        ("REPLY", 2),
        ("FAILURE", 3),
        ("EVENT", 4),
        ("HELLO", 5),
    ]
    assert [code.name for code in sorted(Code)] == [
        *(
            "BAD_MESSAGE",
            "UNKNOWN_METHOD",
            "FORBIDDEN",
            "DEADLINE",
            "STALE",
            "TOO_LARGE",
            "BUSY",
            "PEER_DIED",
        ),
        *("INTERNAL", "INVALID", "NOT_FOUND", "REFUSED", "QUOTA", "FULL", "THROTTLED", "CORRUPT", "UNKNOWN"),
        "FROZEN",
    ]
    assert sorted(Code) == list(range(1, len(Code) + 1))
    golden = Envelope(kind=Kind.CALL, id=1, generation=2, deadline_ns=3, interface=4, ordinal=5, attempt=6)
    assert pack(golden).hex() == (
        "53504e45 01 01 00 00 0100000000000000 02000000 0500 0600 0300000000000000 0400000000000000"
    ).replace(" ", "")
