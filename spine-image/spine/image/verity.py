"""The hash tree of a root: what dm-verity compares each block with when it is read.

Pure: bytes in, bytes out. The layout is dm-verity's version 1 without a superblock: salted SHA-256 over
4096-byte blocks, 128 hashes to a tree block, the top of the tree first.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 4096
# Binds the tree to this system; it is no secret and must not change between builds.
SALT = hashlib.sha256(b"alpine-spine root").digest()


@dataclass(frozen=True)
class Tree:
    """A hash tree: its bytes, how many data blocks it covers, and the root hash that seals it."""

    data: bytes
    blocks: int
    root_hash: str


def padded(data: bytes) -> bytes:
    """`data` with zeros up to a whole number of blocks."""
    return data + bytes(-len(data) % BLOCK)


def tree(data: bytes, salt: bytes = SALT) -> Tree:
    """The tree over `data`, which must be one or more whole blocks; ValueError when it is not."""
    if not data or len(data) % BLOCK:
        raise ValueError(f"{len(data)} bytes are not whole blocks of {BLOCK}")
    levels: list[bytes] = []
    level = data
    # A single block is its own top: dm-verity then has no tree at all.
    while len(level) > BLOCK:
        level = padded(b"".join(_hashes(level, salt)))
        levels.append(level)
    root = hashlib.sha256(salt + level).hexdigest()
    return Tree(b"".join(reversed(levels)), len(data) // BLOCK, root)


def _hashes(level: bytes, salt: bytes) -> Iterator[bytes]:
    view = memoryview(level)
    seed = hashlib.sha256(salt)
    for at in range(0, len(level), BLOCK):
        sum_ = seed.copy()
        sum_.update(view[at : at + BLOCK])
        yield sum_.digest()
