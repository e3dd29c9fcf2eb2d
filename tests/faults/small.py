"""A disk for the tests of the matrix: laid out by the image's own code, around programs that stand in."""

from __future__ import annotations

import struct
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spine.image import disk, slot

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
EPOCH = 1_700_000_000
FIRST = b"MZ" + b"first" * 900
LOADER = b"MZ" + b"loader" * 3000
RESCUE = b"MZ" + b"rescue" * 700
LINE = b"a command line of some length"


def program(pair: str, version: str) -> bytes:
    """A program with the two sections that the matrix looks for; its other headers are zeros."""
    kernel = f"kernel {pair} {version} ".encode() * 2000
    head = bytearray(8192)
    head[60:64] = struct.pack("<I", 64)
    struct.pack_into("<4sHH12xH", head, 64, b"PE\0\0", 0x8664, 2, 16)
    at = len(head)
    for number, (name, data) in enumerate(((b".cmdline", LINE), (b".linux", kernel))):
        row = 64 + 24 + 16 + 40 * number
        struct.pack_into("<8sIIII", head, row, name, len(data), at, -(-len(data) // 512) * 512, at)
        at += -(-len(data) // 512) * 512
    return bytes(head) + LINE + bytes(512 - len(LINE)) + kernel


def root() -> bytes:
    """Three hundred blocks that say that they are a SquashFS, with tables at the end."""
    made = bytearray(bytes(range(1, 256)) * 5000)[: 300 * 4096]
    made[:4] = b"hsqs"
    struct.pack_into("<Q", made, 40, len(made))
    struct.pack_into("<Q", made, 64, len(made) - 9000)
    return bytes(made)


def make(directory: Path, version: str = "1") -> Path:
    """The disk as a build leaves it."""
    ukis = {pair: program(pair, version) for pair in ("a", "b")}
    boots = {
        pair: disk.make_boot(directory, pair, disk.volume(pair, FIRST, LOADER, uki, RESCUE), EPOCH)
        for pair, uki in ukis.items()
    }
    tree = b"T" * 4096 * (1 + 3)
    images = {pair: path.read_bytes() for pair, path in boots.items()}
    data, _parts = slot.compose(root(), tree, ukis, images, {"version": version}, KEY.sign)
    path = directory / f"disk-{version}"
    parts: dict[str, bytes | Path] = {"slot-a": data, "slot-b": data}
    parts |= {f"boot-{pair}": boots[pair] for pair in boots}
    disk.write_disk(path, {**parts, "persist": b"\1" * 1024 * 64})
    return path
