"""Serving an interface: from a frame at a caller's listener to a handler, and back with its answer.

One desk per caller, each with a listener, a limit and a share of the organ's time of its own, so that what
one caller does is felt by that caller alone. A peer's nonsense is answered with a typed failure and
forgotten; a handler that raises anything but `Failure` is a fault of ours and ends the organ.

It never keeps anything of a call after its answer, and it never retries.
"""

from __future__ import annotations

import time
import types
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import trio

from bus.admission import Load, admit
from bus.alarm import NEVER, Alarm
from bus.descriptors import Channel, Entrance, Held, Unsent, close_all
from bus.envelope import (
    BESIDE_BYTES,
    DESCRIPTORS_MAX,
    MESSAGE_MAX,
    SNAPSHOT_MAX,
    Code,
    Envelope,
    Failure,
    Kind,
    PeerError,
    Phase,
    Reassembler,
    frames,
    pack_beside,
    pack_failure,
    split_beside,
    unpack,
)
from bus.sockets import OUT_BYTES_MAX, Listener
from bus.tap import Side, Tap
from bus.wire import Interface, Method

EVENT_FRAMES_MAX: Final = 256
"""Frames that wait for a connection before it is told no news. A ROUTER cannot close one connection, so when
it has read what waits it is told the present state instead."""
HEARERS_MAX: Final = 4
"""Connections of one caller that hear. It has one, and for a moment two. A ROUTER does not say that one is
gone, so the oldest makes room."""
UNFINISHED_MAX: Final = 4
"""Messages of one caller that may be half received at a time. An organ has one connection, and for a moment
two while it restarts; the oldest makes room, so what is held is at most this times the largest message."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler may know of a call beside its parameters.

    `caller` is the organ whose socket it came in on. `attempt` counts from 0; more than 0 only for idempotent
    methods. The handler is cancelled at `deadline_ns` (CLOCK_MONOTONIC).
    """

    caller: str
    attempt: int
    deadline_ns: int

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that came with it, at least one for a `$fd` method. Closed when the handler has
        returned."""
        return ()

    def take(self) -> tuple[int, ...]:
        """The same, but the handler's own from now on, to be closed by it."""
        return ()


@dataclass(frozen=True, slots=True)
class _CallBeside(Call):
    """A call that descriptors go beside."""

    held: Held

    @property
    def fds(self) -> tuple[int, ...]:
        return self.held.fds

    def take(self) -> tuple[int, ...]:
        return self.held.take()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the handler of a `$gives` method returns: the results, and one to eight descriptors of its own,
    which are closed when they were sent."""

    results: Mapping[str, object]
    fds: tuple[int, ...]


Handler = Callable[[Call, dict[str, object]], Awaitable[Mapping[str, object] | Answer]]


Told = tuple[str, Mapping[str, object]]


class Events:
    """The news of one interface, and its present state as news.

    `snapshot` gives the events that describe the present state: name and values of each. It is called when
    somebody begins to hear, or begins again. Change the state and emit without an await between, or a hearer
    may miss the one or get it twice.
    """

    def __init__(self, interface: Interface, snapshot: Callable[[], Iterable[Told]]) -> None:
        self._interface = interface
        self._snapshot = snapshot
        self._desks: list[_Desk] = []

    def emit(self, name: str, /, **values: object) -> None:
        """Tell all who hear. It never waits. AttributeError when there is no such event, TypeError or
        ValueError when the values do not fit it."""
        event = self._event(name)
        body = event.encode_params(values)
        if len(body) > MESSAGE_MAX:
            raise ValueError(f"{self._interface.name}.{name}: an event of {len(body)} bytes")
        for desk in self._desks:
            desk.tell(event, body)

    def _event(self, name: str) -> Method:
        found = self._interface.events.get(name)
        if found is None:
            raise AttributeError(f"{self._interface.name} has no event {name}")
        return found

    def join(self, desk: _Desk) -> None:
        """One more caller may hear. For `serve`."""
        self._desks.append(desk)

    def present(self) -> list[tuple[Method, bytes]]:
        """The present state: each event and its body."""
        told = [(self._event(name), values) for name, values in self._snapshot()]
        if len(told) > SNAPSHOT_MAX:
            raise ValueError(f"{self._interface.name}: a snapshot has at most {SNAPSHOT_MAX} events")
        return [(event, event.encode_params(values)) for event, values in told]


async def serve(
    interface: Interface,
    handlers: Mapping[str, Handler],
    listeners: Mapping[str, int],
    generation: int,
    *,
    events: Events | None = None,
    descriptors: Mapping[str, int] | None = None,
    tap: Tap | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answers the calls of an interface until cancelled.

    `handlers` has one handler for each method, by name; `listeners` a listening descriptor for each caller,
    by name; `events` its news, if it has any; `descriptors` another listener for each caller that may pass
    some. ValueError when the handlers are not the interface's methods, or the events are missing.
    """
    if bool(interface.events) != (events is not None):
        raise ValueError(f"{interface.name}: events go with an interface that has some")
    beside = {} if descriptors is None else descriptors
    if handlers.keys() != interface.methods.keys():
        differing = sorted(handlers.keys() ^ interface.methods.keys())
        raise ValueError(f"{interface.name}: handlers and schema differ in {', '.join(differing)}")
    methods = {method.ordinal: (method, handlers[name]) for name, method in interface.methods.items()}
    async with trio.open_nursery() as nursery:
        for caller, listening_fd in listeners.items():
            entrance = Entrance(beside[caller], generation) if caller in beside else None
            desk = _Desk(caller, interface.id, methods, generation, tap, entrance, events)
            if events is not None:
                events.join(desk)
            await nursery.start(desk.run, listening_fd)
        task_status.started()
        await trio.sleep_forever()


