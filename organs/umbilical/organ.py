"""umbilical: listens in the rooms and carries what personas wish to the gate, the freezer and integrity.

A persona is known by the listening socket its connection came in by, and by what the kernel says of who
connected: a user id of the room's range, a process of the room's cgroup. Nothing that it sends says who it
is. What may be done on a connection is decided in `link.py`, what is asked for in `wishes.py`.

Touches: the listeners it was handed, one for each room; the bus.
Never: reads more of a room than the room's share, sends to a room that is frozen or about to be.
Fails: a persona that breaks the protocol loses its own connection. While the freezer is away nothing changes;
its next incarnation begins with silence.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, assert_never

import trio

from bus.envelope import Failure, PeerError
from bus.hearing import News, Snapshot
from bus.wire import Message
from organs.kernel import peers
from organs.umbilical import link, wishes
from organs.umbilical.link import Link, Phase

# Connections of one room at once: a shell's client, a daemon or two. The next one is closed.
CONNECTIONS_MAX: Final = 4
READ_BYTES: Final = 64 * 1024
# Half-sent messages of all connections of a room together: as many as can be whole at once.
ROOM_BYTES_MAX: Final = 4 * link.MESSAGE_BYTES_MAX
# Large answers of a room under way: each may be a mebibyte, and rooms that do not read keep theirs.
LARGE_MAX: Final = 2
# A request is taken, and a large answer asked for, when no more than this waits to be read by the persona.
UNREAD_BYTES_MAX: Final = 64 * 1024
# A message that has begun must be whole by then; the time that a room stands still does not count.
HALF_SENT_S: Final = 10.0
# How long requests under way may take to end before the room is frozen. Less than the freezer waits.
GRACE_S: Final = 0.05
# After the freezer did not give a listener: long enough not to spin, short against its restart.
TAKE_PAUSE_S: Final = 0.05

Handler = Callable[[object, Mapping[str, object]], Awaitable[dict[str, object]]]


class Call(Protocol):
    """A call on the bus. Raises Failure."""

    async def __call__(self, organ: str, method: str, params: Mapping[str, object]) -> dict[str, object]: ...


class Take(Protocol):
    """`freezer.takeListener`: the results and the listener, which is ours then. Raises Failure."""

    async def __call__(self, params: Mapping[str, object]) -> tuple[dict[str, object], tuple[int, ...]]: ...


@dataclass(frozen=True, slots=True)
class Line:
    """What the freezer says of one room: see `Line` of its schema."""

    open: bool = False
    epoch: int = 0
    gap_ns: int = 0
    cgroup: int = 0


NO_LINE: Final = Line()


@dataclass(slots=True, kw_only=True)
class Room:
    """One room, its connections and its counters."""

    name: str
    store: str
    uids: range
    cgroup_id: int
    cgroup_root: str
    may_update: bool = False
    open: bool = False
    connections: set[Connection] = field(default_factory=set)
    large: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(LARGE_MAX))
    requests: int = 0
    frozen: int = 0
    strangers: int = 0
    refused: int = 0

    def is_stranger(self, peer: peers.Peer) -> bool:
        """Whether the kernel does not say that this peer is of the room."""
        try:
            _, uid, _ = peers.credentials(peer)
            return uid not in self.uids or peers.cgroup_id(peer, self.cgroup_root) != self.cgroup_id
        except OSError:
            return True

    @property
    def half_sent_bytes(self) -> int:
        """What is kept of messages that are not whole."""
        return sum(len(connection.splitter.buffered) for connection in self.connections)


class Connection:
    """One connection: three tasks around the machine of `link.py`, which alone says what may be done."""

    def __init__(self, organ: Umbilical, room: Room, sock: trio.socket.SocketType) -> None:
        self._organ, self._room, self._sock = organ, room, sock
        self.splitter = link.Splitter()
        self.link = Link(phase=Phase.SERVING if room.open else Phase.SILENT)
        self._whole_by = float("inf")
        self._token = 0
        self._requests: dict[int, Mapping[str, object]] = {}
        self._answers: dict[int, dict[str, object]] = {}
        self._working: dict[int, trio.CancelScope] = {}
        self._unread = bytearray()
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Until the persona closes it, or breaks the protocol."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._write)
            try:
                reason = await self._read()
            except OSError:
                reason = None  # the other end broke
            if reason is not None:
                self._room.refused += 1
                say(f"{self._room.name}: closed: {reason}")
            self.happen(link.Gone())
            self._nursery.cancel_scope.cancel()

    def happen(self, event: link.Event) -> None:
        """An event through the machine, and what it asks for."""
        self.link, effects = link.decide(self.link, event)
        if isinstance(event, link.Wake):
            self._whole_by = trio.current_time() + HALF_SENT_S
        for effect in effects:
            match effect:
                case link.Ask(token):
                    assert self._nursery is not None
                    self._nursery.start_soon(self._carry_out, token)
                case link.Answer(token):
                    self._send(self._answers.pop(token))
                    del self._requests[token]
                case link.Frozen(token):
                    self._room.frozen += 1
                    asked = self._requests[token]
                    self._send(wishes.refusal(number(asked, "id"), "frozen", "the room was frozen meanwhile"))
                    self._forget(token)
                case link.Forget(token):
                    self._forget(token)
                case link.Tell(gap_ns):
                    self._send(wishes.thawed(gap_ns))
                case link.Rested():
                    pass  # `_changed` wakes who waits for it
                case _:
                    assert_never(effect)
        self._changed.set()
        self._changed = trio.Event()

    def _forget(self, token: int) -> None:
        del self._requests[token]
        if (scope := self._working.pop(token, None)) is not None:
            scope.cancel()

    async def come_to_rest(self) -> None:
        """Until nothing is under way that a hushed room waits for."""
        await self._until(lambda: self.link.phase is not Phase.RESTING)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()

    # From the persona

    async def _read(self) -> str | None:
        """Take messages while they are wanted. Why the connection must be closed, or None when it ended."""
        while True:
            if not self._may_read():
                await self._until(self._may_read)
                # What is half sent waited for us meanwhile.
                self._whole_by = trio.current_time() + HALF_SENT_S
            data = await self._receive()
            if data is None:
                if self.link.phase is Phase.SERVING and trio.current_time() >= self._whole_by:
                    return "a message was begun and not ended"
                continue
            if not data:
                return None
            begun = self.splitter.half_sent
            messages = self.splitter.feed(data)
            if messages or not begun:
                self._whole_by = trio.current_time() + HALF_SENT_S
            for message in messages:
                await self._until(self._wants_more)
                try:
                    request = self._organ.request.decode(message)
                except PeerError as error:
                    return str(error)
                self._room.requests += 1
                self._token += 1
                self._requests[self._token] = request
                self.happen(link.Arrived(self._token))
            if self.splitter.bad is not None:
                return self.splitter.bad.value

    def _wants_more(self) -> bool:
        # A persona that asks and does not read its answers is not asked for more.
        return self.link.wants_more and len(self._unread) <= UNREAD_BYTES_MAX  # INV-UMB-3

    def _may_read(self) -> bool:
        return self._wants_more() and self._room.half_sent_bytes < ROOM_BYTES_MAX

    @property
    def unread_bytes(self) -> int:
        """What waits for the persona to read it."""
        return len(self._unread)

    async def _receive(self) -> bytes | None:
        """The next bytes; b"" at the end; None when what was begun took too long."""
        data: bytes | None = None
        with trio.move_on_at(self._whole_by if self.splitter.half_sent else float("inf")):
            data = bytes(await self._sock.recv(READ_BYTES))
        return data

    # To the organs

    async def _carry_out(self, token: int) -> None:
        request = self._requests.get(token)
        if request is None:
            return  # frozen before it began
        with trio.CancelScope() as scope:
            self._working[token] = scope
            self._answers[token] = await self._ask(request)
        if not scope.cancelled_caught and self._working.pop(token, None) is not None:
            self.happen(link.Ended(token))
        self._answers.pop(token, None)

    async def _ask(self, request: Mapping[str, object]) -> dict[str, object]:
        if request["verb"] not in wishes.LARGE:
            return await self._call(request)
        async with self._room.large:
            await self._until(lambda: len(self._unread) <= UNREAD_BYTES_MAX)
            return await self._call(request)

    async def _call(self, request: Mapping[str, object]) -> dict[str, object]:
        if not wishes.granted(request, may_update=self._room.may_update):
            return wishes.refusal(number(request, "id"), "refused", "this persona has not the grant update")
        wish = wishes.wish(self._room.name, self._room.store, request)
        try:
            results = await self._organ.call(wish.organ, wish.method, wish.params)
        except Failure as failure:
            return wishes.refusal(number(request, "id"), wishes.code_name(failure.code.name), failure.message)
        return wishes.answer(self._room.name, request, results)

    # To the persona

    def _send(self, response: Mapping[str, object]) -> None:
        self._unread += self._organ.response.encode(response)

    async def _write(self) -> None:
        """Send what waits, but not to a room that is silent: what is half sent then goes on when it runs."""
        try:
            while True:
                await self._until(lambda: bool(self._unread) and self.link.phase is not Phase.SILENT)
                await trio.lowlevel.wait_writable(self._sock)
                if self.link.phase is not Phase.SILENT:
                    sent = self._organ.send_now(self._sock, self._unread)
                    del self._unread[:sent]
                    if len(self._unread) <= UNREAD_BYTES_MAX:
                        self._changed.set()
                        self._changed = trio.Event()
        except OSError:
            assert self._nursery is not None
            self._nursery.cancel_scope.cancel()


@dataclass(slots=True)
class _Serving:
    """The task that serves the room of one cgroup."""

    cgroup: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)


class Umbilical:
    """All rooms that have a listener."""

    def __init__(
        self, call: Call, take: Take, messages: Mapping[str, Message], cgroup_root: str = peers.CGROUPS
    ) -> None:
        self.call, self._take, self._cgroup_root = call, take, cgroup_root
        self.request, self.response = messages["umbilical.Request"], messages["umbilical.Response"]
        self.rooms: dict[str, Room] = {}
        self._lines: dict[str, Line] = {}
        self._serving: dict[str, _Serving] = {}

    @staticmethod
    def send_now(sock: trio.socket.SocketType, data: bytearray) -> int:
        """Send what fits without waiting; how much that was. Raises OSError."""
        try:
            return os.write(sock.fileno(), bytes(data[:READ_BYTES]))
        except BlockingIOError:
            return 0

    async def _serve_room(
        self,
        listener: socket.socket,
        name: str,
        store: str,
        uids: range,
        cgroup_id: int,
        *,
        may_update: bool,
    ) -> None:
        """Listen for one room until cancelled. Only one listener for each name."""
        assert name not in self.rooms
        room = Room(
            name=name,
            store=store,
            uids=uids,
            cgroup_id=cgroup_id,
            cgroup_root=self._cgroup_root,
            may_update=may_update,
        )
        self.rooms[name] = room
        room.open = self._lines.get(name, NO_LINE).open
        listening = trio.socket.from_stdlib_socket(listener)
        try:
            with listening:
                async with trio.open_nursery() as nursery:
                    while True:
                        sock, _ = await listening.accept()
                        nursery.start_soon(self._connection, room, sock)
        finally:
            del self.rooms[name]

    async def _connection(self, room: Room, sock: trio.socket.SocketType) -> None:
        with sock:
            if room.is_stranger(sock):  # INV-UMB-5
                room.strangers += 1
                return
            if len(room.connections) >= CONNECTIONS_MAX:
                room.refused += 1
                return
            connection = Connection(self, room, sock)
            room.connections.add(connection)
            try:
                await connection.run()
            finally:
                room.connections.discard(connection)

    # What the freezer says

    async def listen(self, hearing: AsyncIterator[Snapshot | News]) -> None:
        """Follow the freezer's lines. While the freezer is away nothing changes. Never returns."""
        async with trio.open_nursery() as nursery:
            async for heard in hearing:
                lines = dict(self._lines) if isinstance(heard, News) else {}
                for news in (heard,) if isinstance(heard, News) else heard.events:
                    _apply(lines, news)
                self._follow(lines, nursery)

    def _follow(self, lines: dict[str, Line], nursery: trio.Nursery) -> None:
        before, self._lines = self._lines, lines
        for name in before.keys() | self._lines.keys():
            line = self._lines.get(name, NO_LINE)
            if line == before.get(name):
                continue
            room = self.rooms.get(name)
            if room is not None and room.cgroup_id == line.cgroup:
                room.open = line.open
                for connection in room.connections:
                    connection.happen(link.Wake(line.gap_ns) if line.open else link.Hush())
            if line.epoch:
                nursery.start_soon(self._hush, name, line.epoch)
            self._adopt(name, line.cgroup, nursery)

    def _adopt(self, name: str, cgroup: int, nursery: trio.Nursery) -> None:
        """Serve the room of this number under the name, and no other one; 0: none."""
        serving = self._serving.get(name)
        if serving is not None and serving.cgroup == cgroup:
            return
        if serving is not None:
            serving.scope.cancel()
            del self._serving[name]
        if cgroup:
            self._serving[name] = now = _Serving(cgroup)
            nursery.start_soon(self._serve, name, now, serving)

    async def _serve(self, name: str, serving: _Serving, before: _Serving | None) -> None:
        """Take the room's listener over from the freezer and serve it, for as long as there is the room."""
        try:
            with serving.scope:
                if before is not None:
                    # Also when this one is over already: who comes after waits for both.
                    with trio.CancelScope(shield=True):
                        await before.over.wait()
                while True:
                    try:
                        results, fds = await self._take({"room": name, "cgroup": serving.cgroup})
                    except Failure as failure:
                        say(f"{name}: no listener yet: {failure}")
                        await trio.sleep(TAKE_PAUSE_S)
                    else:
                        break
                first = number(results, "uidBase")
                await self._serve_room(
                    socket.socket(fileno=fds[0]),
                    name,
                    str(results["store"]),
                    range(first, first + number(results, "uidCount")),
                    serving.cgroup,
                    may_update=bool(results["mayUpdate"]),
                )
        finally:
            serving.over.set()

    async def _hush(self, name: str, epoch: int) -> None:
        """Come to rest with a room, then say so."""
        room = self.rooms.get(name)
        connections = list(room.connections) if room is not None else []
        with trio.move_on_after(GRACE_S):
            for connection in connections:
                await connection.come_to_rest()
        for connection in connections:
            connection.happen(link.GraceOver())
        try:
            await self.call("freezer", "hushed", {"room": name, "epoch": epoch})
        except Failure as failure:
            # The freezer goes on after its own deadline.
            say(f"{name}: the freezer did not hear that it is at rest: {failure}")

    async def links(self, _call: object, _params: Mapping[str, object]) -> dict[str, object]:
        """The traffic of each room."""
        return {
            "links": [
                {
                    "room": room.name,
                    "connections": len(room.connections),
                    "requests": room.requests,
                    "frozen": room.frozen,
                    "strangers": room.strangers,
                    "refused": room.refused,
                }
                for _, room in sorted(self.rooms.items())
            ]
        }


