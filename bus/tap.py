"""The tap: each organ shows the messages it sends and receives to whoever may listen, and to nobody else.

Decides what a record holds; the socket it leaves by is `bus.sockets.Publisher`. A record is a whole message
as one end saw it, so a call is seen four times: call and answer, at both ends. Fields marked `$secret` are
emptied before the record leaves the organ. Records are numbered: a listener that is too slow loses some, and
counts them by the gaps.

It costs one comparison for each message while nobody listens. It never delays a message, never keeps one, and
shows nothing of itself: its records do not travel as messages.
"""

import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, unique
from typing import Final, Protocol

from bus.envelope import (
    BESIDE_BYTES,
    HEADER_BYTES,
    Envelope,
    Kind,
    PeerError,
    Phase,
    pack,
    split_beside,
    unpack,
)
from bus.wire import Field, Method, Schemas, Type

_HEADER: Final = struct.Struct("<QqBBBB")
NAME_MAX: Final = 64
"""Bytes of an organ's name in a record."""
BODY_MAX: Final = 256 * 1024
"""Bytes of a body that a record carries, secrets left out; a longer one is not shown."""
RECORD_MAX: Final = _HEADER.size + 2 * NAME_MAX + HEADER_BYTES + BODY_MAX


@unique
class Side(IntEnum):
    """What the recording organ did with the message. The numbers are on the wire and never change."""

    SENT = 1
    RECEIVED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One message as one end saw it. `time_ns` is CLOCK_MONOTONIC.

    `whole`: the body is as it was but for its secrets. One that does not fit its schema, or is too long, is
    left out, and `whole` is false.
    """

    organ: str
    seq: int
    time_ns: int
    side: Side
    peer: str
    envelope: Envelope
    whole: bool = True


def pack_record(record: Record) -> bytes:
    """The bytes of a record. ValueError when a name is too long."""
    organ, peer = record.organ.encode(), record.peer.encode()
    if max(len(organ), len(peer)) > NAME_MAX:
        raise ValueError(f"a name in a record has at most {NAME_MAX} bytes")
    header = _HEADER.pack(record.seq, record.time_ns, record.side, record.whole, len(organ), len(peer))
    return header + organ + peer + pack(record.envelope)


def unpack_record(data: bytes) -> Record:
    """A record's fields; PeerError for anything else."""
    if not _HEADER.size <= len(data) <= RECORD_MAX:
        raise PeerError(f"a record of {len(data)} bytes")
    seq, time_ns, side, whole, organ_bytes, peer_bytes = _HEADER.unpack_from(data)
    names = data[_HEADER.size : _HEADER.size + organ_bytes + peer_bytes]
    if side not in (1, 2) or whole > 1 or len(names) != organ_bytes + peer_bytes:
        raise PeerError("a record with a broken header")
    try:
        organ, peer = names[:organ_bytes].decode(), names[organ_bytes:].decode()
    except UnicodeDecodeError:
        raise PeerError("a record with a name that is not UTF-8") from None
    if max(organ_bytes, peer_bytes) > NAME_MAX:
        raise PeerError("a record with a name that is too long")
    envelope = unpack(data[_HEADER.size + len(names) :])
    return Record(
        organ=organ,
        seq=seq,
        time_ns=time_ns,
        side=Side(side),
        peer=peer,
        envelope=envelope,
        whole=whole == 1,
    )


def redact(schemas: Schemas, envelope: Envelope) -> tuple[Envelope, bool]:
    """The message with its secrets emptied, and whether its body could be read at all."""
    if envelope.kind is Kind.EVENT:
        if envelope.attempt in (Phase.END, Phase.ASK) and not envelope.body:
            return envelope, True
        method = schemas.event(envelope.interface, envelope.ordinal)
    elif envelope.kind in (Kind.CALL, Kind.REPLY):
        method = schemas.method(envelope.interface, envelope.ordinal)
    else:
        return envelope, True
    if method is None:
        return replace(envelope, body=b""), False
    fields = method.results if envelope.kind is Kind.REPLY else method.params
    if not any(_has_secret(field) for field in fields):
        return envelope, True
    try:
        beside, body = b"", envelope.body
        if method.beside:
            # The token is worth nothing without the connection; the number of descriptors may be seen.
            beside = body[:BESIDE_BYTES]
            _, _, body = split_beside(body)
        body = beside + _emptied(method, envelope.kind, body, fields)
    except PeerError:
        return replace(envelope, body=b""), False
    return replace(envelope, body=body), True


def _emptied(method: Method, kind: Kind, body: bytes, fields: tuple[Field, ...]) -> bytes:
    if kind is Kind.REPLY:
        return method.encode_results(_without_secrets(fields, method.decode_results(body)))
    return method.encode_params(_without_secrets(fields, method.decode_params(body)))


def _has_secret(field: Field) -> bool:
    inner = field.type.element.fields if field.type.element else field.type.fields
    return field.secret or any(_has_secret(below) for below in inner)


def _without_secrets(fields: tuple[Field, ...], values: Mapping[str, object]) -> dict[str, object]:
    """The values but those of secret fields, which become what an unset field is."""
    kept: dict[str, object] = {}
    for field in fields:
        if field.secret:
            kept[field.name] = _empty(field.type)
            continue
        value = values[field.name]
        if isinstance(value, Mapping):
            value = _without_secrets(field.type.fields, value)
        elif isinstance(value, list) and field.type.element is not None:
            below = field.type.element.fields
            value = [_without_secrets(below, v) if isinstance(v, Mapping) else v for v in value]
        kept[field.name] = value
    return kept


def _empty(type_: Type) -> object:
    """The value of an unset field, which stands for a secret in a record."""
    match type_.kind:
        case "data":
            return b""
        case "text":
            return ""
        case "list":
            return []
        case "void":
            return None
        case "bool":
            return False
        case "enum":
            return type_.names[0]
        case "struct":
            return {field.name: _empty(field.type) for field in type_.fields}
        case "float32" | "float64":
            return 0.0
    return 0


class Outlet(Protocol):
    """Where records go: `bus.sockets.Publisher`."""

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""

    def publish(self, record: bytes) -> None:
        """Give it to all who listen; those who are too slow lose it."""


class Tap:
    """The recording end within one organ."""

    __slots__ = ("_organ", "_outlet", "_schemas", "_seq")

    def __init__(self, organ: str, schemas: Schemas, outlet: Outlet) -> None:
        self._organ = organ
        self._schemas = schemas
        self._outlet = outlet
        self._seq = 0

    def show(self, side: Side, peer: str, envelope: Envelope) -> None:
        """Record a message, if anybody wants to see it."""
        if not self._outlet.wanted:
            return
        redacted, whole = redact(self._schemas, envelope)  # INV-TAP-1
        if len(redacted.body) > BODY_MAX:
            redacted, whole = replace(redacted, body=b""), False
        self._seq += 1
        self._outlet.publish(
            pack_record(
                Record(
                    organ=self._organ,
                    seq=self._seq,
                    time_ns=time.monotonic_ns(),
                    side=side,
                    peer=peer,
                    envelope=redacted,
                    whole=whole,
                )
            )
        )


class Gaps:
    """Counts the records that a listener did not get, by the holes in their numbers."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        self.lost = 0

    def see(self, record: Record) -> int:
        """How many records of that organ are missing just before this one."""
        expected = self._next.get(record.organ, record.seq)
        # A lower number is an organ's next incarnation, which counts anew; what it lost before is not known.
        missing = max(0, record.seq - expected)  # INV-TAP-2
        self._next[record.organ] = record.seq + 1
        self.lost += missing
        return missing
