"""builder: makes what takes root to make, for the freezer and nobody else.

Root without the bus: one line, to the freezer, and no call that could make another socket. Each request is
checked again here (`organs/builder/verdict.py`). What it makes lives as long as somebody holds it: a builder
that is killed lets go of everything, and nothing is left to be found.
Touches: loop devices, the device mapper, a private memory filesystem for its device nodes.
Never: opens a path that it was sent, writes a device, answers for another incarnation.
Fails: a request that the kernel refuses is answered with the reason. An answer that the freezer does not take
is dropped, with what came with it. Anything else ends the process; bay0 starts the next.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from organs import layout
from organs.builder import entry, protocol, rooms, threshold, verdict
from organs.builder.errands import Errands, refused
from organs.builder.protocol import (
    DATAGRAM_BYTES_MAX,
    DESCRIPTORS_MAX,
    Answer,
    Device,
    Exec,
    Hello,
    Made,
    Refusal,
    Refused,
    Release,
    Released,
    Request,
    Room,
    Unreadable,
    Welcome,
)
from organs.builder.verdict import PREFIX
from organs.kernel import blocks, cgroups, devicemapper, loops, rights, rootfs
from organs.kernel.devicemapper import DeviceMapper
from organs.kernel.nodes import Missing, Nodes
from organs.pulse import until_beat_ms

PAIR: Final = "pair:freezer"
# Where its device nodes are for the moment they exist: hidden by a filesystem of its own.
NODES: Final = "/tmp"


class Place(Protocol):
    """What this program uses of the runtime."""

    @property
    def generation(self) -> int: ...

    @property
    def fds(self) -> Mapping[str, int]: ...

    @property
    def heartbeat_ms(self) -> int: ...

    def ready(self) -> None: ...

    def beat(self) -> None: ...


class Builder:
    """One incarnation and what it holds."""

    def __init__(self, generation: int, nodes: Nodes, homes: str) -> None:
        """Also finishes what an incarnation began that was killed in the middle.

        `homes` is the directory whose directories are the cgroups of rooms.
        """
        self.errands = Errands(generation)
        threshold.filters()
        self._homes = homes
        self._generation = generation
        self._nodes = nodes
        self._devices: dict[str, int] = {}
        self._made = 0
        try:
            self._mapper: DeviceMapper | None = DeviceMapper(nodes)
        except Missing:
            self._mapper = None
        else:
            self._sweep(self._mapper)

    def _sweep(self, mapper: DeviceMapper) -> None:
        """Devices of earlier incarnations go as soon as nobody holds them; most were told so already."""
        for name in mapper.names():
            if name.startswith(PREFIX):
                mapper.forget(name)

    def welcome(self, *, id: int = 0, asker: int = 0) -> Welcome:
        """Who we are and what we hold."""
        return Welcome(id=id, asker=asker, generation=self._generation, devices=tuple(self._devices))

    def answer(self, request: Request, fds: Sequence[int]) -> tuple[Answer, list[int]] | None:
        """Do what is asked; the answer and the descriptors that go with it, which stay ours.

        None: an errand has been sent off, and the answer will come from it.
        """
        try:
            match request:
                case Hello(id=number, asker=asker):
                    return self.welcome(id=number, asker=asker), []
                case Device():
                    return self._device(request, fds)
                case Release():
                    return self._release(request), []
                case Room():
                    return self._room(request, fds)
                case Exec():
                    return self._exec(request, fds)
        except Missing as missing:
            return self._refuse(request, Refusal.MISSING, str(missing)), []
        except OSError as error:
            return self._refuse(request, Refusal.KERNEL, str(error)), []

    def _device(self, request: Device, fds: Sequence[int]) -> tuple[Answer, list[int]]:
        backing = describe(fds[0]) if len(fds) == 1 else None
        if stale := verdict.addressed(request.generation, self._generation):  # INV-BUILD-2
            return self._refuse(request, Refusal.STALE, stale), []
        if wrong := verdict.region(request.offset, request.length, backing):
            return self._refuse(request, Refusal.INVALID, wrong), []
        checked = request.verity
        if checked is not None and (
            wrong := verdict.tree(
                checked.root_hash, checked.salt, checked.blocks, checked.hash_offset, request.length
            )
        ):
            return self._refuse(request, Refusal.INVALID, wrong), []
        if full := verdict.room_for(self._devices):
            return self._refuse(request, Refusal.LIMIT, full), []
        self._made += 1
        name = f"{PREFIX}{self._generation}-{self._made}"
        self._devices[name] = fd = self._make(name, fds[0], request)
        head = {"id": request.id, "asker": request.asker, "generation": self._generation}
        return Made(**head, name=name, verified=checked is not None), [fd]

    def _make(self, name: str, backing: int, request: Device) -> int:
        """The device. Raises Missing, OSError; nothing is left then."""
        checked = request.verity
        if checked is not None and self._mapper is None:
            raise Missing("device-mapper")
        loop = loops.attach(self._nodes, backing, request.offset, request.length, name)
        if checked is None or self._mapper is None:
            return loop
        table = devicemapper.Verity(
            root_hash=checked.root_hash,
            salt=checked.salt,
            blocks=checked.blocks,
            hash_start=checked.hash_offset // verdict.BLOCK,
        )
        try:
            return self._mapper.make_verity(name, loop, table)
        finally:
            os.close(loop)

    def _room(self, request: Room, fds: Sequence[int]) -> tuple[Answer, list[int]] | None:
        if stale := verdict.addressed(request.generation, self._generation):
            return self._refuse(request, Refusal.STALE, stale), []
        home = describe_home(fds[0], self._homes, request.name) if fds else None
        device = describe_source(fds[1]) if len(fds) == 2 else None
        wrong = (
            verdict.room(
                request.name, request.hostname, request.uid_base, request.init, request.writable_bytes
            )
            or verdict.birthplace(home)
            or verdict.source(device)
        )
        if wrong:
            return self._refuse(request, Refusal.INVALID, wrong), []
        if full := verdict.errands(self.errands.under_way):
            return self._refuse(request, Refusal.LIMIT, full), []
        self.errands.start(
            request,
            tuple(fds),
            lambda line, given: rooms.make(request, self._generation, line, *given),
            status=None,
            sibling=True,
        )
        return None

    def _exec(self, request: Exec, fds: Sequence[int]) -> tuple[Answer, list[int]] | None:
        if wrong := self._unmeant(request, fds, 5) or verdict.command(request.argv, request.environment):
            return wrong if isinstance(wrong, tuple) else (self._refuse(request, Refusal.INVALID, wrong), [])
        if full := verdict.errands(self.errands.under_way) or verdict.commands(self.errands.running):
            return self._refuse(request, Refusal.LIMIT, full), []
        cgroup, *standard, status = fds
        self.errands.start(
            request,
            (cgroup, *standard),
            lambda line, given: entry.start(request, self._generation, line, given[0], given[1:]),
            status=os.dup(status),
            sibling=False,
        )
        return None

    def _unmeant(self, request: Exec, fds: Sequence[int], number: int) -> tuple[Answer, list[int]] | None:
        """The refusal of a request that is not for now, or not for a room's cgroup."""
        if stale := verdict.addressed(request.generation, self._generation):
            return self._refuse(request, Refusal.STALE, stale), []
        if len(fds) != number or not verdict.named(request.name):
            wrong: str | None = f"there must be a room's name and {number} descriptors"
        else:
            wrong = verdict.home(describe_home(fds[0], self._homes, request.name))
        return (self._refuse(request, Refusal.INVALID, wrong), []) if wrong else None

    def _release(self, request: Release) -> Answer:
        if stale := verdict.addressed(request.generation, self._generation):
            return self._refuse(request, Refusal.STALE, stale)
        fd = self._devices.pop(request.name, None)
        if fd is None:
            return self._refuse(request, Refusal.UNKNOWN, "there is no such device")
        os.close(fd)
        head = {"id": request.id, "asker": request.asker, "generation": self._generation}
        return Released(**head, name=request.name)

    def _refuse(self, request: Request, why: Refusal, reason: str) -> Refused:
        return refused(request, self._generation, why, reason)


