"""Network namespaces: what this process' own holds, and descriptors of others.

Touches: /proc/net of its own namespace, to read; unshare(2) and setns(2) on it; the settings of a namespace
that it makes.
Never: changes a link, opens a packet socket. A process that made a namespace or a socket in one is back in
its own when the call returns.
Fails: with OSError when /proc is not there, KernelError when the kernel refuses.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Final

from organs.kernel import _libc

CLONE_NEWNET: Final = 0x4000_0000
_OWN: Final = "/proc/self/ns/net"
# What every link of a namespace begins with, and what holds for those that are there.
_IPV6_OFF: Final = tuple(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6" for which in ("default", "all"))
_BOOT: Final = "/proc/sys/kernel/random/boot_id"


def new_namespace() -> int:
    """A descriptor of a new network namespace without IPv6. It lives while the descriptor does.

    For a process with one thread; it must end if this fails, for it may then stand in the new namespace.
    Raises KernelError, OSError.
    """
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _libc.check(_libc.unshare(CLONE_NEWNET), "make a network namespace")
        _without_ipv6()
        made = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        _enter(home)
    finally:
        os.close(home)
    return made


def _without_ipv6() -> None:
    """A link that is up in this process' namespace gets no IPv6 address, from itself or from a router."""
    for path in _IPV6_OFF:
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write("1")
        except FileNotFoundError:
            pass  # a kernel without IPv6


def boot_id() -> bytes:
    """A number that is this boot's, until the next. Raises OSError."""
    with open(_BOOT, "rb") as file:
        return file.read().strip()


def netlink_in(namespace: int) -> int:
    """A rtnetlink socket inside the namespace behind a descriptor. Raises OSError, as `new_namespace`."""
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(namespace)
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        _enter(home)
    finally:
        os.close(home)
    return made.detach()


def _enter(namespace: int) -> None:
    _libc.check(_libc.setns(namespace, CLONE_NEWNET), "enter a network namespace")


def interfaces() -> list[str]:
    """Names of the interfaces, sorted."""
    return sorted(name for _, name in socket.if_nameindex())


def addresses() -> list[str]:
    """Every local address but loopback's, IPv4 then IPv6, as text. Empty when the namespace has none."""
    found: list[str] = []
    try:
        with open("/proc/net/fib_trie", encoding="ascii") as file:
            found += local_addresses_v4(file.read())
    except FileNotFoundError:
        pass  # a kernel without IPv4 routing tables has no IPv4 address
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            found += local_addresses_v6(file.read())
    except FileNotFoundError:
        pass  # a kernel without IPv6
    return found


def local_addresses_v4(fib_trie: str) -> list[str]:
    """The addresses whose route is `/32 host LOCAL` in the text of /proc/net/fib_trie."""
    found: set[ipaddress.IPv4Address] = set()
    leaf = ""
    for line in fib_trie.splitlines():
        word = line.strip()
        if word.startswith("|-- "):
            leaf = word.removeprefix("|-- ")
        elif word == "/32 host LOCAL":
            found.add(ipaddress.IPv4Address(leaf))
    return [str(address) for address in sorted(found) if not address.is_loopback]


def local_addresses_v6(if_inet6: str) -> list[str]:
    """The addresses in the text of /proc/net/if_inet6."""
    found = sorted(ipaddress.IPv6Address(int(line.split()[0], 16)) for line in if_inet6.splitlines())
    return [str(address) for address in found if not address.is_loopback]
