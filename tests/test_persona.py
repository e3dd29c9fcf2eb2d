"""The manifest of a persona: what is read of it, and that nothing else is."""

from __future__ import annotations

import copy
import json
import re

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from organs import persona
from organs.builder import protocol
from organs.persona import PersonaRefused, Refusal
from tests.personas import DOCUMENT, KEY, PUBLIC, block, described

OTHER = Ed25519PrivateKey.from_private_bytes(bytes(reversed(range(32))))


def test_every_command_that_a_manifest_may_have_fits_the_builder() -> None:
    assert persona.INIT_BYTES_MAX <= protocol.WORDS_BYTES_MAX
    assert persona.INIT_WORDS_MAX <= protocol.WORDS_MAX
    words = ["/" + "\U0001f9c0" * 255] * persona.INIT_WORDS_MAX
    found = refused({**DOCUMENT, "init": words})
    assert (found.key, found.kind) == ("init", Refusal.MALFORMED)
    fitting = words[: persona.INIT_BYTES_MAX // len(words[0].encode())]
    assert persona.decode(persona.canonical({**DOCUMENT, "init": fitting})).init == tuple(fitting)


def refused(document: object) -> PersonaRefused:
    with pytest.raises(PersonaRefused) as caught:
        persona.decode(persona.canonical(document))
    return caught.value


def changed(path: str, value: object) -> dict[str, object]:
    """The good document with one value replaced; the path is of keys, with dots."""
    document = copy.deepcopy(DOCUMENT)
    *outer, last = path.split(".")
    place: dict[str, object] = document
    for key in outer:
        inner = place[key]
        assert isinstance(inner, dict)
        place = inner
    place[last] = value
    return document


def test_a_good_manifest_is_read_whole() -> None:
    found = persona.verified(block(DOCUMENT), {PUBLIC})
    assert found == persona.Persona(
        name="linda",
        version=3,
        summary="somebody",
        image=persona.Part(offset=0, length=200 * 4096, sha256="1" * 64),
        tree=persona.Part(offset=200 * 4096, length=3 * 4096, sha256="2" * 64),
        verity=persona.Verity(root_hash="3" * 64, salt="ab" * 32, blocks=200),
        init=("/sbin/init", "now"),
        console=True,
        limits=persona.Limits(memory_bytes=64 << 20, pids=64, writable_bytes=16 << 20),
        network=persona.Network(use=True, inbound=(80, 443)),
        devices=frozenset({"display"}),
        grants=frozenset({"focus"}),
        autostart=False,
        on_focus_loss=persona.OnFocusLoss.FREEZE,
    )
    assert found.length == 203 * 4096 + persona.MANIFEST_BYTES


WRONG: list[tuple[str, list[object]]] = [
    ("format", [0, 2, "1", True, None]),
    ("name", ["", "Linda", "1a", "a" * 16, "a-b", "a/b", "a\n", "é", 1, None, "a@b"]),
    ("version", [0, -1, 2**31, 1.0, True, "3"]),
    ("summary", ["a" * 101, "two\nlines", "\0", "\ud800", 3]),
    (
        "image",
        [[0, 4096], [1, 200 * 4096, "1" * 64], [0, 199 * 4096, "1" * 64], [0, 200 * 4096, "G" * 64], {}],
    ),
    ("image", [[0, 200 * 4096.0, "1" * 64], [False, 200 * 4096, "1" * 64], [0, 200 * 4096, "1" * 64, 0]]),
    ("tree", [[201 * 4096, 3 * 4096, "2" * 64], [200 * 4096, 2 * 4096, "2" * 64], [-1, 3 * 4096, "2" * 64]]),
    ("verity", [{}, [], {"rootHash": "3" * 64, "salt": "", "blocks": 200, "more": 1}]),
    ("verity.rootHash", ["3" * 63, "3" * 65, "3" * 63 + "G", "A" * 64, 3]),
    ("verity.salt", ["a", "AB", "ab" * 65, "ab\n", 1]),
    ("verity.blocks", [0, 199, 201, 2**62, 200.0, "200"]),
    (
        "init",
        [[], ["init"], [""], ["/a", ""], ["/a"] * 17, ["/" + "a" * 256], ["/a\0b"], ["/\udc80"], "/a", [1]],
    ),
    ("console", [0, 1, "true", None]),
    ("limits", [{}, {"memoryBytes": 1 << 24, "pids": 1, "writableBytes": 1 << 20, "cpu": 1}]),
    ("limits.memoryBytes", [(16 << 20) - 1, (64 << 30) + 1, "64 MiB", True]),
    ("limits.pids", [0, 4097, 1.5]),
    ("limits.writableBytes", [(1 << 20) - 1, (16 << 30) + 1]),
    ("network", [{}, True, {"use": True, "inbound": [], "outbound": []}]),
    ("network.use", [1, None, False]),
    ("network.inbound", [[0], [65536], [80, 80], ["80"], [True], [80.0], list(range(1, 34)), 80]),
    ("devices", [["gpu"], ["display", "display"], "display", [1], [["display"]]]),
    ("grants", [["all"], ["focus", "focus"], {}, [None]]),
    ("autostart", [0, "no"]),
    ("onFocusLoss", ["stop", "", 1, None, []]),
]


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in WRONG for value in values], ids=repr
)
def test_each_wrong_value_is_refused_by_its_key(path: str, value: object) -> None:
    error = refused(changed(path, value))
    assert error.kind is Refusal.MALFORMED
    assert str(error).startswith("malformed: ")
    assert error.key.split(".")[0] in (path.split(".")[0], "image", "tree")