@dataclass(frozen=True, slots=True)
class _Beside:
    """Where an admitted call was announced, under which token, and what came with it."""

    channel: Channel
    token: int
    held: Held


@dataclass(slots=True)
class _Work:
    """An admitted call."""

    route: bytes
    call: Envelope
    method: Method
    handler: Handler
    deadline_ns: int
    beside: _Beside | None = None
    """Of a method that the schema gives `$fd` or `$gives`."""


@types.coroutine
def _waits(running: Coroutine[Any, Any, None], begins: Callable[[], None]) -> Generator[Any, Any, bool]:
    """Awaits it; whether it had to wait. `begins` is called when it begins to, before anybody else runs."""
    step: Callable[[], Any] = partial(running.send, None)
    waits = False
    while True:
        try:
            wanted = step()
        except StopIteration:
            return waits
        if not waits:
            waits = True
            begins()
        try:
            given = yield wanted
        except BaseException as error:  # as `await` does: whatever is thrown at us is thrown at it
            step = partial(running.throw, error)
        else:
            step = partial(running.send, given)


class _Worker:
    """A task of a desk: it receives, executes what it received, and waits to receive again."""

    __slots__ = ("late", "scope", "task", "work")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.task = trio.lowlevel.current_task()
        self.work: _Work | None = None
        """What it executes, until it is answered."""
        self.late = False
        """Whether its scope was cancelled; the scope itself would look at the clock to tell."""


