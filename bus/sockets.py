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
from typing import Final, Self

import trio
import zmq

from bus.envelope import FRAME_MAX

SEND_QUEUE_FRAMES: Final = 64
"""Frames that libzmq keeps for a peer that is slow to read: three messages of 1 MiB, at most 4 MiB a peer."""
RECEIVE_QUEUE_FRAMES: Final = 64
"""Frames that libzmq accepts ahead of us, per peer. Beyond it the peer's own queue fills, and then the
peer."""
OUT_FRAMES_MAX: Final = 256
"""Frames that wait here because libzmq's queue is full, before we stop reading from that peer. What is
already under way may still add to them: at most the calls in flight times the frames of an answer."""
BATCH: Final = 8
"""Frames that one socket delivers before the others get their turn. Small, since each frame may be a call,
and a caller that floods must not make the calls of others wait for a long batch of its own."""
RECONNECT_MS: Final = 5
"""Pause before connecting again. The default of 100 ms would be most of an organ's time to recover."""
HANDSHAKE_MS: Final = 5000
"""A peer that connects and says nothing is dropped after this time, on the listening side only. A caller
waits without end: its connection lies in the backlog while the callee restarts, and giving up would add
another."""
RETRY_S: Final = 0.01
"""See `_Pump.run`: pause before a full queue is tried again when libzmq cannot tell us that it has room."""

_EVENT: Final = struct.Struct("=HI")


class _Process:
    """The libzmq context of this process. A context does not survive a fork, so it belongs to a process
    id."""

    context: zmq.Context[zmq.Socket[bytes]] | None = None
    pid: int = 0


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    if _Process.context is None:
        _Process.context = zmq.Context()
        _Process.pid = os.getpid()
    # A socket of a context made before a fork is silent: sends vanish, receives wait for ever.
    assert os.getpid() == _Process.pid, "the bus was used before this process was forked"
    return _Process.context


def _open(kind: int) -> zmq.Socket[bytes]:
    opened = _context().socket(kind)
    opened.setsockopt(zmq.LINGER, 0)  # An organ that ends, ends; nobody waits for what it did not get out.
    opened.setsockopt(zmq.MAXMSGSIZE, FRAME_MAX)  # libzmq drops the connection of a peer that sends more.
    opened.setsockopt(zmq.SNDHWM, SEND_QUEUE_FRAMES)
    opened.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE_FRAMES)
    return opened


class _Pump:
    """Receives for, and sends from, one libzmq socket. Subclasses say what one message looks like."""

    __slots__ = ("_fd", "_out", "_sleep", "_socket")

    def __init__(self, opened: zmq.Socket[bytes]) -> None:
        self._socket = opened
        self._fd = int(opened.getsockopt(zmq.FD))
        self._out: deque[tuple[bytes, ...]] = deque()
        self._sleep: trio.CancelScope | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    async def run(self) -> None:
        """Delivers what arrives and sends what waits, until cancelled."""
        while True:
            for _ in range(BATCH):
                if len(self._out) >= OUT_FRAMES_MAX or not self._receive():
                    break
            self._flush()
            events = self._events()
            reading = len(self._out) < OUT_FRAMES_MAX
            if events & zmq.POLLIN and reading:
                await trio.lowlevel.checkpoint()
                continue
            # A ROUTER says POLLOUT when *some* peer has room, which need not be the one we wait for; and
            # that one's "there is room" may be what reading EVENTS has just swallowed. Then, and only then,
            # we look again after a pause. In every other state what we wait for will make the descriptor
            # readable.
            blocked = bool(self._out) and events & zmq.POLLOUT
            self._sleep = trio.CancelScope(
                deadline=trio.current_time() + RETRY_S if blocked else float("inf")
            )
            try:
                with self._sleep:
                    await trio.lowlevel.wait_readable(self._fd)
            finally:
                self._sleep = None

    def _send(self, message: tuple[bytes, ...]) -> None:
        """Sends now, or when there is room; never blocks, keeps the order."""
        if self._out or not self._try_send(message):
            self._out.append(message)
        if self._sleep is not None:
            # The pump sleeps, and what would have woken it may be what we have just swallowed.
            events = self._events()
            if events & zmq.POLLIN or (self._out and events & zmq.POLLOUT):
                self._sleep.cancel()

    def _events(self) -> int:
        """What libzmq would let us do now. Processes what its own threads have told this socket."""
        return int(self._socket.getsockopt(zmq.EVENTS))

    def _flush(self) -> None:
        while self._out and self._try_send(self._out[0]):
            self._out.popleft()

    def _try_send(self, message: tuple[bytes, ...]) -> bool:
        raise NotImplementedError

    def _receive(self) -> bool:
        raise NotImplementedError

    def _rest(self) -> None:
        """Reads and forgets the rest of a message of too many parts."""
        while self._socket.getsockopt(zmq.RCVMORE):
            self._socket.recv(zmq.DONTWAIT)


