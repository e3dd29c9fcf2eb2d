"""Serving an interface: from a frame at a caller's listener to a handler, and back with its answer.

One desk per caller, each with a listener, a limit and a share of the organ's time of its own, so that what
one caller does is felt by that caller alone. A peer's nonsense is answered with a typed failure and
forgotten; a handler that raises anything but `Failure` is a fault of ours and ends the organ.

It never keeps anything of a call after its answer, and it never retries.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from bus.admission import Load, admit
from bus.envelope import (
    MESSAGE_MAX,
    Code,
    Envelope,
    Failure,
    Kind,
    PeerError,
    Reassembler,
    frames,
    pack_failure,
    unpack,
)
from bus.sockets import Listener
from bus.wire import Interface, Method

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


Handler = Callable[[Call, dict[str, object]], Awaitable[Mapping[str, object]]]


async def serve(
    interface: Interface,
    handlers: Mapping[str, Handler],
    listeners: Mapping[str, int],
    generation: int,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answers the calls of an interface until cancelled.

    `handlers` has one handler for each method, by name; `listeners` a listening descriptor for each caller,
    by name. ValueError when the handlers are not the interface's methods.
    """
    if handlers.keys() != interface.methods.keys():
        differing = sorted(handlers.keys() ^ interface.methods.keys())
        raise ValueError(f"{interface.name}: handlers and schema differ in {', '.join(differing)}")
    methods = {method.ordinal: (method, handlers[name]) for name, method in interface.methods.items()}
    async with trio.open_nursery() as nursery:
        for caller, listening_fd in listeners.items():
            desk = _Desk(caller, interface.id, methods, generation, nursery)
            await nursery.start(desk.run, listening_fd)
        task_status.started()
        await trio.sleep_forever()


class _Desk:
    """Where one caller is served."""

    def __init__(
        self,
        caller: str,
        interface_id: int,
        methods: Mapping[int, tuple[Method, Handler]],
        generation: int,
        nursery: trio.Nursery,
    ) -> None:
        self._caller = caller
        self._interface_id = interface_id
        self._methods = methods
        self._generation = generation
        self._nursery = nursery
        self._unfinished: OrderedDict[bytes, Reassembler] = OrderedDict()
        self._calls = 0
        self._bytes = 0
        self._listener: Listener | None = None

    async def run(
        self, listening_fd: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with Listener(listening_fd, self._take, self._refuse_parts) as self._listener:
            task_status.started()
            await self._listener.run()

    def _take(self, route: bytes, frame: bytes) -> None:
        """One frame came in. What it says of its sender is not believed: the caller is whose desk this is."""
        try:
            envelope = unpack(frame)
        except PeerError as error:
            self._fail(route, Envelope(kind=Kind.CALL, id=0), Failure(Code.BAD_MESSAGE, str(error)))
            return
        if envelope.kind is Kind.HELLO:
            self._unfinished.pop(route, None)
            self._answer(route, envelope, Kind.HELLO, b"")
        elif envelope.kind is not Kind.CALL:
            self._fail(route, envelope, Failure(Code.BAD_MESSAGE, f"a caller sends no {envelope.kind.name}"))
        elif envelope.more or envelope.part:
            self._join(route, envelope)
        else:
            self._unfinished.pop(route, None)
            self._admit(route, envelope)

    def _join(self, route: bytes, part: Envelope) -> None:
        reassembler = self._unfinished.pop(route, None)
        if reassembler is None:
            reassembler = Reassembler()
            while len(self._unfinished) >= UNFINISHED_MAX:
                self._unfinished.popitem(last=False)
        try:
            whole = reassembler.add(part)
        except PeerError as error:
            self._unfinished[route] = reassembler  # It swallows what still comes of that message.
            self._fail(route, part, Failure(Code.BAD_MESSAGE, str(error)))
            return
        if part.more:
            self._unfinished[route] = reassembler
        if whole is not None:
            self._admit(route, whole)

    def _admit(self, route: bytes, call: Envelope) -> None:
        known = self._methods.get(call.ordinal) if call.interface == self._interface_id else None
        verdict = admit(
            call,
            known[0] if known else None,
            caller=self._caller,
            generation=self._generation,
            now_ns=time.monotonic_ns(),
            load=Load(self._calls, self._bytes),
        )
        if isinstance(verdict, Failure):
            self._fail(route, call, verdict)
            return
        assert known is not None
        self._calls += 1
        self._bytes += len(call.body)
        self._nursery.start_soon(self._execute, route, call, known[0], known[1], verdict)

    async def _execute(
        self, route: bytes, call: Envelope, method: Method, handler: Handler, deadline_ns: int
    ) -> None:
        body: bytes | None = None
        failure = Failure(Code.DEADLINE)
        try:
            params = method.decode_params(call.body)
            with trio.move_on_after((deadline_ns - time.monotonic_ns()) / 1e9):
                body = method.encode_results(
                    await handler(Call(self._caller, call.attempt, deadline_ns), params)
                )
        except PeerError as error:
            failure = Failure(Code.BAD_MESSAGE, str(error))
        except Failure as raised:
            failure = raised
        finally:
            self._calls -= 1
            self._bytes -= len(call.body)
        if body is None:
            self._fail(route, call, failure)
        elif len(body) > MESSAGE_MAX:
            self._fail(route, call, Failure(Code.TOO_LARGE, f"the answer has {len(body)} bytes"))
        else:
            self._answer(route, call, Kind.REPLY, body)

    def _refuse_parts(self, route: bytes) -> None:
        self._fail(
            route,
            Envelope(kind=Kind.CALL, id=0),
            Failure(Code.BAD_MESSAGE, "a message has more than one part"),
        )

    def _fail(self, route: bytes, to: Envelope, failure: Failure) -> None:
        self._answer(route, to, Kind.FAILURE, pack_failure(failure))

    def _answer(self, route: bytes, to: Envelope, kind: Kind, body: bytes) -> None:
        assert self._listener is not None
        self._listener.send(
            route,
            frames(
                Envelope(
                    kind=kind,
                    id=to.id,
                    generation=self._generation,
                    interface=to.interface,
                    ordinal=to.ordinal,
                    attempt=to.attempt,
                    body=body,
                )
            ),
        )
