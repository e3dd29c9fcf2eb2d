"""Personas for tests: a manifest, and whole images of a few blocks with their hash tree and signature."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from organs import persona
from organs.persona import BLOCK, HEAD, MAGIC, MANIFEST_BYTES, SIGNED, Persona

KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC: Final = KEY.public_key().public_bytes_raw()

DOCUMENT: Final[dict[str, object]] = {
    "format": 1,
    "name": "linda",
    "version": 3,
    "summary": "somebody",
    "image": [0, 200 * 4096, "1" * 64],
    "tree": [200 * 4096, 3 * 4096, "2" * 64],
    "verity": {"rootHash": "3" * 64, "salt": "ab" * 32, "blocks": 200},
    "init": ["/sbin/init", "now"],
    "console": True,
    "limits": {"memoryBytes": 64 << 20, "pids": 64, "writableBytes": 16 << 20},
    "network": {"use": True, "inbound": [80, 443]},
    "devices": ["display"],
    "grants": ["focus"],
    "autostart": False,
    "onFocusLoss": "freeze",
}


def described(found: Persona) -> dict[str, object]:
    """A persona as the document it was read from."""

    def part(row: persona.Part) -> list[object]:
        return [row.offset, row.length, row.sha256]

    return {
        "format": 1,
        "name": found.name,
        "version": found.version,
        "summary": found.summary,
        "image": part(found.image),
        "tree": part(found.tree),
        "verity": {
            "rootHash": found.verity.root_hash,
            "salt": found.verity.salt,
            "blocks": found.verity.blocks,
        },
        "init": list(found.init),
        "console": found.console,
        "limits": {
            "memoryBytes": found.limits.memory_bytes,
            "pids": found.limits.pids,
            "writableBytes": found.limits.writable_bytes,
        },
        "network": {"use": found.network.use, "inbound": list(found.network.inbound)},
        "devices": sorted(found.devices),
        "grants": sorted(found.grants),
        "autostart": found.autostart,
        "onFocusLoss": found.on_focus_loss.value,
    }


def block(document: Mapping[str, object], key: Ed25519PrivateKey = KEY) -> bytes:
    """The manifest block of a document, signed."""
    text = persona.canonical(document)
    public = key.public_key().public_bytes_raw()
    signature = key.sign(SIGNED.pack(MAGIC, len(text), public) + text)
    return (HEAD.pack(MAGIC, len(text), public, signature) + text).ljust(MANIFEST_BYTES, b"\0")


def image(
    name: str = "linda",
    version: int = 1,
    *,
    data: bytes = bytes(range(256)) * 48,
    key: Ed25519PrivateKey = KEY,
    salt: bytes = b"salt",
    **other: object,
) -> bytes:
    """A whole image whose SquashFS is `data`, of whole blocks; `other` replaces keys of the manifest."""
    levels = []
    level = data
    while len(level) > BLOCK:
        hashes = (sha256(salt + level[at : at + BLOCK]).digest() for at in range(0, len(level), BLOCK))
        level = b"".join(hashes)
        level = level.ljust(-(-len(level) // BLOCK) * BLOCK, b"\0")
        levels.append(level)
    tree = b"".join(reversed(levels))
    document: dict[str, object] = {
        **DOCUMENT,
        "name": name,
        "version": version,
        "image": [0, len(data), sha256(data).hexdigest()],
        "tree": [len(data), len(tree), sha256(tree).hexdigest()],
        "verity": {
            "rootHash": sha256(salt + level).hexdigest(),
            "salt": salt.hex(),
            "blocks": len(data) // BLOCK,
        },
        **other,
    }
    return data + tree + block(document, key)
