"""Reads a slot from its first byte to its last and says what is in it.

Bytes come through a callable, so the same code reads a partition past the page cache and a test's mutation.
Touches: nothing but that callable. Reads STEP bytes at a time; holds no more than that and the manifest.
Never: trusts a number before the signature over it was checked, skips a byte because it should be zero.
Fails: it does not; what cannot be read or is not signed is said in what it returns.
The format is that of spine-image/spine/image/slot.py, which a test compares with this one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from organs.integrity import ed25519
from organs.integrity.verify import Found

Read = Callable[[int, int], bytes]

BLOCK: Final = 4096
MAGIC: Final = b"SPINE-SLOT-1\n\0\0\0"
MANIFEST_BYTES: Final = 4 * BLOCK
# What is held at once; large enough that the calls do not count, small enough to hash in a blink.
STEP: Final = 1024 * 1024
# A release has five parts; a manifest that names more than this is none of ours.
PARTS_MAX: Final = 16
NAME_CHARACTERS_MAX: Final = 32

_HEAD: Final = struct.Struct("<16sI64s")
_SIGNED: Final = struct.Struct("<16sI")
_SUPERBLOCK_BYTES: Final = 96
# One block of the tree holds this many hashes.
_FAN_OUT: Final = BLOCK // 32
_ZEROS: Final = bytes(STEP)


class Unsigned(Exception):
    """There is no manifest that the release key signed."""


class Short(Exception):
    """The slot ends before it should."""


@dataclass(frozen=True, slots=True)
class Part:
    """A signed part of the slot; `offset` and `length` in bytes."""

    name: str
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where the manifest lies, how many bytes of its room are used, its parts by offset, its text."""

    at: int
    used: int
    parts: tuple[Part, ...]
    text: bytes


def examine(read: Read, size: int, key: bytes) -> Found:
    """Read the whole slot of `size` bytes and hold it against its manifest, signed by `key`."""
    try:
        signed = manifest(read, size, key)
        hashes: dict[str, str] = {}
        stray: list[str] = []
        end = 0
        stretches = [(part.offset, part.length, part.name) for part in signed.parts]
        stretches.append((signed.at, signed.used, ""))
        for offset, length, name in sorted(stretches):
            if not _zero(read, end, offset):
                stray.append(f"zeros before {name or 'manifest'}")
            if name:
                hashes[name] = _hash(read, offset, length)
            end = offset + length
        if not _zero(read, end, size):
            stray.append("zeros at the end")
    except Unsigned as error:
        return Found(unsigned=str(error), signed={}, read={})
    except (Short, OSError) as error:
        return Found(unreadable=str(error), signed={}, read={})
    return Found(signed={p.name: p.sha256 for p in signed.parts}, read=hashes, stray=tuple(stray))


def exactly(read: Read, offset: int, length: int) -> bytes:
    """These bytes, all of them. Raises Short, and what `read` raises."""
    data = read(offset, length)
    if len(data) != length:
        raise Short(f"the slot ends before byte {offset + length}")
    return data


def _hash(read: Read, offset: int, length: int) -> str:
    total = sha256()
    for at in range(offset, offset + length, STEP):
        total.update(exactly(read, at, min(STEP, offset + length - at)))
    return total.hexdigest()


def _zero(read: Read, start: int, end: int) -> bool:
    """Whether all bytes are zero. Reads on after the first that is not, so that a bad sector is found."""
    clean = True
    for at in range(start, end, STEP):
        length = min(STEP, end - at)
        clean &= exactly(read, at, length) == _ZEROS[:length]
    return clean


def manifest(read: Read, size: int, key: bytes) -> Manifest:
    """The manifest, its signature checked before its text is read. Raises Unsigned, Short, OSError."""
    superblock = exactly(read, 0, _SUPERBLOCK_BYTES)
    if superblock[:4] != b"hsqs":
        raise Unsigned("no SquashFS at the start of the slot")
    [used] = struct.unpack_from("<Q", superblock, 40)
    level = -(-used // BLOCK)
    at = level * BLOCK
    while level > 1:
        level = -(-level // _FAN_OUT)
        at += level * BLOCK
    if at + MANIFEST_BYTES > size:
        raise Unsigned("the SquashFS says that it is larger than the slot")
    text = opened(exactly(read, at, MANIFEST_BYTES), key)
    used = _HEAD.size + len(text)
    parts = parse(text, size)
    for part in parts:
        if part.offset < at + used and at < part.offset + part.length:
            raise Unsigned(f"the part {part.name} lies over the manifest")
    return Manifest(at, used, parts, text)


def opened(block: bytes, key: bytes) -> bytes:
    """The text of a whole manifest block, once the signature over it was checked. Raises Unsigned."""
    magic, length, signature = _HEAD.unpack_from(block)
    if magic != MAGIC or _HEAD.size + length > MANIFEST_BYTES:
        raise Unsigned("no manifest behind the tree")
    text = block[_HEAD.size : _HEAD.size + length]
    if not ed25519.right(key, signature, _SIGNED.pack(magic, length) + text):  # INV-SLOT-6
        raise Unsigned("the signature of the manifest is not the release key's")
    return text


def parse(text: bytes, size: int) -> tuple[Part, ...]:
    """The parts that a manifest names, in order, none over another, all within `size`. Raises Unsigned."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise Unsigned("the manifest is not JSON") from None
    rows = document.get("parts") if isinstance(document, dict) else None
    if not isinstance(rows, dict) or not 1 <= len(rows) <= PARTS_MAX:
        raise Unsigned("the manifest names no parts")
    parts = sorted((_part(name, row) for name, row in rows.items()), key=lambda part: part.offset)
    end = 0
    for part in parts:
        if part.offset < end:
            raise Unsigned(f"the part {part.name} lies over another")
        end = part.offset + part.length
    if end > size:
        raise Unsigned("the manifest names parts behind the end of the slot")
    return tuple(parts)


def _part(name: str, row: object) -> Part:
    match row:
        case [int(offset), int(length), str(digest)] if (
            offset >= 0 and length > 0 and 1 <= len(name) <= NAME_CHARACTERS_MAX and len(digest) == 64
        ):
            return Part(name, offset, length, digest)
    raise Unsigned("the manifest describes a part that cannot be")
