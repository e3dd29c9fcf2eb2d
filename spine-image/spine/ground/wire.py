"""The wire of a container: a network card for it, and a small network behind that.

Run as a process of its own (`python -m spine.ground.wire NAMESPACE PARENT [LEASE_S]`); needs root. It makes a
network namespace for itself and a veth pair, one end of which, `eth0`, it puts into the namespace behind the
descriptor it was given. On the other end it is router, DHCP server and an echo on TCP port 7; nothing leads
from there to the host's networks. It says `ready` when it answers, and ends with its parent; its namespace
and both ends of the pair go with it, so nothing can be left behind. Touches nothing else; answers whoever
speaks DHCP on its wire. What fails is its last line on stderr.
"""

import contextlib
import os
import select
import signal
import socket
import struct
import sys
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from organs.kernel import netlink
from spine.ground import calls

# Private, and in a namespace of its own: no host's network of the same numbers is touched.
ROUTER = IPv4Interface("10.77.0.1/24")
FIRST, LAST = IPv4Address("10.77.0.100"), IPv4Address("10.77.0.199")
LEASE_S = 3600
OURS, THEIRS = "wire0", "eth0"
ECHO_PORT = 7
ECHOES_MAX = 16
DATAGRAM_MAX = 1500
SERVER_PORT, CLIENT_PORT = 67, 68
IPV6_OFF = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
# linux/veth.h
VETH_INFO_PEER = 1
# BOOTP's fixed part, up to and with the cookie (RFC 2131). The server has its own reader, so that the
# client's is not judged by itself.
HEAD = struct.Struct(">BBBBIHH4s4s4s4s16s192x4s")
COOKIE = b"\x63\x82\x53\x63"
DISCOVER, OFFER, REQUEST, ACK, NAK = 1, 2, 3, 5, 6
ANY = IPv4Address(0)


class Server:
    """Who has which address. `answer` is pure but for that."""

    def __init__(self, lease_s: int = LEASE_S) -> None:
        self.lease_s = lease_s
        self.given: dict[bytes, IPv4Address] = {}

    def answer(self, datagram: bytes) -> tuple[bytes, IPv4Address] | None:
        """The answer to a client's message and where it goes; None: nothing is said."""
        if len(datagram) < HEAD.size:
            return None
        op, hardware, size, _, number, _, flags, own, _, _, _, client, cookie = HEAD.unpack_from(datagram)
        if (op, hardware, size, cookie) != (1, 1, 6, COOKIE):
            return None
        mac, options = client[:6], read_options(datagram[HEAD.size :])
        if options.get(54, ROUTER.ip.packed) != ROUTER.ip.packed:
            return None
        address = self._address(mac)
        kind = options.get(53, b"")
        if kind == bytes([DISCOVER]):
            said = OFFER
        elif kind == bytes([REQUEST]):
            asked = options.get(50, own)
            said = ACK if address is not None and asked == address.packed else NAK
        else:
            return None
        if address is None and said is not NAK:
            return None
        yours = ANY if said == NAK or address is None else address
        reply = HEAD.pack(
            *(2, 1, 6, 0, number, 0, flags, own, yours.packed, ANY.packed, ANY.packed, client, COOKIE)
        )
        reply += option(53, bytes([said])) + option(54, ROUTER.ip.packed)
        if said != NAK:
            reply += option(51, struct.pack(">I", self.lease_s)) + option(1, ROUTER.netmask.packed)
            reply += option(3, ROUTER.ip.packed) + option(6, ROUTER.ip.packed)
            # Words that a client must not take over.
            reply += option(15, b"evil.example\noptions attack") + option(12, b"renamed")
        unicast = own != ANY.packed and said != NAK
        return reply + b"\xff", IPv4Address(own) if unicast else IPv4Address("255.255.255.255")

    def _address(self, mac: bytes) -> IPv4Address | None:
        """The address of this client; None when all are given away."""
        if mac not in self.given:
            taken = set(self.given.values())
            free = (IPv4Address(n) for n in range(int(FIRST), int(LAST) + 1) if IPv4Address(n) not in taken)
            address = next(free, None)
            if address is None:
                return None
            self.given[mac] = address
        return self.given[mac]


