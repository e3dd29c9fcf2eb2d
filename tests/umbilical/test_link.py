"""One connection: hostile bytes, and the machine visited whole."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.umbilical import link
from organs.umbilical.link import Bad, Effect, Event, Link, Phase, Splitter, decide
from tests.explore import explore

WORD = b"\x01\x02\x03\x04\x05\x06\x07\x08"


def framed(*words: int) -> bytes:
    """A message with segments of so many words."""
    table = struct.pack(f"<I{len(words)}I", len(words) - 1, *words)
    return table + bytes(-len(table) % 8) + WORD * sum(words)


@given(
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=link.SEGMENTS_MAX), max_size=6),
    st.lists(st.integers(1, 300), max_size=40),
)
def test_whole_messages_come_out_however_the_stream_is_cut(shapes: list[list[int]], cuts: list[int]) -> None:
    messages = [framed(*shape) for shape in shapes]
    stream, splitter, found = b"".join(messages), Splitter(), []
    for cut in cuts:
        found += splitter.feed(stream[:cut])
        stream = stream[cut:]
    found += splitter.feed(stream)
    assert found == messages
    assert not splitter.half_sent
    assert splitter.bad is None


@pytest.mark.proves("INV-UMB-2")
@given(st.lists(st.binary(max_size=5000), max_size=30))
def test_whatever_comes_what_is_kept_is_bounded(chunks: list[bytes]) -> None:
    splitter = Splitter()
    for chunk in chunks:
        for message in splitter.feed(chunk):
            assert len(message) <= link.MESSAGE_BYTES_MAX
        assert len(splitter.buffered) <= link.MESSAGE_BYTES_MAX
        if splitter.bad is not None:
            assert not splitter.buffered


@pytest.mark.proves("INV-UMB-2")
@pytest.mark.parametrize(
    ("table", "bad"),
    [
        (struct.pack("<I", 0xFFFFFFFF), Bad.SEGMENTS),
        (struct.pack("<I", link.SEGMENTS_MAX), Bad.SEGMENTS),
        (struct.pack("<II", 0, 0xFFFFFFFF), Bad.LARGE),
        (struct.pack("<II", 0, link.MESSAGE_BYTES_MAX // 8), Bad.LARGE),
        # Refused at the first size that is too much; the others need not come.
        (struct.pack("<II", 63, 0x20000000), Bad.LARGE),
    ],
)
def test_a_table_alone_is_enough_to_refuse(table: bytes, bad: Bad) -> None:
    splitter = Splitter()
    assert splitter.feed(table[:3]) == []
    assert splitter.feed(table[3:]) == []
    assert splitter.bad is bad
    assert splitter.feed(framed(1)) == []


def test_the_largest_message_passes() -> None:
    message = framed((link.MESSAGE_BYTES_MAX - 8) // 8)
    assert len(message) == link.MESSAGE_BYTES_MAX
    splitter = Splitter()
    assert splitter.feed(message[:-1]) == []
    assert splitter.feed(message[-1:] + framed(1)[:2]) == [message]


TOKENS = range(link.IN_FLIGHT_MAX + 1)


def events(state: Link) -> Iterator[Event]:
    """Everything that can happen, also what comes late."""
    free = [token for token in TOKENS if token not in state.under_way]
    if state.wants_more:
        yield link.Arrived(free[0])
    for token in TOKENS:
        yield link.Ended(token)
    yield from (link.Hush(), link.GraceOver(), link.Wake(0), link.Wake(7), link.Gone())


@pytest.mark.proves("INV-UMB-3")
@pytest.mark.proves("INV-UMB-4")
def test_the_machine_whole() -> None:
    sending = (link.Answer, link.Frozen, link.Tell)

    def check(before: Link, event: Event, after: Link, effects: tuple[Effect, ...]) -> None:
        assert len(after.under_way) <= link.IN_FLIGHT_MAX
        if before.phase in (Phase.SILENT, Phase.CLOSED) and not isinstance(event, link.Wake):
            assert not any(isinstance(effect, (*sending, link.Ask)) for effect in effects)
        if after.phase is Phase.SILENT:
            assert not after.under_way
        # Each request that was under way is still, or was answered once, or is forgotten.
        ended = [e.token for e in effects if isinstance(e, (link.Answer, link.Frozen, link.Forget))]
        begun = [e.token for e in effects if isinstance(e, link.Ask)]
        assert sorted([*before.under_way, *begun]) == sorted([*after.under_way, *ended])
        if isinstance(event, link.GraceOver) and before.phase is Phase.RESTING:
            assert after.phase is Phase.SILENT
        rested = any(isinstance(effect, link.Rested) for effect in effects)
        assert rested == (after.phase is Phase.SILENT and effects != () and not begun)

    seen = explore(Link(), events, decide, check)
    assert len(seen.edges) > 2 * 2**link.IN_FLIGHT_MAX
    closed = seen.edges.keys() - seen.reaches(lambda state: state.phase is Phase.CLOSED)
    assert not closed
    serving = {state for state in seen.edges if state.phase is not Phase.CLOSED}
    assert serving <= seen.reaches(lambda state: state.phase is Phase.SERVING)


def test_the_exploration_finds_an_answer_into_a_frozen_room() -> None:
    """A machine that answers late is found."""

    def late(state: Link, event: Event) -> tuple[Link, tuple[Effect, ...]]:
        after, effects = decide(state, event)
        if isinstance(event, link.GraceOver) and state.phase is Phase.RESTING:
            return dataclasses.replace(state, phase=Phase.SILENT), (link.Rested(),)
        return after, effects

    def check(_before: Link, _event: Event, after: Link, _effects: tuple[Effect, ...]) -> None:
        assert after.phase is not Phase.SILENT or not after.under_way

    with pytest.raises(AssertionError):
        explore(Link(), events, late, check)