def _apply(lines: dict[str, Line], news: News) -> None:
    """What one event of the freezer changes."""
    if news.event == "gone":
        lines.pop(str(news.values["room"]), None)
        return
    line = news.values["line"]
    assert isinstance(line, Mapping)
    lines[str(line["room"])] = Line(
        open=bool(line["open"]),
        epoch=number(line, "epoch"),
        gap_ns=number(line, "gapNs"),
        cgroup=number(line, "cgroup"),
    )


def number(values: Mapping[str, object], name: str) -> int:
    """A field the schema declares as an integer."""
    value = values[name]
    assert isinstance(value, int), name
    return value


def say(sentence: str) -> None:
    """One line in the organ's log."""
    print(f"umbilical: {sentence}", file=sys.stderr, flush=True)


class Peer(Protocol):
    """One callee on the bus."""

    async def call(self, method: str, values: Mapping[str, object]) -> dict[str, object]: ...

    async def call_fds(
        self, method: str, values: Mapping[str, object]
    ) -> tuple[dict[str, object], tuple[int, ...]]: ...

    def events(self) -> AsyncIterator[Snapshot | News]: ...


class Bus(Protocol):
    """What this organ may call."""

    @property
    def peers(self) -> Mapping[str, Peer]: ...


class Schemas(Protocol):
    """The compiled schemas."""

    @property
    def messages(self) -> Mapping[str, Message]: ...


class Spine(Protocol):
    """What this organ uses of the runtime."""

    @property
    def bus(self) -> Bus: ...

    @property
    def schemas(self) -> Schemas: ...

    async def serve(self, handlers: Mapping[str, Handler]) -> None: ...


async def main(spine: Spine) -> None:
    """Follow the freezer, serve each room that it knows."""

    async def call(organ: str, method: str, params: Mapping[str, object]) -> dict[str, object]:
        return await spine.bus.peers[organ].call(method, params)

    async def take(params: Mapping[str, object]) -> tuple[dict[str, object], tuple[int, ...]]:
        return await spine.bus.peers["freezer"].call_fds("takeListener", params)

    umbilical = Umbilical(call, take, spine.schemas.messages)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(umbilical.listen, spine.bus.peers["freezer"].events())
        await spine.serve({"links": umbilical.links})
