"""What rooms are made of, on real descriptors and cgroups; integrity, netroom, the builder and bay0 are the
test's own ends.
"""

from __future__ import annotations

import array
import contextlib
import gc
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing

from bus.envelope import Code, Failure
from bus.hearing import News, Snapshot
from organs import persona
from organs.builder import protocol
from organs.builder.protocol import Made, Refusal, Refused, Release, Released, Welcome
from organs.freezer import facts
from organs.freezer.focus import Step
from organs.freezer.line import Line
from organs.freezer.rooms import CONSOLE, LISTENER, NETNS, ROUTE, Rooms
from organs.kernel.cgroups import Subtree
from tests.freezer.test_freezer_organ import root as _root
from tests.personas import DOCUMENT

pytestmark = pytest.mark.container
root = _root
PATIENCE_S = 30
OWN, BUILDER = 7, 3
NETWORKED = (LISTENER, NETNS, ROUTE, CONSOLE, "filter", "dhcp", "resolv")


def open_fds() -> int:
    gc.collect()  # lines of earlier tests
    return len(os.listdir("/proc/self/fd"))


@dataclass
class Store:
    """bay0's end: what it keeps, by label."""

    kept: dict[str, int] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)
    refuses: bool = False

    async def keep(self, label: str, fd: int) -> None:
        """Note it."""
        await trio.lowlevel.checkpoint()
        if self.refuses:
            raise OSError(105, "No buffer space available")
        os.fstat(fd)
        self.labels.add(label)

    async def drop(self, label: str) -> None:
        """Forget it."""
        await trio.lowlevel.checkpoint()
        self.labels.discard(label)


@dataclass
class Neighbour:
    """integrity and netroom: what they are asked, and what they answer when they may."""

    image: Path
    asked: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    may_answer: trio.Event = field(default_factory=trio.Event)
    connected: tuple[str, ...] = ()
    about: list[tuple[str, object]] = field(default_factory=list)
    restarted: trio.Event = field(default_factory=trio.Event)

    async def call(
        self, method: str, params: Mapping[str, object], *, fds: Sequence[int] = ()
    ) -> dict[str, object]:
        """netroom."""
        self.asked.append((method, tuple(os.fstat(fd).st_ino for fd in fds)))
        self.about.append((method, params["room"]))
        await self.may_answer.wait()
        return {"address": "10.0.0.2/24", "room": params["room"]}

    async def call_fds(
        self, _method: str, params: Mapping[str, object]
    ) -> tuple[dict[str, object], tuple[int, ...]]:
        """integrity."""
        await trio.lowlevel.checkpoint()
        manifest = persona.canonical({**DOCUMENT, "name": params["name"]})
        row = {"manifest": manifest, "offset": 0, "keyId": "0" * 16}
        return {"persona": row}, (os.open(self.image, os.O_RDONLY),)

    def events(self) -> AsyncIterator[Snapshot | News]:
        """netroom says what it has connected; after a restart that is nothing."""
        return self._events()

    async def _events(self) -> AsyncIterator[Snapshot | News]:
        told = [News("connected", {"room": room, "address": ""}) for room in self.connected]
        yield Snapshot(1, tuple(told))
        await self.restarted.wait()
        yield Snapshot(2, ())
        await trio.sleep_forever()


