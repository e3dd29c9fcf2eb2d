"""ZeroMQ sockets under trio: a Listener for each caller of an organ, a Connection for each organ it calls.

The only module that imports zmq. It moves whole frames and knows nothing of what is in them. It never trusts
what libzmq says about a peer: who calls is which listening socket the call came in on, and the kernel checked
the right to connect to that one.

The trap of this file: `zmq.FD` becomes readable once, when something changes, and *every* use of the socket
(send, receive, reading EVENTS) may swallow that. A task that sleeps on the descriptor after another one has
used the socket may therefore sleep for ever with a message waiting. Two rules keep it awake:

- one task, the pump, sleeps on the descriptor, only right after it has read EVENTS, with no await
  between;
- whoever else uses the socket while the pump sleeps reads EVENTS afterwards and wakes the pump if need be.

A socket error that is not one of the expected ones (`EAGAIN`, a peer that is gone) is an `OSError` of ours
and ends the organ.
"""

import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self

import trio
import zmq
from zmq.backend import Socket

from bus.envelope import FRAME_MAX

SEND_QUEUE_FRAMES: Final = 64
"""Frames that libzmq keeps for a peer that is slow to read: three messages of 1 MiB, at most 4 MiB a peer."""
RECEIVE_QUEUE_FRAMES: Final = 64
"""Frames that libzmq accepts ahead of us, per peer. Beyond it the peer's own queue fills, and then the
peer."""
OUT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Bytes that wait here for a peer whose libzmq queue is full, before its further calls wait to be
executed."""
OUT_FRAMES_MAX: Final = 4096
"""Frames that wait for a peer before we stop listening to it. A caller that reads its answers never gets
there: its calls under way have at most 1152 frames of answers, and a refusal is one frame."""
RECORDS_MAX: Final = 256
"""Records of the tap that wait for a listener that is slow; it loses those beyond, and counts them."""
BATCH: Final = 8
"""Frames that are received before other tasks get their turn."""
RECONNECT_MS: Final = 5
"""Pause before connecting again. The default of 100 ms would be most of an organ's time to recover."""
HANDSHAKE_MS: Final = 5000
"""A peer that connects and says nothing is dropped after this time, on the listening side only. A caller
waits without end: its connection lies in the backlog while the callee restarts, and giving up would add
another."""
RETRY_S: Final = 0.01
"""Pause before a full queue is tried again. libzmq tells a ROUTER that *some* peer has room, not which, and
what it would tell may be swallowed by the very attempt to send."""

_EVENT: Final = struct.Struct("=HI")


# Plain numbers, and pyzmq's bare socket class: its enums and wrappers cost more than the calls themselves.
_POLLIN: Final = int(zmq.POLLIN)
_DONTWAIT: Final = int(zmq.DONTWAIT)
_SNDMORE: Final = int(zmq.SNDMORE)
_EVENTS: Final = int(zmq.EVENTS)


class _Process:
    """The libzmq context of this process. It does not survive a fork, so it belongs to a process id."""

    context: zmq.Context[zmq.Socket[bytes]] | None = None
    pid: int = 0


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    if _Process.context is None:
        _Process.context = zmq.Context()
        _Process.pid = os.getpid()
    # A socket of a context made before a fork is silent: sends vanish, receives wait for ever.
    assert os.getpid() == _Process.pid, "the bus was used before this process was forked"
    return _Process.context


def _open(kind: int) -> Socket:
    opened = Socket(_context(), kind)
    opened.set(zmq.LINGER, 0)  # An organ that ends, ends; nobody waits for what it did not get out.
    opened.set(zmq.MAXMSGSIZE, FRAME_MAX)  # libzmq drops the connection of a peer that sends more.
    opened.set(zmq.SNDHWM, SEND_QUEUE_FRAMES)
    opened.set(zmq.RCVHWM, RECEIVE_QUEUE_FRAMES)
    return opened


