"""The image of a persona as the host makes and checks it: `organs/persona.py` says how it is laid out.

    SquashFS | hash tree | manifest block

Pure: bytes in, bytes out; the key stays behind a function. `check` believes nothing: it verifies the
signature, both hashes, and makes the whole hash tree again.
"""

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from hashlib import sha256

from organs import persona
from organs.persona import Persona, PersonaRefused, Refusal
from spine.image import verity
from spine.persona.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Body:
    """All of an image but its manifest."""

    image: bytes = field(repr=False)
    tree: bytes = field(repr=False)
    root_hash: str
    salt: str
    blocks: int


def body(name: str, squashed: bytes) -> Body:
    """The image of these files, and the hash tree that seals them."""
    image = verity.padded(squashed)
    # No secret, and fixed, so that the same files give the same bytes; of its own for each persona.
    salt = sha256(b"alpine-spine persona " + name.encode()).digest()
    made = verity.tree(image, salt)
    return Body(image, made.data, made.root_hash, salt.hex(), made.blocks)


def manifest(recipe: Recipe, made: Body) -> bytes:
    """The text that is signed."""
    return persona.canonical(
        {
            "format": persona.FORMAT,
            "name": recipe.name,
            "version": recipe.version,
            "summary": recipe.summary,
            "image": [0, len(made.image), sha256(made.image).hexdigest()],
            "tree": [len(made.image), len(made.tree), sha256(made.tree).hexdigest()],
            "verity": {"rootHash": made.root_hash, "salt": made.salt, "blocks": made.blocks},
            "init": list(recipe.init),
            "console": recipe.console,
            "limits": {
                "memoryBytes": recipe.limits.memory_bytes,
                "pids": recipe.limits.pids,
                "writableBytes": recipe.limits.writable_bytes,
            },
            "network": {"use": recipe.network.use, "inbound": list(recipe.network.inbound)},
            "devices": sorted(recipe.devices),
            "grants": sorted(recipe.grants),
            "autostart": recipe.autostart,
            "onFocusLoss": recipe.on_focus_loss.value,
        }
    )


def seal(text: bytes, public: bytes, sign: Callable[[bytes], bytes]) -> bytes:
    """The manifest block of a text. PersonaRefused when the text is not one that the spine would take."""
    if len(text) > persona.TEXT_BYTES_MAX:
        raise PersonaRefused("manifest", f"its text must have 1 to {persona.TEXT_BYTES_MAX} bytes")
    persona.decode(text)
    signature = sign(persona.SIGNED.pack(persona.MAGIC, len(text), public) + text)
    block = persona.HEAD.pack(persona.MAGIC, len(text), public, signature) + text
    return block + bytes(persona.MANIFEST_BYTES - len(block))


def described(image: bytes) -> tuple[Persona, bytes]:
    """What an image says of itself and the key that it names, with nothing verified. PersonaRefused."""
    key, _, _, text = persona.split(image[-persona.MANIFEST_BYTES :])
    return persona.decode(text), key


def check(image: bytes, trusted: Collection[bytes]) -> Persona:
    """The persona of an image in which every byte is as one of the `trusted` keys signed. PersonaRefused."""
    found = persona.verified(image[-persona.MANIFEST_BYTES :], trusted)  # INV-PERSONA-22
    if len(image) != found.length:
        kind = Refusal.TRUNCATED if len(image) < found.length else Refusal.ALTERED
        raise PersonaRefused("image", f"has {len(image)} bytes, not {found.length}", kind)
    for name, part in (("image", found.image), ("tree", found.tree)):
        if sha256(image[part.offset : part.offset + part.length]).hexdigest() != part.sha256:
            raise PersonaRefused(name, "is not what was signed", Refusal.ALTERED)
    data = image[: found.image.length]
    made = verity.tree(data, bytes.fromhex(found.verity.salt))
    start = found.tree.offset
    if made.root_hash != found.verity.root_hash or made.data != image[start : start + found.tree.length]:
        raise PersonaRefused("tree", "is not that of the image", Refusal.ALTERED)
    if data[:4] != b"hsqs" or struct.unpack_from("<Q", data.ljust(48, b"\0"), 40)[0] > len(data):
        raise PersonaRefused("image", "is no SquashFS", Refusal.MALFORMED)
    return found
