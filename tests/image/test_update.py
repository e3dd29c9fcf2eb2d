"""The file of an update: made, read, and every way in which it is none."""

from __future__ import annotations

import functools
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organs.integrity import update as organs_update
from spine.image import keys, slot, update
from spine.image.update import HEAD_BYTES, MAGIC, NoUpdate
from tests.integrity import disks

check = functools.partial(keys.check, disks.PUBLIC)


@functools.cache
def packed(version: str = "2") -> bytes:
    return update.pack(disks.made(version)[0], check)


def kind(data: bytes) -> str:
    with pytest.raises(NoUpdate) as caught:
        update.unpack(data, check)
    assert str(caught.value).startswith(f"{caught.value.kind}: ")
    return caught.value.kind


def test_what_is_packed_comes_out() -> None:
    data = packed()
    found = update.unpack(data, check)
    assert (found.version, found.image) == ("2", "production")
    partition = disks.made("2")[0]
    assert partition.startswith(found.slot)
    assert not any(partition[len(found.slot) :])
    assert found.block in found.slot
    assert data == MAGIC + found.block + found.slot
    assert packed() == update.pack(found.slot, check), "with zeros at the end or without"


def test_the_spine_takes_what_is_packed() -> None:
    found = update.unpack(packed(), check)
    here = organs_update.Here(
        key=disks.PUBLIC, version="1", image="production", slot_bytes=disks.SIZE, not_now=""
    )
    offer = organs_update.offered(found.block, len(found.slot), here)
    organs_update.examined(disks.reader(found.slot), offer, disks.PUBLIC)


def test_each_kind_of_refusal() -> None:
    data = packed()
    assert kind(b"") == "malformed"
    assert kind(b"PK\3\4" + data[4:]) == "malformed"
    assert kind(data[: HEAD_BYTES - 1]) == "truncated"
    assert kind(data[:HEAD_BYTES]) == "truncated"
    assert kind(data[:-1]) == "truncated"
    assert kind(data + b"\0") == "malformed"
    assert kind(data + bytes(update.FILE_BYTES_MAX)) == "too large"
    assert kind(MAGIC + bytes(slot.MANIFEST_SIZE) + data[HEAD_BYTES:]) == "malformed"
    changed = bytearray(data)
    changed[len(MAGIC) + 100] ^= 1
    assert kind(bytes(changed)) == "unsigned"
    changed = bytearray(data)
    changed[-1] ^= 1
    assert kind(bytes(changed)) == "altered"
    older = packed("0")
    assert len(older) == len(data)
    assert kind(data[:HEAD_BYTES] + older[HEAD_BYTES:]) == "altered", "both signed, but not together"
    with pytest.raises(slot.SlotError):
        update.pack(bytes(4096), check)


@settings(deadline=None)
@given(st.data())
def test_one_changed_byte_is_refused(data: st.DataObject) -> None:
    changed = bytearray(packed())
    block = slot.manifest_offset(packed()[HEAD_BYTES : HEAD_BYTES + 96])
    used = 84 + struct.unpack_from("<I", packed(), len(MAGIC) + 16)[0]
    # Zeros behind the text of the block are part of what is compared too.
    at = data.draw(
        st.integers(0, len(changed) - 1)
        | st.integers(0, HEAD_BYTES)
        | st.integers(HEAD_BYTES + block, HEAD_BYTES + block + used)
    )
    changed[at] ^= data.draw(st.integers(1, 255))
    assert kind(bytes(changed)) in {"malformed", "unsigned", "altered", "truncated"}


@given(st.binary(max_size=100), st.integers(0, 200))
def test_any_bytes_are_refused(tail: bytes, cut: int) -> None:
    assert kind(tail) in {"malformed", "truncated"}
    assert kind((MAGIC + packed()[len(MAGIC) :])[:cut] + tail) in {"malformed", "truncated", "unsigned"}


def test_the_manifest_is_json_that_names_what_it_brings() -> None:
    block = update.unpack(packed(), check).block
    [length] = struct.unpack_from("<I", block, 16)
    document = json.loads(block[84 : 84 + length])
    assert (document["version"], document["format"]) == ("2", 2)
