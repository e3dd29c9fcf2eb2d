"""netroom: keeps the network out of the spine, and gives it to the room that may have it.

At its start, and whenever a link appears, it moves all links but loopback into the parking namespace, which
bay0 keeps for as long as it lives. A room that is connected gets a filter, then a link of its own above a
parked one, then an address by DHCP. What belongs where is decided in `plan.py`, what passes in `closed.py`,
what is said to a DHCP server in `lease.py`. The network is also asked what time it is (`clock.py`), and bay0
is told what it says.

Touches: links, addresses, routes, filters: in its own namespace, which is the spine's, in the parking and in
rooms, through sockets that it was handed; the UDP socket and the resolv.conf of a connected room.
Never: takes a link up in the spine's namespace, opens a socket of another family, enters a namespace (it may
not: that takes powers it does not hold), keeps a lease on disk, sets the clock.
Fails: a link that the kernel cannot move stays, down, and `links` says so. What the kernel refuses in a room
is that room's: the call is refused, or tried again later. Any other refusal ends the process, for then it
cannot keep its promise; too many such ends are a panic. A new incarnation begins with every link down:
whoever is to have the network is connected anew.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final, Protocol

import trio

from bus.envelope import Code, Failure
from bus.server import Events
from bus.wire import Interface, Schemas
from organs import layout
from organs.kernel import datagrams, netlink, network, nftables
from organs.kernel.netlink import Link
from organs.netroom import closed, dhcp, lease, sntp
from organs.netroom.clock import Clock
from organs.netroom.plan import Down, Nic, Park, Place, Step, Up, carrier, plan, wanted
from organs.netroom.wire import send

# The link vanished, or its name was taken, between the look and the step: look again.
CHANGED: Final = frozenset({errno.ENODEV, errno.EEXIST})
# Some links belong to their namespace by nature (the fallback devices of tunnels).
IMMOVABLE: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
# Looks until nothing is left to do. Links that come and go this often at once are a defect of somebody's.
LOOKS_MAX: Final = 64
# Hardware has no kind. The ends of a veth pair are the network card of a container.
CARRYING_KINDS: Final = frozenset({"", "veth"})

# How a room's own link is called in it.
LINK: Final = "eth0"
ROOM_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,14}")
# There are sixteen slots for rooms; one is connected at a time, others are remembered by their addresses.
ROOMS_MAX: Final = 16
# How long a connect holds up its caller, which is holding up a person. A server on the link answers within
# milliseconds; the first question is repeated twice in this time.
ANSWER_S: Final = 4.0
# After the kernel refused something in a room: long enough not to spin.
AGAIN_S: Final = 2.0
# How often a connected room's link is looked at: a card may be pulled out, and its links go with it.
LOOK_S: Final = 5.0
# What waits in a socket before the first question: no more than its queue holds.
QUEUED_MAX: Final = 4096
# After an answer that was not for us, or that said nothing new. A flood of them costs this organ nothing.
PACE_S: Final = 0.01
CONNECT_FDS, CUT_FDS = 5, 2
# What bay0 answers where the clock is another system's.
NO_CLOCK: Final = "missing: clock"


class Call(Protocol):
    """What a handler uses of a call: the descriptors beside it, which are closed when it has returned."""

    @property
    def fds(self) -> tuple[int, ...]: ...


Handler = Callable[[Call, Mapping[str, object]], Awaitable[dict[str, object]]]
Request = Callable[[Mapping[str, object]], Awaitable[dict[str, object]]]


class Spine(Protocol):
    """What this organ uses of the runtime."""

    @property
    def fds(self) -> Mapping[str, int]: ...

    @property
    def schemas(self) -> Schemas: ...

    async def serve(self, handlers: Mapping[str, Handler], events: Events) -> None: ...

    async def request(self, message: Mapping[str, object]) -> dict[str, object]: ...


class Netroom:
    """The spine's namespace and the parking. The calls do not wait: the kernel answers within them."""

    def __init__(self, here: netlink.Namespace, parking: netlink.Namespace, parking_fd: int) -> None:
        self._here, self._parking, self._parking_fd = here, parking, parking_fd
        self._fixed: set[tuple[int, str]] = set()
        self.connected: set[str] = set()
        """The rooms that have the network. While there is one, a parked link is up."""
        self.changed = trio.Event()
        """Set, and replaced, when links may have come or gone."""

    def settle(self) -> Nic | None:
        """Bring every link to its spot; the one that carries the rooms. Raises OSError."""
        for _ in range(LOOKS_MAX):
            present = self._present()
            steps = plan(wanted(present, connected=bool(self.connected)), present)
            if not steps:
                return carrier(present)
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
        carries = link.ethernet and link.kind in CARRYING_KINDS
        return Nic(place, link.index, link.name, link.up, link.loopback, fixed, carries)

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
                case Up():
                    # Nobody is there to speak: no address, none that it gives itself, and so no answers.
                    namespace.without_own_address(nic.name, nic.index)
                    namespace.bring_up(nic.name, nic.index)
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
        found = [("carrying" if link.up else "parked", link) for link in self._parking.links()]
        found += [("fixed", link) for link in self._here.links()]
        return [
            {"name": link.name, "mac": link.mac.hex(":"), "state": state}
            for state, link in found
            if not link.loopback
        ]

    def give_link(self, room: str, namespace: int, inside: netlink.Namespace) -> Link | None:
        """The room's own link, down and without an address; None where nothing can carry one.

        Raises OSError: of the spine's own links, or of the room's (RoomRefused).
        """
        below = self.settle()
        with in_room(room):
            down(inside)
            for found in macvlans(inside):
                # What carried it is not what carries rooms now, or an incarnation ended while it was made.
                if below is None or found.below != below.index or found.name != LINK:
                    inside.remove_link(found.name, found.index)
            if below is None:
                return None
            if not macvlans(inside):
                mac = own_mac(room, self._mac(below))
                self._parking.add_macvlan(below.name, below.index, namespace, mac)
                for made in macvlans(inside):
                    inside.rename(made.name, made.index, LINK)
            link = next((link for link in macvlans(inside) if link.name == LINK), None)
            if link is None:
                raise OSError(errno.ENODEV, "its link is gone again")
            inside.without_own_address(LINK, link.index)
            return link

    def _mac(self, nic: Nic) -> bytes:
        return next((link.mac for link in self._parking.links() if link.index == nic.index), b"")

    async def watch(self, changes: socket.socket) -> None:
        """Settle whenever a link changed. Never returns."""
        while True:
            await trio.lowlevel.wait_readable(changes)
            drain(changes)
            self.settle()
            self.changed.set()
            self.changed = trio.Event()


