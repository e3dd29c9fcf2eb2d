"""Slots and boot volumes for the tests, made by the image's own code around programs that stand in."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spine.image import disk, keys, slot

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = keys.public_bytes(KEY)
# A slot's room; enough for the parts and some zeros.
SIZE = 1024 * 1024
NAMES = ("slot-a", "slot-b", "boot-a", "boot-b")
EPOCH = 1_700_000_000
FIRST = b"MZ" + b"first" * 700
LOADER = b"MZ" + b"loader" * 9000
RESCUE = b"MZ" + b"rescue" * 900


def root() -> bytes:
    """Forty blocks that say that they are a SquashFS of their length."""
    made = bytearray(b"hsqs" + bytes(range(256)) * 640)[: 40 * 4096]
    made[40:48] = len(made).to_bytes(8, "little")
    return bytes(made)


def programs(version: str) -> dict[str, bytes]:
    """Two programs, neither a multiple of a sector, each with a few clusters."""
    return {name: f"program {name} {version} ".encode() * 5000 + name.encode() for name in ("a", "b")}


@functools.cache
def made(version: str = "1") -> tuple[bytes, dict[str, bytes], tuple[slot.Part, ...]]:
    """A slot as it fills its partition, the boot volume of each letter, and the slot's parts."""
    ukis = programs(version)
    boots = {}
    with tempfile.TemporaryDirectory() as name:
        for letter, uki in ukis.items():
            volume = disk.volume(letter, FIRST, LOADER, uki, RESCUE)
            boots[letter] = disk.make_boot(Path(name), letter, volume, EPOCH).read_bytes()
    facts = {"version": version, "image": "production"}
    data, parts = slot.compose(root(), b"T" * 4096, ukis, boots, facts, KEY.sign)
    return data + bytes(SIZE - len(data)), boots, tuple(parts)


def files(directory: Path, version: str = "1") -> dict[str, Path]:
    """Both slots and their boot volumes as files, by the names of their partitions."""
    slot_bytes, boots, _parts = made(version)
    found = {name: directory / name for name in NAMES}
    for name, path in found.items():
        path.write_bytes(boots[name[-1]] if name.startswith("boot") else slot_bytes)
    return found


@contextlib.contextmanager
def opened(paths: Mapping[str, Path], flags: Mapping[str, int] | None = None) -> Iterator[dict[str, int]]:
    """The descriptors as bay0 hands them over."""
    chosen = {**dict.fromkeys(NAMES, os.O_RDWR), **(flags or {})}
    fds = {f"device:{name}": os.open(path, chosen[name] | os.O_NONBLOCK) for name, path in paths.items()}
    try:
        yield fds
    finally:
        for fd in fds.values():
            os.close(fd)


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Change one bit."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def reader(data: bytes | bytearray) -> Callable[[int, int], bytes]:
    """Bytes as the pure modules read them."""
    return lambda offset, length: bytes(data[offset : offset + length])
