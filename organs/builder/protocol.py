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

# The words of a command, and its environment, are the bulk: a byte of them is at most six in JSON. The rest
# is below one kilobyte; the list in a hello is bounded by the limit of devices.
DATAGRAM_BYTES_MAX: Final = 128 * 1024
# A room with a network is answered with seven. What comes besides is closed.
DESCRIPTORS_MAX: Final = 8
# Numbers, offsets and lengths are of 63 bits: what a file can have.
NUMBER_MAX: Final = 2**63 - 1
TEXT_CHARS_MAX: Final = 256
# A command line, or an environment: as many words, and as many bytes in all of them.
WORDS_MAX: Final = 128
WORDS_BYTES_MAX: Final = 8192


class Unreadable(ValueError):
    """Not a message of this protocol."""


class Refusal(Enum):
    """Why the builder does not do it."""

    INVALID = "invalid"  # the request breaks a rule
    STALE = "stale"  # it was for another incarnation: it did nothing
    LIMIT = "limit"  # as many devices, or errands under way, or commands, as there may be
    UNKNOWN = "unknown"  # there is no such device, or nothing lives in the room
    IMAGE = "image"  # the image cannot be made a room of; the reason says what it holds
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
class Room:
    """Make a room of the device, in the cgroup, which must be empty and was told to freeze.

    Beside it: a descriptor of the cgroup's directory, a descriptor of the device. Its ids are the `IDS` from
    `uid_base` on; it may write `writable_bytes`. Answered with RoomMade; `init` runs its first line when the
    cgroup is thawed.
    """

    id: int
    asker: int
    generation: int
    name: str
    hostname: str
    uid_base: int
    init: tuple[str, ...]
    writable_bytes: int
    network: bool
    console: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    """Run a command in the room that lives in the cgroup.

    Beside it: descriptors of the cgroup's directory, of the command's standard input, output and error, and
    of a pipe that is told how it ended: one line, `exit N` or `signal N`. With `terminal` the three are one
    terminal, which becomes the command's. `environment` is a list of NAME=VALUE. Answered with Started.
    """

    id: int
    asker: int
    generation: int
    name: str
    argv: tuple[str, ...]
    environment: tuple[str, ...]
    terminal: bool


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
class RoomMade:
    """The room, or its listener. `holds` names the descriptors beside this, in their order."""

    id: int
    asker: int
    generation: int
    name: str
    pid: int
    holds: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The command runs, or will when the room does. How it ends is written to its pipe."""

    id: int
    asker: int
    generation: int
    name: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """It was not done."""

    id: int
    asker: int
    generation: int
    why: Refusal
    reason: str


Request = Hello | Device | Release | Room | Exec
Answer = Welcome | Made | Released | RoomMade | Started | Refused
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
        case "room":
            message = Room(
                **head,
                name=_text(fields, "name"),
                hostname=_text(fields, "hostname"),
                uid_base=_number(fields, "uid_base"),
                init=_words(fields, "init"),
                writable_bytes=_number(fields, "writable_bytes"),
                network=_flag(fields, "network"),
                console=_flag(fields, "console"),
            )
        case "exec":
            message = Exec(
                **head,
                name=_text(fields, "name"),
                argv=_words(fields, "argv"),
                environment=_words(fields, "environment"),
                terminal=_flag(fields, "terminal"),
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
            message: Answer = Welcome(**head, devices=_words(fields, "devices"))
        case "made":
            message = Made(**head, name=_text(fields, "name"), verified=_flag(fields, "verified"))
        case "roommade":
            holds = _words(fields, "holds")
            message = RoomMade(**head, name=_text(fields, "name"), pid=_number(fields, "pid"), holds=holds)
        case "started":
            message = Started(**head, name=_text(fields, "name"), pid=_number(fields, "pid"))
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


def _flag(fields: dict[str, object], name: str) -> bool:
    value = fields.pop(name, None)
    if not isinstance(value, bool):
        raise Unreadable(f"{name} must be true or false")
    return value


def _words(fields: dict[str, object], name: str) -> tuple[str, ...]:
    value = fields.pop(name, None)
    if not isinstance(value, list) or len(value) > WORDS_MAX:
        raise Unreadable(f"{name} must be a list of at most {WORDS_MAX} texts")
    total = 0
    for word in value:
        if not isinstance(word, str):
            raise Unreadable(f"{name} must be a list of texts")
        try:
            total += len(word.encode())
        except UnicodeEncodeError:
            raise Unreadable(f"{name} holds half a character") from None
    if total > WORDS_BYTES_MAX:
        raise Unreadable(f"{name} must be at most {WORDS_BYTES_MAX} bytes")
    return tuple(value)


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