class _Link:
    """One libzmq socket whose messages one task receives and any task sends."""

    __slots__ = ("_fd", "_sleeping", "_socket")

    def __init__(self, opened: Socket) -> None:
        self._socket = opened
        self._fd = _number(opened.get(zmq.FD))
        self._sleeping = 0
        """Tasks that sleep on the descriptor, or have been woken and have not run yet."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    async def _arrival(self) -> bool:
        """Returns when there may be a message to receive; sends what waits before. Whether others could run.

        For one task at a time. It lets no other task run when there is a message already. Whoever receives
        nothing comes back: what woke us is looked at by receiving, which is cheaper than asking first.
        """
        blocked = not self._flush()
        # Sending may have swallowed the news of a message; reading EVENTS tells it, and swallows the rest.
        if self._events() & _POLLIN:
            return False
        # No await between reading EVENTS and here.  # INV-BUS-6
        self._sleeping += 1
        try:
            if blocked:
                with trio.move_on_after(RETRY_S):
                    await trio.lowlevel.wait_readable(self._fd)
            else:
                await trio.lowlevel.wait_readable(self._fd)
        except trio.ClosedResourceError:
            pass  # `wake` says: look again.
        finally:
            self._sleeping -= 1
        return True

    def _sent(self, at_once: bool) -> None:
        """To be called after sending. What would have woken the receiver may have been swallowed."""
        if self._sleeping and (not at_once or self._events() & _POLLIN):
            self.wake()

    def wake(self) -> None:
        """Let whoever sleeps on the descriptor look again."""
        if self._sleeping:
            # Nothing is closed: this is trio's cheapest way to end somebody's wait for a descriptor.
            trio.lowlevel.notify_closing(self._fd)

    def _events(self) -> int:
        """What libzmq would let us do now. Processes what its own threads have told this socket."""
        events: Any = self._socket.get(_EVENTS)
        return events  # type: ignore[no-any-return]

    def _flush(self) -> bool:
        """Sends what waits, as far as there is room; whether nothing waits any more."""
        raise NotImplementedError

    def _receive(self) -> bytes | None:
        """The message that is next; None when there is none. One that has several frames is forgotten."""
        try:
            frame: Any = self._socket.recv(_DONTWAIT, copy=False)
        except zmq.Again:
            return None
        return self._only(frame)

    def _only(self, frame: Any) -> bytes | None:
        """The bytes of a frame that is the last of its message; if it is not, forgets it and the others."""
        # A frame object knows whether more follow; asking the socket costs as much as receiving.
        if not frame.more:
            return frame.bytes  # type: ignore[no-any-return]
        while frame.more:
            frame = self._socket.recv(_DONTWAIT, copy=False)
        return None


class Listener(_Link):
    """Where one caller comes in: `receive()` gives its frames, `send(route, frames)` answers.

    A route names one connection of that caller, for as long as it lives. A connection that does not read its
    answers has a queue of its own here and is in nobody's way; what it sends meanwhile is read all the same,
    since libzmq lets go of a dead connection only when all that came from it was read.
    """

    __slots__ = ("_emptied", "_out", "_room", "left", "out_bytes")

    def __init__(self, listening_fd: int, emptied: Callable[[], None] | None = None) -> None:
        """Takes over a listening AF_UNIX socket; the descriptor itself stays the caller's to close.

        `emptied` is called when nothing waits any more for some connection that something waited for.
        """
        router = _open(zmq.ROUTER)
        router.set(zmq.ROUTER_MANDATORY, 1)  # A full queue or a gone peer is told, not dropped silently.
        _bind(router, listening_fd)
        super().__init__(router)
        self._emptied = emptied
        self._out: dict[bytes, deque[bytes]] = {}
        self.out_bytes = 0
        """Bytes that wait to be sent to this caller."""
        self._room: trio.Event | None = None
        self.left = BATCH
        """Messages that may still be received before others get their turn; 0 ends ours."""

    async def receive(self) -> tuple[bytes, bytes | None]:
        """The next message: its route and its frame, None for a message that is not exactly one frame.

        For one task at a time. Others get their turn when it waits, or `left` has come to 0.
        """
        while True:
            if await self._arrival():
                self.left = BATCH
            elif self.left <= 0:
                self.left = BATCH
                await trio.lowlevel.checkpoint()
            try:
                route = self._socket.recv(_DONTWAIT)
            except zmq.Again:
                continue
            self.left -= 1
            # ROUTER puts the route in front of each message, and a message arrives whole or not at all, so
            # there is a second frame.
            frame = self._only(self._socket.recv(_DONTWAIT, copy=False))
            if route in self._out and len(self._out[route]) >= OUT_FRAMES_MAX:
                await trio.lowlevel.checkpoint()
                continue  # It never reads; there is no use in answering.
            return route, frame

    def send(self, route: bytes, frames: Iterable[bytes]) -> None:
        """Sends the frames of one message to that connection; forgets them when it is gone. Never blocks."""
        waiting = self._out.get(route)
        for frame in frames:
            if waiting is not None:
                waiting.append(frame)
                self.out_bytes += len(frame)
            elif not self._try_send(route, frame):
                waiting = self._out[route] = deque([frame])
                self.out_bytes += len(frame)
        self._sent(waiting is None)

    def waiting(self, route: bytes) -> int:
        """Frames that wait to be sent to that connection."""
        return len(self._out[route]) if route in self._out else 0

    async def room(self) -> None:
        """Until less than `OUT_BYTES_MAX` wait to be sent to this caller."""
        while self.out_bytes > OUT_BYTES_MAX:
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()

    def _flush(self) -> bool:
        if not self._out:
            return True
        before = len(self._out)
        for route, waiting in list(self._out.items()):
            while waiting and self._try_send(route, waiting[0]):
                self.out_bytes -= len(waiting.popleft())
            if not waiting:
                del self._out[route]
        if self._room is not None and self.out_bytes <= OUT_BYTES_MAX:
            self._room.set()
            self._room = None
        if self._emptied is not None and len(self._out) < before:
            self._emptied()
        return not self._out

    def _try_send(self, route: bytes, frame: bytes) -> bool:
        try:
            self._socket.send(route, _SNDMORE | _DONTWAIT)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return True  # The peer is gone, and nobody waits for the answer.
        # libzmq has taken the address, so it takes the frame: there was room for it.
        self._socket.send(frame, _DONTWAIT)
        return True


class Connection(_Link):
    """The way to one callee. `deliver(frame)` gets each frame, and must not block.

    `linked(True)` is called when a connection is made, `linked(False)` when it is lost. That may happen a
    little after the first frame of a later connection was delivered; who finds a frame odd asks by `hear()`.

    One task at a time receives: `run`, or in its place a task that waits for a frame and has nothing else to
    do (`lead`), which saves a switch of tasks between the frame and who wants it.
    """

    __slots__ = ("_deliver", "_linked", "_monitor", "_out", "_resting", "led")

    def __init__(self, path: str, deliver: Callable[[bytes], None], linked: Callable[[bool], None]) -> None:
        dealer = _open(zmq.DEALER)
        dealer.set(zmq.IMMEDIATE, 1)  # Nothing is queued for a callee that is not there.
        dealer.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        dealer.set(zmq.HANDSHAKE_IVL, 0)
        super().__init__(dealer)
        # The monitor's address is within this process; a descriptor's number makes it unique there.
        address = f"inproc://monitor-{self._fd}"
        dealer.monitor(address, zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._monitor = Socket(_context(), zmq.PAIR)
        self._monitor.set(zmq.LINGER, 0)
        self._monitor.connect(address)
        self._deliver = deliver
        self._linked = linked
        self._out: deque[bytes] = deque()
        self.led = False
        """Whether another task receives in the place of `run`."""
        self._resting: trio.lowlevel.Task | None = None
        """`run`, while it is led."""
        dealer.connect(f"ipc://{path}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.monitor(None, 0)
        self._monitor.close()
        super().__exit__(kind, error, trace)

    async def run(self) -> None:
        """Delivers frames and news of the link until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            while True:
                for _ in range(BATCH):
                    while self.led:
                        await self._rest()
                    await self._arrival()
                    if not self.led:
                        self._next()
                await trio.lowlevel.checkpoint()

    async def lead(self, done: Callable[[], bool]) -> None:
        """Delivers frames in the place of `run`, until it is done. For one task at a time.

        Whoever makes it done from another task calls `wake`. It lets other tasks run before it ends.
        """
        self.led = True
        self.wake()  # If `run` sleeps, it rests from now on.
        others_ran = False
        try:
            while not done():
                for _ in range(BATCH):
                    others_ran |= await self._arrival()
                    if done():
                        return  # Perhaps there is no socket any more.
                    self._next()
                    if done():
                        break
                else:
                    others_ran = True
                    await trio.lowlevel.checkpoint()
            if not others_ran:
                # Not to be cancelled any more: it has what it waited for.
                await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            self.led = False
            if self._resting is not None:
                trio.lowlevel.reschedule(self._resting)
                self._resting = None

    async def _rest(self) -> None:
        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._resting = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._resting = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _next(self) -> None:
        """Delivers a frame, if there is one."""
        # A callee that sends more than one frame at a time is not answered: there is no call in it.
        frame = self._receive()
        if frame is not None:
            self._deliver(frame)

    async def _watch(self) -> None:
        fd = _number(self._monitor.get(zmq.FD))
        while True:
            # Reading until there is nothing left leaves the descriptor armed, whichever task does it.
            self.hear()
            await trio.lowlevel.wait_readable(fd)

    def hear(self) -> None:
        """Tells now what has become of the link.

        libzmq's thread knows of a loss before it connects again, so with this a loss can always be dealt with
        before what a later connection brings.
        """
        while True:
            try:
                event = self._monitor.recv(_DONTWAIT)
                self._monitor.recv(_DONTWAIT)  # The address that it happened to, which is always the same.
            except zmq.Again:
                return
            number, _ = _EVENT.unpack(event)
            up = number == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if not up:
                self._out.clear()  # It was meant for the connection that is gone.
            self._linked(up)

    def send(self, frames: Iterable[bytes]) -> None:
        """Sends the frames of one message, in order, now or when there is room. Never blocks."""
        for frame in frames:
            if self._out or not self._try_send(frame):
                self._out.append(frame)
        self._sent(not self._out)

    def _flush(self) -> bool:
        while self._out and self._try_send(self._out[0]):
            self._out.popleft()
        return not self._out

    def _try_send(self, frame: bytes) -> bool:
        try:
            self._socket.send(frame, _DONTWAIT)
        except zmq.Again:
            return False
        return True


