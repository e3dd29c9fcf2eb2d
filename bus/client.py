"""Calling other organs: `await bus.gate.put(persona="linda", key=b"k", value=b"v")`.

A `Peer` is the way to one callee: one connection, any number of calls under way, each with a deadline. It
says hello on each connection and learns the callee's generation; every call carries that generation, so a
callee that restarted meanwhile refuses it. Calls made while nobody is there wait, within their deadline.

Descriptors go beside a call, and beside its answer, where the schema says `$fd` and `$gives`:
`await peer.call("connect", params, fds=(a, b))`, `results, fds = await peer.call_fds("open", params)`. The
caller keeps its own; those of the answer are the caller's to close.

`async for item in peer.events()` gives the callee's news (`bus/hearing.py`).

Every call ends, in an answer or in a `Failure`:

- PEER_DIED: the callee ended while the call was under way; nobody knows how far it came. A call of an
  `$idempotent` method is sent to the next incarnation instead, until its deadline.
- DEADLINE: no answer in time. Also what a callee that never starts looks like.
- whatever the callee answered.

What a callee sends that is no answer to anything is counted in `Peer.nonsense` and dropped.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Final

import outcome
import trio

from bus.alarm import NEVER, Alarm
from bus.descriptors import SUFFIX, Channel, Unsent, close_all, connect, duplicate
from bus.envelope import (
    BESIDE_BYTES,
    DESCRIPTORS_MAX,
    MESSAGE_MAX,
    Code,
    Envelope,
    Failure,
    Kind,
    PeerError,
    Phase,
    Reassembler,
    frames,
    pack_beside,
    split_beside,
    unpack,
    unpack_failure,
)
from bus.hearing import Hearing
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


class _Beside:
    """What goes beside a call: its descriptors, ours until it has ended, and those that its answer gave."""

    __slots__ = ("channel", "fds", "given", "token")

    def __init__(self, fds: tuple[int, ...]) -> None:
        self.fds = fds
        self.given: tuple[int, ...] = ()
        self.channel: Channel | None = None
        """Where the attempt under way was announced, and its answer's descriptors come."""
        self.token = 0


