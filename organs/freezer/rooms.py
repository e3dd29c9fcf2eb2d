"""The rooms' keeper of things: what a room is made of, what is lent to it, and what must be given back.

It carries out what the machine tells `organs/freezer/organ.py`: make a room, connect it, cut it, forget it.
Each room's descriptors are left with bay0 as well, under `room.NAME.WHAT`, and its facts at its cgroup, so a
freezer that was restarted goes on with the rooms it finds.

Touches: descriptors of rooms; integrity, the builder and netroom, by asking them; the facts at the cgroups.
Never: decides when a room runs; resolves a path inside a room.
Fails: with Failure or OSError, which fails the step; what was half made is let go of.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from bus.envelope import Code, Failure
from bus.hearing import News, Snapshot
from organs import persona
from organs.builder import protocol
from organs.freezer import facts
from organs.freezer.console import Console
from organs.freezer.facts import Facts, FactsRefused
from organs.freezer.focus import Step
from organs.freezer.line import Line
from organs.kernel.cgroups import Subtree

LISTENER, NETNS, ROUTE, CONSOLE = "listener", "netns", "route", "console"
FILTER, DHCP, RESOLV = "filter", "dhcp", "resolv"
# In the order in which netroom wants them.
CONNECT: Final = (NETNS, ROUTE, FILTER, DHCP, RESOLV)
CUT: Final = (NETNS, ROUTE)
LABEL: Final = "room"
# What the gate, the umbilical and a person must be able to tell apart from `connected ADDRESS`.
NO_NETWORK, NOT_CONNECTED, CONNECTED = "none", "cut", "connected"


class Peer(Protocol):
    """One callee on the bus."""

    async def call(
        self, method: str, params: Mapping[str, object], *, fds: Sequence[int] = ()
    ) -> dict[str, object]: ...

    async def call_fds(
        self, method: str, params: Mapping[str, object]
    ) -> tuple[dict[str, object], tuple[int, ...]]: ...

    def events(self) -> AsyncIterator[Snapshot | News]: ...


class Store(Protocol):
    """What bay0 keeps for us: see `organs.runtime.Spine`."""

    @property
    def kept(self) -> dict[str, int]: ...

    async def keep(self, label: str, fd: int) -> None: ...

    async def drop(self, label: str) -> None: ...


@dataclass(slots=True, kw_only=True)
class Room:
    """A room that is complete. `fds` are ours, by what they are."""

    facts: Facts
    cgroup: int
    fds: dict[str, int]
    console: Console | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    # The address it got; None while it is not connected. One that asks and one that reports may meet here.
    address: str | None = None
    network_lock: trio.Lock = field(default_factory=trio.Lock)
    again: trio.CancelScope | None = None

    @property
    def network(self) -> str:
        """What the schema says of the room's network."""
        if self.facts.inbound is None:
            return NO_NETWORK
        return NOT_CONNECTED if self.address is None else f"{CONNECTED} {self.address}".rstrip()


