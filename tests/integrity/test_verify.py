"""Slots made by the image's own code, then damaged: what is said of them, and which part is named."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from organs.integrity import ed25519, examine
from organs.integrity.verify import Found, Judged, Verdict, judge
from spine.image import keys, slot

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = keys.public_bytes(KEY)
SIZE = 1024 * 1024
ORDER = 2**252 + 27742317777372353535851937790883648493


def made() -> tuple[bytes, list[slot.Part]]:
    """A slot with a root of 40 blocks, filled up with zeros, and its parts."""
    root = bytearray(b"hsqs" + bytes(range(256)) * 640)[: 40 * 4096]
    root[40:48] = len(root).to_bytes(8, "little")
    ukis = {"a": b"A" * 9000, "b": b"B" * 9001}
    boots = {name: bytes(4096) + b"boot" * 1024 + uki for name, uki in ukis.items()}
    data, parts = slot.compose(bytes(root), b"T" * 4096, ukis, boots, {"version": "1"}, KEY.sign)
    return data + bytes(SIZE - len(data)), parts


SLOT, PARTS = made()
MANIFEST_AT = slot.manifest_offset(SLOT[:96])


def reader(data: bytes | bytearray) -> Callable[[int, int], bytes]:
    return lambda offset, length: bytes(data[offset : offset + length])


def look(data: bytes | bytearray, key: bytes = PUBLIC, size: int = SIZE) -> Judged:
    return judge(examine.examine(reader(data), size, key))


@pytest.mark.proves("INV-SLOT-5")
def test_the_slot_that_was_made_is_verified() -> None:
    assert look(SLOT) == Judged(Verdict.VERIFIED)


@pytest.mark.proves("INV-SLOT-5")
@given(at=st.integers(0, SIZE - 1), bit=st.integers(0, 7))
@settings(deadline=None)
def test_any_flipped_bit_is_found_and_its_part_named(at: int, bit: int) -> None:
    data = bytearray(SLOT)
    data[at] ^= 1 << bit
    judged = look(data)
    inside = [part.name for part in PARTS if part.offset <= at < part.offset + part.length]
    if at < 4 or 40 <= at < 48:
        # The way to the manifest: it is found no longer, or still, when the length leads to the same block.
        assert judged.verdict in {Verdict.UNSIGNED, Verdict.TAMPERED}
    elif inside:
        assert judged == Judged(Verdict.TAMPERED, tuple(inside), f"not what was signed: {inside[0]}")
    elif MANIFEST_AT <= at < _text_end():
        assert judged.verdict is Verdict.UNSIGNED
    else:
        assert judged.verdict is Verdict.TAMPERED
        assert judged.parts[0].startswith("zeros")


def _text_end() -> int:
    return MANIFEST_AT + 84 + int.from_bytes(SLOT[MANIFEST_AT + 16 : MANIFEST_AT + 20], "little")


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_each_part_by_name(part: slot.Part) -> None:
    for at in (part.offset + 100, part.offset + part.length - 1):
        data = bytearray(SLOT)
        data[at] ^= 1
        assert look(data).parts == (part.name,)


@pytest.mark.proves("INV-SLOT-6")
def test_another_key_and_a_changed_text() -> None:
    other = keys.public_bytes(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    assert look(SLOT, other).verdict is Verdict.UNSIGNED
    for at in range(MANIFEST_AT, _text_end(), 37):
        data = bytearray(SLOT)
        data[at] ^= 1
        assert look(data).verdict is Verdict.UNSIGNED


@given(length=st.integers(0, SIZE - 1))
@settings(deadline=None, max_examples=50)
def test_cut_short(length: int) -> None:
    assert look(SLOT[:length]).verdict is Verdict.UNREADABLE


def test_a_failing_device() -> None:
    def read(offset: int, length: int) -> bytes:
        if offset + length == SIZE:
            raise OSError(5, "Input/output error")
        return SLOT[offset : offset + length]

    assert judge(examine.examine(read, SIZE, PUBLIC)).verdict is Verdict.UNREADABLE


@given(
    text=st.binary(max_size=400)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=70),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["parts", "root", "x"]), inner)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_a_manifest_says_it_ends_in_parts_or_a_refusal(text: bytes) -> None:
    try:
        parts = examine.parse(text, SIZE)
    except examine.Unsigned:
        return
    assert all(part.offset >= 0 and part.offset + part.length <= SIZE for part in parts)


def test_a_manifest_without_end() -> None:
    with pytest.raises(examine.Unsigned):
        examine.parse(b"[" * 16000, SIZE)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (None, Verdict.PENDING),
        (Found(signed={}, read={}), Verdict.UNSIGNED),
        (Found(signed={"root": "1"}, read={"root": "1"}), Verdict.VERIFIED),
        (Found(signed={"root": "1"}, read={}), Verdict.TAMPERED),
        (Found(signed={"root": "1"}, read={"root": "2"}), Verdict.TAMPERED),
        (Found(signed={"root": "1"}, read={"root": "1"}, stray=("x",)), Verdict.TAMPERED),
        (Found(unsigned="x", signed={"root": "1"}, read={"root": "1"}), Verdict.UNSIGNED),
        (Found(unreadable="x", unsigned="x", signed={"root": "1"}, read={"root": "1"}), Verdict.UNREADABLE),
    ],
)
def test_verdicts(found: Found | None, verdict: Verdict) -> None:
    assert judge(found).verdict is verdict


@given(seed=st.binary(min_size=32, max_size=32), message=st.binary(max_size=200), flip=st.integers(0, 511))
@settings(deadline=None, max_examples=40)
def test_signatures_as_another_implementation_sees_them(seed: bytes, message: bytes, flip: int) -> None:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public, good = keys.public_bytes(key), key.sign(message)
    assert ed25519.right(public, good, message)
    assert not ed25519.right(public, good, message + b"x")
    bad = bytearray(good)
    bad[flip // 8] ^= 1 << flip % 8
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(public).verify(bytes(bad), message)
    assert not ed25519.right(public, bytes(bad), message)


def test_the_first_vector_of_the_standard() -> None:
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    assert ed25519.right(public, signature, b"")


@pytest.mark.proves("INV-SLOT-6")
def test_signatures_that_only_a_lax_reader_takes() -> None:
    good = KEY.sign(b"m")
    more = int.from_bytes(good[32:], "little") + ORDER
    assert not ed25519.right(PUBLIC, good[:32] + more.to_bytes(32, "little"), b"m")
    # Under the neutral point as a key, R = neutral and S = 0 would sign everything.
    neutral = (1).to_bytes(32, "little")
    assert not ed25519.right(neutral, neutral + bytes(32), b"m")
    # Minus one has order 2; zero is the y of points of order 4.
    for y in (2**255 - 20, 0):
        assert not ed25519.right(y.to_bytes(32, "little"), neutral + bytes(32), b"m")
    # The same neutral point, encoded with y = p + 1 and with the sign of a zero set.
    for odd in (2**255 - 18, 2**255 + 1):
        assert not ed25519.right(odd.to_bytes(32, "little"), neutral + bytes(32), b"m")
    assert not ed25519.right(PUBLIC[:31], good, b"m")
    assert not ed25519.right(PUBLIC, good[:63], b"m")