class RoomRefused(Exception):
    """The kernel refused something inside a room."""


@contextmanager
def in_room(name: str) -> Iterator[None]:
    """What the kernel refuses within is the room's, and not the end of this process."""
    try:
        yield
    except (OSError, netlink.Garbled) as error:
        raise RoomRefused(f"{name}: {error}") from error


def own_mac(room: str, below: bytes) -> bytes:
    """A room's hardware address: the same for a boot, and of nobody who could be named.

    Who is on the wire sees neither the address of the card nor this boot's number, so it learns no more from
    it than that it is the same room.
    """
    digest = hashlib.sha256(b"\0".join((network.boot_id(), below, room.encode()))).digest()
    # Locally administered, one station.
    return bytes([digest[0] & 0xFC | 0x02]) + digest[1 : dhcp.MAC_BYTES]


@dataclass(slots=True)
class Room:
    """A connected room: what was handed over, what it has, and the task that keeps it."""

    name: str
    namespace: int
    inside: netlink.Namespace
    client: socket.socket
    resolv: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    held: dhcp.Lease | None = None
    settled: trio.Event = field(default_factory=trio.Event)
    """It has an address, or there is nothing to wait for."""
    ended: trio.Event = field(default_factory=trio.Event)

    def close(self) -> None:
        """Let go of all that was handed over."""
        self.inside.close()
        self.client.close()
        for fd in (self.namespace, self.resolv):
            os.close(fd)


