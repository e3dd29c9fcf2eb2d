"""Reads an image of a persona and says whether it is what a trusted key signed.

Bytes come through a callable, so the same code reads the device past the page cache and a test's mutation.
Touches: nothing but that callable. Holds one step of it at a time, and the manifest.
Never: believes a number before the signature over it was checked; takes the hash tree on the word of its
hash alone: each level is computed anew from the one below.
Fails: with PersonaRefused; OSError from the callable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from organs import persona
from organs.integrity.shelf import Extent
from organs.persona import BLOCK, FAN_OUT, MANIFEST_BYTES, Part, Persona, PersonaRefused, Refusal

Read = Callable[[int, int], bytes]

# The data under one block of the tree.
STEP: Final = FAN_OUT * BLOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A manifest whose signature was checked."""

    persona: Persona
    key: bytes
    text: bytes

    @property
    def digest(self) -> bytes:
        """Stands for the whole image: the text has the hashes of its parts."""
        return sha256(self.text).digest()


def signed(read: Read, extent: Extent, trusted: Collection[bytes]) -> Signed:
    """The manifest of the image there, signed by a trusted key for that length. Raises as the module says."""
    block = read(extent.end - MANIFEST_BYTES, MANIFEST_BYTES)
    found = persona.verified(block, trusted)
    key, _, _, text = persona.split(block)
    if found.length != extent.length:
        kind = Refusal.TRUNCATED if extent.length < found.length else Refusal.ALTERED
        raise PersonaRefused("image", f"has {extent.length} bytes, {found.length} were signed", kind)
    return Signed(persona=found, key=key, text=text)


def whole(read: Read, extent: Extent, expected: Persona) -> None:
    """Return when all bytes of the image are those that were signed. Raises as the module says."""

    def inside(offset: int, length: int) -> bytes:
        return read(extent.offset + offset, length)

    for name, part in (("image", expected.image), ("tree", expected.tree)):
        if _hash(inside, part) != part.sha256:  # INV-PERSONA-5
            raise PersonaRefused(name, "its bytes are not those that were signed", Refusal.ALTERED)
    salt = bytes.fromhex(expected.verity.salt)
    below, blocks = expected.image.offset, expected.verity.blocks
    # The top of the tree lies first.
    at = expected.tree.offset + expected.tree.length
    for level in persona.levels(blocks):
        at -= level * BLOCK
        for number, block in enumerate(_tree_blocks(inside, below, blocks, salt)):
            if inside(at + number * BLOCK, BLOCK) != block:
                raise PersonaRefused("tree", "is not the hash tree of the image")
        below, blocks = at, level
    if sha256(salt + inside(below, BLOCK)).hexdigest() != expected.verity.root_hash:
        raise PersonaRefused("verity.rootHash", "is not the hash of the tree's top")


def _hash(read: Read, part: Part) -> str:
    total = sha256()
    end = part.offset + part.length
    for at in range(part.offset, end, STEP):
        total.update(read(at, min(STEP, end - at)))
    return total.hexdigest()


def _tree_blocks(read: Read, below: int, blocks: int, salt: bytes) -> Iterator[bytes]:
    """The blocks of the tree's level over `blocks` blocks from `below` on."""
    seed = sha256(salt)
    end = below + blocks * BLOCK
    for at in range(below, end, STEP):
        data = memoryview(read(at, min(STEP, end - at)))
        hashes = bytearray()
        for start in range(0, len(data), BLOCK):
            block = seed.copy()
            block.update(data[start : start + BLOCK])
            hashes += block.digest()
        yield bytes(hashes).ljust(BLOCK, b"\0")