class _Desk:
    """Where one caller is served.

    One worker at a time receives. When it has received a call it executes it itself, at once, and hands the
    duty of receiving to another when the call waits for something: a call that waits for nothing is answered
    without a switch of tasks, and one that waits keeps nobody. A desk starts one call in a turn of the
    scheduler, however many its caller sends.
    """

    def __init__(
        self,
        caller: str,
        interface_id: int,
        methods: Mapping[int, tuple[Method, Handler]],
        generation: int,
        tap: Tap | None,
        entrance: Entrance | None,
        events: Events | None,
    ) -> None:
        self._events = events
        self._hearers: OrderedDict[bytes, int] = OrderedDict()
        """Which connections hear, and under which id."""
        self._behind: set[bytes] = set()
        """Those that will be told the present state when nothing waits for them any more."""
        self._tap = tap
        self._entrance = entrance
        self._caller = caller
        self._interface_id = interface_id
        self._methods = methods
        self._generation = generation
        self._unfinished: OrderedDict[bytes, Reassembler] = OrderedDict()
        self._bytes = 0
        self._busy: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._alarm = Alarm(self._due)

    async def run(
        self, listening_fd: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with Listener(listening_fd, self._caught_up) as self._listener:
            try:
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._alarm.run)
                    if self._entrance is not None:
                        await self._nursery.start(self._entrance.run)
                    self._nursery.start_soon(self._work)
                    task_status.started()
            finally:
                # Others may still emit while the organ ends.
                self._hearers.clear()

    async def _work(self) -> None:
        """The life of a worker, which begins with receiving."""
        worker = _Worker()
        receiving = True
        while True:
            # Cancelled by the alarm when the call that the worker executes is due. Entering a scope costs
            # as much as executing a small call, so one serves until it is cancelled.
            with trio.CancelScope() as worker.scope:
                while not worker.late:
                    if not receiving:
                        await self._turn(worker)
                    work = await self._receive()
                    receiving = False
                    receiving = not await _waits(self._execute(work, worker), self._relieve)
            worker.late = False
            if worker.work is not None:
                self._fail(worker.work.route, worker.work.call, Failure(Code.DEADLINE))
                self._busy.discard(worker)
                worker.work = None

    async def _turn(self, worker: _Worker) -> None:
        """Until it is this worker's turn to receive."""

        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            # A task is woken once: whoever wakes it takes it off the list first.
            self._idle.remove(worker)
            return trio.lowlevel.Abort.SUCCEEDED

        self._idle.append(worker)
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _relieve(self) -> None:
        """Somebody else receives from now on."""
        if self._idle:
            trio.lowlevel.reschedule(self._idle.pop().task)
        else:
            # `admit` limits the calls, and with them the workers.
            self._nursery.start_soon(self._work)

    async def _receive(self) -> _Work:
        """The next call that is to be executed; everything else is dealt with here."""
        while True:
            route, frame = await self._listener.receive()
            work = self._take(route, frame)
            if work is not None:
                self._listener.left = 0
                return work

    def _take(self, route: bytes, frame: bytes | None) -> _Work | None:
        """One message came in. What it says of its sender is not believed: the caller is whose desk this
        is."""
        try:
            if frame is None:
                raise PeerError("a message has more than one part")
            envelope = unpack(frame)
        except PeerError as error:
            self._fail(route, Envelope(kind=Kind.CALL, id=0), Failure(Code.BAD_MESSAGE, str(error)))
            return None
        if envelope.kind is Kind.HELLO:
            self._unfinished.pop(route, None)
            self._answer(route, envelope, Kind.HELLO, b"")
            return None
        if envelope.kind is Kind.EVENT and self._events is not None:
            self._hear(route, envelope)
            return None
        if envelope.kind is not Kind.CALL:
            self._fail(route, envelope, Failure(Code.BAD_MESSAGE, f"a caller sends no {envelope.kind.name}"))
            return None
        if envelope.more or envelope.part or route in self._unfinished:
            whole = self._join(route, envelope)
            return None if whole is None else self._admit(route, whole)
        return self._admit(route, envelope)

    def _hear(self, route: bytes, asked: Envelope) -> None:
        """A connection wants to hear from now on, or anew."""
        if self._tap is not None:
            self._tap.show(Side.RECEIVED, self._caller, asked)
        if asked.generation != self._generation:  # INV-BUS-3
            self._fail(route, asked, Failure(Code.STALE, f"this is generation {self._generation}"))
            return
        if asked.attempt != Phase.ASK or asked.body or asked.more or asked.part:
            self._fail(route, asked, Failure(Code.BAD_MESSAGE, "a caller asks for news and tells none"))
            return
        self._hearers.pop(route, None)
        while len(self._hearers) >= HEARERS_MAX:
            gone, _ = self._hearers.popitem(last=False)
            self._behind.discard(gone)
        self._hearers[route] = asked.id
        self._behind.add(route)
        self._caught_up()

    def tell(self, event: Method, body: bytes) -> None:
        """News for those of this caller's connections that hear and keep up."""
        if self._caller not in event.callers:  # INV-BUS-1
            return
        for route, id_ in self._hearers.items():
            if route in self._behind:
                continue
            full = self._listener.waiting(route) >= EVENT_FRAMES_MAX
            if full or self._listener.out_bytes + len(body) > OUT_BYTES_MAX:  # INV-BUS-9
                self._behind.add(route)
            else:
                self._news(route, id_, Phase.NEWS, event.ordinal, body)

    def _caught_up(self) -> None:
        """Tells the present state to those that are to have it and have read what was sent before."""
        for route in [route for route in self._behind if not self._listener.waiting(route)]:
            assert self._events is not None
            self._behind.discard(route)
            id_ = self._hearers[route]
            for event, body in self._events.present():
                if self._caller in event.callers:  # INV-BUS-1
                    self._news(route, id_, Phase.PART, event.ordinal, body)
            self._news(route, id_, Phase.END, 0, b"")

    def _news(self, route: bytes, id_: int, phase: Phase, ordinal: int, body: bytes) -> None:
        news = Envelope(
            kind=Kind.EVENT,
            id=id_,
            generation=self._generation,
            interface=self._interface_id,
            ordinal=ordinal,
            attempt=phase,
            body=body,
        )
        if self._tap is not None:
            self._tap.show(Side.SENT, self._caller, news)
        self._listener.send(route, frames(news))

    def _join(self, route: bytes, part: Envelope) -> Envelope | None:
        reassembler = self._unfinished.pop(route, None)
        if reassembler is None:
            reassembler = Reassembler()
            while len(self._unfinished) >= UNFINISHED_MAX:
                self._unfinished.popitem(last=False)
        try:
            whole = reassembler.add(part)
        except PeerError as error:
            self._fail(route, part, Failure(Code.BAD_MESSAGE, str(error)))
            whole = None
        if part.more:
            self._unfinished[route] = reassembler
        return whole

    def _admit(self, route: bytes, call: Envelope) -> _Work | None:
        if self._tap is not None:
            self._tap.show(Side.RECEIVED, self._caller, call)
        known = self._methods.get(call.ordinal) if call.interface == self._interface_id else None
        if known is not None and known[0].beside:
            return self._admit_beside(route, call, *known)
        verdict = admit(
            call,
            known[0] if known else None,
            caller=self._caller,
            generation=self._generation,
            now_ns=time.monotonic_ns(),
            load=Load(len(self._busy), self._bytes),
        )
        if isinstance(verdict, Failure):
            self._fail(route, call, verdict)
            return None
        assert known is not None
        return _Work(route, call, known[0], known[1], verdict)

    def _admit_beside(self, route: bytes, call: Envelope, method: Method, handler: Handler) -> _Work | None:
        """The same for a call that descriptors go beside. They are looked for first, whatever becomes of the
        call, so that those of a refused one do not stay."""
        try:
            token, count, body = split_beside(call.body)
        except PeerError as error:
            self._fail(route, call, Failure(Code.BAD_MESSAGE, str(error)))
            return None
        found = None if self._entrance is None else self._entrance.claim(token)
        fds = () if found is None else found[1]
        verdict = admit(
            call,
            method,
            caller=self._caller,
            generation=self._generation,
            now_ns=time.monotonic_ns(),
            load=Load(len(self._busy), self._bytes),
        )
        held = None
        if not isinstance(verdict, Failure):
            if found is None or len(fds) != count:
                verdict = Failure(Code.BAD_MESSAGE, f"{count} descriptors were announced, not {len(fds)}")
            elif (count > 0) != method.takes_fd:
                verdict = Failure(Code.BAD_MESSAGE, f"{count} descriptors are not for this method")
            else:
                assert self._entrance is not None
                held = self._entrance.hold(fds)
                if held is None:
                    self._fail(route, call, Failure(Code.BUSY, "its calls hold too many descriptors"))
                    return None
        if isinstance(verdict, Failure):
            close_all(fds)
            self._fail(route, call, verdict)
            return None
        assert found is not None
        assert held is not None
        beside = _Beside(found[0], token, held)
        return _Work(route, replace(call, body=body), method, handler, verdict, beside)

    async def _execute(self, work: _Work, worker: _Worker) -> None:
        call = work.call
        worker.work = work
        self._busy.add(worker)
        self._bytes += len(call.body)
        self._alarm.at(work.deadline_ns)
        kind = Kind.REPLY
        try:
            params = work.method.decode_params(call.body)
            if self._listener.out_bytes > OUT_BYTES_MAX:
                await self._listener.room()
            if work.beside is not None:
                body = await self._execute_beside(work, work.beside, params)
            else:
                # Any: an Answer here is a fault of ours, which the encoder refuses as no mapping.
                results: Any = await work.handler(Call(self._caller, call.attempt, work.deadline_ns), params)
                body = work.method.encode_results(results)
            if len(body) > MESSAGE_MAX:
                raise Failure(Code.TOO_LARGE, f"the answer has {len(body)} bytes")
        except PeerError as error:
            kind, body = Kind.FAILURE, pack_failure(Failure(Code.BAD_MESSAGE, str(error)))
        except Failure as failure:
            kind, body = Kind.FAILURE, pack_failure(failure)
        finally:
            self._bytes -= len(call.body)
            if work.beside is not None:
                work.beside.held.close()
        self._busy.discard(worker)
        worker.work = None
        self._answer(work.route, call, kind, body)

    async def _execute_beside(self, work: _Work, beside: _Beside, params: dict[str, object]) -> bytes:
        """Calls the handler of a method with `$fd` or `$gives`; the body of the reply, its descriptors
        sent."""
        call = _CallBeside(self._caller, work.call.attempt, work.deadline_ns, beside.held)
        answer: Any = await work.handler(call, params)
        if not work.method.gives_fd:
            return pack_beside(beside.token, 0) + work.method.encode_results(answer)
        if not isinstance(answer, Answer):
            raise TypeError(f"{work.method.interface_name}.{work.method.name} gives descriptors: an Answer")
        try:
            if not 1 <= len(answer.fds) <= DESCRIPTORS_MAX or set(answer.fds) & set(call.fds):
                raise ValueError(f"an answer has 1 to {DESCRIPTORS_MAX} descriptors, the handler's own")
            body = work.method.encode_results(answer.results)
            if len(body) > MESSAGE_MAX - BESIDE_BYTES:
                raise Failure(Code.TOO_LARGE, f"the answer has {len(body)} bytes")
            try:
                beside.channel.send(beside.token, answer.fds)
            except Unsent as unsent:
                text = f"executed, but the descriptors could not be sent: {unsent.reason}"
                raise Failure(Code.INTERNAL, text) from None
        finally:
            close_all(set(answer.fds) - set(call.fds))
        return pack_beside(beside.token, len(answer.fds)) + body

    def _due(self, now_ns: int) -> int:
        """Cancels what is due; the earliest deadline of the rest."""
        next_ns = NEVER
        for worker in self._busy:
            assert worker.work is not None
            if worker.work.deadline_ns <= now_ns:
                worker.late = True
                worker.scope.cancel()  # INV-BUS-2
            else:
                next_ns = min(next_ns, worker.work.deadline_ns)
        return next_ns

    def _fail(self, route: bytes, to: Envelope, failure: Failure) -> None:
        self._answer(route, to, Kind.FAILURE, pack_failure(failure))

    def _answer(self, route: bytes, to: Envelope, kind: Kind, body: bytes) -> None:
        answer = Envelope(
            kind=kind,
            id=to.id,
            generation=self._generation,
            interface=to.interface,
            ordinal=to.ordinal,
            attempt=to.attempt,
            body=body,
        )
        if self._tap is not None:
            self._tap.show(Side.SENT, self._caller, answer)
        self._listener.send(route, frames(answer))