def describe(fd: int) -> verdict.Backing:
    """What a descriptor is. Raises OSError."""
    mode = os.fstat(fd).st_mode
    suitable = stat.S_ISREG(mode) or stat.S_ISBLK(mode)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    readable = flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR) and not flags & os.O_PATH
    # Where the descriptor stands belongs to whoever gave it; nobody reads from there.
    size = os.lseek(fd, 0, os.SEEK_END) if suitable and readable else 0
    return verdict.Backing(readable=readable, suitable=suitable, size=size)


def describe_home(fd: int, homes: str, name: str) -> verdict.Home:
    """What a descriptor of a cgroup is. Raises OSError."""
    if rootfs.kind_of(fd) != rootfs.CGROUP2_MAGIC:
        return verdict.Home(cgroup=False, named=False, asked=False, populated=False)
    standing = cgroups.standing(fd)
    return verdict.Home(
        cgroup=True,
        named=verdict.named(name) and cgroups.is_child(fd, homes, name),
        asked=standing.asked,
        populated=standing.populated,
    )


def describe_source(fd: int) -> verdict.Source:
    """What a descriptor of a device is. Raises OSError."""
    found = describe(fd)
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return verdict.Source(block=False, written=False, size=0, name=None)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    device = os.fstat(fd).st_rdev
    return verdict.Source(
        block=True,
        written=flags & os.O_ACCMODE != os.O_RDONLY or not blocks.read_only(device),
        size=found.size,
        name=blocks.made_as(fd, device),
    )


