"""The image as the host makes it is one that the spine takes; changed in any way it is not."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from organs import persona
from organs.persona import PersonaRefused, Refusal
from spine.image import keys
from spine.persona import image, recipe

SECRET = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"\2" * 32)
PUBLIC = keys.public_bytes(SECRET)
RECIPE = recipe.load("courier")


def squashed(blocks: int) -> bytes:
    """Bytes that begin as a SquashFS does; the encoder packs whatever it is given."""
    return (b"hsqs" + bytes(36) + (100).to_bytes(8, "little")).ljust(blocks * 4096 - 17, b"x")


def made(blocks: int = 3, by: Ed25519PrivateKey = SECRET) -> bytes:
    body = image.body(RECIPE.name, squashed(blocks))
    public = keys.public_bytes(by)
    return body.image + body.tree + image.seal(image.manifest(RECIPE, body), public, by.sign)


@pytest.mark.parametrize("blocks", [1, 2, 128, 129, 300])
def test_the_spine_reads_what_the_host_wrote(blocks: int) -> None:
    data = made(blocks)
    assert len(data) % 4096 == 0
    found = persona.verified(data[-persona.MANIFEST_BYTES :], [PUBLIC])
    assert found == image.check(data, [PUBLIC])
    assert found.length == len(data)
    for name in ("name", "version", "summary", "init", "console", "limits", "network", "devices", "grants"):
        assert getattr(found, name) == getattr(RECIPE, name)
    assert (found.autostart, found.on_focus_loss) == (RECIPE.autostart, RECIPE.on_focus_loss)
    assert data == made(blocks)


def test_two_personas_with_the_same_files_have_different_trees() -> None:
    assert image.body("linda", squashed(3)).root_hash != image.body("courier", squashed(3)).root_hash


@pytest.mark.proves("INV-PERSONA-22")
@given(st.integers(0), st.integers(1, 255))
def test_no_byte_can_be_changed(at: int, by: int) -> None:
    data = bytearray(made())
    data[at % len(data)] ^= by
    with pytest.raises(PersonaRefused):
        image.check(bytes(data), [PUBLIC])


@pytest.mark.proves("INV-PERSONA-22")
def test_each_kind_of_wrong_image_has_its_word() -> None:
    data = made()
    tail = -persona.MANIFEST_BYTES
    head = persona.HEAD
    magic, length, key, _ = head.unpack_from(data[tail:])
    unsigned = data[:tail] + head.pack(magic, length, key, bytes(64)) + data[tail + head.size :]
    changed = bytearray(data)
    changed[100] ^= 1
    for wrong, kind in (
        (data[:-4096], Refusal.TRUNCATED),
        (data[:-1], Refusal.TRUNCATED),
        (data[4096:], Refusal.TRUNCATED),
        (b"", Refusal.TRUNCATED),
        (unsigned, Refusal.UNSIGNED),
        (made(by=OTHER), Refusal.FOREIGN_KEY),
        (bytes(changed), Refusal.ALTERED),
        (data[:4096] + data, Refusal.ALTERED),
    ):
        with pytest.raises(PersonaRefused) as refused:
            image.check(wrong, [PUBLIC])
        assert refused.value.kind is kind
    assert image.check(made(by=OTHER), [PUBLIC, keys.public_bytes(OTHER)]).name == "courier"


def test_a_tree_of_another_image_is_refused_though_it_was_signed() -> None:
    body = image.body(RECIPE.name, squashed(3))
    other = image.body(RECIPE.name, squashed(3)[:-1])
    for wrong in (
        replace(body, root_hash=other.root_hash),
        replace(body, tree=other.tree),
    ):
        text = image.manifest(RECIPE, wrong)
        data = wrong.image + wrong.tree + image.seal(text, PUBLIC, SECRET.sign)
        with pytest.raises(PersonaRefused, match="tree: is not that of the image"):
            image.check(data, [PUBLIC])
    plain = image.body(RECIPE.name, b"x" * 4096)
    data = plain.image + plain.tree + image.seal(image.manifest(RECIPE, plain), PUBLIC, SECRET.sign)
    with pytest.raises(PersonaRefused, match="is no SquashFS"):
        image.check(data, [PUBLIC])


def test_what_the_spine_would_not_take_is_not_signed() -> None:
    text = image.manifest(RECIPE, image.body(RECIPE.name, squashed(3)))
    document = json.loads(text)
    for wrong in (
        persona.canonical({**document, "extra": 1}),
        persona.canonical({**document, "version": 0}),
        text.replace(b":", b": ", 1),
        b"x" * (persona.TEXT_BYTES_MAX + 1),
    ):
        with pytest.raises(PersonaRefused):
            image.seal(wrong, PUBLIC, SECRET.sign)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(PersonaRefused):
        image.check(data + bytes(persona.MANIFEST_BYTES), [PUBLIC])
    with contextlib.suppress(PersonaRefused):
        image.described(made()[:-200] + data.ljust(200, b"\0"))


def test_the_salt_is_no_secret_and_fixed() -> None:
    assert image.body("linda", squashed(1)).salt == sha256(b"alpine-spine persona linda").hexdigest()
