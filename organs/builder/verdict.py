"""What the builder does for a request, checked on its own side, whoever has checked it before.

Pure. The asker decides what should be; this decides whether it can be meant: lengths, alignment, hashes,
limits, and that the request was for this incarnation.
Never: changes a request into one that would pass.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

# Four times the rooms that there are personas for on a household's machine; each costs kernel memory.
DEVICES_MAX: Final = 64
# The unit of verity and of SquashFS's direct reads. Regions begin and end at whole blocks.
BLOCK: Final = 4096
# Larger than any persona partition we build; a length above it is a slip.
LENGTH_MAX: Final = 64 * 1024**3
DIGEST_CHARS: Final = 64
# dm-verity keeps the salt in its own memory.
SALT_CHARS_MAX: Final = 128
HASHES_PER_BLOCK: Final = BLOCK // 32
_HEXADECIMAL: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backing:
    """The descriptor that came with a request, as the kernel describes it. `size` is in bytes."""

    readable: bool
    suitable: bool  # a regular file or a block device
    size: int


def region(offset: int, length: int, backing: Backing | None) -> str | None:
    """What is wrong with a region of a descriptor, or None."""
    if backing is None:
        return "there must be exactly one descriptor"
    if not backing.suitable:
        return "the descriptor must be of a regular file or a block device"
    if not backing.readable:
        return "the descriptor cannot be read from"
    if offset % BLOCK or length % BLOCK:
        return f"offset and length must be multiples of {BLOCK}"
    if not BLOCK <= length <= LENGTH_MAX:
        return f"the length must be from {BLOCK} to {LENGTH_MAX}"
    if offset + length > backing.size:
        return f"the region ends at {offset + length}, the descriptor at {backing.size}"
    return None


def tree(root_hash: str, salt: str, blocks: int, hash_offset: int, length: int) -> str | None:
    """What is wrong with a hash tree inside a region of `length` bytes, or None."""
    if len(root_hash) != DIGEST_CHARS or not _HEXADECIMAL.issuperset(root_hash):
        return f"the root hash must be {DIGEST_CHARS} hexadecimal digits in lower case"
    if len(salt) > SALT_CHARS_MAX or len(salt) % 2 or not _HEXADECIMAL.issuperset(salt):
        return f"the salt must be at most {SALT_CHARS_MAX} hexadecimal digits in lower case, of whole bytes"
    if blocks < 1:
        return "there must be at least one block"
    if hash_offset % BLOCK:
        return f"the tree must begin at a multiple of {BLOCK}"
    if blocks * BLOCK > hash_offset:
        return "the tree must begin behind the data"
    if hash_offset + tree_blocks(blocks) * BLOCK > length:
        return "the tree must end within the region"
    return None


def tree_blocks(blocks: int) -> int:
    """How many blocks the hash tree over `blocks` blocks has: one for each 128 below it, up to a single one.

    A single block of data is its own top.
    """
    total = 0
    while blocks > 1:
        blocks = -(-blocks // HASHES_PER_BLOCK)
        total += blocks
    return total


def room_for(held: Collection[str]) -> str | None:
    """Why there may be no further device, or None."""
    return f"there are {len(held)} devices already" if len(held) >= DEVICES_MAX else None


def addressed(generation: int, own: int) -> str | None:
    """Why a request is not for this incarnation, or None."""
    if generation == own:
        return None
    return f"it was for incarnation {generation}, this is {own}"
