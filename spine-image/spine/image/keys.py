"""The person's own keys, Ed25519 pairs made at the first build: one signs releases, the other personas.

Keeps the secret half of each in one file (0600, in a 0700 directory) under XDG data; the public halves go
into the root of every image. Never prints, sends or copies a secret half. A key file that others can read is
refused.
"""

import contextlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from spine import paths
from spine.errors import Exit, SpineError
from spine.image.slot import SlotError

FILE = "release.key"
PERSONA_FILE = "persona.key"
# What a person loses with a key that is not used any more.
_LOST = {
    FILE: "images made before will not accept its updates",
    PERSONA_FILE: "images made before will not accept its personas",
}


def release_key() -> Ed25519PrivateKey:
    """The release key, made when there is none."""
    return _kept(FILE)


def persona_key() -> Ed25519PrivateKey:
    """The key that personas are signed with, made when there is none."""
    return _kept(PERSONA_FILE)


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of the public half."""
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def check(public: bytes, signature: bytes, message: bytes) -> None:
    """Return when the signature is right; SlotError when it is not."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature as error:
        raise SlotError("the signature is not the release key's") from error


def _kept(name: str) -> Ed25519PrivateKey:
    file = paths.private(paths.data() / "keys") / name
    with contextlib.suppress(FileNotFoundError):
        return _load(file)
    _make(file)
    return _load(file)


def _load(file: Path) -> Ed25519PrivateKey:
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        seen = os.fstat(descriptor)
        # INV-IMAGE-5
        if seen.st_mode & 0o077 or seen.st_uid != os.geteuid():
            raise SpineError(
                f"the {file.stem} key {file} is not private",
                "others may read it, or it belongs to somebody else",
                f"chmod 600 '{file}'   # or, if it may have been read, delete it and build again",
                Exit.REFUSED,
            )
        text = opened.read()
    try:
        key = serialization.load_pem_private_key(text, None)
    except ValueError as error:
        raise _unusable(file) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable(file)
    return key


def _make(file: Path) -> None:
    text = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    part = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(descriptor)
        # A link, not a rename: of two first builds at once one makes the key and the other takes it.
        with contextlib.suppress(FileExistsError):
            os.link(part, file)
    finally:
        part.unlink()


def _unusable(file: Path) -> SpineError:
    return SpineError(
        f"the {file.stem} key {file} cannot be used",
        "it is no Ed25519 key",
        f"rm '{file}'   # the next build makes a new one; {_LOST[file.name]}",
        Exit.REFUSED,
    )
