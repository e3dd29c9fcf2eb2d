"""The variables of QEMU's firmware (OVMF): puts a person's Secure Boot keys into an empty store.

Pure: bytes in, bytes out. Writes the store's own format (edk2, MdeModulePkg, VariableFormat.h), and only into
one that is still empty: nothing that a firmware wrote is ever understood or changed. VariablesError for any
other bytes.
"""

import struct
import uuid
from collections.abc import Iterable

from spine.image.enrolment import Variable

# The volume that holds the store: its file system's id at 16, its length, the length of its own header.
_NV_DATA = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
_VOLUME = struct.Struct("<16x16sQ4sIHHHBB")
# The store: its format's id, its size; formatted, healthy.
_AUTHENTICATED = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792")
_STORE = struct.Struct("<16sIBBHI")
_FORMATTED, _HEALTHY = 0x5A, 0xFE
# A variable: start, state, attributes, count, time, key, sizes of name and data, vendor.
_HEADER = struct.Struct("<HBBIQ16sIII16s")
_START, _ADDED = 0x55AA, 0x3F
_ALIGN = 4
_ERASED = b"\xff"

# Attributes of what only the firmware itself sees.
_OWN = 0x3
# Secure Boot is on when a PK is there and this is 1; and the keys are changed by what is signed only.
SWITCHES = (
    Variable("SecureBootEnable", uuid.UUID("f0a30bc7-af08-4556-99c4-001009c93a44"), b"\1", _OWN),
    Variable("CustomMode", uuid.UUID("c076ec0c-7028-4399-a072-71ee5c448b9f"), b"\0", _OWN),
)


class VariablesError(ValueError):
    """The bytes are no empty store of OVMF's."""


def enrolled(empty: bytes, wanted: Iterable[Variable]) -> bytes:
    """An empty store with these variables in it."""
    try:
        _, length, signature, _, header, *_ = volume = _VOLUME.unpack_from(empty)
        kind, size, formatted, healthy, *_ = _STORE.unpack_from(empty, header)
    except struct.error as error:
        raise VariablesError("too short for a store of variables") from error
    if volume[0] != _NV_DATA.bytes_le or signature != b"_FVH" or length > len(empty):
        raise VariablesError("no volume of variables")
    if kind != _AUTHENTICATED.bytes_le or (formatted, healthy) != (_FORMATTED, _HEALTHY):
        raise VariablesError("no store that can hold signed variables")
    at, end = header + _STORE.size, header + size
    if end > length or empty[at:end].strip(_ERASED):
        raise VariablesError("the store is not empty")
    # INV-SECURE-3
    written = b"".join(_variable(one) for one in wanted)
    if at + len(written) > end:
        raise VariablesError("the store is too small")
    return empty[:at] + written + empty[at + len(written) :]


def _variable(wanted: Variable) -> bytes:
    name = wanted.name.encode("utf-16-le") + b"\0\0"
    head = _HEADER.pack(
        _START,
        _ADDED,
        0,
        wanted.attributes,
        0,
        bytes(16),
        0,
        len(name),
        len(wanted.data),
        wanted.vendor.bytes_le,
    )
    out = head + name + wanted.data
    return out + _ERASED * (-len(out) % _ALIGN)
