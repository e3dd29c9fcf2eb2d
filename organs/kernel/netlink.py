"""Links, addresses and routes by rtnetlink: the dozen messages that netroom needs.

The upper half is a pure encoder and decoder of them; the lower half speaks them on a socket that its caller
owns. Which namespace is meant is the socket's: it was opened inside it.
Touches: AF_NETLINK sockets.
Never: decides what should be up; believes a message that the kernel did not send.
Fails: KernelError with the link's name when the kernel refuses; Garbled for bytes that are no netlink
messages; TimeoutError when the kernel does not answer, which it does before it returns from the request.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Final

from organs.kernel._libc import KernelError

# linux/netlink.h
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
# The two top bits of an attribute's type say how it is coded, not what it is.
NLA_TYPE_MASK: Final = 0x3FFF
NLA_F_NESTED: Final = 0x8000
# linux/rtnetlink.h, linux/if_link.h, linux/if_arp.h
_LINK: Final = struct.Struct("=BxHiII")  # family, hardware, index, flags, change
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR, RTM_NEWROUTE = 20, 21, 22, 24
RTMGRP_LINK: Final = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_LINK, IFLA_LINKINFO = 1, 3, 5, 18
IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_EXT_MASK = 26, 28, 29
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_MACVLAN_MODE = 1, 2, 1
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
RTEXT_FILTER_SKIP_STATS: Final = 1 << 3
IFF_UP, IFF_LOOPBACK = 0x1, 0x8
ARPHRD_ETHER: Final = 1
# Links above the same NIC do not hear each other.
MACVLAN_MODE_PRIVATE: Final = 1
# linux/if_addr.h
_ADDRESS: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
# family, destination's and source's prefix lengths, tos, table, protocol, scope, type, flags
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
RT_TABLE_MAIN, RTPROT_DHCP, RT_SCOPE_UNIVERSE, RTN_UNICAST, RTNH_F_ONLINK = 254, 16, 0, 1, 4
RTA_OIF, RTA_GATEWAY, RTA_PREFSRC = 4, 5, 7
# Including the zero at its end.
NAME_BYTES_MAX: Final = 16
MAC_BYTES: Final = 6

# The kernel fills a datagram of a dump up to what the reader offers, at most this much.
DATAGRAM_BYTES_MAX: Final = 64 * 1024
# The kernel answers while it takes the request. This is only so that a defect is not a hang.
ANSWER_S: Final = 5.0
# A dump that a change interrupted is taken again; links do not change a hundred times a second for long.
DUMPS_MAX: Final = 16
# What an incarnation that was killed left unread in a socket: at most what the socket's queue holds.
STALE_DATAGRAMS_MAX: Final = 4096


class Garbled(ValueError):
    """Not netlink messages."""


@dataclass(frozen=True, slots=True)
class Link:
    """One interface as the kernel describes it.

    `mac` is empty for a link without an address. `kind` is the kernel's word for a link that is no hardware
    ("veth", "macvlan", ...), else empty. `below` is the index of the link that it stands on, or 0.
    """

    index: int
    name: str
    mac: bytes
    up: bool
    loopback: bool
    ethernet: bool = False
    kind: str = ""
    below: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """One IPv4 address of a link."""

    index: int
    interface: IPv4Interface


@dataclass(frozen=True, slots=True)
class Answer:
    """The kernel's verdict on a request: 0, or an errno. A dump ends with one as well."""

    errno: int


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `content` is None for a kind that this module has no use for."""

    sequence: int
    interrupted: bool
    content: Link | Address | Answer | None


def list_links(sequence: int) -> bytes:
    """The request for every link."""
    body = _LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_EXT_MASK, struct.pack("=I", RTEXT_FILTER_SKIP_STATS))
    return message(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, sequence, body)


def take_down(sequence: int, index: int) -> bytes:
    """The request to take a link down."""
    return message(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, _LINK.pack(0, 0, index, 0, IFF_UP))


def bring_up(sequence: int, index: int) -> bytes:
    """The request to take a link up."""
    return message(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, _LINK.pack(0, 0, index, IFF_UP, IFF_UP))


def move(sequence: int, index: int, namespace: int, name: str) -> bytes:
    """The request to move a link into the namespace behind a descriptor, under this name there.

    ValueError when it cannot be a link's name.
    """
    body = (
        _LINK.pack(0, 0, index, 0, 0)
        + attribute(IFLA_NET_NS_FD, struct.pack("=I", namespace))
        + attribute(IFLA_IFNAME, link_name(name))
    )
    return message(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, body)


def add_macvlan(sequence: int, parent: int, namespace: int, mac: bytes) -> bytes:
    """The request for a link of its own above `parent`, born down in the namespace behind a descriptor.

    It has no name of ours: before 6.15 the kernel refuses one that is taken where we ask from, instead of
    where the link will be. ValueError when `mac` is no hardware address.
    """
    if len(mac) != MAC_BYTES:
        raise ValueError(f"{mac.hex(':')!r} cannot be a hardware address")
    info = attribute(IFLA_INFO_KIND, b"macvlan") + nested(
        IFLA_INFO_DATA, attribute(IFLA_MACVLAN_MODE, struct.pack("=I", MACVLAN_MODE_PRIVATE))
    )
    body = (
        _LINK.pack(0, 0, 0, 0, 0)
        + attribute(IFLA_ADDRESS, mac)
        + attribute(IFLA_LINK, struct.pack("=I", parent))
        + attribute(IFLA_NET_NS_FD, struct.pack("=I", namespace))
        + nested(IFLA_LINKINFO, info)
    )
    return message(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sequence, body)


def rename(sequence: int, index: int, name: str) -> bytes:
    """The request to give a link that is down another name. ValueError when it cannot be one."""
    body = _LINK.pack(0, 0, index, 0, 0) + attribute(IFLA_IFNAME, link_name(name))
    return message(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, body)


def remove_link(sequence: int, index: int) -> bytes:
    """The request to end a link that is no hardware."""
    return message(RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, _LINK.pack(0, 0, index, 0, 0))


def without_own_address(sequence: int, index: int) -> bytes:
    """The request that a link never gives itself an IPv6 address."""
    mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
    body = _LINK.pack(0, 0, index, 0, 0) + nested(IFLA_AF_SPEC, nested(socket.AF_INET6, mode))
    return message(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, body)


def list_addresses(sequence: int) -> bytes:
    """The request for every IPv4 address."""
    body = _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)
    return message(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, sequence, body)


def add_address(sequence: int, address: Address) -> bytes:
    """The request to give a link an address; one that it has stays."""
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    return message(RTM_NEWADDR, flags, sequence, _address_body(address, broadcast=True))


def remove_address(sequence: int, address: Address) -> bytes:
    """The request to take an address from a link, and with it the routes that use it as their source."""
    return message(RTM_DELADDR, NLM_F_REQUEST | NLM_F_ACK, sequence, _address_body(address, broadcast=False))


def add_default_route(sequence: int, index: int, router: IPv4Address, source: IPv4Address) -> bytes:
    """The request that all else goes out by this link to `router`, as from `source`.

    The router is taken to be on the link whatever the prefix says: some networks hand out single addresses.
    """
    body = (
        _ROUTE.pack(
            *(socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_DHCP, RT_SCOPE_UNIVERSE, RTN_UNICAST),
            RTNH_F_ONLINK,
        )
        + attribute(RTA_OIF, struct.pack("=I", index))
        + attribute(RTA_GATEWAY, router.packed)
        + attribute(RTA_PREFSRC, source.packed)
    )
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    return message(RTM_NEWROUTE, flags, sequence, body)


def _address_body(address: Address, *, broadcast: bool) -> bytes:
    network = address.interface.network
    head = _ADDRESS.pack(socket.AF_INET, network.prefixlen, 0, RT_SCOPE_UNIVERSE, address.index)
    packed = address.interface.ip.packed
    body = head + attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    # A network of one or two addresses has none for all of them.
    if broadcast and network.prefixlen <= 30:
        body += attribute(IFA_BROADCAST, network.broadcast_address.packed)
    return body


def link_name(name: str) -> bytes:
    """A link's name as the kernel takes it. ValueError when it cannot be one."""
    encoded = name.encode() + b"\0"
    if not 1 < len(encoded) <= NAME_BYTES_MAX or encoded.count(0) != 1:
        raise ValueError(f"{name!r} cannot be the name of a link")
    return encoded