class Publisher(_Link):
    """Where records of the tap leave: to all who are connected, and to nobody when nobody is.

    Never waits: a listener whose queue is full loses records.
    """

    __slots__ = ("wanted",)

    def __init__(self, listening_fd: int) -> None:
        """Takes over a listening AF_UNIX socket; the descriptor itself stays the caller's to close."""
        publisher = _open(zmq.XPUB)
        publisher.set(zmq.SNDHWM, RECORDS_MAX)
        super().__init__(publisher)
        _bind(publisher, listening_fd)
        self.wanted = False
        """Whether anybody listens."""

    def publish(self, record: bytes) -> None:
        """Give it to all who listen."""
        try:
            self._socket.send(record, _DONTWAIT)
        except zmq.Again:
            return
        self._sent(True)

    async def run(self) -> None:
        """Keep `wanted` true while somebody listens, until cancelled."""
        while True:
            await self._arrival()
            # XPUB says \x01 for the first who comes and \x00 for the last who goes.
            news = self._receive()
            if news is not None:
                self.wanted = news[:1] == b"\x01"

    def _flush(self) -> bool:
        return True


class Subscriber(_Link):
    """One listener to the records of one organ."""

    __slots__ = ()

    def __init__(self, path: str, record_max: int) -> None:
        subscriber = _open(zmq.SUB)
        subscriber.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        subscriber.set(zmq.MAXMSGSIZE, record_max)
        subscriber.set(zmq.RCVHWM, RECORDS_MAX)
        subscriber.set(zmq.SUBSCRIBE, b"")
        super().__init__(subscriber)
        subscriber.connect(f"ipc://{path}")

    async def receive(self) -> bytes:
        """The next record."""
        while True:
            await self._arrival()
            record = self._receive()
            if record is not None:
                return record

    def _flush(self) -> bool:
        return True


def _bind(opened: Socket, listening_fd: int) -> None:
    """Let a socket accept on a listening AF_UNIX socket. libzmq neither binds nor unlinks."""
    own = os.dup(listening_fd)
    with socket.socket(fileno=os.dup(listening_fd)) as listening:
        path = listening.getsockname()
    # A connection may be gone between libzmq's poll and its accept; its only thread must not wait there.
    os.set_blocking(own, False)
    opened.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    opened.set(zmq.USE_FD, own)
    opened.bind(f"ipc://{path}")


def _number(option: int | bytes) -> int:
    assert isinstance(option, int)
    return option
