"""The envelope: the few bytes in front of every message on the bus, and how a long message is cut and joined.

Pure: bytes in, values out. It never looks at a clock, a socket or a schema. Whatever a peer sends, the only
exception that leaves `unpack`, `unpack_failure` and `Reassembler.add` is `PeerError`; what we ourselves get
wrong is a `ValueError` from `pack`.

One frame on the wire is a header of 40 bytes, little-endian, and a body. The header is a multiple of eight,
so that a Cap'n Proto body behind it stays aligned:

    offset  size  field
         0     4  magic `SPNE`
         4     1  version, 1
         5     1  kind
         6     1  1 when more frames of this message follow, else 0
         7     1  part: the number of this frame within its message, from 0
         8     8  id, chosen by the caller; an answer repeats it
        16     4  generation of the callee
        20     2  ordinal of the method within its interface
        22     2  attempt, 0 for the first
        24     8  deadline, nanoseconds of CLOCK_MONOTONIC, signed
        32     8  interface id

Where the schema says that descriptors go beside a method, the body of its calls and replies begins with 16
bytes more, which say under which token they went and how many they are (`bus/descriptors.py`).
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum, unique
from typing import Final

MAGIC: Final = b"SPNE"
VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sBBBBQIHHqQ")
HEADER_BYTES: Final = _HEADER.size
FRAME_MAX: Final = 64 * 1024
"""Bytes of one frame, header included. A queue of frames then has a size that can be reasoned about."""
CHUNK_MAX: Final = FRAME_MAX - HEADER_BYTES
"""Bytes of body that fit in one frame."""
MESSAGE_MAX: Final = 1024 * 1024 + 64 * 1024
"""Bytes of body of one whole message: a value of 1 MiB and room for what goes with it."""
PARTS_MAX: Final = -(-MESSAGE_MAX // CHUNK_MAX)
FAILURE_TEXT_MAX: Final = 512
"""Bytes of UTF-8 in a failure: a sentence for a person, not a report."""

DESCRIPTORS_MAX: Final = 8
"""Descriptors beside one message: connecting a room to the network takes five of them."""

SNAPSHOT_MAX: Final = 256
"""Events that describe the state of one callee. It has a few rooms, links, or the like."""

_FAILURE: Final = struct.Struct("<H")
_BESIDE: Final = struct.Struct("<QQ")
BESIDE_BYTES: Final = _BESIDE.size

assert HEADER_BYTES == 40
assert HEADER_BYTES % 8 == 0
assert BESIDE_BYTES % 8 == 0
assert PARTS_MAX <= 255  # `part` is one byte


class PeerError(Exception):
    """The peer sent something that is not a message. Carries a reason and none of the peer's bytes."""


@unique
class Kind(IntEnum):
    """What a frame is. The numbers are on the wire and never change."""

    CALL = 1
    REPLY = 2
    FAILURE = 3
    EVENT = 4
    """News from callee to caller, one way, once the caller has asked to hear. Its `attempt` is a `Phase`."""
    HELLO = 5
    """First word of a caller on a connection; the answer has the same id and carries the generation."""


@unique
class Phase(IntEnum):
    """Which of them an EVENT is, in the place of the attempt. The numbers are on the wire."""

    NEWS = 0
    PART = 1
    """One of the events that describe the present state."""
    END = 2
    """They were all: what follows is news."""
    ASK = 3
    """From the caller: the present state, please, and from then on the news. They have the same id."""


@unique
class Code(IntEnum):
    """Why a call failed. The numbers are on the wire and never change; new ones go at the end."""

    BAD_MESSAGE = 1
    """The message could not be read."""
    UNKNOWN_METHOD = 2
    FORBIDDEN = 3
    """This caller may not call this method."""
    DEADLINE = 4
    """Time was up. Whether it was executed is not known, unless the callee said so before it began."""
    STALE = 5
    """Addressed to an earlier incarnation of the callee; certainly not executed."""
    TOO_LARGE = 6
    BUSY = 7
    """Too many calls are under way; certainly not executed."""
    PEER_DIED = 8
    """The callee ended while the call was under way; whether it was executed is not known."""
    INTERNAL = 9
    INVALID = 10
    """An argument is outside of what the method accepts."""
    NOT_FOUND = 11
    REFUSED = 12
    QUOTA = 13
    FULL = 14
    THROTTLED = 15
    CORRUPT = 16
    UNKNOWN = 17
    """The thing named (a persona, say) is not known here."""
    FROZEN = 18


