"""Whole images, changed in one place each: every change is found, and named."""

from __future__ import annotations

from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from organs.integrity import examine_persona
from organs.integrity.shelf import Extent
from organs.persona import BLOCK, MANIFEST_BYTES, PersonaRefused, Refusal
from spine.image import verity
from tests.personas import PUBLIC, block, described, image

OTHER = Ed25519PrivateKey.from_private_bytes(bytes(reversed(range(32))))
# Two levels of tree: 130 blocks of data.
DATA = b"".join(sha256(bytes([n])).digest() * 128 for n in range(130))
IMAGE = image(data=DATA)
AT = 3 * BLOCK


def examine(data: bytes) -> examine_persona.Signed:
    shelf = bytes(AT) + data
    extent = Extent(AT, len(data))

    def read(offset: int, length: int) -> bytes:
        found = shelf[offset : offset + length]
        assert len(found) == length
        return found

    signed = examine_persona.signed(read, extent, {PUBLIC})
    examine_persona.whole(read, extent, signed.persona)
    return signed


def refusal(data: bytes) -> Refusal:
    with pytest.raises(PersonaRefused) as caught:
        examine(data)
    return caught.value.kind


def test_what_was_made_is_whole() -> None:
    found = examine(IMAGE)
    assert (found.persona.name, found.key) == ("linda", PUBLIC)
    assert found.digest == sha256(found.text).digest()


def test_the_tree_is_that_of_the_image_builder() -> None:
    tree = verity.tree(DATA, b"salt")
    assert IMAGE[len(DATA) : -MANIFEST_BYTES] == tree.data
    assert examine(IMAGE).persona.verity.root_hash == tree.root_hash


@pytest.mark.parametrize("blocks", [1, 2, 127, 128, 129])
def test_every_size_of_tree(blocks: int) -> None:
    assert examine(image(data=DATA[: blocks * BLOCK])).persona.verity.blocks == blocks


@pytest.mark.proves("INV-PERSONA-5")
def test_every_byte_of_a_small_image_and_its_tree_is_checked() -> None:
    small = image(data=DATA[: 2 * BLOCK])
    signed = examine(small).persona
    for at in range(len(small) - MANIFEST_BYTES):
        wrong = bytearray(small)
        wrong[at] ^= 1 << at % 8
        data = bytes(wrong)
        with pytest.raises(PersonaRefused) as caught:
            examine_persona.whole(lambda o, n, data=data: data[o : o + n], Extent(0, len(data)), signed)  # type: ignore[misc]
        assert caught.value.kind is Refusal.ALTERED


@pytest.mark.proves("INV-PERSONA-5")
@given(st.integers(0, len(IMAGE) * 8 - 1))
def test_no_bit_can_change(bit: int) -> None:
    wrong = bytearray(IMAGE)
    wrong[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PersonaRefused):
        examine(bytes(wrong))


@pytest.mark.proves("INV-PERSONA-5")
def test_a_tree_that_a_trusted_key_signed_but_that_is_of_another_image_is_refused() -> None:
    other = image(data=DATA[::-1])
    tree = other[len(DATA) : -MANIFEST_BYTES]
    document = described(examine(IMAGE).persona)
    document["tree"] = [len(DATA), len(tree), sha256(tree).hexdigest()]
    assert refusal(DATA + tree + block(document)) is Refusal.MALFORMED
    # The top level is right, the one below is not.
    real = IMAGE[len(DATA) : -MANIFEST_BYTES]
    mixed = real[:BLOCK] + tree[BLOCK:]
    document["tree"] = [len(DATA), len(mixed), sha256(mixed).hexdigest()]
    assert refusal(DATA + mixed + block(document)) is Refusal.MALFORMED
    root = {**document, "tree": [len(DATA), len(real), sha256(real).hexdigest()]}
    root["verity"] = {"rootHash": "0" * 64, "salt": b"salt".hex(), "blocks": 130}
    assert refusal(DATA + real + block(root)) is Refusal.MALFORMED


def test_each_refusal() -> None:
    manifest = IMAGE[-MANIFEST_BYTES:]
    assert refusal(image(data=DATA, key=OTHER)) is Refusal.FOREIGN_KEY
    assert refusal(IMAGE[:-MANIFEST_BYTES] + manifest[:52] + bytes(64) + manifest[116:]) is Refusal.UNSIGNED
    assert refusal(IMAGE[:-BLOCK]) is Refusal.TRUNCATED
    assert refusal(IMAGE[BLOCK:]) is Refusal.TRUNCATED
    assert refusal(bytes(BLOCK) + IMAGE) is Refusal.ALTERED
    assert refusal(bytes(len(IMAGE))) is Refusal.TRUNCATED
    assert refusal(image(data=DATA, name="Linda")) is Refusal.MALFORMED
