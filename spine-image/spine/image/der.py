"""Writes DER, the few forms of it that signatures for UEFI need.

Pure: values in, bytes out; the same values give the same bytes. Never reads DER: what a stranger wrote is
compared with what we would have written (`authenticode.check`), so there is no parser to attack.
"""

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

SEQUENCE, SET, INTEGER, OCTETS, BITS, NULL, OID = 0x30, 0x31, 0x02, 0x04, 0x03, 0x05, 0x06

DATA = "1.2.840.113549.1.7.1"
_SIGNED_DATA = "1.2.840.113549.1.7.2"
_CONTENT_TYPE = "1.2.840.113549.1.9.3"
_MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
_SHA256 = "2.16.840.1.101.3.4.2.1"
_RSA = "1.2.840.113549.1.1.1"


def tagged(tag: int, *parts: bytes) -> bytes:
    """One value: its tag, its length, its content."""
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def sequence(*parts: bytes) -> bytes:
    """A SEQUENCE."""
    return tagged(SEQUENCE, *parts)


def set_of(*parts: bytes) -> bytes:
    """A SET OF: DER wants its members sorted by their bytes."""
    return tagged(SET, *sorted(parts))


def inside(number: int, *parts: bytes) -> bytes:
    """What stands in a context tag `[number]`, constructed."""
    return tagged(0xA0 | number, *parts)


def integer(value: int) -> bytes:
    """A number that is not negative."""
    return tagged(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    """An object identifier."""
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray()
    for number in (40 * first + second, *rest):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(0x80 | number & 0x7F)
        out += bytes(reversed(groups))
    return tagged(OID, bytes(out))


def sha256_name() -> bytes:
    """How an AlgorithmIdentifier says SHA-256."""
    return sequence(oid(_SHA256), tagged(NULL))


def attributes(content_type: str, content: bytes) -> bytes:
    """What is signed in the place of a content (as a SET): its type and its digest, and no time."""
    return set_of(
        sequence(oid(_CONTENT_TYPE), set_of(oid(content_type))),
        sequence(oid(_MESSAGE_DIGEST), set_of(tagged(OCTETS, hashlib.sha256(content).digest()))),
    )


def signed_data(
    content: bytes, certificate: x509.Certificate, attributes_: bytes | None, signature: bytes
) -> bytes:
    """A PKCS #7 SignedData of one signer: `content` is its ContentInfo, `attributes_` is as made above."""
    about = certificate.public_bytes(serialization.Encoding.DER)
    signer = sequence(
        integer(1),
        sequence(certificate.issuer.public_bytes(), integer(certificate.serial_number)),
        sha256_name(),
        # The same set, in a context tag of its own.
        b"" if attributes_ is None else bytes((0xA0,)) + attributes_[1:],
        sequence(oid(_RSA), tagged(NULL)),
        tagged(OCTETS, signature),
    )
    return sequence(integer(1), set_of(sha256_name()), content, inside(0, about), set_of(signer))


def wrapped(signed: bytes) -> bytes:
    """A SignedData as a ContentInfo."""
    return sequence(oid(_SIGNED_DATA), inside(0, signed))


def sign(key: RSAPrivateKey, message: bytes) -> bytes:
    """RSA with PKCS #1 v1.5 and SHA-256: no random number goes in, so the same bytes come out."""
    return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
