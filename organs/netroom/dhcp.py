"""DHCP, from RFC 2131 and 2132: the bytes of a client's questions and of a server's answers.

Pure. What a client says of itself is its hardware address and nothing else: no host name, no vendor, no
identity that lasts. What a server says is read strictly and within limits; options that a room has no use for
are skipped unread.
Never: takes an address that cannot be a host's, a name, a route beside the default one.
Fails: Garbled for bytes that are no answer of a DHCP server. An answer that can be read but not used is one
without a `lease`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, unique
from ipaddress import IPv4Address, IPv4Interface
from typing import Final

# RFC 2131: what every host must be able to receive is 576 bytes; servers fill at most an Ethernet frame.
REPLY_BYTES_MAX: Final = 1500
# Old relays drop what is shorter than a BOOTP message.
REQUEST_BYTES_MIN: Final = 300
# op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname and file, cookie
_HEAD: Final = struct.Struct(">BBBBIHH4s4s4s4s16s192x4s")
COOKIE: Final = bytes([99, 130, 83, 99])
BOOTREQUEST, BOOTREPLY = 1, 2
ETHERNET, MAC_BYTES = 1, 6
# Answer to all: a socket without an address hears only what goes to all.
BROADCAST_FLAG: Final = 0x8000
# RFC 2132, by number.
PAD, MASK, ROUTER, NAME_SERVER, TIME_SERVER, END = 0, 1, 3, 6, 42, 255
REQUESTED_ADDRESS, LEASE_S, MESSAGE_TYPE, SERVER, WANTED = 50, 51, 53, 54, 55
RENEWAL_S, REBINDING_S, CLIENT = 58, 59, 61

# The C library asks no more of them.
NAME_SERVERS_MAX: Final = 3
# More do not make a majority any surer.
TIME_SERVERS_MAX: Final = 4
# A shorter lease would be renewed all the time; a server that offers one is not taken up on it.
LEASE_S_MIN: Final = 10
# A longer one is renewed as if it were this: what moved meanwhile is noticed within half of it.
LEASE_S_MAX: Final = 7 * 24 * 3600


class Garbled(ValueError):
    """Not an answer of a DHCP server."""


@unique
class Kind(Enum):
    """What a message is; the numbers are on the wire."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


@dataclass(frozen=True, slots=True)
class Lease:
    """What a server gives for a while: renewed after `renew_s`, with any server after `rebind_s`."""

    interface: IPv4Interface
    router: IPv4Address | None
    name_servers: tuple[IPv4Address, ...]
    time_servers: tuple[IPv4Address, ...]
    server: IPv4Address
    renew_s: int
    rebind_s: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Question:
    """What a client asks. `own`: the address that it has; `wanted`: the one that it would like."""

    kind: Kind
    transaction: int
    own: IPv4Address | None = None
    wanted: IPv4Address | None = None
    server: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answers; `lease` where it can be used."""

    kind: Kind
    transaction: int
    mac: bytes
    server: IPv4Address | None
    lease: Lease | None


def encode(question: Question, mac: bytes) -> bytes:
    """The datagram of a question."""
    options = bytes([MESSAGE_TYPE, 1, question.kind.value])
    options += bytes([CLIENT, 1 + MAC_BYTES, ETHERNET]) + mac  # INV-NET-6
    if question.wanted is not None:
        options += bytes([REQUESTED_ADDRESS, 4]) + question.wanted.packed
    if question.server is not None:
        options += bytes([SERVER, 4]) + question.server.packed
    options += bytes([WANTED, 4, MASK, ROUTER, NAME_SERVER, TIME_SERVER, END])
    own = question.own.packed if question.own is not None else bytes(4)
    # Whoever has the address is answered at it.
    flags = 0 if question.own is not None else BROADCAST_FLAG
    head = _HEAD.pack(
        *(BOOTREQUEST, ETHERNET, MAC_BYTES, 0, question.transaction, 0, flags),
        *(own, bytes(4), bytes(4), bytes(4), mac, COOKIE),
    )
    return (head + options).ljust(REQUEST_BYTES_MIN, b"\0")


def decode(datagram: bytes) -> Reply:
    """A server's answer. Raises Garbled."""
    if not _HEAD.size <= len(datagram) <= REPLY_BYTES_MAX:
        raise Garbled(f"{len(datagram)} bytes")
    op, hardware, mac_bytes, _, transaction, _, _, _, yours, _, _, mac, cookie = _HEAD.unpack_from(datagram)
    if (op, hardware, mac_bytes, cookie) != (BOOTREPLY, ETHERNET, MAC_BYTES, COOKIE):
        raise Garbled("not a reply to an Ethernet client")
    options: dict[int, bytes] = {}
    for number, value in _options(datagram[_HEAD.size :]):
        # RFC 3396: a long option comes in pieces.
        options[number] = options.get(number, b"") + value
    try:
        kind = Kind(_number(options, MESSAGE_TYPE, 1))
    except ValueError as error:
        raise Garbled("no kind of message") from error
    servers = _addresses(options, SERVER)
    server = servers[0] if len(servers) == 1 and _is_host(servers[0]) else None
    lease = _lease(IPv4Address(yours), server, options) if kind in (Kind.OFFER, Kind.ACK) else None
    return Reply(kind, transaction, mac[:MAC_BYTES], server, lease)


