"""gate: the only way to durable state. Serves put, get, delete, list and usage for each persona.

It carries requests from the bus to the worker's thread and the outcomes back. What is admitted is decided in
`organs/gate/verdict.py`, what is stored in `organs/gate/store.py`.

Touches: /persist, through the worker; the bus, through the runtime.
Never: answers a write before it is durable; answers at all when the device failed under it.
Fails: a failed write or sync ends the process and leaves its callers without an answer: they learn that the
peer died, which is all that anybody knows. The next incarnation recovers from the device. An ending for what
is on the device says so (BadData); after a few of those bay0 starts a gate that is *closed*: the device is
not mounted, and every call is answered with CORRUPT and what was seen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Final, Protocol, assert_never

import trio

from bus.envelope import Code, Failure
from organs import layout
from organs.gate.store import bad_data
from organs.gate.verdict import Delete, Get, List, Operation, Put, Refuse, Usage, admit
from organs.gate.worker import Deleted, Found, Listed, Outcome, Stored, Used, Worker
from organs.runtime import BadData

PERSIST = Path(layout.PERSIST)
# Values on their way out. Each may have a mebibyte, and what waits for the bus is held in memory; further
# reads wait their turn until their deadline.
READS_MAX = 16
# What SQLite or the kernel says of a damaged store is a line; a list of all of them stays one message.
WHY_CHARS_MAX: Final = 200
STORE_METHODS: Final = ("put", "get", "delete", "list", "usage")

Params = Mapping[str, object]
Handler = Callable[[object, Params], Awaitable[dict[str, object]]]


class Spine(Protocol):
    """What this organ uses of the runtime."""

    bad: str

    async def serve(self, handlers: Mapping[str, Handler]) -> None: ...


class Gate:
    """The worker as the trio side sees it."""

    def __init__(self, directory: Path) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._dead = trio.Event()
        self._cause: BaseException | None = None
        self._reads = trio.Semaphore(READS_MAX)
        self.worker = Worker(directory, died=self._died)

    def _died(self, cause: BaseException) -> None:
        self._cause = cause
        self._token.run_sync_soon(self._dead.set)

    async def fail_with_worker(self) -> None:
        """Raise what the worker died of."""
        await self._dead.wait()
        if self._cause is not None and (seen := bad_data(self._cause)) is not None:
            raise BadData(f"unable to go on with {layout.PERSIST}: {seen}") from self._cause
        raise RuntimeError("gate: unable to go on: the store's thread died") from self._cause

    async def ask(self, operation: Operation) -> Outcome:
        """The outcome of one request. Raises Failure for a refusal; never returns once the worker is dead."""
        if isinstance(verdict := admit(operation), Refuse):
            raise Failure(verdict.code, verdict.message)
        answered = trio.Event()
        outcomes: list[Outcome] = []

        def answer(outcome: Outcome) -> None:
            outcomes.append(outcome)
            self._token.run_sync_soon(answered.set)

        ticket = self.worker.submit(operation, answer)
        if isinstance(ticket, Refuse):
            raise Failure(ticket.code, ticket.message)
        try:
            await answered.wait()
        except trio.Cancelled:
            self.worker.abandon(ticket)
            raise
        (outcome,) = outcomes
        if isinstance(outcome, Refuse):
            raise Failure(outcome.code, outcome.message)
        return outcome

    def handlers(self) -> dict[str, Handler]:
        """The interface, method by method."""
        operations: dict[str, Callable[[Params], Operation]] = {
            "put": lambda p: Put(persona=text(p, "persona"), key=data(p, "key"), value=data(p, "value")),
            "get": lambda p: Get(persona=text(p, "persona"), key=data(p, "key")),
            "delete": lambda p: Delete(persona=text(p, "persona"), key=data(p, "key")),
            "list": lambda p: List(
                persona=text(p, "persona"), after=data(p, "after"), limit=number(p, "limit")
            ),
            "usage": lambda p: Usage(persona=text(p, "persona")),
        }

        def handler(operation: Callable[[Params], Operation]) -> Handler:
            async def handle(_call: object, params: Params) -> dict[str, object]:
                asked = operation(params)
                async with self._reads if isinstance(asked, Get) else nullcontext():
                    return results(await self.ask(asked))

            return handle

        async def state(_call: object, _params: Params) -> dict[str, object]:
            damaged = sorted(self.worker.damaged().items())
            return {"closed": "", "damaged": [{"store": s, "why": w[:WHY_CHARS_MAX]} for s, w in damaged]}

        return {"data": state, **{name: handler(operation) for name, operation in operations.items()}}


def closed(why: str) -> dict[str, Handler]:
    """The interface of a gate without its data: what is wrong with them, whatever is asked."""

    async def refuse(_call: object, _params: Params) -> dict[str, object]:
        raise Failure(Code.CORRUPT, f"the data are bad, nothing is read or written: {why}")  # INV-STATE-4

    async def state(_call: object, _params: Params) -> dict[str, object]:
        return {"closed": why, "damaged": []}

    return {"data": state, **dict.fromkeys(STORE_METHODS, refuse)}


def results(outcome: Outcome) -> dict[str, object]:
    """An outcome as the fields of its method's results."""
    match outcome:
        case Stored(seq=seq):
            return {"seq": seq}
        case Found(value=value, seq=seq):
            return {"value": value, "seq": seq}
        case Deleted(existed=existed):
            return {"existed": existed}
        case Listed(keys=keys, more=more):
            return {"keys": list(keys), "more": more}
        case Used(bytes=used, keys=keys, quota_bytes=quota):
            return {"bytes": used, "keys": keys, "quotaBytes": quota}
        case Refuse():
            raise AssertionError("a refusal is raised, not answered")
        case _:
            assert_never(outcome)


def text(params: Params, name: str) -> str:
    """A parameter the schema declares as Text."""
    value = params[name]
    assert isinstance(value, str), name
    return value


def data(params: Params, name: str) -> bytes:
    """A parameter the schema declares as Data."""
    value = params[name]
    assert isinstance(value, bytes), name
    return value


def number(params: Params, name: str) -> int:
    """A parameter the schema declares as an integer."""
    value = params[name]
    assert isinstance(value, int), name
    return value


async def main(spine: Spine) -> None:
    """Serve until cancelled; then finish the transactions that run and leave /persist clean."""
    if spine.bad:
        await spine.serve(closed(spine.bad))
    gate = Gate(PERSIST)
    gate.worker.start()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate.fail_with_worker)
            await spine.serve(gate.handlers())
    finally:
        # Blocks the loop on purpose: nothing else has a right to run between the last commit and the end.
        gate.worker.stop()
