"""The person's own keys, made at the first build: for releases, for personas, and for Secure Boot.

Keeps the secret half of each in one file (0600, in a 0700 directory) under XDG data. The Ed25519 keys sign
releases and personas; their public halves go into the root of every image. The three RSA keys are the ones a
firmware with Secure Boot knows; it knows them by certificates, which follow from the keys and are kept
nowhere. Never prints, sends or copies a secret half. A key file that others can read is refused.
See docs/keys.md.
"""

import contextlib
import datetime
import hashlib
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from spine import paths
from spine.errors import Exit, SpineError
from spine.image.slot import SlotError

FILE = "release.key"
PERSONA_FILE = "persona.key"


class Role(Enum):
    """The keys that a firmware with Secure Boot knows, by the names it knows them by."""

    PK = "PK"
    KEK = "KEK"
    DB = "db"

    @property
    def file(self) -> str:
        """The key's file."""
        return f"secure-boot-{self.value}.key"


# What a person loses with a key that is not used any more.
_LOST = {
    FILE: "images made before will not accept its updates",
    PERSONA_FILE: "images made before will not accept its personas",
    Role.PK.file: "a firmware that knows the old one takes changes of it from no one but you at its screen",
    Role.KEK.file: "a firmware that knows the old one takes a new db from you at its screen, or through PK",
    Role.DB.file: "a firmware that knows the old one starts no image that is built from now on",
}
# What each is for, in a line.
PURPOSE = {
    FILE: "signs slots and updates; its public half lies in the root of each image",
    PERSONA_FILE: "signs personas; its public half lies in the root of each image",
    Role.PK.file: "Secure Boot: owns a firmware; signs changes of KEK and of itself",
    Role.KEK.file: "Secure Boot: signs changes of db",
    Role.DB.file: "Secure Boot: signs the programs that a firmware starts",
}

# What every firmware takes; longer ones are not among it.
RSA_BITS = 2048
RSA_EXPONENT = 65537
# Firmware looks at no clock, and a certificate that ends ends a machine. The same days in each, so that a
# certificate follows from its key.
VALID_FROM = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
VALID_UNTIL = datetime.datetime(2049, 12, 31, tzinfo=datetime.UTC)
# A serial number has at most 20 bytes and no sign (RFC 5280).
_SERIAL_BYTES = 19

Secret = Ed25519PrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class BootKey:
    """A key of Secure Boot, and the certificate a firmware knows it by."""

    role: Role
    secret: rsa.RSAPrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        """The certificate's bytes."""
        return self.certificate.public_bytes(serialization.Encoding.DER)


def release_key() -> Ed25519PrivateKey:
    """The release key, made when there is none."""
    key = _kept(FILE)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def persona_key() -> Ed25519PrivateKey:
    """The key that personas are signed with, made when there is none."""
    key = _kept(PERSONA_FILE)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def boot_key(role: Role) -> BootKey:
    """A key of Secure Boot, made when there is none."""
    key = _kept(role.file)
    assert isinstance(key, rsa.RSAPrivateKey)
    return BootKey(role, key, certificate(role, key))


def certificate(role: Role, key: rsa.RSAPrivateKey) -> x509.Certificate:
    """The certificate of a key, signed by itself; the same key gives the same bytes."""
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashlib.sha256(public).digest()
    # The name holds a part of the number, so that old and new keys can be told apart at a firmware's screen.
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"Alpine-Spine {role.value} {digest[:4].hex()}")]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(digest[:_SERIAL_BYTES], "big") | 1)
        .not_valid_before(VALID_FROM)
        .not_valid_after(VALID_UNTIL)
        .sign(key, hashes.SHA256())
    )


def directory() -> Path:
    """Where the keys lie; not made here."""
    return paths.data() / "keys"


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of the public half."""
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def check(public: bytes, signature: bytes, message: bytes) -> None:
    """Return when the signature is right; SlotError when it is not."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature as error:
        raise SlotError("the signature is not the release key's") from error


def _kept(name: str) -> Secret:
    file = paths.private(directory()) / name
    with contextlib.suppress(FileNotFoundError):
        return _load(file)
    _make(file)
    return _load(file)


def _load(file: Path) -> Secret:
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
    if _wants_rsa(file.name):
        if not isinstance(key, rsa.RSAPrivateKey) or key.key_size != RSA_BITS:
            raise _unusable(file)
        return key
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable(file)
    return key


def _make(file: Path) -> None:
    rsa_ = _wants_rsa(file.name)
    fresh = rsa.generate_private_key(RSA_EXPONENT, RSA_BITS) if rsa_ else Ed25519PrivateKey.generate()
    text = fresh.private_bytes(
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


def _wants_rsa(name: str) -> bool:
    return name in {role.file for role in Role}


def _unusable(file: Path) -> SpineError:
    return SpineError(
        f"the {file.stem} key {file} cannot be used",
        f"it is no {f'RSA key of {RSA_BITS} bits' if _wants_rsa(file.name) else 'Ed25519 key'}",
        f"rm '{file}'   # the next build makes a new one; {_LOST[file.name]}",
        Exit.REFUSED,
    )
