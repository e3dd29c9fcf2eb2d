"""Descriptors beside the bus: a SEQPACKET socket for each pair whose schema has `$fd` or `$gives`.

ZeroMQ carries no descriptors, so they go by a connection of their own, one datagram for each message that
brings some: a note (token, generation) and the descriptors by SCM_RIGHTS. The message on the bus carries the
same token and says how many there are. The datagram is always sent first. The kernel has it in the receiver's
queue before the message can arrive, so nobody ever waits for descriptors: they are there, or they never come.
Both ways keep their order, so that whoever looks for one datagram may let go of all before it.

A call announces itself here even when it brings none, if its method gives some: the answer goes back on the
connection the call was announced on. A token's upper half is the same for a whole connection, by which the
callee finds it again.

Touches: Unix sockets. Knows trio, and neither zmq nor capnp. Who may connect the kernel has checked, as for
the bus. Never: blocks, trusts a count, keeps a descriptor that nobody claims for longer than `UNCLAIMED_S`.
Fails: `Unsent` when the kernel does not take a datagram now; whatever else is wrong ends that connection.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from bus.envelope import DESCRIPTORS_MAX, PeerError

SUFFIX: Final = ".fds"
"""What the name of such a socket has behind that of the pair's socket on the bus."""
HELD_MAX: Final = 64
"""Descriptors of one caller that its calls under way may hold in the callee: eight of the largest messages.
libzmq ends the process that has none left to accept with, so a caller must not be able to use them up."""
CONNECTIONS_MAX: Final = 2
"""Connections of one caller: it has one, and for a moment two while it restarts. The oldest makes room."""
UNCLAIMED_S: Final = 10.0
"""How long descriptors wait for their message, which follows at once. Whoever lets them lie is cut off."""
READS_MAX: Final = 512
"""Datagrams passed over in search of one. The kernel queues less than 300, each with its overhead against
the sender's 208 KiB; so it ends even while a peer writes as fast as we read."""
ACCEPTS_MAX: Final = 64
"""Connections accepted at a time: bay0's backlog."""
RETRY_S: Final = 0.1
"""Pause when a connection cannot be accepted for want of descriptors."""
LOOK_S: Final = 0.1
"""While descriptors wait for their message: how often is looked whether who sent them is still there."""

_MAGIC: Final = b"SPFD"
_NOTE: Final = struct.Struct("<4sIQ")
NOTE_BYTES: Final = _NOTE.size
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
# What the kernel answers when it does not take a datagram: the queue is full, the other end is gone, nobody
# listens, too many descriptors of this user are on their way, there is no memory.
_UNSENT: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EPIPE,
        errno.ECONNRESET,
        errno.ECONNREFUSED,
        errno.ENOENT,
        errno.EACCES,
        errno.ENOTCONN,
        errno.ETOOMANYREFS,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
    }
)
_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Unsent(Exception):
    """The kernel does not take it now: `reason`. `gone`: the connection is of no use any more."""

    def __init__(self, error: OSError) -> None:
        self.reason: Final = os.strerror(error.errno or 0)
        self.gone: Final = error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
        super().__init__(self.reason)


def pack_note(generation: int, token: int) -> bytes:
    """The bytes of a datagram."""
    return _NOTE.pack(_MAGIC, generation, token)


def unpack_note(data: bytes) -> tuple[int, int]:
    """Generation and token; PeerError for anything else."""
    if len(data) != NOTE_BYTES:
        raise PeerError(f"a note of {len(data)} bytes")
    magic, generation, token = _NOTE.unpack(data)
    if magic != _MAGIC:
        raise PeerError("a note that does not begin like one")
    return generation, token


def close_all(fds: Iterable[int]) -> None:
    """Closes each descriptor once."""
    for fd in set(fds):
        os.close(fd)


