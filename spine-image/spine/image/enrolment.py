"""What a firmware is told of the owner's Secure Boot keys: signature lists, and signed changes of variables.

Pure: certificates in, bytes out (UEFI specification, 8.2 and 32.4). The same keys give the same bytes: the
time that a change must carry is fixed.
"""

import struct
import uuid
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from spine.image import der
from spine.image.disk import name_id
from spine.image.keys import BootKey, Role

GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
SECURITY_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
# Kept over a reset, there for the firmware and for the system, changed only by what is signed, with a time.
ATTRIBUTES = 0x27
# Who put a certificate into the list.
OWNER = uuid.UUID(name_id("secure boot"))
# EFI_TIME: year, month, day, hour, minute, second, pad, nanosecond, zone, daylight, pad. A firmware takes
# a change only when it is younger than the last; ours is for a firmware that has no keys yet.
TIMESTAMP = struct.pack("<HBBBBBBIhBB", 2026, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)

_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_PKCS7 = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
_LIST = struct.Struct("<16sIII")
_CERTIFICATE = struct.Struct("<IHH16s")
_GUID_KIND = (0x0200, 0x0EF1)


@dataclass(frozen=True)
class Variable:
    """A variable of the firmware: its name, whose it is, its bytes."""

    name: str
    vendor: uuid.UUID
    data: bytes
    attributes: int = ATTRIBUTES


def variable(role: Role, certificate: x509.Certificate) -> Variable:
    """The variable in which a firmware keeps a key of this role."""
    vendor = SECURITY_DATABASE if role is Role.DB else GLOBAL
    return Variable(role.value, vendor, signature_list(certificate))


def signature_list(certificate: x509.Certificate) -> bytes:
    """A list (EFI_SIGNATURE_LIST) of one certificate."""
    data = OWNER.bytes_le + certificate.public_bytes(serialization.Encoding.DER)
    return _LIST.pack(_X509.bytes_le, _LIST.size + len(data), 0, len(data)) + data


def change(wanted: Variable, signer: BootKey) -> bytes:
    """A change of a variable, signed by who may change it (EFI_VARIABLE_AUTHENTICATION_2, then the data)."""
    about = struct.pack("<16sI", wanted.vendor.bytes_le, wanted.attributes)
    message = wanted.name.encode("utf-16-le") + about + TIMESTAMP + wanted.data
    signature = der.sign(signer.secret, message)
    signed = der.signed_data(der.sequence(der.oid(der.DATA)), signer.certificate, None, signature)
    head = _CERTIFICATE.pack(_CERTIFICATE.size + len(signed), *_GUID_KIND, _PKCS7.bytes_le)
    return TIMESTAMP + head + signed + wanted.data


def exported(keys: dict[Role, BootKey]) -> dict[str, bytes]:
    """Every file that a firmware's setup or a program may want, by name.

    PK signs itself and KEK, KEK signs db.
    """
    files: dict[str, bytes] = {}
    for role, key in keys.items():
        signer = keys[Role.KEK if role is Role.DB else Role.PK]
        wanted = variable(role, key.certificate)
        files |= {
            f"{role.value}.cer": key.der,
            f"{role.value}.esl": wanted.data,
            f"{role.value}.auth": change(wanted, signer),
        }
    return files
