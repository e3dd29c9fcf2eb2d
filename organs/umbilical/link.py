"""One connection of a persona: cutting its bytes into messages, and what may be done with them when.

Pure: bytes and events in, messages and effects out. `Splitter` knows the standard Cap'n Proto stream framing
and nothing of what is in a message; `decide` knows when a request may be carried out and when an answer may
be sent.
Never: keeps more than one message that is not whole, makes room for a size before it was allowed, sends
anything to a room that was asked to be silent and has come to rest.
What a persona sends wrongly closes its own connection, with a reason.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, assert_never

# A value of one mebibyte and what goes with it; the bus takes no more either.
MESSAGE_BYTES_MAX: Final = 1024 * 1024 + 64 * 1024
# A library makes a new segment when one is full, each larger than the one before: a dozen for a mebibyte.
SEGMENTS_MAX: Final = 64
# Requests of one connection under way. More wait in the socket, where they cost the persona's memory.
IN_FLIGHT_MAX: Final = 4

_WORD: Final = 8


class Bad(Enum):
    """Why a stream cannot be read any further."""

    SEGMENTS = "a message has too many segments"
    LARGE = "a message is too large"


@dataclass(slots=True)
class Splitter:
    """Cuts a stream into whole framed messages. One per connection; after `Bad` it takes nothing more."""

    buffered: bytearray = field(default_factory=bytearray)
    bad: Bad | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes, each with its segment table. Sets `bad` at a refusal."""
        messages: list[bytes] = []
        if self.bad is not None:
            return messages
        self.buffered += data
        start = 0
        while (size := self._size(start)) is not None and len(self.buffered) - start >= size:
            messages.append(bytes(self.buffered[start : start + size]))
            start += size
        del self.buffered[:start]
        if self.bad is not None:
            self.buffered.clear()
        return messages

    @property
    def half_sent(self) -> bool:
        """Whether a message has begun and is not whole."""
        return bool(self.buffered)

    def _size(self, start: int) -> int | None:
        """The bytes of the message at `start`, table and all; None while that is not known, or refused."""
        have = len(self.buffered) - start
        if have < 4:
            return None
        (count,) = struct.unpack_from("<I", self.buffered, start)
        if count >= SEGMENTS_MAX:  # the number on the wire is one less
            self.bad = Bad.SEGMENTS
            return None
        # Padded to whole words: the count and one size for each segment take four bytes each.
        table = -(-(4 + 4 * (count + 1)) // _WORD) * _WORD
        known = min(count + 1, (have - 4) // 4)
        sizes = struct.unpack_from(f"<{known}I", self.buffered, start + 4)
        size = table + _WORD * sum(sizes)
        if size > MESSAGE_BYTES_MAX:  # INV-UMB-2
            self.bad = Bad.LARGE
            return None
        return size if known == count + 1 else None


class Phase(Enum):
    """What may be done on a connection."""

    SERVING = "requests are carried out"
    RESTING = "no new ones; those under way may still be answered"
    SILENT = "nothing is sent and nothing is carried out"
    CLOSED = "over"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One connection. `under_way` holds the tokens of requests that have no answer yet."""

    phase: Phase = Phase.SILENT
    under_way: frozenset[int] = frozenset()

    @property
    def wants_more(self) -> bool:
        """Whether the next request may be taken from the stream."""
        return self.phase is Phase.SERVING and len(self.under_way) < IN_FLIGHT_MAX  # INV-UMB-3


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request was taken from the stream, which happens only while `wants_more`. The token is new."""

    token: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The request came to its end."""

    token: int


@dataclass(frozen=True, slots=True)
class Hush:
    """The room will be frozen: come to rest."""


@dataclass(frozen=True, slots=True)
class GraceOver:
    """The time to come to rest has passed."""


@dataclass(frozen=True, slots=True)
class Wake:
    """The room runs and may be served. `gap_ns`: how long it stood still, if it did."""

    gap_ns: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The connection is over, whoever ended it."""


Event = Arrived | Ended | Hush | GraceOver | Wake | Gone


@dataclass(frozen=True, slots=True)
class Ask:
    """Carry the request out."""

    token: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Send what came of the request."""

    token: int


@dataclass(frozen=True, slots=True)
class Frozen:
    """Send that the room was frozen before the request ended, and forget the request."""

    token: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Send that the room stood still for so long."""

    gap_ns: int


@dataclass(frozen=True, slots=True)
class Rested:
    """Nothing is under way on this connection any more."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Stop working on the request; nobody waits for it."""

    token: int


Effect = Ask | Answer | Frozen | Tell | Rested | Forget


def decide(link: Link, event: Event) -> tuple[Link, tuple[Effect, ...]]:
    """The next state of a connection, and what to do. What cannot matter any more changes nothing."""
    if link.phase is Phase.CLOSED:
        return link, ()
    match event:
        case Arrived(token):
            assert link.wants_more
            assert token not in link.under_way
            return replace(link, under_way=link.under_way | {token}), (Ask(token),)
        case Ended(token):
            if token not in link.under_way:
                return link, ()
            left = replace(link, under_way=link.under_way - {token})
            if left.phase is Phase.RESTING and not left.under_way:
                return replace(left, phase=Phase.SILENT), (Answer(token), Rested())
            return left, (Answer(token),)
        case Hush():
            if link.phase is Phase.RESTING:
                return link, ()
            if not link.under_way:
                return replace(link, phase=Phase.SILENT), (Rested(),)
            return replace(link, phase=Phase.RESTING), ()
        case GraceOver():
            if link.phase is not Phase.RESTING:
                return link, ()
            frozen = tuple(Frozen(token) for token in sorted(link.under_way))
            return Link(phase=Phase.SILENT), (*frozen, Rested())  # INV-UMB-4
        case Wake(gap_ns):
            if link.phase is Phase.SERVING:
                return link, ()
            news = (Tell(gap_ns),) if gap_ns else ()
            return replace(link, phase=Phase.SERVING), news
        case Gone():
            return Link(phase=Phase.CLOSED), tuple(Forget(token) for token in sorted(link.under_way))
        case _:
            assert_never(event)