def duplicate(fds: Sequence[int]) -> tuple[int, ...]:
    """Descriptors of our own for the same files. Unsent when there is no room for them."""
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))
    except OSError as error:
        close_all(made)
        if error.errno in _NO_ROOM:
            raise Unsent(error) from None
        raise
    return tuple(made)


def connect(path: str) -> socket.socket:
    """A connection to a callee's listener, which is there before the callee is. Unsent when it takes none."""
    kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        made = socket.socket(socket.AF_UNIX, kind)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise Unsent(error) from None
        raise
    try:
        made.connect(path)
    except OSError as error:
        made.close()
        if error.errno in _UNSENT:
            raise Unsent(error) from None
        raise
    return made


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A datagram that nobody has claimed yet. One whose descriptors were cut off has none."""

    token: int
    fds: tuple[int, ...]
    since: float


class Channel:
    """One connection, from either end. `run` must be running, so that what nobody claims does not stay.

    It reads one datagram ahead and no more: the others wait in the kernel, where they cost us no descriptor.
    """

    __slots__ = ("_generation", "_head", "_nap", "_nonce", "_sequence", "_socket", "ended")

    def __init__(self, connected: socket.socket, generation: int) -> None:
        """Takes over a connected socket. `generation` is the callee's, at both ends."""
        connected.setblocking(False)
        self._socket = connected
        self._generation = generation
        self._head: _Arrived | None = None
        self._nap: trio.CancelScope | None = None
        self._nonce: int | None = None
        self._sequence = 0
        self.ended = False
        """Nothing more can come: the other end has closed it, or broken a rule, or we have closed it."""

    def token(self) -> int:
        """A token that was not used before. For the caller's end."""
        if self._nonce is None:
            self._nonce = int.from_bytes(os.urandom(4))
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        return self._nonce << 32 | self._sequence

    def nonce(self) -> int | None:
        """The upper half of the first token that came, None before. For the callee's end."""
        if self._nonce is None:
            self._next()
        return self._nonce

    def send(self, token: int, fds: Sequence[int]) -> None:
        """Sends a datagram at once, or raises Unsent. The descriptors stay ours as well."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        if self._socket.fileno() < 0:
            raise Unsent(OSError(errno.ENOTCONN, ""))
        try:
            self._socket.sendmsg([pack_note(self._generation, token)], rights, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno in _UNSENT:
                raise Unsent(error) from None
            raise

    def claim(self, token: int) -> tuple[int, ...] | None:
        """The descriptors that came under that token, the caller's from now on; None when they did not.

        Those before it are closed: their message came to nothing, for it would have been here by now.
        """
        if self._nap is not None:
            self._nap.cancel()
        for _ in range(READS_MAX):
            arrived = self._next()
            if arrived is None:
                return None
            self._head = None
            if arrived.token == token:  # INV-BUS-7
                return arrived.fds
            close_all(arrived.fds)
        return None

    async def run(self) -> None:
        """Until the other end has gone or broken a rule, or it was closed here. The owner closes."""
        while not self.ended:
            arrived = self._next()
            if self.ended:
                return
            if arrived is None:
                try:
                    await trio.lowlevel.wait_readable(self._socket)
                except trio.ClosedResourceError:
                    return
                continue
            with trio.move_on_after(LOOK_S) as self._nap:
                await trio.sleep_forever()
            self._nap = None
            if self._head is arrived:
                late = trio.current_time() >= arrived.since + UNCLAIMED_S
                self.ended |= late or self._deserted()  # INV-BUS-8

    def _deserted(self) -> bool:
        """Whether the other end has gone. What it had sent before is still to be read, but for nobody."""
        if self._socket.fileno() < 0:
            return True
        there = select.poll()
        there.register(self._socket, 0)  # The kernel always tells of a hang-up.
        return bool(there.poll(0))

    def close(self) -> None:
        """Closes the connection and what lies unclaimed."""
        self.ended = True
        if self._head is not None:
            close_all(self._head.fds)
            self._head = None
        if self._nap is not None:
            self._nap.cancel()
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def _next(self) -> _Arrived | None:
        """The datagram that is next and not yet claimed, None when there is none now."""
        if self._head is None:
            self._head = self._receive()
        return self._head

    def _receive(self) -> _Arrived | None:
        for _ in range(READS_MAX):
            if self.ended:
                return None
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    NOTE_BYTES + 1, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return None
            except ConnectionResetError:
                # The other end closed without having read everything. The kernel says so once, before it
                # gives what had come until then.
                continue
            fds = _rights(ancillary)
            if flags & socket.MSG_CTRUNC:
                # More than a message may have, or more than we have room for. Some of them are none.
                close_all(fds)
                fds = ()
            try:
                if not data:
                    raise PeerError("the end")
                generation, token = unpack_note(data)
            except PeerError:
                close_all(fds)
                self.ended = True
                return None
            if self._nonce is None:
                self._nonce = token >> 32
            if generation != self._generation:  # INV-BUS-3
                close_all(fds)
                continue
            return _Arrived(token, fds, trio.current_time())
        return None


def _rights(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    """The descriptors among what came beside a datagram."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return tuple(fds)


