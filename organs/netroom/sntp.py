"""SNTP, from RFC 5905: the bytes of a client's question and of a server's answer.

Pure. A question says nothing of who asks, not even what time it is there: where a client may put its own
clock stands a number that nobody can guess, and only an answer that repeats it is one. An answer is read
strictly: what a server says that is not itself in step, or too far from who is, is garbled like any other
nonsense.
Never: reads extensions or signatures (none is asked for), names.
Fails: Garbled for bytes that are no answer that could be used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum, unique
from typing import Final

SERVER_PORT: Final = 123
# An answer to a question without extensions has none.
PACKET_BYTES: Final = 48
NONCE_BYTES: Final = 8
# leap, version and mode; stratum; poll, precision; root delay, dispersion; reference; four timestamps
_PACKET: Final = struct.Struct(">BBbb4s4s4s8s8s8s8s")
_VERSION, _CLIENT, _SERVER = 4, 3, 4
# Version 3 has the same packet, and there are servers that answer with nothing else.
_VERSIONS: Final = frozenset({3, 4})
_LEAP_UNKNOWN: Final = 3
_STRATUM_MAX: Final = 15
# RFC 5905's MAXDIST: a server that may be more than this off is not in step with anything.
ROOT_DISTANCE_US_MAX: Final = 1_000_000
# Between hearing the question and answering it. Servers take microseconds.
HELD_US_MAX: Final = 1_000_000
# From 1900, where the timestamps count from, to 1970; and one turn of their 32 bits.
_EPOCH_S: Final = 2_208_988_800
_ERA_S: Final = 1 << 32
_SECOND_US: Final = 1_000_000


class Garbled(ValueError):
    """Not an answer of a SNTP server that could be used."""


@unique
class Kiss(Enum):
    """What a server says instead of the time."""

    RATE = "ask less often"
    DENY = "never ask again"
    OTHER = "it has no time now"


# RFC 5905, 7.4: after these a client must stop asking.
_KISSES: Final = {b"RATE": Kiss.RATE, b"DENY": Kiss.DENY, b"RSTR": Kiss.DENY}


@dataclass(frozen=True, slots=True)
class Times:
    """When the server heard the question and when it answered, in microseconds since 1970."""

    heard_us: int
    answered_us: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server says to the question with this number."""

    nonce: bytes
    said: Times | Kiss


def encode(nonce: bytes) -> bytes:
    """The datagram of a question."""
    head = _VERSION << 3 | _CLIENT
    empty = bytes(4)
    # Reference, origin and receive time are the answerer's to fill.
    return _PACKET.pack(head, 0, 0, 0, empty, empty, empty, bytes(8), bytes(8), bytes(8), nonce)  # INV-TIME-5


def decode(datagram: bytes) -> Reply:
    """A server's answer. Raises Garbled."""
    if len(datagram) != PACKET_BYTES:
        raise Garbled(f"{len(datagram)} bytes")
    head, stratum, _, _, delay, dispersion, reference, set_at, nonce, heard, answered = _PACKET.unpack(
        datagram
    )
    leap, version, mode = head >> 6, head >> 3 & 7, head & 7
    if mode != _SERVER or version not in _VERSIONS:
        raise Garbled("not an answer of a server")
    if not stratum:
        # The other fields of a kiss mean nothing, the leap least of all.
        return Reply(nonce, _KISSES.get(reference, Kiss.OTHER))
    if leap == _LEAP_UNKNOWN or stratum > _STRATUM_MAX:
        raise Garbled("a server that is not in step")
    if _short_us(delay) < 0 or _short_us(delay) // 2 + _short_us(dispersion) > ROOT_DISTANCE_US_MAX:
        raise Garbled("a server that is too far from the time")
    if not any(heard) or not any(answered):
        raise Garbled("an answer without a time")
    times = Times(_unix_us(heard), _unix_us(answered))
    if not 0 <= times.answered_us - times.heard_us <= HELD_US_MAX:
        raise Garbled("answered before it was asked, or long after")
    if any(set_at) and _unix_us(set_at) > times.answered_us:
        raise Garbled("a clock that was set after it answered")
    return Reply(nonce, times)


def _short_us(field: bytes) -> int:
    """Seconds with 16 bits of fraction. Signed: a root delay below zero is one that was never measured."""
    return (int.from_bytes(field, "big", signed=True) * _SECOND_US) >> 16


def _unix_us(timestamp: bytes) -> int:
    """Microseconds since 1970. With the highest bit clear it is of the era from 2036 on (RFC 4330)."""
    seconds, fraction = int.from_bytes(timestamp[:4], "big"), int.from_bytes(timestamp[4:], "big")
    era = 0 if seconds >> 31 else _ERA_S
    return (seconds + era - _EPOCH_S) * _SECOND_US + (fraction * _SECOND_US >> 32)