class Rooms:
    """Which rooms have the network, and the address each had last."""

    def __init__(
        self, netroom: Netroom, nursery: trio.Nursery, interface: Interface, request: Request
    ) -> None:
        self._netroom, self._nursery, self._request = netroom, nursery, request
        # The task is not the room's: what was heard is true also when the room is cut meanwhile.
        self._clock = Clock(lambda booted_ms: nursery.start_soon(self._propose, booted_ms))
        self.events = Events(interface, self.present)
        self._rooms: dict[str, Room] = {}
        # One room begins or ends at a time: who ends one knows that none begins meanwhile.
        self._changing = trio.Lock()
        # By room; in memory only, so that nothing of a network is found on a disk.
        self._remembered: dict[str, IPv4Address] = {}

    def present(self) -> list[tuple[str, dict[str, object]]]:
        """The connected rooms, for who begins to hear."""
        return [("connected", told(room)) for room in self._rooms.values()]

    async def connect(self, call: Call, params: Mapping[str, object]) -> dict[str, object]:
        """The handler. Raises Failure, OSError."""
        name, inbound = room_name(params), params["inbound"]
        if len(call.fds) != CONNECT_FDS or not isinstance(inbound, list):
            raise Failure(Code.INVALID, f"netroom: unable to connect {name}: five descriptors are needed")
        try:
            chains = closed.chains(inbound)
        except ValueError as error:
            raise Failure(Code.INVALID, f"netroom: unable to connect {name}: {error}") from error
        async with self._changing:
            await self._end(name)
            if not self._remembers(name):
                raise Failure(Code.FULL, f"netroom: unable to connect {name}: {ROOMS_MAX} rooms are known")
            try:
                room = self._accept(name, call.fds, chains)
            except RoomRefused as error:
                raise Failure(Code.REFUSED, f"netroom: unable to connect {error}") from error
            self._rooms[name] = room
            self._netroom.connected.add(name)
            self.events.emit("connected", **told(room))
            self._nursery.start_soon(self._keep, room)
        with trio.move_on_after(ANSWER_S):
            await room.settled.wait()
        if room.held is None:
            return {"address": "", "router": ""}
        router = room.held.router
        return {"address": str(room.held.interface), "router": "" if router is None else str(router)}

    def _remembers(self, name: str) -> bool:
        """Make room for one that is to be connected; False when as many as may be are connected.

        Who remembers the addresses of rooms that are gone has not been told of their end.
        """
        while len(self._remembered.keys() | self._netroom.connected | {name}) > ROOMS_MAX:
            gone = next(
                (old for old in self._remembered if old not in {*self._netroom.connected, name}), None
            )
            if gone is None:
                return False
            del self._remembered[gone]
        return True

    def _accept(self, name: str, fds: tuple[int, ...], chains: tuple[nftables.Chain, ...]) -> Room:
        """Load the filter, and only then take the rest, as copies. Raises RoomRefused."""
        namespace, route, filtering, client, resolv = fds
        with in_room(name), ExitStack() as undo:
            nftables.load(os.dup(filtering), closed.TABLE, chains)  # INV-NET-4
            inside = netlink.through(os.dup(route))
            undo.callback(inside.close)
            asking = datagrams.adopted(os.dup(client))
            undo.callback(asking.close)
            kept = [os.dup(fd) for fd in (namespace, resolv)]
            undo.pop_all()
            return Room(name, kept[0], inside, asking, kept[1])

    async def cut(self, call: Call, params: Mapping[str, object]) -> dict[str, object]:
        """The handler. Raises Failure, OSError."""
        name = room_name(params)
        if len(call.fds) != CUT_FDS:
            raise Failure(Code.INVALID, f"netroom: unable to cut {name}: two descriptors are needed")
        async with self._changing:
            # First, so that nothing of ours comes after what follows.
            await self._end(name)
            try:
                with in_room(name), closing(netlink.through(os.dup(call.fds[1]))) as inside:
                    down(inside)  # INV-NET-5
            except RoomRefused as error:
                raise Failure(Code.REFUSED, f"netroom: unable to cut {error}") from error
            finally:
                # Also where the kernel refused: what carried it goes down.
                self._netroom.settle()
        return {}

    async def forget(self, _call: Call, params: Mapping[str, object]) -> dict[str, object]:
        """The handler. Raises Failure, OSError."""
        name = room_name(params)
        async with self._changing:
            await self._end(name)
        self._remembered.pop(name, None)
        self._netroom.settle()
        return {}

    async def _end(self, name: str) -> None:
        """Nothing is done for this room any more."""
        self._netroom.connected.discard(name)
        room = self._rooms.pop(name, None)
        if room is not None:
            room.scope.cancel()
            # It ends at its next wait, which is where it is.
            with trio.CancelScope(shield=True):
                await room.ended.wait()

    async def _keep(self, room: Room) -> None:
        """The life of a connection: a link, then a lease, and both again whenever the link is lost."""
        said = ""
        try:
            with room.scope:
                while True:
                    try:
                        await self._serve(room)
                    except RoomRefused as error:
                        if str(error) != said:
                            said = str(error)
                            say(f"unable to connect {said}; trying again")
                        room.settled.set()
                        await trio.sleep(AGAIN_S)
        finally:
            room.held = None
            room.settled.set()
            room.close()
            room.ended.set()

    async def _serve(self, room: Room) -> None:
        """As `_keep`, until the link is lost or something new may carry it. Raises RoomRefused, OSError."""
        changed = self._netroom.changed
        link = self._netroom.give_link(room.name, room.namespace, room.inside)
        if link is None:
            room.settled.set()
            await changed.wait()
            return
        with in_room(room.name):
            room.inside.bring_up(LINK, link.index)
            await self._lease(room, link)

    async def _lease(self, room: Room, link: Link) -> None:
        """Get an address and keep it. Raises OSError when the link is lost."""
        forget_queued(room.client)
        with trio.socket.from_stdlib_socket(room.client.dup()) as client:
            state, effects = lease.decide(
                lease.State(), lease.Start(fresh(), self._remembered.get(room.name))
            )
            due = trio.current_time()
            while True:
                for effect in effects:
                    match effect:
                        case lease.Wait(seconds):
                            due = trio.current_time() + seconds
                        case lease.Send(question, to):
                            asked = dhcp.encode(question, link.mac)
                            await send(client, link, asked, to, closed.DHCP_SERVER_PORT)
                        case lease.Configure(held):
                            self._configure(room, link, held)
                        case lease.Deconfigure():
                            self._deconfigure(room, link)
                event = await self._next(room, client, link, due)
                before = state
                state, effects = lease.decide(state, event)
                if isinstance(event, lease.Heard) and state == before:
                    await trio.sleep(PACE_S)

    async def _next(self, room: Room, client: trio.socket.SocketType, link: Link, due: float) -> lease.Event:
        """An answer, or the end of the wait. Raises OSError when the link is lost."""
        while (now := trio.current_time()) < due:
            ask_s = LOOK_S if room.held is None else await self._clock.ask(client, link)
            with trio.move_on_at(min(due, now + LOOK_S, now + ask_s)):
                return lease.Heard(await hear(client, link, self._clock), fresh())
            if not any(other.index == link.index for other in room.inside.links()):
                raise OSError(errno.ENODEV, "the link is gone")
        return lease.Elapsed(fresh())

    def _configure(self, room: Room, link: Link, held: dhcp.Lease) -> None:
        room.inside.set_address(LINK, link.index, held.interface)
        if held.router is not None:
            room.inside.set_default_route(LINK, link.index, held.router, held.interface.ip)
        if room.held != held:
            write_whole(room.resolv, dhcp.resolv_conf(held))
        room.held = held
        self._clock.network(held)
        self._remembered[room.name] = held.interface.ip
        room.settled.set()
        self.events.emit("connected", **told(room))

    async def _propose(self, booted_ms: int) -> None:
        """Tell bay0 what the network says. Raises TimeoutError when PID 1 does not answer."""
        answer = await self._request({"ask": "time", "bootedMs": booted_ms})
        if answer.get("error") == NO_CLOCK:
            say("there is no clock to set here: no server is asked any more")
            self._clock.stop()

    def _deconfigure(self, room: Room, link: Link) -> None:
        room.inside.drop_addresses(LINK, link.index)
        if room.held is not None:
            write_whole(room.resolv, b"")
            room.held = None
            self.events.emit("connected", **told(room))