class Failure(Exception):
    """A call that failed, as the caller sees it and as a handler raises it.

    `message` is for a person; it is cut to `FAILURE_TEXT_MAX` bytes of UTF-8, and lone surrogates become `?`.
    """

    def __init__(self, code: Code, message: str = "") -> None:
        self.code: Final = code
        self.message: Final = _cut(message)
        super().__init__(f"{code.name}: {self.message}" if self.message else code.name)


@dataclass(slots=True, kw_only=True)
class Envelope:
    """One frame, or one whole message when `more` is false and `part` is 0.

    Nobody changes one. It is not frozen, for that would make it four times as dear, and a call makes four.
    """

    kind: Kind
    id: int
    generation: int = 0
    deadline_ns: int = 0
    interface: int = 0
    ordinal: int = 0
    attempt: int = 0
    more: bool = False
    part: int = 0
    body: bytes = b""


def pack(envelope: Envelope) -> bytes:
    """The bytes of one frame. A field outside its width, or a body over `MESSAGE_MAX`, is a ValueError."""
    if len(envelope.body) > MESSAGE_MAX:
        raise ValueError(f"body of {len(envelope.body)} bytes is over {MESSAGE_MAX}")
    return _header(envelope, envelope.more, envelope.part) + envelope.body


def _header(envelope: Envelope, more: bool, part: int) -> bytes:
    try:
        return _HEADER.pack(
            MAGIC,
            VERSION,
            envelope.kind,
            more,
            part,
            envelope.id,
            envelope.generation,
            envelope.ordinal,
            envelope.attempt,
            envelope.deadline_ns,
            envelope.interface,
        )
    except struct.error as error:
        raise ValueError(f"envelope: {error}") from None


def unpack(frame: bytes) -> Envelope:
    """The frame's fields. Every deviation from the layout is a PeerError."""
    if len(frame) < HEADER_BYTES:
        raise PeerError(f"frame of {len(frame)} bytes is shorter than a header")
    if len(frame) > HEADER_BYTES + MESSAGE_MAX:
        raise PeerError(f"frame of {len(frame)} bytes is longer than any message")
    (magic, version, kind, more, part, id_, generation, ordinal, attempt, deadline_ns, interface) = (
        _HEADER.unpack_from(frame)
    )
    if magic != MAGIC or version != VERSION:
        raise PeerError("frame does not begin with this version of the envelope")
    known = _KINDS.get(kind)
    if known is None:
        raise PeerError(f"kind {kind} is not known")
    if more > 1:
        raise PeerError(f"the `more` byte is {more}")
    return Envelope(
        kind=known,
        id=id_,
        generation=generation,
        deadline_ns=deadline_ns,
        interface=interface,
        ordinal=ordinal,
        attempt=attempt,
        more=more == 1,
        part=part,
        body=frame[HEADER_BYTES:],
    )


_KINDS: Final = {int(kind): kind for kind in Kind}
_CODES: Final = {int(code): code for code in Code}


def frames(message: Envelope) -> Iterable[bytes]:
    """The packed frames of a whole message, each at most `FRAME_MAX` bytes.

    They must reach the peer in this order with no other frame of the same connection between them.
    """
    return (pack(message),) if len(message.body) <= CHUNK_MAX else _cut_up(message)


def _cut_up(message: Envelope) -> Iterator[bytes]:
    body = message.body
    if len(body) > MESSAGE_MAX:
        raise ValueError(f"body of {len(body)} bytes is over {MESSAGE_MAX}")
    last = (len(body) - 1) // CHUNK_MAX
    whole = memoryview(body)  # Each byte is copied once.
    for part in range(last + 1):
        yield _header(message, part < last, part) + whole[part * CHUNK_MAX : (part + 1) * CHUNK_MAX]


