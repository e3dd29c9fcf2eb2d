"""What the freezer asks of the builder and what it answers: one datagram each, descriptors beside it.

Both sides read and write with this code. Each request names the incarnation of the builder that it is for and
the incarnation of the asker that it is from; the answer repeats both and the request's number. The line
outlives both ends, so what an earlier incarnation left in it is known by these and is void.
Pure but for JSON.
Never: carries a path, a mount option or a table of the device mapper.
Fails: Unreadable for a datagram that is not of this protocol.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Final

# A request is below one kilobyte; the list in a hello is bounded by the limit of devices.
DATAGRAM_BYTES_MAX: Final = 4096
# One descriptor is asked with or answered with. What comes besides is closed.
DESCRIPTORS_MAX: Final = 4
# Numbers, offsets and lengths are of 63 bits: what a file can have.
NUMBER_MAX: Final = 2**63 - 1
TEXT_CHARS_MAX: Final = 256


class Unreadable(ValueError):
    """Not a message of this protocol."""


class Refusal(Enum):
    """Why the builder does not do it."""

    INVALID = "invalid"  # the request breaks a rule
    STALE = "stale"  # it was for another incarnation: it did nothing
    LIMIT = "limit"  # as many devices as there may be
    UNKNOWN = "unknown"  # there is no such device
    MISSING = "missing"  # this kernel does not have it; the reason says what
    KERNEL = "kernel"  # the kernel refused; the reason says what


@dataclass(frozen=True, slots=True, kw_only=True)
class Verity:
    """A hash tree behind the data: hexadecimal root hash and salt, data blocks, and where the tree begins."""

    root_hash: str
    salt: str
    blocks: int
    hash_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Who are you? Answered with Welcome. `generation` is 0: it is what is asked for."""

    id: int
    asker: int
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Make a device of `length` bytes from `offset` of the descriptor beside it. Answered with Made."""

    id: int
    asker: int
    generation: int
    offset: int
    length: int
    verity: Verity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Let go of a device. It is gone when all other holders have let go. Answered with Released."""

    id: int
    asker: int
    generation: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The builder is there. Said unasked at its start, then with `id` and `asker` 0."""

    id: int
    asker: int
    generation: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The device, its descriptor beside this. `verified`: each block is compared when it is read."""

    id: int
    asker: int
    generation: int
    name: str
    verified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The builder does not hold the device any more."""

    id: int
    asker: int
    generation: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """It was not done."""

    id: int
    asker: int
    generation: int
    why: Refusal
    reason: str


Request = Hello | Device | Release
Answer = Welcome | Made | Released | Refused
Message = Request | Answer


def encode(message: Message) -> bytes:
    """The datagram."""
    fields = asdict(message)
    if isinstance(message, Refused):
        fields |= {"why": message.why.value, "reason": message.reason[:TEXT_CHARS_MAX]}
    datagram = json.dumps({"kind": type(message).__name__.lower(), **fields}, separators=(",", ":")).encode()
    assert len(datagram) <= DATAGRAM_BYTES_MAX
    return datagram


def decode_request(datagram: bytes) -> Request:
    """Read a request. Raises Unreadable."""
    kind, fields = _fields(datagram)
    head = {name: _number(fields, name) for name in ("id", "asker", "generation")}
    match kind:
        case "hello":
            message: Request = Hello(**head)
        case "release":
            message = Release(**head, name=_text(fields, "name"))
        case "device":
            message = Device(
                **head,
                offset=_number(fields, "offset"),
                length=_number(fields, "length"),
                verity=_verity(fields.pop("verity", _ABSENT)),
            )
        case _:
            raise Unreadable(f"{kind[:64]!r} is nothing one can ask")
    _end(fields)
    return message


def decode_answer(datagram: bytes) -> Answer:
    """Read an answer. Raises Unreadable."""
    kind, fields = _fields(datagram)
    head = {name: _number(fields, name) for name in ("id", "asker", "generation")}
    match kind:
        case "welcome":
            devices = fields.pop("devices", None)
            if not isinstance(devices, list) or not all(isinstance(name, str) for name in devices):
                raise Unreadable("devices must be a list of names")
            message: Answer = Welcome(**head, devices=tuple(devices))
        case "made":
            name, verified = _text(fields, "name"), fields.pop("verified", None)
            if not isinstance(verified, bool):
                raise Unreadable("verified must be true or false")
            message = Made(**head, name=name, verified=verified)
        case "released":
            message = Released(**head, name=_text(fields, "name"))
        case "refused":
            why = _text(fields, "why")
            if why not in {refusal.value for refusal in Refusal}:
                raise Unreadable("there is no such refusal")
            message = Refused(**head, why=Refusal(why), reason=_text(fields, "reason"))
        case _:
            raise Unreadable(f"{kind[:64]!r} is no answer")
    _end(fields)
    return message


_ABSENT: Final = object()


def _fields(datagram: bytes) -> tuple[str, dict[str, object]]:
    if len(datagram) > DATAGRAM_BYTES_MAX:
        raise Unreadable(f"over {DATAGRAM_BYTES_MAX} bytes")
    try:
        document: object = json.loads(datagram)
    except (ValueError, RecursionError):
        raise Unreadable("not JSON") from None
    if not isinstance(document, dict):
        raise Unreadable("not an object")
    fields: dict[str, object] = dict(document)
    return _text(fields, "kind"), fields


def _end(fields: Mapping[str, object]) -> None:
    if fields:
        raise Unreadable("a field that does not belong here")


def _number(fields: dict[str, object], name: str) -> int:
    value = fields.pop(name, None)
    if type(value) is not int or not 0 <= value <= NUMBER_MAX:
        raise Unreadable(f"{name} must be a number from 0 to 2**63-1")
    return value


def _text(fields: dict[str, object], name: str) -> str:
    value = fields.pop(name, None)
    if not isinstance(value, str) or len(value) > TEXT_CHARS_MAX:
        raise Unreadable(f"{name} must be a text of at most {TEXT_CHARS_MAX} characters")
    return value


def _verity(value: object) -> Verity | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Unreadable("verity must be an object or null")
    fields: dict[str, object] = dict(value)
    verity = Verity(
        root_hash=_text(fields, "root_hash"),
        salt=_text(fields, "salt"),
        blocks=_number(fields, "blocks"),
        hash_offset=_number(fields, "hash_offset"),
    )
    _end(fields)
    return verity
