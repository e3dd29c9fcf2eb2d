"""operator: the port for ./spine, in the development image only.

It carries calls from the person at the host onto the bus and answers back, and serves a short list of its own
methods (status, log, probes, power). It decides nothing for other organs: a call goes on only where the
callee's schema names "operator" as a caller, and the callee checks that again.

Touches: the port (a virtio-serial device, or a listening socket in a container), /run/spine to read.
Never: decodes the body of a call it forwards, runs code it was sent, holds a capability.
Fails: a client's nonsense is answered typed and dropped; the port breaking ends the process.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import json
import os
import signal
import stat
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from bus.envelope import Code, Envelope, Failure, Kind, PeerError, pack, pack_failure, unpack
from bus.sockets import Subscriber
from bus.tap import RECORD_MAX
from bus.wire import Method
from organs import layout
from organs.kernel import network
from organs.operator.lines import Oversized, Splitter
from organs.operator.sessions import Sessions
from organs.runtime import Spine

# The pseudo caller that stands for the person at the port.
HOST = "host"
# Clients at once on a socket port. A virtio port has one stream.
CLIENTS_MAX = 16
# Calls of one client not yet answered. More wait in the stream: the port pushes back.
CALLS_MAX = 64
READ_BYTES = 64 * 1024
# A client that does not read its answers for this long is dropped.
WRITE_DEADLINE_S = 10.0
# While no host holds the virtio port open, a read returns at once with nothing. SIGIO says when that changes;
# the timer is for a kernel that loses one.
CLOSED_POLL_S = 2.0
# The caller's time is in another clock: what remains is capped, so that no call lives for ever.
CALL_MAX_NS = 120 * 10**9
LOG_BYTES_MAX = 256 * 1024


class Stream(Protocol):
    """The two ways to reach the host look alike from here."""

    async def read(self) -> bytes: ...

    async def write(self, data: bytes) -> None: ...


class SocketStream:
    """One client of the container's listening socket."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._stream = trio.SocketStream(sock)

    async def read(self) -> bytes:
        """Bytes, or b"" when the client has gone."""
        return bytes(await self._stream.receive_some(READ_BYTES))

    async def write(self, data: bytes) -> None:
        """All of `data`."""
        await self._stream.send_all(data)


class DeviceStream:
    """The virtio-serial port: one stream for all clients, one after the other."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_blocking(fd, False)

    async def read(self) -> bytes:
        """Bytes, or b"" when no host holds the port."""
        while True:
            try:
                return os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._fd)

    async def write(self, data: bytes) -> None:
        """All of `data`."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._fd)


