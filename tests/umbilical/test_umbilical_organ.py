"""The umbilical with real sockets, a real bus, the gate's and the freezer's own code, and real cgroups."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio

from bus import client, server
from bus.envelope import Code, Failure
from bus.wire import Schemas
from organs.freezer.organ import Line
from organs.gate.organ import Gate
from organs.integrity.update import CHUNK_BYTES_MAX, Here, Staged, Updates
from organs.umbilical import link, wishes
from organs.umbilical import organ as umbilical_organ
from organs.umbilical.organ import Umbilical
from tests.bus.wiring import own_schemas
from tests.integrity import disks
from tests.integrity.test_update import new

pytestmark = pytest.mark.container
PATIENCE_S = 60
ROOT_UIDS = range(1)


def unified() -> Path:
    """Where the v2 tree is mounted here."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        return next(Path(line.split()[1]) for line in mounts if line.split()[2] == "cgroup2")


def own_cgroup() -> Path:
    """The cgroup of this process, which plays the room."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        return Path(str(unified()) + next(line[3:].strip() for line in file if line.startswith("0::")))


class Lines:
    """The freezer's side of the bus, under the test's hand: its methods' real schemas, no rooms behind it."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self.events = server.Events(own_schemas().interfaces["freezer"], self.present)
        self.hushed: list[tuple[object, object]] = []
        self.asked: list[tuple[object, object]] = []
        self.rested = trio.Event()
        # Rooms by name: the listener, who may speak on it, the number of its cgroup.
        self.found: dict[str, tuple[socket.socket, range, int]] = {}
        self.taken: list[object] = []
        # The personas with the grant `update`.
        self.may_update: set[str] = set()

    def say(self, room: str, line: Line) -> None:
        """What the freezer tells of a room from now on."""
        self.lines[room] = line
        self.events.emit("line", line=self.told(room))

    def told(self, room: str) -> dict[str, object]:
        """The line as the schema has it."""
        line = self.lines[room]
        return {
            "room": room,
            "epoch": line.epoch,
            "open": line.open,
            "gapNs": line.gap_ns,
            "cgroup": self.found[room][2] if room in self.found else 0,
        }

    def present(self) -> list[tuple[str, dict[str, object]]]:
        """For who begins to hear."""
        return [("line", {"line": self.told(room)}) for room in self.lines]

    async def take(self, params: Mapping[str, object]) -> tuple[dict[str, object], tuple[int, ...]]:
        """The freezer's `takeListener`, without the bus between."""
        self.taken.append(params["room"])
        listener, uids, cgroup = self.found[str(params["room"])]
        if cgroup != params["cgroup"]:
            raise Failure(Code.STALE, "that room is gone")
        answer = {"store": f"{params['room']}@00", "uidBase": uids.start, "uidCount": len(uids)}
        answer["mayUpdate"] = params["room"] in self.may_update
        return answer, (os.dup(listener.fileno()),)

    def forget(self, room: str) -> None:
        """The room is gone."""
        del self.lines[room]
        self.found.pop(room)[0].close()
        self.events.emit("gone", room=room)

    async def _hushed(self, _call: object, params: Mapping[str, object]) -> dict[str, object]:
        self.hushed.append((params["room"], params["epoch"]))
        self.rested.set()
        return {}

    async def _request(self, _call: object, params: Mapping[str, object]) -> dict[str, object]:
        self.asked.append((params["room"], params["persona"]))
        raise Failure(Code.NOT_FOUND, "there is no such room")

    async def _never(self, _call: object, _params: Mapping[str, object]) -> dict[str, object]:
        raise Failure(Code.REFUSED, "not in this test")

    def handlers(self) -> dict[str, server.Handler]:
        return {
            "rooms": self._never,
            "focus": self._never,
            "requestFocus": self._request,
            "hushed": self._hushed,
            **dict.fromkeys(("start", "stop", "exec", "console", "type", "takeListener"), self._never),
        }


class Taken:
    """Integrity's side of the bus: the desk of its own code, with a list in the place of the slots."""

    def __init__(self) -> None:
        self.here = Here(key=disks.PUBLIC, version="1", image="production", slot_bytes=disks.SIZE, not_now="")
        self.written: list[bytes] = []
        self.reboots = 0
        self.updates = Updates(lambda: self.here, self._install, self._reboot)

    async def _install(self, staged: Staged) -> str:
        self.written.append(staged.read(0, staged.length))
        return "b"

    def _reboot(self) -> None:
        self.reboots += 1

    async def _never(self, _call: object, _params: Mapping[str, object]) -> dict[str, object]:
        raise Failure(Code.REFUSED, "not in this test")

    def handlers(self) -> dict[str, server.Handler]:
        methods = own_schemas().interfaces["integrity"].methods
        return {**dict.fromkeys(methods, self._never), **self.updates.handlers()}