def told(room: Room) -> dict[str, object]:
    """What the event `connected` says of a room."""
    return {"room": room.name, "address": "" if room.held is None else str(room.held.interface)}


def room_name(params: Mapping[str, object]) -> str:
    """The room that a call is about. Raises Failure."""
    name = params["room"]
    if not isinstance(name, str) or not ROOM_NAME.fullmatch(name):
        raise Failure(Code.INVALID, "netroom: a room's name is a letter and up to 14 letters and digits")
    return name


def macvlans(inside: netlink.Namespace) -> list[Link]:
    """The links in a room that netroom made. Raises OSError."""
    return [link for link in inside.links() if link.kind == "macvlan"]


def down(inside: netlink.Namespace) -> None:
    """A room's link is down and has no address; its routes go with that. Raises OSError."""
    for link in inside.links():
        if not link.loopback:
            inside.take_down(link.name, link.index)
            inside.drop_addresses(link.name, link.index)


def fresh() -> int:
    """A number that nobody on the wire can guess."""
    return secrets.randbits(32)


def write_whole(fd: int, text: bytes) -> None:
    """A short file is this text; who reads it meanwhile never finds it empty. Raises OSError."""
    os.lseek(fd, 0, os.SEEK_SET)
    if os.write(fd, text) != len(text):
        raise OSError(errno.EIO, "a short file was not written whole")
    os.ftruncate(fd, len(text))


