"""Links by rtnetlink: what interfaces a network namespace has, taking one down, moving one away.

The upper half is a pure encoder and decoder of the few messages this needs; the lower half speaks them on a
socket that its caller owns. Which namespace is meant is the socket's: it was opened inside it.
Touches: AF_NETLINK sockets.
Never: takes a link up, gives an address, believes a message that the kernel did not send.
Fails: KernelError with the link's name when the kernel refuses; Garbled for bytes that are no netlink
messages; TimeoutError when the kernel does not answer, which it does before it returns from the request.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from organs.kernel._libc import KernelError

# linux/netlink.h
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
# The two top bits of an attribute's type say how it is coded, not what it is.
NLA_TYPE_MASK: Final = 0x3FFF
# linux/rtnetlink.h, linux/if_link.h
_LINK: Final = struct.Struct("=BxHiII")  # family, hardware, index, flags, change
RTM_NEWLINK, RTM_GETLINK, RTM_SETLINK = 16, 18, 19
RTMGRP_LINK: Final = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_NET_NS_FD, IFLA_EXT_MASK = 1, 3, 28, 29
RTEXT_FILTER_SKIP_STATS: Final = 1 << 3
IFF_UP, IFF_LOOPBACK = 0x1, 0x8
# Including the zero at its end.
NAME_BYTES_MAX: Final = 16

# The kernel fills a datagram of a dump up to what the reader offers, at most this much.
DATAGRAM_BYTES_MAX: Final = 64 * 1024
# The kernel answers while it takes the request. This is only so that a defect is not a hang.
ANSWER_S: Final = 5.0
# A dump that a change interrupted is taken again; links do not change a hundred times a second for long.
DUMPS_MAX: Final = 16


class Garbled(ValueError):
    """Not netlink messages."""


@dataclass(frozen=True, slots=True)
class Link:
    """One interface as the kernel describes it. `mac` is empty for a link without an address."""

    index: int
    name: str
    mac: bytes
    up: bool
    loopback: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """The kernel's verdict on a request: 0, or an errno. A dump ends with one as well."""

    errno: int


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `content` is None for a kind that this module has no use for."""

    sequence: int
    interrupted: bool
    content: Link | Answer | None


def list_links(sequence: int) -> bytes:
    """The request for every link."""
    body = _LINK.pack(0, 0, 0, 0, 0) + _attribute(IFLA_EXT_MASK, struct.pack("=I", RTEXT_FILTER_SKIP_STATS))
    return _message(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, sequence, body)


def take_down(sequence: int, index: int) -> bytes:
    """The request to take a link down."""
    return _message(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, _LINK.pack(0, 0, index, 0, IFF_UP))


def move(sequence: int, index: int, namespace: int, name: str) -> bytes:
    """The request to move a link into the namespace behind a descriptor, under this name there.

    ValueError when it cannot be a link's name.
    """
    encoded = name.encode() + b"\0"
    if not 1 < len(encoded) <= NAME_BYTES_MAX or encoded.count(0) != 1:
        raise ValueError(f"{name!r} cannot be the name of a link")
    body = (
        _LINK.pack(0, 0, index, 0, 0)
        + _attribute(IFLA_NET_NS_FD, struct.pack("=I", namespace))
        + _attribute(IFLA_IFNAME, encoded)
    )
    return _message(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, body)


def messages(datagram: bytes) -> list[Message]:
    """The messages of one datagram. Raises Garbled."""
    found = []
    offset = 0
    while offset < len(datagram):
        if len(datagram) - offset < _HEADER.size:
            raise Garbled("a header is cut off")
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
        if not _HEADER.size <= length <= len(datagram) - offset:
            raise Garbled(f"a message of {length} bytes in a rest of {len(datagram) - offset}")
        body = datagram[offset + _HEADER.size : offset + length]
        found.append(Message(sequence, bool(flags & NLM_F_DUMP_INTR), _content(kind, body)))
        offset += _padded(length)
    return found


def _content(kind: int, body: bytes) -> Link | Answer | None:
    if kind in (NLMSG_ERROR, NLMSG_DONE):
        # A dump's end may come without a number, which then is 0.
        if kind == NLMSG_DONE and len(body) < 4:
            return Answer(0)
        if len(body) < 4:
            raise Garbled("a verdict is cut off")
        return Answer(-struct.unpack_from("=i", body)[0])
    if kind != RTM_NEWLINK:
        return None
    if len(body) < _LINK.size:
        raise Garbled("a link is cut off")
    _, _, index, flags, _ = _LINK.unpack_from(body)
    attributes = dict(_attributes(body[_LINK.size :]))
    name = attributes.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="backslashreplace")
    return Link(
        index, name, attributes.get(IFLA_ADDRESS, b""), bool(flags & IFF_UP), bool(flags & IFF_LOOPBACK)
    )


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while len(body) - offset >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if not _ATTRIBUTE.size <= length <= len(body) - offset:
            raise Garbled(f"an attribute of {length} bytes in a rest of {len(body) - offset}")
        yield kind & NLA_TYPE_MASK, body[offset + _ATTRIBUTE.size : offset + length]
        offset += _padded(length)


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_padded(length) - length)


def _padded(length: int) -> int:
    return (length + 3) & ~3


class Namespace:
    """The links of one network namespace, through a socket that was opened inside it."""

    def __init__(self, opened: socket.socket) -> None:
        opened.settimeout(ANSWER_S)
        self._socket = opened
        self._sequence = 0

    def links(self) -> list[Link]:
        """Every link. Raises OSError."""
        for _ in range(DUMPS_MAX):
            found: list[Link] = []
            whole = True
            for message in self._ask(list_links(self._next())):
                whole = whole and not message.interrupted
                if isinstance(message.content, Link):
                    found.append(message.content)
                elif isinstance(message.content, Answer) and message.content.errno:
                    raise KernelError(message.content.errno, "list links")
            if whole:
                return found
        raise TimeoutError("links change faster than they can be listed")

    def take_down(self, link: str, index: int) -> None:
        """Take a link down. Raises KernelError."""
        self._act(take_down(self._next(), index), "take down", link)

    def move(self, link: str, index: int, namespace: int, name: str) -> None:
        """Move a link into another namespace, under this name there. Raises KernelError."""
        self._act(move(self._next(), index, namespace, name), "move", link)

    def _next(self) -> int:
        self._sequence = self._sequence % 0xFFFF_FFFF + 1
        return self._sequence

    def _act(self, request: bytes, what: str, link: str) -> None:
        for message in self._ask(request):
            if isinstance(message.content, Answer) and message.content.errno:
                raise KernelError(message.content.errno, what, link)

    def _ask(self, request: bytes) -> Iterator[Message]:
        """The kernel's messages on a request, to the verdict."""
        self._socket.send(request)
        while True:
            for message in _from_kernel(self._socket):
                if message.sequence != self._sequence:
                    continue
                yield message
                if isinstance(message.content, Answer):
                    return


def watch() -> socket.socket:
    """A non-blocking socket that becomes readable when a link of this process' namespace changes."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    opened = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
    opened.bind((0, RTMGRP_LINK))
    return opened


def here() -> Namespace:
    """The namespace of this process."""
    return Namespace(
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    )


def through(fd: int) -> Namespace:
    """The namespace that a rtnetlink socket, which becomes ours, was opened in."""
    return Namespace(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE, fileno=fd))


def _from_kernel(opened: socket.socket) -> list[Message]:
    datagram, sender = opened.recvfrom(DATAGRAM_BYTES_MAX)
    # Port 0 is the kernel. Any process of the namespace may send to our port.
    return messages(datagram) if sender[0] == 0 else []