@pytest.mark.parametrize("key", sorted(DOCUMENT))
def test_each_key_is_required(key: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    del document[key]
    assert (refused(document).key, refused(document).rule) == (key, "missing")


def test_no_other_key_is_allowed() -> None:
    assert "unknown" in refused({**DOCUMENT, "also": 1}).rule


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(DOCUMENT).encode(),
        json.dumps(DOCUMENT, separators=(",", ":")).encode()[::-1],
        persona.canonical(DOCUMENT) + b"\n",
        persona.canonical(DOCUMENT).replace(b'"version":3', b'"version":2,"version":3'),
        persona.canonical(DOCUMENT).replace(b"somebody", b"\\u0073omebody"),
        persona.canonical(DOCUMENT).replace(b"somebody", "söme".encode()),
        persona.canonical(DOCUMENT).replace(b'"version":3', b'"version":NaN'),
        persona.canonical(DOCUMENT).replace(b'"version":3', b'"version":' + b"9" * 5000),
        b"[" * persona.TEXT_BYTES_MAX,
        b'{"a":' * 3000,
        b"",
        b"null",
    ],
)
def test_only_the_canonical_spelling_is_read(text: bytes) -> None:
    with pytest.raises(PersonaRefused):
        persona.decode(text)


def test_what_is_not_signed_by_a_trusted_key_is_refused_by_its_reason() -> None:
    good = block(DOCUMENT)
    foreign = block(DOCUMENT, OTHER)
    unsigned = good[:52] + bytes(64) + good[116:]
    # The name of a trusted key over another's signature.
    borrowed = good[:52] + foreign[52:116] + good[116:]
    cases = {
        Refusal.FOREIGN_KEY: foreign,
        Refusal.UNSIGNED: unsigned,
        Refusal.ALTERED: borrowed,
        Refusal.TRUNCATED: good[:-1],
        Refusal.MALFORMED: good[:-1] + b"x",
    }
    for kind, wrong in cases.items():
        with pytest.raises(PersonaRefused) as caught:
            persona.verified(wrong, {PUBLIC})
        assert caught.value.kind is kind
    assert persona.verified(foreign, {PUBLIC, OTHER.public_key().public_bytes_raw()}).name == "linda"
    with pytest.raises(PersonaRefused):
        persona.verified(good, frozenset())


GOOD = block(DOCUMENT)
USED_BYTES = len(GOOD.rstrip(b"\0"))


@given(at=st.integers(0, len(GOOD) * 8 - 1) | st.integers(0, USED_BYTES * 8 - 1))
def test_no_bit_of_the_block_can_change(at: int) -> None:
    wrong = bytearray(GOOD)
    wrong[at // 8] ^= 1 << at % 8
    with pytest.raises(PersonaRefused):
        persona.verified(bytes(wrong), {PUBLIC})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
PATHS = sorted({path for path, _ in WRONG} | set(DOCUMENT))


@given(path=st.sampled_from(PATHS), value=JSON)
def test_any_value_anywhere_is_read_as_it_was_or_refused(path: str, value: object) -> None:
    document = changed(path, value)
    try:
        text = persona.canonical(document)
        found = persona.decode(text)
    except ValueError:
        return
    assert described(found) == document


@given(
    st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(PersonaRefused):
        persona.decode(data)
    with pytest.raises(PersonaRefused):
        persona.verified(data, {PUBLIC})
    with pytest.raises(PersonaRefused):
        persona.verified(persona.HEAD.pack(persona.MAGIC, len(data), PUBLIC, bytes(64)) + data, {PUBLIC})


@given(st.binary(max_size=400))
def test_any_block_is_refused(data: bytes) -> None:
    for start in (b"", persona.MAGIC, persona.HEAD.pack(persona.MAGIC, 80, PUBLIC, bytes(63) + b"1")):
        with pytest.raises(PersonaRefused):
            persona.verified((start + data).ljust(persona.MANIFEST_BYTES, b"\0"), {PUBLIC})


def test_levels() -> None:
    assert persona.levels(1) == ()
    assert persona.levels(2) == (1,)
    assert persona.levels(128) == (1,)
    assert persona.levels(129) == (2, 1)
    assert persona.levels(128 * 128 + 1) == (129, 2, 1)


def test_trusted_keys() -> None:
    assert persona.trusted_keys(PUBLIC.hex() + "\n") == {PUBLIC}
    assert persona.trusted_keys("") == frozenset()
    for wrong in ("x", PUBLIC.hex().upper(), PUBLIC.hex() + "00", PUBLIC.hex() + "\n\n", "\n"):
        with pytest.raises(PersonaRefused):
            persona.trusted_keys(wrong)


def test_the_store_of_another_key_has_another_name() -> None:
    mine, other = persona.key_id(PUBLIC), persona.key_id(OTHER.public_key().public_bytes_raw())
    assert re.fullmatch("[0-9a-f]{16}", mine)
    assert persona.store_name("linda", mine) != persona.store_name("linda", other)
    assert KEY.public_key().public_bytes_raw() == PUBLIC
