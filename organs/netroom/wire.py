"""One datagram from a room to its network.

Touches: the UDP socket of a connected room.
Never: chooses a link by itself: which one it is, is said with each datagram.
Fails: OSError when the link is lost. A host that cannot be reached is one question without an answer.
"""

from __future__ import annotations

import errno
from ipaddress import IPv4Address
from typing import Final

import trio

from organs.kernel import datagrams
from organs.kernel.netlink import Link

# A server, or the way to it, may be away for a while; that is one question without an answer.
UNREACHABLE: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOBUFS})


async def send(
    client: trio.socket.SocketType, link: Link, datagram: bytes, to: IPv4Address | None, port: int
) -> None:
    """One datagram to one server or to all, by this link. Raises OSError when the link is lost."""
    target = ("255.255.255.255" if to is None else str(to), port)
    try:
        await client.sendmsg([datagram], datagrams.going_out(link.index), 0, target)
    except OSError as error:
        if error.errno not in UNREACHABLE:
            raise
