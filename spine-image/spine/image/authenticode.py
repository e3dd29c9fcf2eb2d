"""Signs UEFI programs so that a firmware with Secure Boot starts them: Authenticode, without a time in it.

Pure: bytes and a key in, bytes out; the same program and key give the same bytes, which the tools that others
sign with do not promise. Signs only a program whose sections leave no gap, so that every reader of the format
hashes the same bytes: all of them but the checksum field and the place of the signature itself. `check` knows
our own form and no other: it makes the signature anew around the RSA number and compares, so it parses
nothing. What is no such program is refused with ValueError (`SignatureError` where the signature is wrong).
"""

import hashlib
import struct

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from spine.image import der, uki

# Offsets in the optional header of a 64-bit program (Microsoft, "PE Format").
_CHECKSUM = 64
_DIRECTORIES = 108
_CERTIFICATES = 144
# The certificate table is the fifth directory.
_NEEDED = 5
# The signature's own header: length, revision 2.0, PKCS #7; all of it at a multiple of 8 bytes.
_HEADER = struct.Struct("<IHH")
_KIND = (0x0200, 0x0002)
ALIGN = 8

_INDIRECT = "1.3.6.1.4.1.311.2.1.4"
_PE_IMAGE = "1.3.6.1.4.1.311.2.1.15"
# A field that the format wants and that nobody reads.
_OBSOLETE = "<<<Obsolete>>>".encode("utf-16-be")


class SignatureError(ValueError):
    """A program that is not signed with the key it should be, or not whole."""


def sign(program: bytes, key: RSAPrivateKey, certificate: x509.Certificate) -> bytes:
    """The program, padded to a multiple of 8 bytes, with its signature behind it.

    ValueError for what is no 64-bit PE program without gaps, or is signed already.
    """
    body = bytearray(program + bytes(-len(program) % ALIGN))
    entry, table = _signature_place(program)
    if table != (0, 0):
        raise ValueError("the program has a signature already")
    content = _content(_digest(bytes(body), entry))
    signature = der.sign(key, _attributes(content))
    table_bytes = _table(content, certificate, signature)
    struct.pack_into("<II", body, entry, len(body), len(table_bytes))
    return bytes(body) + table_bytes


def check(program: bytes, certificate: x509.Certificate) -> None:
    """Return when this program is signed, in our form, with the key of `certificate`. SignatureError."""
    try:
        entry, (at, size) = _signature_place(program)
    except ValueError as error:
        raise SignatureError(str(error)) from error
    if not size:
        raise SignatureError("the program is not signed")
    if at + size != len(program) or at % ALIGN:
        raise SignatureError("the signature is not the last thing in the program")
    public = certificate.public_key()
    assert isinstance(public, RSAPublicKey)
    content = _content(_digest(program[:at], entry))
    empty = _table(content, certificate, bytes(public.key_size // 8))
    # The RSA number is the last field, in front of the padding.
    end = _HEADER.size + len(der.wrapped(_signed(content, certificate, bytes(public.key_size // 8))))
    signature = program[at:][end - public.key_size // 8 : end]
    # INV-SECURE-2
    if len(empty) != size or program[at:] != _table(content, certificate, signature):
        raise SignatureError("the program is not the one that was signed, or another key signed it")
    try:
        public.verify(signature, _attributes(content), padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature as error:
        raise SignatureError("the signature is not the key's") from error


def unsigned(program: bytes) -> bytes:
    """A signed program without its signature, still padded; ValueError when it has none."""
    entry, (at, size) = _signature_place(program)
    if not size or at + size != len(program):
        raise ValueError("the program is not signed")
    body = bytearray(program[:at])
    struct.pack_into("<II", body, entry, 0, 0)
    return bytes(body)


def _signature_place(program: bytes) -> tuple[int, tuple[int, int]]:
    """Where the header names the signature, and what it names: offset and size, both 0 when there is none.

    ValueError for what is no 64-bit PE program whose headers, sections and signature follow each other.
    """
    head, size, headers, rows = uki.layout(program)
    try:
        [directories] = struct.unpack_from("<I", program, head + _DIRECTORIES)
        at, length = struct.unpack_from("<II", program, head + _CERTIFICATES)
    except struct.error as error:
        raise ValueError("not a PE program: it is too short") from error
    if directories < _NEEDED or size < _CERTIFICATES + 8:
        raise ValueError("the program has no room for a signature")
    end = headers
    for offset, raw in sorted(row for row in rows if row[1]):
        if offset != end:
            raise ValueError("the program has a gap between its sections, or two of them overlap")
        end = offset + raw
    limit = at if length else len(program)
    if end > limit:
        raise ValueError("a section ends outside the program")
    if bool(at) != bool(length) or at + length > len(program):
        raise ValueError("the program's signature lies outside of it")
    return head + _CERTIFICATES, (at, length)


def _digest(body: bytes, entry: int) -> bytes:
    """SHA-256 over all of an unsigned program but its checksum and the place where a signature is named."""
    checksum = entry - _CERTIFICATES + _CHECKSUM
    found = hashlib.sha256(body[:checksum])
    found.update(body[checksum + 4 : entry])
    found.update(body[entry + 8 :])
    return found.digest()


def _content(digest: bytes) -> bytes:
    """The inside of SpcIndirectDataContent: what it is that the digest is of, and the digest."""
    link = der.inside(0, der.inside(2, der.tagged(0x80, _OBSOLETE)))
    image = der.sequence(der.tagged(der.BITS, b"\0"), link)
    return der.sequence(der.oid(_PE_IMAGE), image) + der.sequence(
        der.sha256_name(), der.tagged(der.OCTETS, digest)
    )


def _attributes(content: bytes) -> bytes:
    return der.attributes(_INDIRECT, content)


def _signed(content: bytes, certificate: x509.Certificate, signature: bytes) -> bytes:
    info = der.sequence(der.oid(_INDIRECT), der.inside(0, der.sequence(content)))
    return der.signed_data(info, certificate, _attributes(content), signature)


def _table(content: bytes, certificate: x509.Certificate, signature: bytes) -> bytes:
    signed = der.wrapped(_signed(content, certificate, signature))
    signed += bytes(-(_HEADER.size + len(signed)) % ALIGN)
    return _HEADER.pack(_HEADER.size + len(signed), *_KIND) + signed