def forget_queued(client: socket.socket) -> None:
    """What came before the question is no answer to it. Raises OSError."""
    with suppress(BlockingIOError):
        for _ in range(QUEUED_MAX):
            client.recv(1)


async def hear(client: trio.socket.SocketType, link: Link, clock: Clock) -> dhcp.Reply:
    """The next answer of a DHCP server to this link's hardware address. Raises OSError.

    What time servers answer meanwhile is the clock's.
    """
    while True:
        datagram, ancillary, _, sender = await client.recvmsg(
            dhcp.REPLY_BYTES_MAX + 1, datagrams.ANCILLARY_BYTES
        )
        if isinstance(sender, tuple) and datagrams.came_in(ancillary) == link.index:
            host, port = sender[:2]
            if port == closed.DHCP_SERVER_PORT:
                with suppress(dhcp.Garbled):
                    reply = dhcp.decode(datagram)
                    if reply.mac == link.mac:
                        return reply
            elif port == sntp.SERVER_PORT and clock.hear(IPv4Address(host), datagram):
                # As many as were asked, and each is the worse the longer it lies.
                continue
        await trio.sleep(PACE_S)


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
    # Before the first look, so that no link can come between the two.
    changes = netlink.watch()
    await live(spine, netlink.here(), changes)


async def live(spine: Spine, here: netlink.Namespace, changes: socket.socket) -> None:
    """The same, for the namespace that these two were opened in."""
    parking = netlink.through(spine.fds[f"netlink:{layout.PARKING}"])
    netroom = Netroom(here, parking, spine.fds[f"netns:{layout.PARKING}"])
    netroom.settle()

    async def links(_call: object, _params: Mapping[str, object]) -> dict[str, object]:
        return {"links": netroom.links()}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(netroom.watch, changes)
        rooms = Rooms(netroom, nursery, spine.schemas.interfaces["netroom"], spine.request)
        handlers = {"links": links, "connect": rooms.connect, "cut": rooms.cut, "forget": rooms.forget}
        await spine.serve(handlers, rooms.events)
