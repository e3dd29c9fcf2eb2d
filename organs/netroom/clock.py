"""The time: asks the servers of a connected room's network for it, and tells what they agree on.

Who is asked, when, and what is worth telling is decided in `proposal.py`; what is on the wire is in
`sntp.py`. The questions go out by the socket that asks for the address: it is there already, and a server
answers to any port. That others can guess the port is made up for by the number in the question, which nobody
can.
Touches: the UDP socket of a connected room.
Never: sets a clock; asks where there is no lease, or whom neither the lease nor its router names.
Fails: OSError when the link is lost.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Final

import trio

from organs.kernel import realtime
from organs.kernel.netlink import Link
from organs.netroom import dhcp, proposal, sntp
from organs.netroom.wire import send

# One turn of the decision asks each server once, and gets as many numbers.
_NONCES: Final = proposal.SERVERS_MAX


class Clock:
    """One for all rooms, so that a server is not asked more often because rooms come and go."""

    def __init__(self, tell: Callable[[int], object]) -> None:
        """`tell` gets a proposal: when the machine booted, in milliseconds since 1970."""
        self._tell = tell
        self._state = proposal.State()
        self._wanted = True

    def stop(self) -> None:
        """Nobody wants to know."""
        self._wanted = False

    def network(self, held: dhcp.Lease) -> None:
        """A room has this lease from now on."""
        self._happen(proposal.Network(held.time_servers, held.router))

    async def ask(self, client: trio.socket.SocketType, link: Link) -> float:
        """Ask who is to be asked now; after how many seconds to come again. Raises OSError."""
        if not self._wanted:
            return math.inf
        nonces = tuple(secrets.token_bytes(sntp.NONCE_BYTES) for _ in range(_NONCES))
        now_us = realtime.since_boot_us()
        for question in self._happen(proposal.Elapsed(now_us, nonces)):
            await send(client, link, sntp.encode(question.nonce), question.server, sntp.SERVER_PORT)
        return (self._state.due_us - now_us) / 1_000_000

    def hear(self, server: IPv4Address, datagram: bytes) -> bool:
        """A datagram came from the port of a time server; whether it answers a question."""
        now_us = realtime.since_boot_us()
        before = self._state
        with suppress(sntp.Garbled):
            self._happen(proposal.Heard(server, sntp.decode(datagram), now_us))
        return self._state != before

    def _happen(self, event: proposal.Event) -> list[proposal.Ask]:
        self._state, effects = proposal.decide(self._state, event)
        for effect in effects:
            if isinstance(effect, proposal.Propose):
                self._tell(effect.booted_ms)
        return [effect for effect in effects if isinstance(effect, proposal.Ask)]
