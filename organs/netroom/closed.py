"""What passes between a room and the network: closed inwards, but for what the room asked for itself.

Pure. In: replies to what the room began, the room's own loopback, answers of a DHCP server (they may come
before there is a connection to belong to), and the TCP ports that the persona's manifest opens. Nothing is
forwarded. Out: everything but IPv6, which the room has on its loopback only: what is not leased, filtered and
cut by netroom does not exist for it.
Never: names an address. Which addresses there are is the network's business.
Fails: ValueError for ports that cannot be opened.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from organs.kernel.nftables import IPPROTO_TCP, IPPROTO_UDP, Chain, Family, Hook, Known, Ports, Rule, Through

TABLE: Final = "room"
LOOPBACK: Final = "lo"
DHCP_SERVER_PORT: Final = 67
DHCP_CLIENT_PORT: Final = 68
PORT_MAX: Final = 65535
# A persona serves a few things; each port is one more rule that every first packet is held against.
INBOUND_PORTS_MAX: Final = 32


def chains(inbound: Collection[int]) -> tuple[Chain, ...]:
    """The filter of a room whose manifest opens these TCP ports. Raises ValueError."""
    ports = sorted(set(inbound))
    if len(ports) > INBOUND_PORTS_MAX:
        raise ValueError(f"{len(ports)} ports are more than {INBOUND_PORTS_MAX}")
    if ports and not 0 < ports[0] <= ports[-1] <= PORT_MAX:
        raise ValueError("a port is between 1 and 65535")
    replies = Ports(IPPROTO_UDP, DHCP_CLIENT_PORT, DHCP_SERVER_PORT)
    return (
        Chain(
            Hook.INPUT,
            (
                Rule((Known(),), accept=True),
                Rule((Through(LOOPBACK, Hook.INPUT),), accept=True),
                Rule((Family(4), replies), accept=True),
                *(Rule((Family(4), Ports(IPPROTO_TCP, port)), accept=True) for port in ports),
            ),
            accept_rest=False,  # INV-NET-4
        ),
        Chain(Hook.FORWARD, (), accept_rest=False),
        Chain(
            Hook.OUTPUT,
            (Rule((Through(LOOPBACK, Hook.OUTPUT, other=True), Family(6)), accept=False),),
            accept_rest=True,
        ),
    )
