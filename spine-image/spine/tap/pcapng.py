"""Recordings of the tap as pcapng files, which Wireshark opens as well.

Pure but for the file it is given. One section: a header with a comment, one interface of link type USER0
with times in nanoseconds, one custom block with the compiled schemas (so that a recording explains itself for
ever), and one packet for each record. Reading checks every length first; anything else than such a file is a
`RecordingError`.
"""

import hashlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

from bus.envelope import PeerError
from bus.tap import RECORD_MAX, Record, pack_record, unpack_record

SECTION, INTERFACE, PACKET, CUSTOM = 0x0A0D0D0A, 1, 6, 0x40000BAD
BYTE_ORDER = 0x1A2B3C4D
LINKTYPE_USER0 = 147
# The number that is set aside for examples (RFC 5612): we have none of our own.
ENTERPRISE = 32473
COMMENT, TIME_RESOLUTION, END = 1, 9, 0
NANOSECONDS = 9
BLOCK_MAX = RECORD_MAX + 4096
SCHEMAS_MAX = 4 * 1024 * 1024
MAGIC = b"spine.schemas\0\0\0"


class RecordingError(ValueError):
    """The file is not a recording of ours, or is damaged; the text says where."""


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _block(kind: int, body: bytes) -> bytes:
    size = 12 + len(body)
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


class Writer:
    """A recording being made. `schemas` is the content of schemas.cgr."""

    def __init__(self, file: BinaryIO, schemas: bytes) -> None:
        self._file = file
        digest = hashlib.sha256(schemas).hexdigest()
        comment = _option(COMMENT, f"Alpine-Spine tap; schemas {digest}".encode()) + _option(END, b"")
        file.write(_block(SECTION, struct.pack("<IHHq", BYTE_ORDER, 1, 0, -1) + comment))
        options = _option(TIME_RESOLUTION, bytes([NANOSECONDS])) + _option(END, b"")
        file.write(_block(INTERFACE, struct.pack("<HHI", LINKTYPE_USER0, 0, 0) + options))
        custom = struct.pack("<I", ENTERPRISE) + MAGIC + struct.pack("<I", len(schemas)) + _padded(schemas)
        file.write(_block(CUSTOM, custom))

    def add(self, record: Record) -> None:
        """One more record."""
        data = pack_record(record)
        high, low = divmod(record.time_ns, 1 << 32)
        head = struct.pack("<IIIII", 0, high & 0xFFFFFFFF, low, len(data), len(data))
        self._file.write(_block(PACKET, head + _padded(data)))


def read_schemas(file: BinaryIO) -> bytes:
    """The compiled schemas of a recording; leaves the file at its first packet. RecordingError."""
    kind, body = _next(file) or (0, b"")
    if kind != SECTION or body[:4] != struct.pack("<I", BYTE_ORDER):
        raise RecordingError("not a pcapng file of this byte order")
    kind, body = _next(file) or (0, b"")
    if kind != INTERFACE or body[:2] != struct.pack("<H", LINKTYPE_USER0):
        raise RecordingError("the first interface is not the tap")
    kind, body = _next(file, SCHEMAS_MAX) or (0, b"")
    at = 4 + len(MAGIC)
    if kind != CUSTOM or body[4:at] != MAGIC or len(body) < at + 4:
        raise RecordingError("there are no schemas in it")
    (size,) = struct.unpack_from("<I", body, at)
    if size > len(body) - at - 4:
        raise RecordingError("the schemas are cut short")
    return body[at + 4 : at + 4 + size]


def read_records(file: BinaryIO) -> Iterator[Record]:
    """The records behind the schemas. Blocks of other kinds are passed over. RecordingError."""
    while (block := _next(file)) is not None:
        kind, body = block
        if kind != PACKET:
            continue
        if len(body) < 20:
            raise RecordingError("a packet without a head")
        captured = struct.unpack_from("<I", body, 12)[0]
        if captured > len(body) - 20:
            raise RecordingError("a packet that is cut short")
        try:
            yield unpack_record(body[20 : 20 + captured])
        except PeerError as error:
            raise RecordingError(f"a packet that is no record: {error}") from None


def _next(file: BinaryIO, limit: int = BLOCK_MAX) -> tuple[int, bytes] | None:
    """The next block's kind and body, None at the end of the file."""
    head = file.read(8)
    if not head:
        return None
    if len(head) < 8:
        raise RecordingError("a block that is cut short")
    kind, size = struct.unpack("<II", head)
    if size % 4 or not 12 <= size <= limit + 4096:
        raise RecordingError(f"a block of {size} bytes")
    rest = file.read(size - 8)
    if len(rest) != size - 8 or rest[-4:] != struct.pack("<I", size):
        raise RecordingError("a block that is cut short")
    return kind, rest[:-4]