class Rooms:
    """All complete rooms. `verity`: whether this kernel checks each block that is read."""

    def __init__(
        self, groups: Subtree, integrity: Peer, netroom: Peer, line: Line, store: Store, *, verity: bool
    ) -> None:
        self._groups, self._integrity, self._netroom = groups, integrity, netroom
        self._line, self._store, self._verity = line, store, verity
        self._rooms: dict[str, Room] = {}
        # Ranges of ids by room, from before it is made until it is gone: what died of it may linger.
        self._reserved: dict[str, int] = {}
        self._stale: list[str] = []
        self._nursery: trio.Nursery | None = None

    def find(self, name: str) -> Room | None:
        """A complete room, or None."""
        return self._rooms.get(name)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hear the builder and the rooms' consoles. Never returns."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._line.run)
            self._nursery.start_soon(self._hear_netroom)
            for room in self._rooms.values():
                self._listen(room)
            # Before there can be a room that is called the same.
            for label in self._stale:
                await self._store.drop(label)
            task_status.started()
            await trio.sleep_forever()

    def take_over(self, names: Sequence[str]) -> list[str]:
        """The rooms of an earlier incarnation; those of `names` that were never finished, which must end."""
        kept = {label: fd for label, fd in self._store.kept.items() if label.split(".")[0] == LABEL}
        unfinished = []
        for name in names:
            prefix = f"{LABEL}.{name}."
            fds = {label.removeprefix(prefix): fd for label, fd in kept.items() if label.startswith(prefix)}
            try:
                known = facts.decode(self._groups.facts(name))
                if not needed(known) <= fds.keys():
                    raise FactsRefused("its descriptors are not there")
            except (FactsRefused, OSError):
                unfinished.append(name)
                continue
            console = Console(fds[CONSOLE], time.monotonic_ns()) if CONSOLE in fds else None
            room = Room(facts=known, cgroup=self._groups.number(name), fds=fds, console=console)
            self._rooms[name] = room
        # Of rooms that were not finished, or that ended while nobody was there to say so.
        held = {f"{LABEL}.{name}.{what}" for name, room in self._rooms.items() for what in room.fds}
        self._stale = sorted(kept.keys() - held)
        for label in self._stale:
            os.close(kept[label])
        return unfinished

    async def build(self, name: str) -> None:
        """Make the room in its cgroup, which was told to freeze. Raises Failure, OSError."""
        slot = facts.free_slot({*self._reserved.values(), *(r.facts.slot for r in self._rooms.values())})
        if slot is None:
            raise Failure(Code.FULL, "every range of ids is taken")
        self._reserved[name] = slot
        answer, (backing,) = await self._integrity.call_fds("open", {"name": name})
        try:
            opened = _mapping(answer["persona"])
            image = persona.decode(_data(opened["manifest"]))
            device_name, device = await self._device(image, _number(opened["offset"]), backing)
        finally:
            os.close(backing)
        known = facts.of(image, str(opened["keyId"]), slot)
        try:
            self._groups.limit(name, image.limits.memory_bytes, image.limits.pids)
            made, fds = await self._make(name, image, known, device)
        finally:
            os.close(device)
            # If there is a room, its mount holds the device from here on; if there is none, nobody does.
            assert self._nursery is not None
            self._nursery.start_soon(self._line.release, device_name)
        self._rooms[name] = room = Room(
            facts=known,
            cgroup=self._groups.number(name),
            fds=dict(zip(made.holds, fds, strict=True)),
        )
        for what, fd in room.fds.items():
            await self._store.keep(f"{LABEL}.{name}.{what}", fd)
        self._groups.set_facts(name, facts.encode(known))
        if CONSOLE in room.fds:
            room.console = Console(room.fds[CONSOLE], time.monotonic_ns())
            self._listen(room)

    async def _device(self, image: persona.Persona, offset: int, backing: int) -> tuple[str, int]:
        """The room's own block device over the image: its name at the builder, and the device."""
        verity = protocol.Verity(
            root_hash=image.verity.root_hash,
            salt=image.verity.salt,
            blocks=image.verity.blocks,
            hash_offset=image.tree.offset,
        )
        length = image.tree.offset + image.tree.length if self._verity else image.image.length
        answer, fds = await self._line.ask(
            lambda number, own, other: protocol.Device(
                id=number,
                asker=own,
                generation=other,
                offset=offset,
                length=length,
                verity=verity if self._verity else None,
            ),
            (backing,),
        )
        assert isinstance(answer, protocol.Made)
        [device] = fds
        return answer.name, device

    async def _make(
        self, name: str, image: persona.Persona, known: Facts, device: int
    ) -> tuple[protocol.RoomMade, tuple[int, ...]]:
        with self._groups.folder(name) as folder:
            answer, fds = await self._line.ask(
                lambda number, own, other: protocol.Room(
                    id=number,
                    asker=own,
                    generation=other,
                    name=name,
                    hostname=name,
                    uid_base=known.uid_base,
                    init=image.init,
                    writable_bytes=image.limits.writable_bytes,
                    network=image.network.use,
                    console=image.console,
                ),
                (folder, device),
            )
        assert isinstance(answer, protocol.RoomMade)
        return answer, fds

    def _listen(self, room: Room) -> None:
        if room.console is not None and self._nursery is not None:
            self._nursery.start_soon(self._pump, room, room.console)

    async def _pump(self, room: Room, console: Console) -> None:
        try:
            with room.scope:
                await console.pump()
        finally:
            # Not before: a pump that was woken already would read what has the number by then.
            os.close(room.fds[CONSOLE])

    async def perform(self, step: Step, name: str) -> None:
        """REVOKE, CUT, CONNECT or GRANT. Raises Failure, OSError. No device is lent to a room yet."""
        room = self._rooms.get(name)
        if room is None or room.facts.inbound is None:
            return
        if step is Step.CUT:
            # Who connects it again, as netroom was restarted, gives up: a hand-over does not wait for that.
            room.address = None
            if room.again is not None:
                room.again.cancel()
        async with room.network_lock:
            if self._rooms.get(name) is not room:
                raise Failure(Code.STALE, f"{name}: the room has ended")  # and its descriptors are closed
            if step is Step.CUT:
                await self._netroom.call("cut", {"room": name}, fds=[room.fds[what] for what in CUT])
            elif step is Step.CONNECT:
                await self._connect(name, room)

    async def _connect(self, name: str, room: Room) -> None:
        assert room.facts.inbound is not None
        answer = await self._netroom.call(
            "connect",
            {"room": name, "inbound": list(room.facts.inbound)},
            fds=[room.fds[what] for what in CONNECT],
        )
        room.address = str(answer["address"])

    async def _hear_netroom(self) -> None:
        """Know the address of the connected room, and connect it again when netroom was restarted."""
        async for heard in self._netroom.events():
            for news in (heard,) if isinstance(heard, News) else heard.events:
                room = self._rooms.get(str(news.values["room"]))
                if room is not None and room.address is not None:
                    room.address = str(news.values["address"])
            if isinstance(heard, Snapshot):
                there = {str(news.values["room"]) for news in heard.events}
                for name in there - self._rooms.keys():
                    # It ended, and we before we could say so: netroom holds its network up.
                    await self._forget_network(name)
                for name, room in list(self._rooms.items()):
                    if room.address is not None and name not in there:
                        await self._connect_again(name, room)

    async def _connect_again(self, name: str, room: Room) -> None:
        with trio.CancelScope() as room.again:
            async with room.network_lock:
                # It may have been cut, or have ended, while this waited.
                if room.address is not None and self._rooms.get(name) is room:
                    try:
                        await self._connect(name, room)
                    except Failure as failure:
                        say(f"{name} has lost its network: {failure}")
        room.again = None

    def forget(self, name: str) -> None:
        """The room is gone: let go of all that was its own."""
        self._reserved.pop(name, None)
        room = self._rooms.pop(name, None)
        if room is None:
            return
        room.scope.cancel()
        for what, fd in room.fds.items():
            # A console that is read is closed by who reads it.
            if what != CONSOLE or room.console is None:
                os.close(fd)
        assert self._nursery is not None
        self._nursery.start_soon(self._let_go, name, tuple(room.fds), room.facts.inbound is not None)

    async def _let_go(self, name: str, kinds: Sequence[str], networked: bool) -> None:
        for what in kinds:
            # A room that is called the same may be there by now.
            if name not in self._rooms:
                await self._store.drop(f"{LABEL}.{name}.{what}")
        if networked:
            await self._forget_network(name)

    async def _forget_network(self, name: str) -> None:
        try:
            await self._netroom.call("forget", {"room": name})
        except Failure as failure:
            say(f"{name}: netroom did not hear that it is gone: {failure}")

    async def exec(self, name: str, argv: Sequence[str], fds: Sequence[int]) -> int:
        """Start a program in the room, with its three streams and the pipe for its end. The process id."""
        with self._groups.folder(name) as folder:
            answer, _ = await self._line.ask(
                lambda number, own, other: protocol.Exec(
                    id=number,
                    asker=own,
                    generation=other,
                    name=name,
                    argv=tuple(argv),
                    environment=(),
                    terminal=False,
                ),
                (folder, *fds),
            )
        assert isinstance(answer, protocol.Started)
        return answer.pid


def needed(known: Facts) -> frozenset[str]:
    """The descriptors without which a room cannot be gone on with."""
    network = () if known.inbound is None else CONNECT
    return frozenset({LISTENER, NETNS, ROUTE, *network, *((CONSOLE,) if known.console else ())})


def say(sentence: str) -> None:
    """One line in the organ's log."""
    print(f"freezer: {sentence}", file=sys.stderr, flush=True)


def _mapping(value: object) -> Mapping[str, object]:
    assert isinstance(value, Mapping)
    return value


def _data(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