class _Pending:
    """A call that has no answer yet."""

    __slots__ = (
        "attempt",
        "beside",
        "body",
        "deadline_ns",
        "id",
        "leads",
        "method",
        "result",
        "state",
        "task",
    )

    def __init__(
        self,
        id_: int,
        method: Method,
        body: bytes,
        deadline_ns: int,
        task: trio.lowlevel.Task,
        beside: _Beside | None,
    ) -> None:
        self.id = id_
        self.method = method
        self.body = body
        self.deadline_ns = deadline_ns
        self.task = task
        self.beside = beside
        self.attempt = 0
        self.state = CallState.WAITING
        self.leads: Connection | None = None
        """Where its task receives for all while it waits."""
        self.result: outcome.Outcome[bytes] | None = None
        """Of one that leads; the others' tasks are given theirs."""

    def done(self) -> bool:
        """Whether one that leads has ended."""
        return self.result is not None


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
        self._hearing: Hearing | None = None
        self._nursery: trio.Nursery | None = None
        self._channel: Channel | None = None
        """Where descriptors go, made when the first ones do; one for each connection."""

    async def call(
        self,
        method: str,
        params: Mapping[str, object],
        deadline_ms: int | None = None,
        *,
        fds: Sequence[int] = (),
    ) -> dict[str, object]:
        """Calls a method by name and gives its results.

        `deadline_ms` from now; the schema's when it is None, never more than that. `fds`, one to eight, for a
        method with `$fd`; they stay the caller's, who may close them at once. Failure when the call fails,
        AttributeError when there is no such method, TypeError or ValueError when the parameters or the
        descriptors do not fit the schema.
        """
        found = self._method(method)
        if found.beside or fds:
            if found.gives_fd:
                raise TypeError(f"{self.interface.name}.{method} gives descriptors: call_fds")
            results, _ = await self._call_beside(found, params, deadline_ms, fds)
            return results
        limit_ms = found.deadline_ms if deadline_ms is None else deadline_ms
        body = found.encode_params(params)
        answer = await self.call_raw(found, body, time.monotonic_ns() + limit_ms * 1_000_000)
        try:
            return found.decode_results(answer)
        except PeerError as error:
            self.nonsense += 1
            raise Failure(Code.BAD_MESSAGE, str(error)) from None

    async def call_fds(
        self,
        method: str,
        params: Mapping[str, object],
        deadline_ms: int | None = None,
        *,
        fds: Sequence[int] = (),
    ) -> tuple[dict[str, object], tuple[int, ...]]:
        """The same for a method with `$gives`: its results, and the descriptors that came with them, at least
        one and all of them the caller's."""
        found = self._method(method)
        if not found.gives_fd:
            raise TypeError(f"{self.interface.name}.{method} gives no descriptors")
        return await self._call_beside(found, params, deadline_ms, fds)

    def events(self) -> Hearing:
        """The callee's news, beginning with its present state. A reader from before is closed."""
        if self._ended:
            raise trio.ClosedResourceError
        if self._hearing is not None:
            self._hearing.close()
        self._hearing = Hearing(self.interface, self._ask_news)
        self._ask_news()
        return self._hearing

    def _ask_news(self) -> None:
        """Asks the callee, if it is there; else its hello will bring it up again."""
        if self._hearing is None or self.generation is None:
            return
        self._last_id += 1
        self._hearing.asked(self._last_id)
        self._send(
            Envelope(
                kind=Kind.EVENT,
                id=self._last_id,
                generation=self.generation,
                interface=self.interface.id,
                attempt=Phase.ASK,
            )
        )

    def _method(self, name: str) -> Method:
        found = self.interface.methods.get(name)
        if found is None:
            raise AttributeError(f"{self.interface.name} has no method {name}")
        return found

    async def _call_beside(
        self, method: Method, params: Mapping[str, object], deadline_ms: int | None, fds: Sequence[int]
    ) -> tuple[dict[str, object], tuple[int, ...]]:
        name = f"{self.interface.name}.{method.name}"
        if bool(fds) != method.takes_fd:
            raise TypeError(f"{name} takes {'' if method.takes_fd else 'no '}descriptors")
        if len(fds) > DESCRIPTORS_MAX:
            raise ValueError(f"{name} takes at most {DESCRIPTORS_MAX} descriptors, not {len(fds)}")
        limit_ms = method.deadline_ms if deadline_ms is None else deadline_ms
        body = method.encode_params(params)
        try:
            beside = _Beside(duplicate(fds))
        except Unsent as unsent:
            raise Failure(Code.BUSY, unsent.reason) from None
        try:
            deadline_ns = time.monotonic_ns() + limit_ms * 1_000_000
            answer = await self.call_raw(method, body, deadline_ns, beside)
        finally:
            close_all(beside.fds)
        try:
            return method.decode_results(answer), beside.given
        except PeerError as error:
            close_all(beside.given)
            self.nonsense += 1
            raise Failure(Code.BAD_MESSAGE, str(error)) from None

    async def call_raw(
        self, method: Method, body: bytes, deadline_ns: int, beside: _Beside | None = None
    ) -> bytes:
        """Calls with an encoded body and gives the encoded results.

        `deadline_ns` is of CLOCK_MONOTONIC; the schema's holds when it is earlier. `beside` belongs to the
        calls that descriptors go beside; TypeError when it is missing. ClosedResourceError when `run` has
        ended.
        """
        if method.beside and beside is None:
            raise TypeError(f"{self.interface.name}.{method.name} carries descriptors: call or call_fds")
        if self._ended:
            raise trio.ClosedResourceError
        now_ns = time.monotonic_ns()
        deadline_ns = min(deadline_ns, now_ns + method.deadline_ms * 1_000_000)
        if deadline_ns <= now_ns:
            raise Failure(Code.DEADLINE, "time was up before it began")
        if len(body) > (MESSAGE_MAX if beside is None else MESSAGE_MAX - BESIDE_BYTES):
            raise Failure(Code.TOO_LARGE, f"the call has {len(body)} bytes")
        if len(self._pending) >= PENDING_MAX:
            raise Failure(Code.BUSY, "too many calls without an answer")
        self._last_id += 1
        pending = _Pending(self._last_id, method, body, deadline_ns, trio.lowlevel.current_task(), beside)
        self._pending[pending.id] = pending

        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            # A task is woken once: whoever wakes it takes the call off the list first.
            del self._pending[pending.id]
            return trio.lowlevel.Abort.SUCCEEDED

        if self.generation is not None:
            try:
                self._happened(pending, Event.READY)
            except Failure:
                del self._pending[pending.id]
                raise
        self._alarm.at(deadline_ns)
        connection = self._connection
        if len(self._pending) == 1 and connection is not None and not connection.led:
            return await self._lead(pending, connection)
        answer: bytes = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    async def _lead(self, pending: _Pending, connection: Connection) -> bytes:
        """Waits for the answer of the only call by receiving it: nobody has to be woken for it."""
        pending.leads = connection
        try:
            await connection.lead(pending.done)
        except trio.Cancelled:
            # With its result it would not have been cancelled.
            del self._pending[pending.id]
            raise
        assert pending.result is not None
        return pending.result.unwrap()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps the connection until cancelled."""
        try:
            with Connection(self._path, self._take, self._linked) as self._connection:
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._alarm.run)
                    task_status.started()
                    await self._connection.run()
        finally:
            self._connection = None
            self._ended = True
            if self._hearing is not None:
                self._hearing.close()
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
        if self._channel is not None:
            # What is still to be read there came from the incarnation that is gone.
            self._channel.close()
            self._channel = None
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
                        self._ready(pending)
                    self._ask_news()
                case Kind.EVENT:
                    self._news(envelope)
                case _:
                    raise PeerError("a callee sends nothing of this kind")
        except PeerError:
            self.nonsense += 1

    def _answered(self, envelope: Envelope) -> None:
        pending = self._pending.get(envelope.id)
        if pending is None:
            self._unwanted(envelope)  # It came after the deadline.
            return
        if envelope.generation != self.generation and self._connection is not None:
            # An incarnation answers that we have not met: the loss of the one before must be dealt with
            # first.
            self._connection.hear()
            if self._pending.get(envelope.id) is not pending:
                return
        if envelope.attempt == pending.attempt:
            self._happened(pending, Event.ANSWER, envelope)
        else:
            self._happened(pending, Event.OLD_ANSWER, envelope)
            self._unwanted(envelope)

    def _news(self, envelope: Envelope) -> None:
        if self._hearing is None:
            raise PeerError("news that nobody asked for")
        if envelope.generation == self.generation:
            self._hearing.take(envelope)

    def _unwanted(self, envelope: Envelope) -> None:
        """Nobody waits for this answer: what came beside it is closed."""
        if self._channel is None or envelope.kind is not Kind.REPLY:
            return
        method = self.interface.by_ordinal(envelope.ordinal)
        if method is not None and method.gives_fd:
            token, count, _ = split_beside(envelope.body)
            if count:
                close_all(self._channel.claim(token) or ())

    def _announce(self, beside: _Beside) -> bytes:
        """Sends the descriptors of a call on their way; what its body begins with. Failure when they cannot
        be sent, and then nothing was."""
        for again in (True, False):
            try:
                channel = self._open_channel()
                beside.channel, beside.token = channel, channel.token()
                channel.send(beside.token, beside.fds)
                break
            except Unsent as unsent:
                # The callee has died, or closed it for a reason of its own, and takes a new one. What came by
                # the old one may still be claimed.
                if not (again and unsent.gone):
                    raise Failure(Code.BUSY, f"descriptors cannot be sent: {unsent.reason}") from None
                self._channel = None
        return pack_beside(beside.token, len(beside.fds))

    def _open_channel(self) -> Channel:
        """The connection for descriptors. Unsent when there is none to be had."""
        if self._channel is None or self._channel.ended:
            assert self.generation is not None
            assert self._nursery is not None
            self._channel = Channel(connect(self._path + SUFFIX), self.generation)
            self._nursery.start_soon(_keep, self._channel)
        return self._channel

    def _finish_beside(self, pending: _Pending, beside: _Beside, envelope: Envelope) -> None:
        """Gives the caller an answer that descriptors may have come beside."""
        if envelope.kind is not Kind.REPLY:
            self._finish(pending, _outcome(envelope))
            return
        try:
            token, count, body = split_beside(envelope.body)
            if token != beside.token or (count > 0) != pending.method.gives_fd:
                raise PeerError("the answer announces descriptors that are not its own")
            if count:
                assert beside.channel is not None
                fds = beside.channel.claim(token)
                if fds is None and beside.channel.ended:
                    # They went down with their connection, most likely with the callee: an answer without
                    # them is none.
                    self._happened(pending, Event.LOST)
                    if pending.state is CallState.WAITING and self.generation is not None:
                        self._ready(pending)
                    return
                if fds is None or len(fds) != count:
                    close_all(fds or ())
                    raise PeerError(f"{count} descriptors were announced, not {len(fds or ())}")
                beside.given = fds
        except PeerError as error:
            self.nonsense += 1
            self._finish(pending, outcome.Error(Failure(Code.BAD_MESSAGE, str(error))))
            return
        self._finish(pending, outcome.Value(body))

    def _ready(self, pending: _Pending) -> None:
        """The callee is there for a call that waited."""
        try:
            self._happened(pending, Event.READY)
        except Failure as failure:
            self._finish(pending, outcome.Error(failure))

    def _happened(self, pending: _Pending, event: Event, envelope: Envelope | None = None) -> None:
        """Does what `bus.link` decides. Failure when a call's descriptors cannot be sent; it was not sent
        then."""
        match decide(pending.state, event, idempotent=pending.method.idempotent):
            case Action.SEND:
                assert self.generation is not None
                body = pending.body
                if pending.beside is not None:
                    body = self._announce(pending.beside) + body
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
                        body=body,
                    )
                )
            case Action.AGAIN:
                pending.state = CallState.WAITING
                pending.attempt = min(pending.attempt + 1, _ATTEMPT_MAX)
            case Action.FINISH:
                assert envelope is not None
                if pending.beside is None:
                    self._finish(pending, _outcome(envelope))
                else:
                    self._finish_beside(pending, pending.beside, envelope)
            case Action.DIED:
                self._finish(pending, outcome.Error(Failure(Code.PEER_DIED)))
            case Action.NOTHING:
                pass

    def _finish(self, pending: _Pending, result: outcome.Outcome[bytes]) -> None:
        del self._pending[pending.id]
        if pending.leads is None:
            trio.lowlevel.reschedule(pending.task, result)
        else:
            pending.result = result
            pending.leads.wake()

    def _send(self, envelope: Envelope) -> None:
        assert self._connection is not None
        if self._tap is not None:
            self._tap.show(Side.SENT, self.interface.name, envelope)
        self._connection.send(frames(envelope))


async def _keep(channel: Channel) -> None:
    try:
        await channel.run()
    finally:
        channel.close()


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
    no underscore. Methods that carry descriptors are not here, so that none is passed unseen: `Peer.call`.
    """

    def __init__(self, peer: Peer, caller: str) -> None:
        self._functions: dict[str, Callable[..., Awaitable[dict[str, object]]]] = {
            name: partial(_call, peer, name)
            for name, method in peer.interface.methods.items()
            if caller in method.callers and not method.beside
        }
        # As attributes they are found without a function of Python's; `__getattr__` is for what is not there.
        vars(self).update(self._functions)
        self._name = peer.interface.name
        self._beside = {name for name, method in peer.interface.methods.items() if method.beside}

    def __getattr__(self, name: str) -> Callable[..., Awaitable[dict[str, object]]]:
        try:
            return self._functions[name]
        except KeyError:
            if name in self._beside:
                text = f"{self._name}.{name} carries descriptors: call it by `peers[{self._name!r}].call`"
                raise AttributeError(text) from None
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
            if interface.concerns(caller)
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
