"""The wire: what the schema allows survives the way, what it does not is refused with the field's name, and
foreign bytes are values or a PeerError, at a cost that their length bounds.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus import wire
from bus.envelope import Code, PeerError
from tests.bus.strategies import fields
from tests.bus.wiring import own_schemas, schemas

METHODS = [
    method
    for interface in (*own_schemas().interfaces.values(), *schemas().interfaces.values())
    for method in interface.methods.values()
]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.interface_name}.{m.name}")


@every_method
@settings(max_examples=50)
@given(data=st.data())
def test_values_survive_the_way(method: wire.Method, data: st.DataObject) -> None:
    params = data.draw(fields(method.params))
    assert method.decode_params(method.encode_params(params)) == params
    results = data.draw(fields(method.results))
    assert method.decode_results(method.encode_results(results)) == results


@every_method
@settings(max_examples=50)
@given(data=st.data())
def test_mutated_bytes_are_values_or_a_peer_error(method: wire.Method, data: st.DataObject) -> None:
    body = bytearray(method.encode_results(data.draw(fields(method.results))))
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(body) - 1))
        body[position] ^= data.draw(st.integers(1, 255))
    body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    try:
        values = method.decode_results(bytes(body))
    except PeerError:
        return
    assert method.decode_results(method.encode_results(values)).keys() == values.keys()


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_values_or_a_peer_error(body: bytes) -> None:
    for method in METHODS:
        try:
            method.decode_params(body)
        except PeerError:
            continue


def test_an_error_tells_none_of_the_peers_bytes() -> None:
    method = schemas().interfaces["echo"].methods["refuse"]
    body = method.encode_params({"code": 1, "text": "secret"}).replace(b"secret", b"\xff" * 6)
    with pytest.raises(PeerError) as caught:
        method.decode_params(body)
    assert str(caught.value) == "echo.refuse cannot be decoded (UnicodeDecodeError)"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def bomb(elements: int) -> bytes:
    """56 bytes that say: results of `slots`, with so many entries of no size at all."""

    def pointer(offset: int, low_bits: int, data_words: int, pointers: int) -> int:
        return (offset << 2 | low_bits) & 0xFFFFFFFF | data_words << 32 | pointers << 48

    root = pointer(0, 0, 1, 3)
    composite_list = (0 << 2 | 1) | 7 << 32 | 0 << 35
    tag = pointer(elements, 0, 0, 0)
    words = struct.pack("<6Q", root, 0, 0, 0, composite_list, tag)
    return struct.pack("<II", 0, len(words) // 8) + words


@pytest.mark.proves("INV-BUS-5")
def test_a_small_message_cannot_make_much_work(monkeypatch: pytest.MonkeyPatch) -> None:
    method = own_schemas().interfaces["integrity"].methods["slots"]
    with pytest.raises(PeerError):
        method.decode_results(bomb(100_000))
    assert method.decode_results(bomb(0))["entries"] == []
    # Without our limit it does go off: the test's message is what it claims to be.
    monkeypatch.setattr(wire, "traversal_words", lambda _: 8 * 1024 * 1024)
    entries = method.decode_results(bomb(100_000))["entries"]
    assert isinstance(entries, list)
    assert len(entries) == 100_000


ECHO = schemas().interfaces["echo"]
GOOD: dict[str, object] = {
    "nothing": None,
    "flag": True,
    **dict.fromkeys(("small", "short", "int", "long", "byte", "word", "dword", "qword"), 1),
    "single": 1.5,
    "double": 2,
    "text": "t",
    "data": b"d",
    "colour": "green",
    "leaf": {"name": "l", "colour": "red", "weights": [0.5], "which": True},
    "leaves": [],
    "flags": [True],
    "texts": ["a", ""],
    "datas": (b"", b"b"),
    "deep": [[1, 2], []],
    "grove": [[], [{"name": "g", "colour": "blue", "weights": [], "which": False}]],
}


def test_lists_may_be_tuples_and_values_of_subclasses() -> None:
    class Name(str):
        pass

    method = ECHO.methods["values"]
    decoded = method.decode_params(
        method.encode_params({**GOOD, "data": memoryview(b"view"), "int": Code.FULL, "text": Name("n")})
    )
    assert (decoded["int"], decoded["text"]) == (Code.FULL, "n")
    assert decoded["data"] == b"view"
    assert decoded["datas"] == [b"", b"b"]


@pytest.mark.parametrize(
    ("field", "value", "error", "text"),
    [
        ("nothing", 0, TypeError, "echo.values.nothing: None is needed, not int"),
        ("flag", 1, TypeError, "echo.values.flag: a bool is needed, not int"),
        ("small", True, TypeError, "echo.values.small: an int is needed, not bool"),
        ("small", 128, ValueError, "echo.values.small: 128 is outside -128..127"),
        ("qword", -1, ValueError, "echo.values.qword: -1 is outside 0..18446744073709551615"),
        ("word", "1", TypeError, "echo.values.word: an int is needed, not str"),
        ("single", 1e300, ValueError, "echo.values.single: 1e+300 does not fit Float32"),
        ("double", "x", TypeError, "echo.values.double: a float is needed, not str"),
        ("text", b"t", TypeError, "echo.values.text: a str is needed, not bytes"),
        ("text", "\ud800", ValueError, "echo.values.text: text holds a lone surrogate"),
        ("data", "d", TypeError, "echo.values.data: bytes are needed, not str"),
        ("colour", "pink", ValueError, "echo.values.colour: 'pink' is none of red, green, blue"),
        ("colour", 1, TypeError, "echo.values.colour: the name of an enumerant is needed, not int"),
        ("leaf", [], TypeError, "echo.values.leaf: a mapping is needed, not list"),
        ("leaf", {"name": "l", "colour": "red"}, ValueError, "echo.values.leaf.weights is missing"),
        ("texts", "ab", TypeError, "echo.values.texts: a list is needed, not str"),
        ("texts", ["a", 2], TypeError, "echo.values.texts[1]: a str is needed, not int"),
        ("leaves", [1], TypeError, "echo.values.leaves[0]: a mapping is needed, not int"),
        ("leaves", {}, TypeError, "echo.values.leaves: a list is needed, not dict"),
        ("grove", [[{}]], ValueError, "echo.values.grove[0][0].name is missing"),
        ("deep", [[1], [70000]], ValueError, "echo.values.deep[1][0]: 70000 is outside 0..65535"),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    field: str, value: object, error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        ECHO.methods["values"].encode_params({**GOOD, field: value})
    assert str(caught.value) == text


def test_missing_and_unknown_fields_are_refused_by_name() -> None:
    method = ECHO.methods["refuse"]
    with pytest.raises(ValueError, match=r"^echo.refuse.text is missing$"):
        method.encode_params({"code": 1})
    with pytest.raises(ValueError, match=r"^echo.refuse.colour is not a field$"):
        method.encode_params({"code": 1, "text": "", "colour": "red"})
    with pytest.raises(ValueError, match=r"^echo.data results.data is missing$"):
        ECHO.methods["data"].encode_results({})


def test_the_schemas_say_what_they_say() -> None:
    values = ECHO.methods["values"]
    assert (ECHO.name, ECHO.doc, ECHO.file) == ("echo", "Answers with what it was asked.", "echo.capnp")
    assert (values.ordinal, values.callers, values.deadline_ms, values.idempotent) == (
        0,
        ("alpha", "beta"),
        60000,
        True,
    )
    assert values.doc == "Everything that the bus can carry."
    assert [field.name for field in values.params if field.secret] == ["data"]
    types = {field.name: field.type for field in values.params}
    assert str(types["deep"]) == "List(List(UInt16))"
    assert types["colour"].names == ("red", "green", "blue")
    assert [field.doc for field in types["leaf"].fields][:3] == ["Its name.", "", ""]
    assert schemas().method(ECHO.id, 3) is ECHO.methods["once"]
    assert schemas().method(ECHO.id, 99) is None
    assert schemas().method(1, 3) is None


def test_the_values_of_personas_are_marked_secret() -> None:
    gate = own_schemas().interfaces["gate"]
    assert [f.name for f in gate.methods["put"].params if f.secret] == ["value"]
    assert [f.name for f in gate.methods["get"].results if f.secret] == ["value"]


def test_everything_in_our_schemas_has_a_comment() -> None:
    for interface in own_schemas().interfaces.values():
        assert interface.doc
        for method in interface.methods.values():
            assert method.doc, method.name


def test_loading_twice_gives_the_same_object() -> None:
    assert schemas() is schemas()