class Held:
    """The descriptors of one call, while it is under way."""

    __slots__ = ("_released", "fds")

    def __init__(self, fds: tuple[int, ...], released: Callable[[int], None]) -> None:
        self.fds = fds
        self._released = released

    def take(self) -> tuple[int, ...]:
        """They are the handler's from now on."""
        fds, self.fds = self.fds, ()
        self._released(len(fds))
        return fds

    def close(self) -> None:
        """Closes those that nobody took."""
        close_all(self.take())


class Entrance:
    """Where the descriptors of one caller come in, whichever of its connections they come by."""

    def __init__(self, listening_fd: int, generation: int) -> None:
        """Uses a listening SEQPACKET socket; the descriptor itself stays the caller's to close."""
        self._listening = socket.socket(fileno=os.dup(listening_fd))
        self._listening.setblocking(False)
        self._generation = generation
        self._channels: list[Channel] = []
        self._held = 0
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accepts until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                while True:
                    await trio.lowlevel.wait_readable(self._listening)
                    if not self._accept():
                        await trio.sleep(RETRY_S)
        finally:
            for channel in self._channels:
                channel.close()
            self._listening.close()

    def claim(self, token: int) -> tuple[Channel, tuple[int, ...]] | None:
        """The connection on which that token was announced, and what came with it; None when it was not."""
        channel = self._of(token >> 32)
        if channel is None:
            self._accept()
            channel = self._of(token >> 32)
        fds = None if channel is None else channel.claim(token)
        return None if channel is None or fds is None else (channel, fds)

    def hold(self, fds: tuple[int, ...]) -> Held | None:
        """Counts claimed descriptors as those of a call; None, and they are closed, when they are too
        many."""
        if self._held + len(fds) > HELD_MAX:  # INV-BUS-8
            close_all(fds)
            return None
        self._held += len(fds)
        return Held(fds, self._release)

    def _release(self, number: int) -> None:
        self._held -= number

    def _of(self, nonce: int) -> Channel | None:
        return next((channel for channel in self._channels if channel.nonce() == nonce), None)

    def _accept(self) -> bool:
        """Takes in who waits; whether there was room for them."""
        assert self._nursery is not None
        for _ in range(ACCEPTS_MAX):
            try:
                connected, _ = self._listening.accept()
            except BlockingIOError:
                return True
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno in _NO_ROOM:
                    return False
                raise
            while len(self._channels) >= CONNECTIONS_MAX:
                self._channels.pop(0).close()
            channel = Channel(connected, self._generation)
            self._channels.append(channel)
            self._nursery.start_soon(self._keep, channel)
        return True

    async def _keep(self, channel: Channel) -> None:
        try:
            await channel.run()
        finally:
            channel.close()
            if channel in self._channels:
                self._channels.remove(channel)
