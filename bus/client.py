"""Calling other organs: `await bus.gate.put(persona="linda", key=b"k", value=b"v")`.

A `Peer` is the way to one callee: one connection, any number of calls under way, each with a deadline. It
says hello on each connection and learns the callee's generation; every call carries that generation, so a
callee that restarted meanwhile refuses it. Calls made while nobody is there wait, within their deadline.

Every call ends, in an answer or in a `Failure`:

- PEER_DIED: the callee ended while the call was under way; nobody knows how far it came. A call of an
  `$idempotent` method is sent to the next incarnation instead, until its deadline.
- DEADLINE: no answer in time. Also what a callee that never starts looks like.
- whatever the callee answered.

What a callee sends that is no answer to anything is counted in `Peer.nonsense` and dropped.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Final

import outcome
import trio

from bus.alarm import NEVER, Alarm
from bus.envelope import (
    MESSAGE_MAX,
    Code,
    Envelope,
    Failure,
    Kind,
    PeerError,
    Reassembler,
    frames,
    unpack,
    unpack_failure,
)
from bus.link import Action, CallState, Event, decide
from bus.sockets import Connection
from bus.tap import Side, Tap
from bus.wire import Interface, Method, Schemas

SOCKETS: Final = "/run/spine/bus"
"""Where bay0 binds the sockets, named CALLEE.CALLER."""
PENDING_MAX: Final = 1024
"""Calls of one Peer that may be unanswered. Far above what a callee admits at once, so that an organ that has
lost count of its calls finds out, rather than fill its memory."""
_ATTEMPT_MAX: Final = 0xFFFF


class _Pending:
    """A call that has no answer yet."""

    __slots__ = ("attempt", "body", "deadline_ns", "id", "method", "state", "task")

    def __init__(
        self, id_: int, method: Method, body: bytes, deadline_ns: int, task: trio.lowlevel.Task
    ) -> None:
        self.id = id_
        self.method = method
        self.body = body
        self.deadline_ns = deadline_ns
        self.task = task
        self.attempt = 0
        self.state = CallState.WAITING


class Peer:
    """The way to one callee. `run` must be running for calls to get anywhere."""

    def __init__(self, interface: Interface, path: str, tap: Tap | None = None) -> None:
        self.interface: Final = interface
        self._tap = tap
        self.generation: int | None = None
        """The callee's, while it is there and has said so."""
        self.nonsense = 0
        self._path = path
        self._connection: Connection | None = None
        self._pending: dict[int, _Pending] = {}
        self._last_id = 0
        self._hello_id: int | None = None
        self._answers = Reassembler()
        self._ended = False
        self._alarm = Alarm(self._due)

    async def call(
        self, method: str, params: Mapping[str, object], deadline_ms: int | None = None
    ) -> dict[str, object]:
        """Calls a method by name and gives its results.

        `deadline_ms` from now; the schema's when it is None, never more than that. Failure when the call
        fails, AttributeError when there is no such method, TypeError or ValueError when the parameters do not
        fit the schema.
        """
        found = self.interface.methods.get(method)
        if found is None:
            raise AttributeError(f"{self.interface.name} has no method {method}")
        limit_ms = found.deadline_ms if deadline_ms is None else deadline_ms
        body = found.encode_params(params)
        answer = await self.call_raw(found, body, time.monotonic_ns() + limit_ms * 1_000_000)
        try:
            return found.decode_results(answer)
        except PeerError as error:
            self.nonsense += 1
            raise Failure(Code.BAD_MESSAGE, str(error)) from None

    async def call_raw(self, method: Method, body: bytes, deadline_ns: int) -> bytes:
        """Calls with an encoded body and gives the encoded results.

        `deadline_ns` is of CLOCK_MONOTONIC; the schema's holds when it is earlier. ClosedResourceError when
        `run` has ended.
        """
        if self._ended:
            raise trio.ClosedResourceError
        now_ns = time.monotonic_ns()
        deadline_ns = min(deadline_ns, now_ns + method.deadline_ms * 1_000_000)
        if deadline_ns <= now_ns:
            raise Failure(Code.DEADLINE, "time was up before it began")
        if len(body) > MESSAGE_MAX:
            raise Failure(Code.TOO_LARGE, f"the call has {len(body)} bytes")
        if len(self._pending) >= PENDING_MAX:
            raise Failure(Code.BUSY, "too many calls without an answer")
        self._last_id += 1
        pending = _Pending(self._last_id, method, body, deadline_ns, trio.lowlevel.current_task())
        self._pending[pending.id] = pending

        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            # A task is woken once: whoever wakes it takes the call off the list first.
            del self._pending[pending.id]
            return trio.lowlevel.Abort.SUCCEEDED

        if self.generation is not None:
            self._happened(pending, Event.READY)
        self._alarm.at(deadline_ns)
        answer: bytes = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps the connection until cancelled."""
        try:
            with Connection(self._path, self._take, self._linked) as self._connection:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._alarm.run)
                    task_status.started()
                    await self._connection.run()
        finally:
            self._connection = None
            self._ended = True
            self._lost()
            for pending in list(self._pending.values()):
                self._finish(pending, outcome.Error(Failure(Code.PEER_DIED)))

    def _due(self, now_ns: int) -> int:
        """Ends the calls whose time is up; the earliest deadline of the rest."""
        next_ns = NEVER
        for pending in list(self._pending.values()):
            if pending.deadline_ns <= now_ns:
                self._finish(pending, outcome.Error(Failure(Code.DEADLINE)))  # INV-BUS-2
            else:
                next_ns = min(next_ns, pending.deadline_ns)
        return next_ns

    def _linked(self, up: bool) -> None:
        if up:
            self._last_id += 1
            self._hello_id = self._last_id
            self._answers.reset()
            self._send(Envelope(kind=Kind.HELLO, id=self._hello_id))
        else:
            self._lost()

    def _lost(self) -> None:
        self.generation = None
        self._hello_id = None
        for pending in list(self._pending.values()):
            self._happened(pending, Event.LOST)

    def _take(self, frame: bytes) -> None:
        try:
            envelope = self._answers.add(unpack(frame))
            if envelope is None:
                return
            if self._tap is not None:
                self._tap.show(Side.RECEIVED, self.interface.name, envelope)
            match envelope.kind:
                case Kind.REPLY | Kind.FAILURE:
                    self._answered(envelope)
                case Kind.HELLO if envelope.id == self._hello_id:
                    self._hello_id = None
                    self.generation = envelope.generation
                    for pending in list(self._pending.values()):
                        self._happened(pending, Event.READY)
                case Kind.EVENT:
                    self._news(envelope)
                case _:
                    raise PeerError("a callee sends nothing of this kind")
        except PeerError:
            self.nonsense += 1

    def _answered(self, envelope: Envelope) -> None:
        pending = self._pending.get(envelope.id)
        if pending is None:
            return  # It came after the deadline.
        if envelope.generation != self.generation and self._connection is not None:
            # An incarnation answers that we have not met: the loss of the one before must be dealt with
            # first.
            self._connection.hear()
            if self._pending.get(envelope.id) is not pending:
                return
        event = Event.ANSWER if envelope.attempt == pending.attempt else Event.OLD_ANSWER
        self._happened(pending, event, envelope)

    def _news(self, envelope: Envelope) -> None:
        """Where events will be delivered. No callee sends one yet."""

    def _happened(self, pending: _Pending, event: Event, envelope: Envelope | None = None) -> None:
        """Does what `bus.link` decides."""
        match decide(pending.state, event, idempotent=pending.method.idempotent):
            case Action.SEND:
                assert self.generation is not None
                pending.state = CallState.SENT
                self._send(
                    Envelope(
                        kind=Kind.CALL,
                        id=pending.id,
                        generation=self.generation,
                        deadline_ns=pending.deadline_ns,
                        interface=pending.method.interface_id,
                        ordinal=pending.method.ordinal,
                        attempt=pending.attempt,
                        body=pending.body,
                    )
                )
            case Action.AGAIN:
                pending.state = CallState.WAITING
                pending.attempt = min(pending.attempt + 1, _ATTEMPT_MAX)
            case Action.FINISH:
                assert envelope is not None
                self._finish(pending, _outcome(envelope))
            case Action.DIED:
                self._finish(pending, outcome.Error(Failure(Code.PEER_DIED)))
            case Action.NOTHING:
                pass

    def _finish(self, pending: _Pending, result: outcome.Outcome[bytes]) -> None:
        del self._pending[pending.id]
        trio.lowlevel.reschedule(pending.task, result)

    def _send(self, envelope: Envelope) -> None:
        assert self._connection is not None
        if self._tap is not None:
            self._tap.show(Side.SENT, self.interface.name, envelope)
        self._connection.send(frames(envelope))


def _outcome(envelope: Envelope) -> outcome.Outcome[bytes]:
    """What a REPLY or a FAILURE means to the caller."""
    if envelope.kind is Kind.REPLY:
        return outcome.Value(envelope.body)
    try:
        return outcome.Error(unpack_failure(envelope.body))
    except PeerError as error:
        return outcome.Error(Failure(Code.BAD_MESSAGE, str(error)))


class Calls:
    """The methods of one callee that we may call, as functions: `await calls.get(persona="linda", key=b"k")`.

    Beside its parameters each takes `deadline_ms`; no parameter is named so, since the names of a schema hold
    no underscore.
    """

    def __init__(self, peer: Peer, caller: str) -> None:
        self._functions: dict[str, Callable[..., Awaitable[dict[str, object]]]] = {
            name: partial(_call, peer, name)
            for name, method in peer.interface.methods.items()
            if caller in method.callers
        }
        self._name = peer.interface.name

    def __getattr__(self, name: str) -> Callable[..., Awaitable[dict[str, object]]]:
        try:
            return self._functions[name]
        except KeyError:
            raise AttributeError(f"{self._name} has no method {name} for this organ") from None


async def _call(
    peer: Peer, method: str, /, deadline_ms: int | None = None, **params: object
) -> dict[str, object]:
    return await peer.call(method, params, deadline_ms)


class Bus:
    """Everything one organ may call: an attribute for each callee that the schemas allow it."""

    def __init__(
        self, schemas: Schemas, caller: str, directory: str = SOCKETS, tap: Tap | None = None
    ) -> None:
        self.peers: Final[dict[str, Peer]] = {
            name: Peer(interface, str(PurePosixPath(directory, f"{name}.{caller}")), tap)
            for name, interface in schemas.interfaces.items()
            if any(caller in method.callers for method in interface.methods.values())
        }
        self._calls = {name: Calls(peer, caller) for name, peer in self.peers.items()}

    def __getattr__(self, name: str) -> Calls:
        try:
            return self._calls[name]
        except KeyError:
            raise AttributeError(f"the schemas let this organ call nothing of {name}") from None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps all connections until cancelled."""
        async with trio.open_nursery() as nursery:
            for peer in self.peers.values():
                await nursery.start(peer.run)
            task_status.started()
            await trio.sleep_forever()
