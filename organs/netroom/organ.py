"""netroom: keeps the network out of the spine. Every NIC waits in a namespace that nobody is in.

At its start, and whenever a link appears, it moves all links but loopback into the parking namespace, which
bay0 keeps for as long as it lives. What belongs where is decided in `organs/netroom/plan.py`.

Touches: links, by rtnetlink: in its own namespace, which is the spine's, and in the parking through a socket
that it was handed.
Never: takes a link up, opens a socket of another family, enters a namespace (it may not: that takes powers it
does not hold).
Fails: a link that the kernel cannot move stays, down, and `links` says so. Any other refusal ends the
process, for then it cannot keep its promise; too many such ends are a panic.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import trio

from organs import layout
from organs.kernel import netlink
from organs.kernel.netlink import Link
from organs.netroom.plan import Down, Nic, Park, Place, Step, plan, wanted

# The link vanished, or its name was taken, between the look and the step: look again.
CHANGED: Final = frozenset({errno.ENODEV, errno.EEXIST})
# Some links belong to their namespace by nature (the fallback devices of tunnels).
IMMOVABLE: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
# Looks until nothing is left to do. Links that come and go this often at once are a defect of somebody's.
LOOKS_MAX: Final = 64

Handler = Callable[[object, Mapping[str, object]], Awaitable[dict[str, object]]]


class Spine(Protocol):
    """What this organ uses of the runtime."""

    @property
    def fds(self) -> Mapping[str, int]: ...

    async def serve(self, handlers: Mapping[str, Handler]) -> None: ...


class Netroom:
    """The spine's namespace and the parking. The calls do not wait: the kernel answers within them."""

    def __init__(self, here: netlink.Namespace, parking: netlink.Namespace, parking_fd: int) -> None:
        self._here, self._parking, self._parking_fd = here, parking, parking_fd
        self._fixed: set[tuple[int, str]] = set()

    def settle(self) -> None:
        """Bring every link to its spot. Raises OSError."""
        for _ in range(LOOKS_MAX):
            present = self._present()
            steps = plan(wanted(present), present)
            if not steps:
                return
            for step in steps:
                if not self._perform(step):
                    break
        raise RuntimeError("links come faster than they can be parked")

    def _present(self) -> list[Nic]:
        return [
            *(self._nic(Place.SPINE, link) for link in self._here.links()),
            *(self._nic(Place.PARKING, link) for link in self._parking.links()),
        ]

    def _nic(self, place: Place, link: Link) -> Nic:
        fixed = place is Place.SPINE and (link.index, link.name) in self._fixed
        return Nic(place, link.index, link.name, link.up, link.loopback, fixed)

    def _perform(self, step: Step) -> bool:
        """Do one step; whether the plan still holds. Raises OSError."""
        nic = step.nic
        namespace = self._here if nic.place is Place.SPINE else self._parking
        try:
            match step:
                case Down():
                    namespace.take_down(nic.name, nic.index)
                case Park(name=name):
                    namespace.move(nic.name, nic.index, self._parking_fd, name)
                    say(f"{nic.name} is parked{'' if name == nic.name else f' as {name}'}")
        except OSError as error:
            if error.errno in IMMOVABLE and isinstance(step, Park):
                self._fixed.add((nic.index, nic.name))
                say(f"{nic.name} belongs to this namespace by nature: it stays, down")
            elif error.errno not in CHANGED:
                raise
            return False
        return True

    def links(self) -> list[dict[str, object]]:
        """Every link but loopback, as the schema has it. Raises OSError."""
        found = [("parked", link) for link in self._parking.links()]
        found += [("fixed", link) for link in self._here.links()]
        return [
            {"name": link.name, "mac": link.mac.hex(":"), "state": state}
            for state, link in found
            if not link.loopback
        ]

    async def watch(self, changes: socket.socket) -> None:
        """Settle whenever a link changed. Never returns."""
        while True:
            await trio.lowlevel.wait_readable(changes)
            drain(changes)
            self.settle()


def drain(changes: socket.socket) -> None:
    """Forget what is queued: it only says that there is something to look at."""
    while True:
        try:
            changes.recv(netlink.DATAGRAM_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            # More came than the queue holds. The kernel says so once, and we look anyway.
            if error.errno != errno.ENOBUFS:
                raise


def say(sentence: str) -> None:
    """One line in the organ's log."""
    print(f"netroom: {sentence}", file=sys.stderr, flush=True)


async def main(spine: Spine) -> None:
    """Park what is there, then serve, and park what comes."""
    parking = netlink.through(spine.fds[f"netlink:{layout.PARKING}"])
    # Before the first look, so that no link can come between the two.
    changes = netlink.watch()
    netroom = Netroom(netlink.here(), parking, spine.fds[f"netns:{layout.PARKING}"])
    netroom.settle()

    async def links(_call: object, _params: Mapping[str, object]) -> dict[str, object]:
        return {"links": netroom.links()}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(netroom.watch, changes)
        await spine.serve({"links": links})
