"""Sockets of the network namespace that the caller stands in, for whoever is to use them from outside.

Touches: AF_INET and AF_NETLINK sockets; the loopback interface.
Never: changes any other interface, sends anything.
Fails: OSError when the kernel refuses; Missing where it has no such protocol.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from typing import Final

from organs.kernel.nodes import Missing

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP: Final = 0x1
# struct ifreq: name, flags, the rest of a union.
_REQUEST: Final = struct.Struct("=16sH22x")
_NETLINK_NETFILTER: Final = 12
DHCP_CLIENT_PORT: Final = 68


def loopback_up() -> None:
    """Take up loopback, without which a program cannot even talk to itself. Raises OSError, Missing."""
    with _made(socket.AF_INET, socket.SOCK_DGRAM, 0, "ipv4") as asked:
        answer = fcntl.ioctl(asked, _SIOCGIFFLAGS, _REQUEST.pack(b"lo", 0))
        name, flags = _REQUEST.unpack(answer)
        fcntl.ioctl(asked, _SIOCSIFFLAGS, _REQUEST.pack(name, flags | _IFF_UP))


def route() -> int:
    """A socket by which links, addresses and routes are changed. Raises OSError, Missing."""
    return _made(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE, "rtnetlink").detach()


def netfilter() -> int:
    """A socket by which the packet filter is loaded. Raises OSError, Missing."""
    return _made(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER, "nf_tables").detach()


def dhcp() -> int:
    """A socket bound to the port on which DHCP answers come. Raises OSError, Missing."""
    made = _made(socket.AF_INET, socket.SOCK_DGRAM, 0, "ipv4")
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.bind(("0.0.0.0", DHCP_CLIENT_PORT))
    except OSError:
        made.close()
        raise
    return made.detach()


def _made(family: int, kind: int, protocol: int, what: str) -> socket.socket:
    try:
        return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
            raise Missing(what) from None
        raise
