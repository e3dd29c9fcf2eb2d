"""Slots and an ESP for the tests, made by the image's own code with programs and a root that stand in."""

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
EPOCH = 1_700_000_000
LOADER = b"MZ" + b"loader" * 9000


def root() -> bytes:
    """Forty blocks that say that they are a SquashFS of their length."""
    made = bytearray(b"hsqs" + bytes(range(256)) * 640)[: 40 * 4096]
    made[40:48] = len(made).to_bytes(8, "little")
    return bytes(made)


def programs(version: str) -> dict[str, bytes]:
    """Two programs, neither a multiple of a sector, each with a few clusters."""
    return {name: f"program {name} {version} ".encode() * 5000 + name.encode() for name in ("a", "b")}


@functools.cache
def made(version: str = "1") -> tuple[bytes, bytes, tuple[slot.Part, ...]]:
    """A slot as it fills its partition, the ESP that belongs to it, and the slot's parts."""
    ukis = programs(version)
    with tempfile.TemporaryDirectory() as name:
        esp = disk.make_esp(Path(name), LOADER, ukis, EPOCH).read_bytes()
    data, parts = slot.compose(root(), b"T" * 4096, ukis, esp, {"version": version, "image": "production"}, KEY.sign)
    return data + bytes(SIZE - len(data)), esp, tuple(parts)


def files(directory: Path, version: str = "1") -> dict[str, Path]:
    """Both slots and the ESP as files, by the names of their partitions."""
    slot_bytes, esp, _parts = made(version)
    found = {name: directory / name for name in ("slot-a", "slot-b", "esp")}
    for name, path in found.items():
        path.write_bytes(esp if name == "esp" else slot_bytes)
    return found


@contextlib.contextmanager
def opened(paths: Mapping[str, Path], flags: Mapping[str, int] | None = None) -> Iterator[dict[str, int]]:
    """The descriptors as bay0 hands them over: the ESP to be written, the slots not."""
    usual = {"esp": os.O_RDWR, "slot-a": os.O_RDONLY, "slot-b": os.O_RDONLY}
    chosen = {**usual, **(flags or {})}
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