class Listener(_Pump):
    """Where one caller comes in. `deliver(route, frame)` gets each frame; `send(route, frames)` answers.

    A route names one connection of that caller, for as long as it lives. A message that is not exactly one
    frame is refused by `refuse(route)`. Both are called from the pump and must not block.
    """

    __slots__ = ("_deliver", "_refuse")

    def __init__(
        self, listening_fd: int, deliver: Callable[[bytes, bytes], None], refuse: Callable[[bytes], None]
    ) -> None:
        """Takes over a listening AF_UNIX socket; the descriptor itself stays the caller's to close."""
        own = os.dup(listening_fd)
        with socket.socket(fileno=os.dup(listening_fd)) as listening:
            path = listening.getsockname()
        # A connection may be gone between libzmq's poll and its accept; its only thread must not wait there.
        os.set_blocking(own, False)
        router = _open(zmq.ROUTER)
        router.setsockopt(
            zmq.ROUTER_MANDATORY, 1
        )  # A full queue or a gone peer is told, not dropped silently.
        router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        router.setsockopt(zmq.USE_FD, own)  # libzmq neither binds nor unlinks; it closes the copy.
        router.bind(f"ipc://{path}")
        super().__init__(router)
        self._deliver = deliver
        self._refuse = refuse

    def send(self, route: bytes, frames: Iterable[bytes]) -> None:
        """Sends the frames of one message to that connection; forgets them when it is gone."""
        for frame in frames:
            self._send((route, frame))

    def _try_send(self, message: tuple[bytes, ...]) -> bool:
        route, frame = message
        try:
            self._socket.send(route, zmq.SNDMORE | zmq.DONTWAIT)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return True  # The peer is gone, and nobody waits for the answer.
        # libzmq has taken the address, so it takes the frame: there was room for it.
        self._socket.send(frame, zmq.DONTWAIT)
        return True

    def _receive(self) -> bool:
        take = self._socket
        try:
            route = take.recv(zmq.DONTWAIT)
        except zmq.Again:
            return False
        # ROUTER puts the route in front of each message, and a message is received whole or not at all, so
        # there is a second frame.
        frame = take.recv(zmq.DONTWAIT)
        if take.getsockopt(zmq.RCVMORE):
            self._rest()
            self._refuse(route)
        else:
            self._deliver(route, frame)
        return True


class Connection(_Pump):
    """The way to one callee. `run` also tells of the link: `linked(True)` when a connection is made, and
    `linked(False)` when it is lost. What was lost with it is told before anything of a later connection is
    delivered.
    """

    __slots__ = ("_deliver", "_linked", "_monitor")

    def __init__(self, path: str, deliver: Callable[[bytes], None], linked: Callable[[bool], None]) -> None:
        dealer = _open(zmq.DEALER)
        dealer.setsockopt(zmq.IMMEDIATE, 1)  # Nothing is queued for a callee that is not there.
        dealer.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        dealer.setsockopt(zmq.HANDSHAKE_IVL, 0)
        self._monitor: zmq.Socket[bytes] = dealer.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        dealer.connect(f"ipc://{path}")
        super().__init__(dealer)
        self._deliver = deliver
        self._linked = linked

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.disable_monitor()
        super().__exit__(kind, error, trace)

    async def run(self) -> None:
        """Pumps the connection and its monitor until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            await super().run()

    async def _watch(self) -> None:
        fd = int(self._monitor.getsockopt(zmq.FD))
        while True:
            # Reading until there is nothing left leaves the descriptor armed, whichever task does it.
            self._hear()
            await trio.lowlevel.wait_readable(fd)

    def _hear(self) -> None:
        """Tells what has become of the link since last asked."""
        while True:
            try:
                event, _ = self._monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            number, _ = _EVENT.unpack(event)
            up = number == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if not up:
                self._out.clear()  # It was meant for the connection that is gone.
            self._linked(up)

    def send(self, frames: Iterable[bytes]) -> None:
        """Sends the frames of one message."""
        for frame in frames:
            self._send((frame,))

    def _try_send(self, message: tuple[bytes, ...]) -> bool:
        try:
            self._socket.send(message[0], zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def _receive(self) -> bool:
        try:
            frame = self._socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return False
        # The loss of the connection before is told first: libzmq's thread told the monitor before it made the
        # connection that this frame came by.
        self._hear()
        if self._socket.getsockopt(zmq.RCVMORE):
            self._rest()
        else:
            self._deliver(frame)
        return True