@dataclass
class Spine:
    """What a test has in its hands."""

    umbilical: Umbilical
    lines: Lines
    folder: Path
    nursery: trio.Nursery
    schemas: Schemas
    slow_gate: trio.Event
    updates: Taken

    async def room(self, name: str, uids: range = ROOT_UIDS, cgroup: Path | None = None) -> str:
        """A room that listens; the path of its socket."""
        path = str(self.folder / f"{name}.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(16)
        self.lines.found[name] = (listener, uids, (cgroup or own_cgroup()).stat().st_ino)
        self.lines.say(name, Line())
        await until(lambda: name in self.umbilical.rooms)
        return path

    def links(self, room: str) -> umbilical_organ.Room:
        """The counters of a room."""
        return self.umbilical.rooms[room]


class Persona:
    """The far end: a client that speaks the protocol, or does not."""

    def __init__(self, path: str, schemas: Schemas) -> None:
        self._schemas = schemas
        self.sock = trio.socket.socket(socket.AF_UNIX)
        self._path = path
        self._buffer = bytearray()
        self._next = 0

    async def __aenter__(self) -> Persona:
        await self.sock.connect(self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.sock.close()

    def framed(self, verb: str, **fields: object) -> bytes:
        """One request."""
        self._next += 1
        empty = {"id": self._next, "verb": verb, "key": b"", "value": b"", "limit": 0, "persona": ""}
        empty |= {"ticket": 0, "bytes": 0, "offset": 0, "reboot": False}
        return self._schemas.messages["umbilical.Request"].encode({**empty, **fields})

    async def send(self, data: bytes) -> None:
        """All of it."""
        await trio.SocketStream(self.sock).send_all(data)

    async def hear(self) -> dict[str, object]:
        """The next response."""
        with trio.fail_after(PATIENCE_S):
            while True:
                if len(self._buffer) >= 8:
                    count, *_ = struct.unpack_from("<I", self._buffer)
                    table = -(-(8 + 4 * count) // 8) * 8
                    if len(self._buffer) >= table:
                        sizes = struct.unpack_from(f"<{count + 1}I", self._buffer, 4)
                        size = table + 8 * sum(sizes)
                        if len(self._buffer) >= size:
                            message = bytes(self._buffer[:size])
                            del self._buffer[:size]
                            return self._schemas.messages["umbilical.Response"].decode(message)
                data = await self.sock.recv(65536)
                if not data:
                    raise EOFError
                self._buffer += data

    async def ask(self, verb: str, **fields: object) -> dict[str, object]:
        """A request and its response."""
        await self.send(self.framed(verb, **fields))
        return await self.hear()

    async def closed(self) -> bool:
        """Whether the other side closes without a word."""
        with trio.fail_after(PATIENCE_S), contextlib.suppress(ConnectionError):
            return not await self.sock.recv(1)
        return True


@contextlib.asynccontextmanager
async def spine(tmp_path: Path) -> AsyncIterator[Spine]:
    """The umbilical on a bus of real sockets, with the gate's own handlers at the other end."""
    schemas, lines = own_schemas(), Lines()
    bus_folder, store = tmp_path / "bus", tmp_path / "store"
    bus_folder.mkdir()
    store.mkdir()
    gate = Gate(store)
    gate.worker.start()
    go = trio.Event()
    go.set()

    def slow(handler: Callable[..., object]) -> server.Handler:
        async def handle(call: object, params: Mapping[str, object]) -> Mapping[str, object]:
            await held.slow_gate.wait()
            return await handler(call, params)  # type: ignore[misc, no-any-return]

        return handle

    updates = Taken()
    async with trio.open_nursery() as nursery:
        bus = client.Bus(schemas, "umbilical", str(bus_folder))
        with contextlib.ExitStack() as bound:
            served: dict[str, Mapping[str, server.Handler]] = {
                "gate": {name: slow(handler) for name, handler in gate.handlers().items()},
                "freezer": lines.handlers(),
                "integrity": updates.handlers(),
            }
            for name, handlers in served.items():
                listening = bound.enter_context(socket.socket(socket.AF_UNIX))
                listening.bind(str(bus_folder / f"{name}.umbilical"))
                listening.listen(16)
                listeners = {"umbilical": listening.fileno()}
                events = lines.events if name == "freezer" else None
                serve = partial(server.serve, events=events)
                await nursery.start(serve, schemas.interfaces[name], handlers, listeners, 1)
            await nursery.start(bus.run)

            async def call(organ: str, method: str, params: Mapping[str, object]) -> dict[str, object]:
                return await bus.peers[organ].call(method, params)

            umbilical = Umbilical(call, lines.take, schemas.messages, str(unified()))
            nursery.start_soon(umbilical.listen, bus.peers["freezer"].events())
            held = Spine(umbilical, lines, tmp_path, nursery, schemas, go, updates)
            yield held
            nursery.cancel_scope.cancel()
    gate.worker.stop()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what must come."""
    with trio.fail_after(PATIENCE_S):
        while not holds():
            await trio.sleep(0.001)


async def open_room(held: Spine, name: str) -> str:
    """A room that listens and is served."""
    path = await held.room(name)
    held.lines.say(name, Line(open=True))
    await until(lambda: held.links(name).open)
    return path


@pytest.mark.proves("INV-UMB-1")
async def test_what_a_persona_can_do(tmp_path: Path) -> None:
    async with spine(tmp_path) as held:
        linda, courier = await open_room(held, "linda"), await open_room(held, "courier")
        async with Persona(linda, held.schemas) as persona, Persona(courier, held.schemas) as other:
            put = await persona.ask("put", key=b"greeting", value=b"hello")
            assert (put["id"], put["code"], put["seq"]) == (1, "ok", 1)
            got = await persona.ask("get", key=b"greeting")
            assert (got["id"], got["code"], got["value"]) == (2, "ok", b"hello")
            listed = await persona.ask("list", limit=10)
            assert (listed["keys"], listed["more"]) == ([b"greeting"], False)
            status = await persona.ask("status")
            assert status["persona"] == "linda"
            assert isinstance(status["usedBytes"], int)
            # The other room finds nothing, even when its request names the first.
            assert (await other.ask("get", key=b"greeting", persona="linda"))["code"] == "notFound"
            assert (await other.ask("list", limit=10, persona="linda"))["keys"] == []
            assert (await persona.ask("delete", key=b"greeting"))["existed"] is True
            assert (await persona.ask("put", key=b"", value=b""))["code"] == "invalid"
            assert (await persona.ask("focus", persona="nobody"))["code"] == "notFound"
            assert held.lines.asked == [("linda", "nobody")]
        answer = await held.umbilical.links(None, {})
        method = held.schemas.interfaces["umbilical"].methods["links"]
        assert method.decode_results(method.encode_results(answer)) == answer
        assert answer["links"] == [
            {"room": "courier", "connections": 1, "requests": 2, "frozen": 0, "strangers": 0, "refused": 0},
            {"room": "linda", "connections": 1, "requests": 7, "frozen": 0, "strangers": 0, "refused": 0},
        ]


@pytest.mark.proves("INV-UPDATE-6")
async def test_only_a_persona_with_the_grant_brings_an_update(tmp_path: Path) -> None:
    block, whole = new()
    async with spine(tmp_path) as held:
        held.lines.may_update.add("linda")
        linda, courier = await open_room(held, "linda"), await open_room(held, "courier")
        async with Persona(linda, held.schemas) as persona, Persona(courier, held.schemas) as other:
            begun = await persona.ask("beginUpdate", value=block, bytes=len(whole))
            assert begun["code"] == "ok"
            ticket = begun["ticket"]
            piece = {"ticket": ticket, "offset": 0, "value": whole[:CHUNK_BYTES_MAX]}
            for verb, fields in (
                ("beginUpdate", {"value": block, "bytes": len(whole)}),
                ("updateChunk", piece),
                ("commitUpdate", {"ticket": ticket, "reboot": True}),
            ):
                refused = await other.ask(verb, persona="linda", **fields)
                assert (refused["code"], refused["message"]) == (
                    "refused",
                    "this persona has not the grant update",
                )
            for at in range(0, len(whole), CHUNK_BYTES_MAX):
                piece = {"ticket": ticket, "offset": at, "value": whole[at : at + CHUNK_BYTES_MAX]}
                assert (await persona.ask("updateChunk", **piece))["code"] == "ok"
            done = await persona.ask("commitUpdate", ticket=ticket)
            assert (done["code"], done["slot"], done["version"]) == ("ok", "b", "2")
            again = await persona.ask("commitUpdate", ticket=ticket)
            assert again["code"] == "notFound"
            older = await persona.ask("beginUpdate", value=new("0")[0], bytes=len(whole))
            assert older["code"] == "refused"
            assert str(older["message"]).startswith("downgrade: ")
        assert held.updates.written == [whole]


async def test_values_of_a_mebibyte_pipelined(tmp_path: Path) -> None:
    async with spine(tmp_path) as held:
        path = await open_room(held, "linda")
        value = os.urandom(1024 * 1024)
        async with Persona(path, held.schemas) as persona:
            assert (await persona.ask("put", key=b"large", value=value))["code"] == "ok"
            await persona.send(b"".join(persona.framed("get", key=b"large") for _ in range(8)))
            answers = [await persona.hear() for _ in range(8)]
            assert all(answer["value"] == value for answer in answers)
            assert len({answer["id"] for answer in answers}) == 8


@pytest.mark.proves("INV-UMB-5")
async def test_a_stranger_is_closed_unread(tmp_path: Path) -> None:
    async with spine(tmp_path) as held:
        other_cgroup = unified() / f"umbilical-test-{os.getpid()}"
        other_cgroup.mkdir()
        try:
            for name, uids, cgroup in (
                ("wronguid", range(100000, 165536), own_cgroup()),
                ("wronggroup", ROOT_UIDS, other_cgroup),
            ):
                path = await held.room(name, uids, cgroup)
                async with Persona(path, held.schemas) as persona:
                    with contextlib.suppress(ConnectionError, trio.BrokenResourceError):
                        await persona.send(persona.framed("status"))
                    assert await persona.closed()
                assert held.links(name).strangers == 1
                assert held.links(name).requests == 0
        finally:
            other_cgroup.rmdir()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<II", 0, 0x7FFFFFFF),
        struct.pack("<II", 0, 1) + b"\xff" * 8,
        # A verb that does not exist: the enumerant 0x7777 in the first data section.
        struct.pack("<IIIHH", 0, 3, 0, 2, 0) + struct.pack("<QHxxxxxx", 1, 0x7777),
        b"GET / HTTP/1.1\r\n\r\n" * 10,
    ],
    ids=["segments", "size", "pointer", "verb", "http"],
)
async def test_nonsense_closes_its_own_connection_only(tmp_path: Path, data: bytes) -> None:
    async with spine(tmp_path) as held:
        path = await open_room(held, "linda")
        async with Persona(path, held.schemas) as good, Persona(path, held.schemas) as bad:
            assert (await good.ask("status"))["code"] == "ok"
            await bad.send(data)
            assert await bad.closed()
            assert (await good.ask("status"))["code"] == "ok"
        await until(lambda: held.links("linda").refused == 1)


@pytest.mark.proves("INV-UMB-3")
async def test_a_flood_waits_in_its_own_socket(tmp_path: Path) -> None:
    async with spine(tmp_path) as held:
        path, calm = await open_room(held, "linda"), await open_room(held, "courier")
        held.slow_gate = trio.Event()
        async with Persona(path, held.schemas) as persona, Persona(calm, held.schemas) as other:
            flood = b"".join(persona.framed("status") for _ in range(20_000))
            with trio.move_on_after(0.5):
                await persona.send(flood)
            room = held.links("linda")
            (connection,) = room.connections
            assert len(connection.link.under_way) == link.IN_FLIGHT_MAX
            assert room.requests <= link.IN_FLIGHT_MAX + 1
            held.slow_gate.set()
            assert (await other.ask("status"))["code"] == "ok"
        # One more connection than there may be.
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(umbilical_organ.CONNECTIONS_MAX):
                each = await stack.enter_async_context(Persona(calm, held.schemas))
                assert (await each.ask("status"))["code"] == "ok"
            async with Persona(calm, held.schemas) as surplus:
                assert await surplus.closed()


@pytest.mark.proves("INV-UMB-3")
async def test_who_does_not_read_its_answers_is_asked_for_no_more(tmp_path: Path) -> None:
    async with spine(tmp_path) as held:
        path = await open_room(held, "linda")
        async with Persona(path, held.schemas) as persona:
            number = 8_000
            flood = b"".join(persona.framed("status") for _ in range(number))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(persona.send, flood)
                room = held.links("linda")
                await until(lambda: bool(room.connections))
                (connection,) = room.connections
                most, before = 0, -1
                while room.requests != before:
                    before = room.requests
                    for _ in range(200):
                        await trio.sleep(0.001)
                        most = max(most, connection.unread_bytes)
                one = len(held.umbilical.response.encode(wishes.refusal(0, "ok", "")))
                assert most <= umbilical_organ.UNREAD_BYTES_MAX + (link.IN_FLIGHT_MAX + 1) * 2 * one
                assert room.requests < number
                # Nothing is lost by it: every request is answered when the answers are read.
                ids = {(await persona.hear())["id"] for _ in range(number)}
        assert ids == set(range(1, number + 1))


async def test_a_half_sent_message_holds_up_nobody_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(umbilical_organ, "HALF_SENT_S", 0.2)
    async with spine(tmp_path) as held:
        path = await open_room(held, "linda")
        async with Persona(path, held.schemas) as good, Persona(path, held.schemas) as bad:
            await bad.send(bad.framed("status")[:-3])
            assert (await good.ask("status"))["code"] == "ok"
            assert await bad.closed()
            assert (await good.ask("status"))["code"] == "ok"


@pytest.mark.proves("INV-UMB-4")
async def test_a_hushed_room_comes_to_rest_and_wakes_with_the_gap(tmp_path: Path) -> None:
    async with spine(tmp_path) as held:
        path = await open_room(held, "linda")
        async with Persona(path, held.schemas) as persona:
            assert (await persona.ask("status"))["code"] == "ok"
            # A request is under way and does not end in time.
            held.slow_gate = trio.Event()
            await persona.send(persona.framed("put", key=b"k", value=b"v"))
            await until(lambda: held.links("linda").requests == 2)
            held.lines.say("linda", Line(epoch=7))
            with trio.fail_after(PATIENCE_S):
                await held.lines.rested.wait()
            assert held.lines.hushed == [("linda", 7)]
            held.lines.say("linda", Line())
            # What it sends now stays in the socket: nothing is carried out, nothing comes back.
            held.slow_gate.set()
            await persona.send(persona.framed("status"))
            with trio.move_on_after(0.2):
                await persona.hear()
                pytest.fail("a frozen room got a message")
            assert held.links("linda").requests == 2
            held.lines.say("linda", Line(open=True, gap_ns=123_456_789))
            first, second, third = [await persona.hear() for _ in range(3)]
            assert (first["id"], first["code"]) == (2, "frozen")
            assert (second["thawed"], second["gapNs"]) == (True, 123_456_789)
            assert (third["id"], third["code"]) == (3, "ok")
            assert held.links("linda").frozen == 1


async def test_the_codes_are_those_of_the_bus() -> None:
    codes = next(
        field for field in own_schemas().messages["umbilical.Response"].fields if field.name == "code"
    )
    names = {0: "ok"} | {code.value: wishes.code_name(code.name) for code in Code}
    assert codes.type.names == tuple(names[number] for number in range(len(names)))


async def test_rooms_come_go_and_come_again(tmp_path: Path) -> None:
    """Each room is served by its own listener, and by none when it is gone."""
    async with spine(tmp_path) as held:
        first = await open_room(held, "linda")
        async with Persona(first, held.schemas) as persona:
            assert (await persona.ask("put", key=b"k", value=b"v"))["code"] == "ok"
            held.lines.forget("linda")
            await until(lambda: "linda" not in held.umbilical.rooms)
            assert await persona.closed()
        os.unlink(first)
        again = await open_room(held, "linda")
        async with Persona(again, held.schemas) as persona:
            assert (await persona.ask("get", key=b"k"))["value"] == b"v"
        # A room of the same name whose end nobody told: another number is another room.
        os.unlink(again)
        other = unified() / f"umbilical-other-{os.getpid()}"
        other.mkdir()
        try:
            old = held.links("linda")
            await held.room("linda", ROOT_UIDS, other)
            await until(lambda: held.umbilical.rooms.get("linda") not in (None, old))
            assert held.links("linda").cgroup_id == other.stat().st_ino
        finally:
            other.rmdir()
        assert held.lines.taken == ["linda"] * 3
