"""UDP sockets that speak through one link: by which one a datagram goes out, and by which one it came in.

A socket that is bound to a link can be bound to another only with a capability that nobody here holds, and a
link that goes and comes again is another. So each datagram names its link instead.
Touches: options of sockets that were handed over.
Never: binds, opens.
Fails: OSError where the kernel refuses.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from typing import Final

# linux/in.h
IP_PKTINFO: Final = 8
_PACKET: Final = struct.Struct("=i4s4s")  # link, local address, destination
ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_PACKET.size)

Ancillary = Iterable[tuple[int, int, bytes]]


def adopted(fd: int) -> socket.socket:
    """A UDP socket that was handed over and becomes ours, also where this fails. Raises OSError.

    It does not wait, may send to all, and tells where a datagram came in.
    """
    try:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, fileno=fd)
    except OSError:
        os.close(fd)
        raise
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        opened.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    except OSError:
        opened.close()
        raise
    return opened


def going_out(index: int) -> list[tuple[int, int, bytes]]:
    """What is sent beside a datagram that goes out by this link."""
    return [(socket.IPPROTO_IP, IP_PKTINFO, _PACKET.pack(index, bytes(4), bytes(4)))]


def came_in(ancillary: Ancillary) -> int | None:
    """The link that a datagram came in by, from what was received beside it."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO) and len(data) >= _PACKET.size:
            index: int = _PACKET.unpack_from(data)[0]
            return index
    return None
