"""What the network of this process' namespace holds: interface names and addresses.

Touches: /proc/net of its own namespace, to read.
Never: changes a link, opens a packet socket.
Fails: with OSError when /proc is not there.
"""

from __future__ import annotations

import ipaddress
import socket


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
