"""What travels on the umbilical, encoded and decoded; and what is no message."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.envelope import PeerError
from organs.umbilical import wishes
from organs.umbilical.link import Splitter
from tests.bus.wiring import own_schemas

REQUEST = own_schemas().messages["umbilical.Request"]
RESPONSE = own_schemas().messages["umbilical.Response"]
VERBS = next(field.type.names for field in REQUEST.fields if field.name == "verb")

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
requests = st.fixed_dictionaries(
    {
        "id": st.integers(0, 2**64 - 1),
        "verb": st.sampled_from(VERBS),
        "key": st.binary(max_size=40),
        "value": st.binary(max_size=3000),
        "limit": st.integers(0, 2**32 - 1),
        "persona": texts,
        "ticket": st.integers(0, 2**64 - 1),
        "bytes": st.integers(0, 2**64 - 1),
        "offset": st.integers(0, 2**64 - 1),
        "reboot": st.booleans(),
    }
)


@given(st.lists(requests, max_size=5))
def test_requests_in_a_stream_come_back(asked: list[dict[str, object]]) -> None:
    stream = b"".join(REQUEST.encode(each) for each in asked)
    assert [REQUEST.decode(message) for message in Splitter().feed(stream)] == asked


@given(st.binary(max_size=400).map(lambda data: data[: len(data) // 8 * 8]))
def test_any_words_are_a_request_or_a_peers_error(words: bytes) -> None:
    with contextlib.suppress(PeerError):
        REQUEST.decode(struct.pack("<II", 0, len(words) // 8) + words)


@given(requests, st.data())
def test_one_changed_byte_is_a_request_or_a_peers_error(
    asked: dict[str, object], data: st.DataObject
) -> None:
    framed = bytearray(REQUEST.encode(asked))
    framed[data.draw(st.integers(8, len(framed) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(PeerError):
        REQUEST.decode(bytes(framed))


@pytest.mark.proves("INV-UMB-1")
@given(requests)
def test_no_request_reaches_another_store(asked: dict[str, object]) -> None:
    """Whatever is in it, what is asked of the gate is the room's own; of the freezer, by the room."""
    wish = wishes.wish("linda", "linda@00112233", asked)
    if wish.organ == "gate":
        assert wish.params["persona"] == "linda@00112233"
    elif wish.organ == "freezer":
        assert wish.params["room"] == "linda"
    else:
        assert wish.organ == "integrity"
        assert asked["verb"] in wishes.UPDATE
    method = own_schemas().interfaces[wish.organ].methods[wish.method]
    assert "umbilical" in method.callers
    assert method.decode_params(method.encode_params(wish.params)) == dict(wish.params)


@pytest.mark.proves("INV-UPDATE-6")
@given(requests)
def test_who_has_not_the_grant_gets_at_no_method_of_an_update(asked: dict[str, object]) -> None:
    assert wishes.granted(asked, may_update=True)
    wish = wishes.wish("linda", "linda@00112233", asked)
    assert wishes.granted(asked, may_update=False) == (wish.organ != "integrity")


def test_every_answer_is_a_response() -> None:
    request = {"id": 7, "verb": "status", "key": b"", "value": b"", "limit": 0, "persona": ""}
    answers = [
        wishes.answer("linda", request, {"bytes": 1, "keys": 1, "quotaBytes": 2}),
        wishes.answer("linda", {**request, "verb": "list"}, {"keys": [b"k"], "more": True}),
        wishes.answer("linda", {**request, "verb": "beginUpdate"}, {"ticket": 9}),
        wishes.answer("linda", {**request, "verb": "updateChunk"}, {}),
        wishes.answer("linda", {**request, "verb": "commitUpdate"}, {"slot": "b", "version": "0.2.0"}),
        wishes.refusal(7, "notFound", "nothing there"),
        wishes.thawed(9),
    ]
    for answer in answers:
        assert RESPONSE.decode(RESPONSE.encode(answer)) == answer