@dataclass
class Builder:
    """The builder's end of the line: makes pipes, says no where it is told to."""

    sock: trio.socket.SocketType
    unable: bool = False
    devices: set[str] = field(default_factory=set)
    ids: list[int] = field(default_factory=list)

    async def run(self) -> None:
        """Answer."""
        while True:
            request = protocol.decode_request(await self.sock.recv(protocol.DATAGRAM_BYTES_MAX))
            number = request.id
            fds: list[int] = []
            answer: protocol.Answer
            match request:
                case protocol.Device():
                    answer = Made(
                        id=number, asker=OWN, generation=BUILDER, name=f"room-3-{number}", verified=True
                    )
                    self.devices.add(answer.name)
                    fds = [os.open(os.devnull, os.O_RDONLY)]
                case Release(name=name):
                    self.devices.remove(name)
                    answer = Released(id=number, asker=OWN, generation=BUILDER, name=name)
                case protocol.Room(uid_base=first):
                    self.ids.append(first)
                    if self.unable:
                        answer = Refused(
                            id=number, asker=OWN, generation=BUILDER, why=Refusal.IMAGE, reason="no SquashFS"
                        )
                    else:
                        fds, answer = _made(request)
                case _:
                    answer = Welcome(id=number, asker=OWN, generation=BUILDER, devices=())
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            await self.sock.sendmsg([protocol.encode(answer)], rights)
            for fd in fds:
                os.close(fd)


def _made(request: protocol.Room) -> tuple[list[int], protocol.RoomMade]:
    fds = []
    for what in NETWORKED:
        if what == CONSOLE:
            ours, theirs = os.openpty()
        else:
            ours, theirs = os.pipe()
        os.close(theirs)
        fds.append(ours)
    answer = protocol.RoomMade(
        id=request.id, asker=OWN, generation=BUILDER, name=request.name, pid=4711, holds=NETWORKED
    )
    return fds, answer


@dataclass
class House:
    """The keeper of rooms and everything around it."""

    rooms: Rooms
    groups: Subtree
    store: Store
    netroom: Neighbour
    builder: Builder

    async def until_it_rests(self) -> None:
        """Let everything that was begun come to its end."""
        await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.fixture(name="image")
def _image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    return path


@contextlib.asynccontextmanager
async def housed(
    root: Path, image: Path, store: Store | None = None, *, connected: tuple[str, ...] = ()
) -> AsyncIterator[House]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    builder = Builder(trio.socket.from_stdlib_socket(theirs))
    groups, store = Subtree(str(root)), store or Store()
    netroom = Neighbour(image, connected=connected)
    netroom.may_answer.set()
    keeper = Rooms(groups, Neighbour(image), netroom, Line(ours.fileno(), OWN), store, verity=True)
    keeper.take_over(groups.names())
    with ours, builder.sock, trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(builder.run)
            await nursery.start(keeper.run)
            yield House(keeper, groups, store, netroom, builder)
            nursery.cancel_scope.cancel()
    groups.close()


async def test_a_room_comes_with_everything_and_leaves_nothing(root: Path, image: Path) -> None:
    async with housed(root, image) as house:
        before = open_fds()
        house.groups.make("linda")
        await house.rooms.build("linda")
        await house.until_it_rests()
        assert house.store.labels == {f"room.linda.{what}" for what in NETWORKED}
        assert facts.decode(house.groups.facts("linda")).slot == 0
        assert house.builder.devices == set()
        house.rooms.forget("linda")
        house.groups.remove("linda")
        await house.until_it_rests()
        assert house.store.labels == set()
        assert open_fds() == before


async def test_a_device_of_a_room_that_could_not_be_made_is_let_go_of(root: Path, image: Path) -> None:
    async with housed(root, image) as house:
        house.builder.unable = True
        house.groups.make("linda")
        before = open_fds()
        for _ in range(3):
            with pytest.raises(Failure, match="no SquashFS"):
                await house.rooms.build("linda")
            await house.until_it_rests()
            assert house.builder.devices == set()
            assert open_fds() == before


async def test_a_room_that_bay0_keeps_nothing_of_leaves_nothing(root: Path, image: Path) -> None:
    async with housed(root, image) as house:
        house.groups.make("linda")
        before = open_fds()
        house.store.refuses = True
        with pytest.raises(OSError, match="No buffer space"):
            await house.rooms.build("linda")
        house.rooms.forget("linda")
        await house.until_it_rests()
        assert open_fds() == before