class Session:
    """One client: lines in, calls out, answers back."""

    def __init__(self, spine: Spine, sessions: Sessions, stream: Stream) -> None:
        self._spine = spine
        self._stream = stream
        self._splitter = Splitter()
        self._writing = trio.Lock()
        self._slots = trio.Semaphore(CALLS_MAX)
        self._own: dict[str, Callable[[dict[str, object]], Awaitable[dict[str, object]]]] = {
            "status": self._status,
            "log": self._log,
            "probe": self._probe,
            "power": self._power,
            "tap": self._tap,
            "exec": sessions.exec,
            "feed": sessions.feed,
            "drain": sessions.drain,
            "hangUp": sessions.hang_up,
        }
        self._taps: set[str] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self, calls: trio.Nursery | None = None) -> None:
        """Until the client has gone or stops reading. Its calls end with it, unless they run in `calls`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while data := await self._stream.read():
                for line in self._splitter.feed(data):
                    await self._slots.acquire()
                    (calls or nursery).start_soon(self._line, line)
            self._nursery = None
            self._taps.clear()
            nursery.cancel_scope.cancel()

    async def _line(self, line: bytes | Oversized) -> None:
        try:
            await self._send(await self._answer(line))
        except (trio.TooSlowError, trio.BrokenResourceError, BrokenPipeError):
            pass  # the client has gone or does not read; its stream ends by itself
        finally:
            self._slots.release()

    async def _send(self, envelope: Envelope) -> None:
        with trio.fail_after(WRITE_DEADLINE_S):
            async with self._writing:
                await self._stream.write(base64.b64encode(pack(envelope)) + b"\n")

    async def _answer(self, line: bytes | Oversized) -> Envelope:
        if isinstance(line, Oversized):
            return self._refusal(0, Failure(Code.TOO_LARGE, line.value))
        try:
            asked = unpack(base64.b64decode(line, validate=True))
        except (binascii.Error, PeerError) as error:
            return self._refusal(0, Failure(Code.BAD_MESSAGE, str(error)))
        if asked.kind is Kind.HELLO:
            return Envelope(kind=Kind.HELLO, id=asked.id, generation=self._spine.generation)
        try:
            if asked.kind is not Kind.CALL:
                raise Failure(Code.BAD_MESSAGE, f"a client sends calls, not {asked.kind.name}")
            body = await self._call(asked)
        except Failure as failure:
            return self._refusal(asked.id, failure)
        return Envelope(kind=Kind.REPLY, id=asked.id, generation=self._spine.generation, body=body)

    def _refusal(self, call_id: int, failure: Failure) -> Envelope:
        return Envelope(
            kind=Kind.FAILURE, id=call_id, generation=self._spine.generation, body=pack_failure(failure)
        )

    async def _call(self, asked: Envelope) -> bytes:
        method = self._spine.schemas.method(asked.interface, asked.ordinal)
        if method is None:
            raise Failure(Code.UNKNOWN_METHOD, f"no method {asked.interface:#x}/{asked.ordinal}")
        deadline_ns = time.monotonic_ns() + min(asked.deadline_ns, CALL_MAX_NS)
        if method.interface_name == self._spine.name and HOST in method.callers:
            return await self._serve_own(method, asked.body, deadline_ns)
        if self._spine.name not in method.callers:  # INV-PORT-2
            raise Failure(Code.FORBIDDEN, f"{method.interface_name}.{method.name} is not for the operator")
        if method.beside:
            raise Failure(Code.FORBIDDEN, f"{method.name} carries descriptors, which do not cross the port")
        return await self._spine.bus.peers[method.interface_name].call_raw(method, asked.body, deadline_ns)

    async def _serve_own(self, method: Method, body: bytes, deadline_ns: int) -> bytes:
        try:
            params = method.decode_params(body)
        except PeerError as error:
            raise Failure(Code.BAD_MESSAGE, str(error)) from None
        now_ns = time.monotonic_ns()
        remaining_ns = min(deadline_ns - now_ns, method.deadline_ms * 10**6)
        if remaining_ns <= 0:  # INV-BUS-2
            raise Failure(Code.DEADLINE, "time was up before it began")
        with trio.move_on_after(remaining_ns / 10**9):
            return method.encode_results(await self._own[method.name](params))
        raise Failure(Code.DEADLINE, f"operator.{method.name} took too long")

    async def _status(self, _params: dict[str, object]) -> dict[str, object]:
        with open(layout.ORGANS_JSON, encoding="utf-8") as file:
            organs = json.load(file)
        pss = await self._spine.request({"ask": "pss"})
        answer = {
            "organs": organs,
            "pss": pss.get("ok", {}),
            "nowMs": time.monotonic_ns() // 10**6,
            "network": {"interfaces": network.interfaces(), "addresses": network.addresses()},
        }
        return {"json": json.dumps(answer)}

    async def _log(self, params: dict[str, object]) -> dict[str, object]:
        name, wanted = str(params["organ"]), int(str(params["bytes"]))
        # The name picks from what is there and never becomes a path of its own.
        known = sorted(
            entry.removesuffix(".log") for entry in os.listdir(layout.LOGS) if entry.endswith(".log")
        )
        if name not in known:
            raise Failure(Code.NOT_FOUND, f"no log of {name[:64]!r}; there are {', '.join(known)}")
        text = b""
        for suffix in (".log.1", ".log"):
            try:
                with open(os.path.join(layout.LOGS, name + suffix), "rb") as file:
                    text += file.read()
            except FileNotFoundError:
                continue
        return {"text": text[-min(wanted or LOG_BYTES_MAX, LOG_BYTES_MAX) :]}

    async def _probe(self, params: dict[str, object]) -> dict[str, object]:
        answer = await self._spine.request(
            {"ask": params["name"], "name": params["organ"], "signal": params["signal"]}
        )
        if "error" in answer:
            raise Failure(Code.REFUSED, str(answer["error"]))
        return {"json": json.dumps(answer["ok"])}

    async def _tap(self, _params: dict[str, object]) -> dict[str, object]:
        """From now until this client goes, every record of every organ is an EVENT to it."""
        if self._nursery is None:
            raise Failure(Code.STALE, "the client has gone")
        for name in self._spine.schemas.interfaces:
            if name not in self._taps:
                self._taps.add(name)
                self._nursery.start_soon(self._watch, name)
        return {}

    async def _watch(self, name: str) -> None:
        with Subscriber(layout.bus_socket(name, layout.TAP), RECORD_MAX) as subscriber:
            while True:
                record = await subscriber.receive()
                try:
                    await self._send(Envelope(kind=Kind.EVENT, id=0, body=record))
                except (trio.BrokenResourceError, BrokenPipeError):
                    return  # the client has gone
                except trio.TooSlowError:
                    continue  # lost to this client, who counts it by the record's number

    async def _power(self, params: dict[str, object]) -> dict[str, object]:
        action = params["action"]
        if action not in ("reboot", "poweroff"):
            raise Failure(Code.INVALID, 'the action is "reboot" or "poweroff"')
        self._spine.ask(str(action))
        return {}


async def _client(
    spine: Spine, sessions: Sessions, sock: trio.socket.SocketType, slots: trio.CapacityLimiter
) -> None:
    async with slots:
        with sock:
            try:
                await Session(spine, sessions, SocketStream(sock)).run()
            except* trio.BrokenResourceError:
                pass  # the client broke its end in the middle of a read


async def _listen(spine: Spine, sessions: Sessions, fd: int) -> None:
    listener = trio.socket.fromfd(fd, trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    slots = trio.CapacityLimiter(CLIENTS_MAX)
    async with trio.open_nursery() as nursery:
        while True:
            sock, _ = await listener.accept()
            nursery.start_soon(_client, spine, sessions, sock, slots)


class Changes:
    """Tells every port that a host came or went: of a signal's readers only the last hears it."""

    def __init__(self) -> None:
        self.next = trio.Event()
        """Set when the kernel tells of the next change, at any port."""

    async def run(self) -> None:
        """Until cancelled."""
        with trio.open_signal_receiver(signal.SIGIO) as changes:
            async for _ in changes:
                self.next.set()
                self.next = trio.Event()


async def _device(spine: Spine, sessions: Sessions, changes: Changes, fd: int) -> None:
    # One for all clients: the end of the last one is told beside the stream, and may be heard when the first
    # call of the next one has been read already. That call must not end with the client before.
    session = Session(spine, sessions, DeviceStream(fd))
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    async with trio.open_nursery() as calls:
        while True:
            # Taken before the stream is read: a host that comes as the last one goes is not missed.
            change = changes.next
            await session.run(calls)
            with trio.move_on_after(CLOSED_POLL_S):
                await change.wait()


async def _port(spine: Spine, sessions: Sessions, changes: Changes, fd: int) -> None:
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        await _listen(spine, sessions, fd)
    else:
        await _device(spine, sessions, changes, fd)


async def main(spine: Spine) -> None:
    """Serve the ports. Ready at once: callers of a port find out about each organ by calling it."""
    spine.ready()
    sessions, changes = Sessions(spine.bus.peers["freezer"]), Changes()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sessions.run)
        nursery.start_soon(changes.run)
        for name in (layout.PORT, layout.TAP_PORT):
            nursery.start_soon(_port, spine, sessions, changes, spine.fds[f"device:{name}"])