def option(number: int, value: bytes) -> bytes:
    """One DHCP option."""
    return bytes([number, len(value)]) + value


def read_options(rest: bytes) -> dict[int, bytes]:
    """What can be read of a client's options."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 1 < len(rest) and rest[at] != 255:
        if rest[at] == 0:
            at += 1
            continue
        found[rest[at]] = rest[at + 2 : at + 2 + rest[at + 1]]
        at += 2 + rest[at + 1]
    return found


def add_pair(sequence: int, namespace: int) -> bytes:
    """The request for the pair. Pure."""
    peer = bytes(16) + netlink.attribute(netlink.IFLA_IFNAME, THEIRS.encode() + b"\0")
    peer += netlink.attribute(netlink.IFLA_NET_NS_FD, struct.pack("=I", namespace))
    info = netlink.attribute(netlink.IFLA_INFO_KIND, b"veth")
    info += netlink.nested(netlink.IFLA_INFO_DATA, netlink.nested(VETH_INFO_PEER, peer))
    body = bytes(16) + netlink.attribute(netlink.IFLA_IFNAME, OURS.encode() + b"\0")
    body += netlink.nested(netlink.IFLA_LINKINFO, info)
    flags = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK | netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    return netlink.message(netlink.RTM_NEWLINK, flags, sequence, body)


def _set_up(namespace: int) -> None:
    calls.unshare(calls.CLONE_NEWNET)
    with contextlib.suppress(FileNotFoundError):
        Path(IPV6_OFF).write_text("1", encoding="ascii")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
        asking.send(add_pair(1, namespace))
        for told in netlink.messages(asking.recv(netlink.DATAGRAM_BYTES_MAX)):
            if isinstance(told.content, netlink.Answer) and told.content.errno:
                raise OSError(told.content.errno, f"veth pair: {os.strerror(told.content.errno)}")
    here = netlink.here()
    for link in here.links():
        if link.name in (OURS, "lo"):
            here.bring_up(link.name, link.index)
        if link.name == OURS:
            here.set_address(OURS, link.index, ROUTER)
    here.close()


def main(namespace: int, parent: int, lease_s: int) -> None:
    """Be the network, as long as `parent` lives."""
    calls.die_with_parent(signal.SIGKILL)  # INV-HOST-3
    if os.getppid() != parent:
        return
    _set_up(namespace)
    os.close(namespace)
    server = Server(lease_s)
    asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asked.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    asked.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, OURS.encode())
    asked.bind(("", SERVER_PORT))
    echo = socket.create_server((str(ROUTER.ip), ECHO_PORT), backlog=ECHOES_MAX)
    echo.setblocking(False)
    print("ready", flush=True)
    waiting = select.poll()
    open_now: dict[int, socket.socket] = {}
    for each in (asked, echo):
        waiting.register(each, select.POLLIN)
    while True:
        for fd, _ in waiting.poll():
            if fd == asked.fileno():
                _serve(asked, server)
            elif fd == echo.fileno():
                _accept(echo, waiting, open_now)
            else:
                _echo(fd, waiting, open_now)


def _serve(asked: socket.socket, server: Server) -> None:
    if answer := server.answer(asked.recv(DATAGRAM_MAX)):
        with contextlib.suppress(OSError):
            # The client may be cut off just now.
            asked.sendto(answer[0], (str(answer[1]), CLIENT_PORT))


def _accept(echo: socket.socket, waiting: select.poll, open_now: dict[int, socket.socket]) -> None:
    with contextlib.suppress(OSError):
        made, _ = echo.accept()
        made.setblocking(False)
        if len(open_now) >= ECHOES_MAX:
            made.close()
            return
        open_now[made.fileno()] = made
        waiting.register(made, select.POLLIN)


def _echo(fd: int, waiting: select.poll, open_now: dict[int, socket.socket]) -> None:
    one = open_now[fd]
    try:
        data = one.recv(DATAGRAM_MAX)
        if data:
            one.send(data)
            return
    except BlockingIOError:
        return  # it does not read what it sent
    except OSError:
        pass
    waiting.unregister(one)
    one.close()
    del open_now[fd]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else LEASE_S)