@pytest.mark.proves("INV-ROOM-20")
async def test_ids_are_not_given_again_before_the_room_is_gone(root: Path, image: Path) -> None:
    async with housed(root, image) as house:
        house.builder.unable = True
        for name in ("linda", "courier"):
            house.groups.make(name)
            with pytest.raises(Failure):
                await house.rooms.build(name)
        # What was killed may live on for a while, until the kernel says that it is gone.
        assert len(set(house.builder.ids)) == 2
        for name in ("linda", "courier"):
            house.rooms.forget(name)
        with pytest.raises(Failure):
            await house.rooms.build("linda")
        assert house.builder.ids[2] == house.builder.ids[0]


async def test_what_is_kept_of_rooms_that_are_not_there_is_dropped(root: Path, image: Path) -> None:
    # linda was complete; of courier and amber only some was kept when the freezer was killed.
    whole = [f"room.linda.{what}" for what in NETWORKED]
    left = ["room.courier.listener", "room.amber.listener", "room.amber.console"]
    # bay0 took one too few of mark's.
    left += [f"room.mark.{what}" for what in NETWORKED if what != "dhcp"]
    store = Store(kept={label: os.open(os.devnull, os.O_RDONLY) for label in (*whole, *left)})
    master, slave = os.openpty()
    os.dup2(master, store.kept["room.linda.console"])
    for fd in (master, slave):
        os.close(fd)
    store.labels = set(store.kept)
    for name in ("linda", "courier", "mark"):
        (root / name).mkdir()
    for slot, name in enumerate(("linda", "mark")):
        known = facts.of(persona.decode(persona.canonical(DOCUMENT)), "0" * 16, slot)
        os.setxattr(root / name, "user.spine", facts.encode(known))
    async with housed(root, image, store) as house:
        await house.until_it_rests()
        assert house.rooms.find("linda") is not None
        assert [house.rooms.find(name) for name in ("courier", "mark")] == [None, None]
        assert store.labels == set(whole)
        for label in left:
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(store.kept[label])
    for label in whole:
        if label != "room.linda.console":  # its reader closed it
            os.close(store.kept[label])


async def test_the_network_of_a_room_that_is_not_there_is_taken_down(root: Path, image: Path) -> None:
    async with housed(root, image, connected=("ghost",)) as house:
        await house.until_it_rests()
        assert house.netroom.about == [("forget", "ghost")]


async def test_a_hand_over_does_not_wait_for_who_connects_again(root: Path, image: Path) -> None:
    async with housed(root, image) as house:
        house.groups.make("linda")
        await house.rooms.build("linda")
        await house.rooms.perform(Step.CONNECT, "linda")
        house.netroom.may_answer = trio.Event()
        house.netroom.restarted.set()
        await house.until_it_rests()
        assert [method for method, _ in house.netroom.asked] == ["connect", "connect"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.rooms.perform, Step.CUT, "linda")
            await house.until_it_rests()
            # Nobody has answered the second connect.
            assert [method for method, _ in house.netroom.asked] == ["connect", "connect", "cut"]
            house.netroom.may_answer.set()
        room = house.rooms.find("linda")
        assert room is not None
        assert room.network == "cut"
        house.rooms.forget("linda")
        await house.until_it_rests()
        house.groups.remove("linda")


async def test_a_room_that_ended_while_its_turn_came_is_not_cut(root: Path, image: Path) -> None:
    async with housed(root, image) as house:
        house.groups.make("linda")
        await house.rooms.build("linda")
        house.netroom.may_answer = trio.Event()
        failures: list[Failure] = []

        async def perform(step: Step) -> None:
            try:
                await house.rooms.perform(step, "linda")
            except Failure as failure:
                failures.append(failure)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(perform, Step.CONNECT)
            await house.until_it_rests()
            nursery.start_soon(perform, Step.CUT)
            await house.until_it_rests()
            house.rooms.forget("linda")
            house.netroom.may_answer.set()
        await house.until_it_rests()
        assert [method for method, _ in house.netroom.asked] == ["connect", "forget"]
        assert [failure.code for failure in failures] == [Code.STALE]
        house.groups.remove("linda")