def messages(datagram: bytes) -> list[Message]:
    """The messages of one datagram. Raises Garbled."""
    return [
        Message(sequence, bool(flags & NLM_F_DUMP_INTR), _content(kind, body))
        for kind, flags, sequence, body in split(datagram)
    ]


def split(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages of one datagram as type, flags, sequence and body. Raises Garbled."""
    offset = 0
    while offset < len(datagram):
        if len(datagram) - offset < _HEADER.size:
            raise Garbled("a header is cut off")
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
        if not _HEADER.size <= length <= len(datagram) - offset:
            raise Garbled(f"a message of {length} bytes in a rest of {len(datagram) - offset}")
        yield kind, flags, sequence, datagram[offset + _HEADER.size : offset + length]
        offset += _padded(length)


def _content(kind: int, body: bytes) -> Link | Address | Answer | None:
    if kind in (NLMSG_ERROR, NLMSG_DONE):
        # A dump's end may come without a number, which then is 0.
        if kind == NLMSG_DONE and len(body) < 4:
            return Answer(0)
        if len(body) < 4:
            raise Garbled("a verdict is cut off")
        return Answer(-struct.unpack_from("=i", body)[0])
    if kind == RTM_NEWLINK:
        return _link(body)
    if kind == RTM_NEWADDR:
        return _address(body)
    return None


def _link(body: bytes) -> Link:
    if len(body) < _LINK.size:
        raise Garbled("a link is cut off")
    _, hardware, index, flags, _ = _LINK.unpack_from(body)
    found = dict(attributes(body[_LINK.size :]))
    info = dict(attributes(found.get(IFLA_LINKINFO, b"")))
    return Link(
        index=index,
        name=_word(found.get(IFLA_IFNAME, b"")),
        mac=found.get(IFLA_ADDRESS, b""),
        up=bool(flags & IFF_UP),
        loopback=bool(flags & IFF_LOOPBACK),
        ethernet=hardware == ARPHRD_ETHER,
        kind=_word(info.get(IFLA_INFO_KIND, b"")),
        below=int.from_bytes(found.get(IFLA_LINK, b"")[:4], sys.byteorder),
    )


def _word(text: bytes) -> str:
    return text.rstrip(b"\0").decode(errors="backslashreplace")


def _address(body: bytes) -> Address | None:
    if len(body) < _ADDRESS.size:
        raise Garbled("an address is cut off")
    family, length, _, _, index = _ADDRESS.unpack_from(body)
    if family != socket.AF_INET:
        return None
    found = dict(attributes(body[_ADDRESS.size :]))
    packed = found.get(IFA_LOCAL, found.get(IFA_ADDRESS, b""))
    if len(packed) != 4 or length > 32:
        raise Garbled("an address is none")
    return Address(index, IPv4Interface((packed, length)))


def attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message or of one another, by type. Raises Garbled."""
    offset = 0
    while len(body) - offset >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if not _ATTRIBUTE.size <= length <= len(body) - offset:
            raise Garbled(f"an attribute of {length} bytes in a rest of {len(body) - offset}")
        yield kind & NLA_TYPE_MASK, body[offset + _ATTRIBUTE.size : offset + length]
        offset += _padded(length)


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One message, padded so that another can follow."""
    length = _HEADER.size + len(body)
    return _HEADER.pack(length, kind, flags, sequence, 0) + body + bytes(_padded(length) - length)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_padded(length) - length)


def nested(kind: int, inner: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, inner)


def _padded(length: int) -> int:
    return (length + 3) & ~3


class Namespace:
    """The links of one network namespace, through a socket that was opened inside it."""

    def __init__(self, opened: socket.socket) -> None:
        opened.settimeout(ANSWER_S)
        self._socket = opened
        self._sequence = 0

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def links(self) -> list[Link]:
        """Every link. Raises OSError."""
        return [item for item in self._dump(list_links, "list links") if isinstance(item, Link)]

    def addresses(self, index: int) -> list[Address]:
        """Every IPv4 address of a link. Raises OSError."""
        found = self._dump(list_addresses, "list addresses")
        return [item for item in found if isinstance(item, Address) and item.index == index]

    def take_down(self, link: str, index: int) -> None:
        """Take a link down; its routes go with that. Raises KernelError."""
        self._act(take_down(self._next(), index), "take down", link)

    def bring_up(self, link: str, index: int) -> None:
        """Take a link up. Raises KernelError."""
        self._act(bring_up(self._next(), index), "bring up", link)

    def move(self, link: str, index: int, namespace: int, name: str) -> None:
        """Move a link into another namespace, under this name there. Raises KernelError."""
        self._act(move(self._next(), index, namespace, name), "move", link)

    def add_macvlan(self, link: str, parent: int, namespace: int, mac: bytes) -> None:
        """A link above one of ours, born down in another namespace, which names it. Raises KernelError."""
        self._act(add_macvlan(self._next(), parent, namespace, mac), "add a macvlan above", link)

    def rename(self, link: str, index: int, name: str) -> None:
        """A link that is down gets another name. Raises KernelError."""
        self._act(rename(self._next(), index, name), "rename", link)

    def remove_link(self, link: str, index: int) -> None:
        """End a link that is no hardware. Raises KernelError."""
        self._act(remove_link(self._next(), index), "remove", link)

    def without_own_address(self, link: str, index: int) -> None:
        """A link gives itself no IPv6 address from here on. Raises KernelError."""
        try:
            self._act(without_own_address(self._next(), index), "keep IPv6 off", link)
        except KernelError as error:
            # A kernel, or a namespace, without IPv6 gives none anyway.
            if error.errno != errno.EAFNOSUPPORT:
                raise

    def set_address(self, link: str, index: int, interface: IPv4Interface) -> None:
        """The link has this address and no other. Raises KernelError."""
        for address in self.addresses(index):
            if address.interface != interface:
                self._act(remove_address(self._next(), address), "remove an address of", link)
        self._act(add_address(self._next(), Address(index, interface)), "add an address to", link)

    def drop_addresses(self, link: str, index: int) -> None:
        """The link has no address. Raises KernelError."""
        for address in self.addresses(index):
            self._act(remove_address(self._next(), address), "remove an address of", link)

    def set_default_route(self, link: str, index: int, router: IPv4Address, source: IPv4Address) -> None:
        """All else goes to this router. Raises KernelError."""
        self._act(
            add_default_route(self._next(), index, router, source), "add the default route through", link
        )

    def _next(self) -> int:
        self._sequence = self._sequence % 0xFFFF_FFFF + 1
        return self._sequence

    def _dump(self, request: Callable[[int], bytes], what: str) -> list[Link | Address]:
        for _ in range(DUMPS_MAX):
            found: list[Link | Address] = []
            whole = True
            for told in self._ask(request(self._next())):
                whole = whole and not told.interrupted
                if isinstance(told.content, Answer):
                    if told.content.errno:
                        raise KernelError(told.content.errno, what)
                elif told.content is not None:
                    found.append(told.content)
            if whole:
                return found
        raise TimeoutError(f"unable to {what}: they change faster than they can be listed")

    def _act(self, request: bytes, what: str, link: str) -> None:
        for told in self._ask(request):
            if isinstance(told.content, Answer) and told.content.errno:
                raise KernelError(told.content.errno, what, link)

    def _ask(self, request: bytes) -> Iterator[Message]:
        """The kernel's messages on a request, to the verdict."""
        self._socket.send(request)
        while True:
            for told in _from_kernel(self._socket):
                if told.sequence != self._sequence:
                    continue
                yield told
                if isinstance(told.content, Answer):
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
    """The namespace that a rtnetlink socket, which becomes ours, was opened in. Raises OSError."""
    return Namespace(adopted(fd, socket.NETLINK_ROUTE))


def adopted(fd: int, protocol: int) -> socket.socket:
    """A netlink socket that was handed over and becomes ours, also where this fails, with nothing in it.

    An earlier holder may have been killed before it read an answer, and its numbers are ours again. Raises
    OSError.
    """
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol, fileno=fd)
    except OSError:
        os.close(fd)
        raise
    try:
        opened.setblocking(False)
        _empty(opened)
    except OSError:
        opened.close()
        raise
    return opened


def _empty(opened: socket.socket) -> None:
    for _ in range(STALE_DATAGRAMS_MAX):
        try:
            opened.recv(1)
        except BlockingIOError:
            return
        except OSError as error:
            # The queue had run over; the kernel says so once.
            if error.errno != errno.ENOBUFS:
                raise
    raise OSError(errno.EBUSY, "a netlink socket does not become empty")


def _from_kernel(opened: socket.socket) -> list[Message]:
    datagram, sender = opened.recvfrom(DATAGRAM_BYTES_MAX)
    # Port 0 is the kernel. Any process of the namespace may send to our port.
    return messages(datagram) if sender[0] == 0 else []