class Reassembler:
    """Joins the frames of one connection into messages; at most one message is unfinished at a time.

    A refused message is refused once: the frames that still belong to it are swallowed, so that its tail is
    never taken for a message of its own.
    """

    __slots__ = ("_bytes", "_chunks", "_first", "_skipping")

    def __init__(self) -> None:
        self._first: Envelope | None = None
        self._chunks: list[bytes] = []
        self._bytes = 0
        self._skipping: int | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of the unfinished message, never more than `MESSAGE_MAX`."""
        return self._bytes

    def add(self, frame: Envelope) -> Envelope | None:
        """The whole message when this frame completes one, else None; PeerError when it belongs to none."""
        if frame.part == 0:
            # A peer that begins a message inside another has lost its place: both are refused, since neither
            # can be told from a mixture of the two.
            self._skipping = None
            if self._first is not None:
                self._refuse(frame)
                raise PeerError("a message began before the one before it had ended")
            if not frame.more:
                return frame
            self._begin(frame)
            return None
        if self._skipping == frame.id:
            if not frame.more:
                self._skipping = None
            return None
        first = self._first
        if first is None or not _continues(first, frame, len(self._chunks)):
            self._refuse(frame)
            raise PeerError(f"part {frame.part} continues no message")
        self._bytes += len(frame.body)
        if self._bytes > MESSAGE_MAX:
            self._refuse(frame)
            raise PeerError(f"message is over {MESSAGE_MAX} bytes")
        self._chunks.append(frame.body)
        if frame.more:
            return None
        whole = replace(first, more=False, body=b"".join(self._chunks))
        self._forget()
        return whole

    def reset(self) -> None:
        """Forgets the unfinished message: the connection begins anew."""
        self._forget()
        self._skipping = None

    def _begin(self, frame: Envelope) -> None:
        if not frame.body:
            self._refuse(frame)
            raise PeerError("an empty frame says that more follow")
        if len(frame.body) > CHUNK_MAX:
            self._refuse(frame)
            raise PeerError(f"frame is over {FRAME_MAX} bytes")
        self._first = frame
        self._chunks = [frame.body]
        self._bytes = len(frame.body)

    def _refuse(self, frame: Envelope) -> None:
        self._forget()
        self._skipping = frame.id if frame.more else None

    def _forget(self) -> None:
        self._first = None
        self._chunks = []
        self._bytes = 0


def _continues(first: Envelope, frame: Envelope, part: int) -> bool:
    """Whether the frame is the next one of the message that `first` began."""
    return (
        frame.part == part
        and 0 < len(frame.body) <= CHUNK_MAX
        and frame.kind is first.kind
        and frame.id == first.id
        and frame.generation == first.generation
        and frame.deadline_ns == first.deadline_ns
        and frame.interface == first.interface
        and frame.ordinal == first.ordinal
        and frame.attempt == first.attempt
    )


def pack_beside(token: int, count: int) -> bytes:
    """What the body of a message begins with when descriptors go beside it. ValueError for a wrong number."""
    if not 0 <= count <= DESCRIPTORS_MAX:
        raise ValueError(f"{count} descriptors beside a message")
    try:
        return _BESIDE.pack(token, count)
    except struct.error as error:
        raise ValueError(f"token: {error}") from None


def split_beside(body: bytes) -> tuple[int, int, bytes]:
    """Token, number of descriptors and the rest of such a body; PeerError when it does not begin like one."""
    if len(body) < BESIDE_BYTES:
        raise PeerError(f"a body of {len(body)} bytes says nothing of descriptors")
    token, count = _BESIDE.unpack_from(body)
    if count > DESCRIPTORS_MAX:
        raise PeerError(f"{count} descriptors beside a message")
    return token, count, body[BESIDE_BYTES:]


def pack_failure(failure: Failure) -> bytes:
    """The body of a FAILURE frame."""
    return _FAILURE.pack(failure.code) + failure.message.encode()


def unpack_failure(body: bytes) -> Failure:
    """The failure a body carries; PeerError when it carries none."""
    if not _FAILURE.size <= len(body) <= _FAILURE.size + FAILURE_TEXT_MAX:
        raise PeerError(f"failure of {len(body)} bytes")
    code = _CODES.get(_FAILURE.unpack_from(body)[0])
    if code is None:
        raise PeerError("failure with a code that is not known")
    try:
        return Failure(code, body[_FAILURE.size :].decode())
    except UnicodeDecodeError:
        raise PeerError("failure text is not UTF-8") from None


def _cut(text: str) -> str:
    """At most `FAILURE_TEXT_MAX` bytes of UTF-8, cut between characters."""
    return text.encode(errors="replace")[:FAILURE_TEXT_MAX].decode(errors="ignore")