def say(sentence: str) -> None:
    """One line in the log."""
    print(f"builder: {sentence}", file=sys.stderr, flush=True)


def send(line: socket.socket, answer: Answer, fds: list[int]) -> None:
    """One answer. A freezer that does not read loses it; what it holds of ours it learns by a hello."""
    try:
        socket.send_fds(line, [protocol.encode(answer)], fds, socket.MSG_DONTWAIT)
    except (BlockingIOError, ConnectionError) as error:
        say(f"an answer is not taken: {error}")


class LineGone(OSError):
    """The line has no other end: nobody will ask any more."""


def hear(line: socket.socket, builder: Builder) -> bool:
    """One datagram of the line, and the answer to it, if it is due now. False when there was nothing."""
    try:
        datagram, fds, flags = rights.receive(line, DATAGRAM_BYTES_MAX, DESCRIPTORS_MAX, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    try:
        if not datagram:
            return False
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise Unreadable("more than one message may hold")
        request = protocol.decode_request(datagram)
        due = builder.answer(request, fds)
    except Unreadable as error:
        say(f"not a request: {error}")
        return True
    finally:
        for fd in fds:
            os.close(fd)
    if due is not None:
        send(line, *due)
    return True


def settle(line: socket.socket, builder: Builder, ready: int) -> None:
    """An errand or a command has ended: what it brought is answered, and is not ours any more."""
    if (due := builder.errands.settle(ready)) is not None:
        answer, fds = due
        send(line, answer, fds)
        for fd in fds:
            os.close(fd)


def main(place: Place, homes: str = cgroups.path(layout.ROOMS)) -> None:
    """Say hello, then answer. Never returns."""
    line = socket.socket(fileno=place.fds[PAIR])
    builder = Builder(place.generation, Nodes(NODES), homes)
    send(line, builder.welcome(), [])
    place.ready()
    while True:
        place.beat()
        readable = select.poll()
        for fd, events in {line.fileno(): select.POLLIN, **builder.errands.watched()}.items():
            readable.register(fd, events)
        found = readable.poll(until_beat_ms(time.monotonic_ns(), place.heartbeat_ms))
        # First what closes nothing: a number that was closed may be another descriptor's a moment later.
        for fd, event in [each for each in found if not builder.errands.hung_up(each[0])]:
            if fd != line.fileno():
                settle(line, builder, fd)
            elif not hear(line, builder) and event & select.POLLHUP:
                raise LineGone(errno.EPIPE, "the line to the freezer has no other end")
        builder.errands.overdue()
