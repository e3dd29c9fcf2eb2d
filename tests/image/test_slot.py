"""A slot comes out as it went in, is found without a table, and no changed byte goes unseen."""

import struct
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from spine.image import keys, slot, verity

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = keys.public_bytes(KEY)
LOADER = b"MZ-loader" + bytes(range(251)) * 70
FACTS = {"name": "Alpine-Spine", "version": "0.1.0", "image": "development", "rootHash": "00"}


def verify(signature: bytes, message: bytes) -> None:
    keys.check(PUBLIC, signature, message)


def squashfs(blocks: int) -> bytes:
    """Bytes whose superblock says that a SquashFS of that many blocks begins here."""
    data = bytearray(b"\x5a" * (blocks * 4096))
    data[:48] = struct.pack("<4s36xQ", b"hsqs", blocks * 4096 - 100)
    return bytes(data)


def example(blocks: int = 3) -> tuple[bytes, dict[str, bytes]]:
    """A small slot and the boot volumes it carries."""
    ukis = {"a": b"MZ-a" + bytes(range(256)) * 40, "b": b"MZ-b" + bytes(range(256)) * 40}
    boots = {letter: volume(letter, uki) for letter, uki in ukis.items()}
    root = squashfs(blocks)
    data, _parts = slot.compose(root, verity.tree(root).data, ukis, boots, FACTS, KEY.sign)
    return data, boots


def volume(letter: str, uki: bytes) -> bytes:
    """A boot volume with something of its own, a program, and a boot loader that all of them have."""
    made = bytearray(64 * 1024)
    made[:512] = f"boot sector {letter}".encode().ljust(512, b".")
    made[8192 : 8192 + len(uki)] = uki
    made[40960 : 40960 + len(LOADER)] = LOADER
    made[-512:] = b"\xff" * 512
    return bytes(made)


@pytest.mark.parametrize("blocks", [1, 128, 129, 128 * 128 + 1])
def test_the_manifest_is_found_from_the_superblock(blocks: int) -> None:
    root = squashfs(blocks)
    assert slot.manifest_offset(root[:96]) == len(root) + len(verity.tree(root).data)


def test_what_goes_in_comes_out_in_a_partition_of_any_size() -> None:
    data, boots = example()
    manifest, parts = slot.read(data + bytes(10 * 4096), verify)
    assert manifest["version"] == "0.1.0"
    assert [part.name for part in parts] == ["root", "tree", "uki-a", "uki-b", "boot"]
    assert all(part.offset % 4096 == 0 for part in parts)
    assert manifest["format"] == 2
    assert {letter: slot.boot_image(data, manifest, parts, letter) for letter in boots} == boots
    with pytest.raises(slot.SlotError, match="boot volume c"):
        slot.boot_image(data, manifest, parts, "c")


def test_the_programs_lie_in_a_slot_once() -> None:
    data, _boots = example()
    assert data.count(b"MZ-a") == data.count(b"MZ-b") == 1


def test_what_both_volumes_have_lies_in_a_slot_once() -> None:
    data, _boots = example()
    assert data.count(LOADER) == 1
    assert data.count(b"boot sector a") == data.count(b"boot sector b") == 1


@pytest.mark.proves("INV-IMAGE-4")
@given(st.data())
@settings(max_examples=400)
def test_no_changed_bit_goes_unseen(draw: st.DataObject) -> None:
    data, _boots = example()
    whole = bytearray(data + bytes(4096))
    at = draw.draw(st.integers(0, len(whole) * 8 - 1))
    whole[at // 8] ^= 1 << at % 8
    with pytest.raises(slot.SlotError):
        slot.read(bytes(whole), verify)


@given(st.integers(0, 40000))
@settings(max_examples=50)
def test_a_cut_slot_is_refused(length: int) -> None:
    data, _boots = example()
    with pytest.raises(slot.SlotError):
        slot.read(data[: min(length, len(data) - 4096)], verify)


@given(st.binary(max_size=400))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(slot.SlotError):
        slot.read(data, verify)


def test_another_key_is_refused() -> None:
    data, _boots = example()
    other = keys.public_bytes(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    with pytest.raises(slot.SlotError, match="signature"):
        slot.read(data, lambda signature, message: keys.check(other, signature, message))


@given(
    st.lists(st.binary(max_size=3 * 4096), min_size=1, max_size=3),
    st.binary(min_size=600, max_size=5000),
    st.integers(0, 20),
)
def test_any_volumes_come_out_of_their_runs(noises: list[bytes], program: bytes, sector: int) -> None:
    images = {}
    for number, noise in enumerate(noises):
        made = bytearray(noise + bytes(16 * 4096) + noise)
        made[sector * 512 : sector * 512 + len(program)] = program
        images[str(number)] = bytes(made)
    boot, runs = slot.boot_runs(images, {"uki-a": program})
    for letter, image in images.items():
        out = bytearray(len(image))
        for run in runs[letter]:
            source = {"boot": boot, "uki-a": program}[run.part]
            assert 0 <= run.offset <= run.offset + run.length <= len(source)
            out[run.at : run.at + run.length] = source[run.offset : run.offset + run.length]
        assert sha256(out).digest() == sha256(image).digest()