def _options(rest: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(rest):
        number = rest[at]
        if number == END:
            return
        if number == PAD:
            at += 1
            continue
        if at + 1 >= len(rest) or at + 2 + rest[at + 1] > len(rest):
            raise Garbled("an option is cut off")
        yield number, rest[at + 2 : at + 2 + rest[at + 1]]
        at += 2 + rest[at + 1]
    raise Garbled("the options do not end")


def _number(options: dict[int, bytes], number: int, size: int) -> int | None:
    """The value of a whole number; None where there is none. Raises Garbled for another length."""
    value = options.get(number)
    if value is None:
        return None
    if len(value) != size:
        raise Garbled(f"option {number} has {len(value)} bytes")
    return int.from_bytes(value, "big")


def _addresses(options: dict[int, bytes], number: int) -> tuple[IPv4Address, ...]:
    value = options.get(number, b"")
    if len(value) % 4:
        raise Garbled(f"option {number} has {len(value)} bytes")
    return tuple(IPv4Address(value[at : at + 4]) for at in range(0, len(value), 4))


def _is_host(address: IPv4Address) -> bool:
    """Whether it can be the address of one host on a network."""
    first = address.packed[0]
    return 0 < first < 224 and first != 127


def _lease(yours: IPv4Address, server: IPv4Address | None, options: dict[int, bytes]) -> Lease | None:
    seconds = _number(options, LEASE_S, 4)
    renew, rebind = _number(options, RENEWAL_S, 4), _number(options, REBINDING_S, 4)
    mask = _number(options, MASK, 4)
    routers = [address for address in _addresses(options, ROUTER) if _is_host(address) and address != yours]
    names = [address for address in _addresses(options, NAME_SERVER) if _is_host(address)]
    times = [a for a in _addresses(options, TIME_SERVER) if _is_host(a) and a != yours]
    if server is None or seconds is None or seconds < LEASE_S_MIN or not _is_host(yours):
        return None
    # A network that does not say how large it is has one address: all others are behind the router.
    length = 32 if mask is None else _length(mask)
    if length is None:
        return None
    interface = IPv4Interface((yours, length))
    network = interface.network
    if length <= 30 and yours in (network.network_address, network.broadcast_address):
        return None
    seconds = min(seconds, LEASE_S_MAX)
    if renew is None or rebind is None or not 0 < renew < rebind < seconds:
        renew, rebind = seconds // 2, seconds * 7 // 8
    return Lease(
        interface=interface,
        router=routers[0] if routers else None,
        name_servers=tuple(names[:NAME_SERVERS_MAX]),
        time_servers=tuple(times[:TIME_SERVERS_MAX]),
        server=server,
        renew_s=renew,
        rebind_s=rebind,
        seconds=seconds,
    )


def _length(mask: int) -> int | None:
    """The prefix length of a mask; None when it is none, or is no network of hosts."""
    length = mask.bit_count()
    return length if length and mask == (0xFFFF_FFFF << 32 - length) & 0xFFFF_FFFF else None


def resolv_conf(lease: Lease) -> bytes:
    """What a room reads as /etc/resolv.conf: addresses, and none of the words that the server said."""
    return "".join(f"nameserver {address}\n" for address in lease.name_servers).encode()  # INV-NET-7
