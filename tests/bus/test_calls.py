"""Calls from end to end, on real sockets: what a caller sees, in good days and when the callee dies.

Where it matters who executed a call the callee is a process of its own that says what it executes, and it
ends by kill -9.
"""

from __future__ import annotations

import select
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.admission import CALLS_MAX
from bus.alarm import NEVER, Alarm
from bus.client import PENDING_MAX, Bus, Peer
from bus.envelope import MESSAGE_MAX, Code, Envelope, Failure, Kind, pack, pack_failure, unpack
from bus.server import Call, Handler, serve
from bus.sockets import Listener
from tests.bus.strategies import fields
from tests.bus.wiring import PATIENCE_S, Callee, callee, listening, schemas

ECHO = schemas().interfaces["echo"]


class Handlers:
    """A callee in this process: `hold` waits for `release`, everything else answers at once."""

    def __init__(self) -> None:
        self.release = trio.Event()
        self.held = 0
        self.cancelled = 0
        self.grown = 0
        self.calls: list[Call] = []

    async def same(self, call: Call, params: dict[str, object]) -> dict[str, object]:
        self.calls.append(call)
        return params

    async def hold(self, call: Call, _: dict[str, object]) -> dict[str, object]:
        self.calls.append(call)
        self.held += 1
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.held -= 1
        return {"generation": 1, "attempt": call.attempt}

    async def nothing(self, _: Call, __: dict[str, object]) -> dict[str, object]:
        return {}

    async def refuse(self, _: Call, params: dict[str, object]) -> dict[str, object]:
        code = params["code"]
        assert isinstance(code, int)
        raise Failure(Code(code), str(params["text"]))

    async def grow(self, _: Call, params: dict[str, object]) -> dict[str, object]:
        self.grown += 1
        size = params["bytes"]
        assert isinstance(size, int)
        return {"data": bytes(size)}

    def table(self) -> dict[str, Handler]:
        return {
            "values": self.same,
            "data": self.same,
            "hold": self.hold,
            "once": self.hold,
            "onlyBeta": self.nothing,
            "refuse": self.refuse,
            "grow": self.grow,
        }


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[dict[str, Bus], Handlers]]:
    """Callee and callers in this process; a Bus for each caller."""
    handlers = Handlers()
    with listening() as (directory, sockets), trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            listeners = {caller: bound.fileno() for caller, bound in sockets.items()}
            await nursery.start(serve, ECHO, handlers.table(), listeners, 1)
            buses = {caller: Bus(schemas(), caller, directory) for caller in sockets}
            for bus in buses.values():
                await nursery.start(bus.run)
            yield buses, handlers
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def code_of(call: Awaitable[object]) -> Code:
    """The code that a call fails with."""
    with pytest.raises(Failure) as caught:
        await call
    return caught.value.code


async def test_a_call_and_its_answer() -> None:
    async with serving() as (buses, handlers):
        assert await buses["alpha"].echo.data(data=b"hello") == {"data": b"hello"}
        assert await buses["beta"].echo.data(data=b"hello") == {"data": b"hello"}
        assert [call.caller for call in handlers.calls] == ["alpha", "beta"]
        assert buses["alpha"].peers["echo"].generation == 1


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(params=st.lists(fields(ECHO.methods["values"].params), min_size=1, max_size=5))
def test_every_value_crosses_the_bus(params: list[dict[str, object]]) -> None:
    async def main() -> None:
        async with serving() as (buses, _):
            for values in params:
                assert await buses["alpha"].echo.values(**values) == values

    trio.run(main)


async def test_large_values_cross_in_pieces() -> None:
    async with serving() as (buses, _):
        for size in (0, 1, 65_000, 65_536, 1_048_576):
            data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            assert (await buses["alpha"].echo.data(data=data))["data"] == data

        async def ask(caller: str, fill: int) -> None:
            data = bytes([fill]) * 1_048_576
            assert (await buses[caller].echo.data(data=data))["data"] == data

        async with trio.open_nursery() as nursery:
            for fill in range(3):
                nursery.start_soon(ask, "alpha", fill)
                nursery.start_soon(ask, "beta", 128 + fill)


async def test_what_is_too_large_is_refused_before_it_is_sent() -> None:
    async with serving() as (buses, handlers):
        alpha = buses["alpha"].echo
        assert await code_of(alpha.data(data=bytes(MESSAGE_MAX))) is Code.TOO_LARGE
        assert handlers.calls == []
        assert await code_of(alpha.grow(bytes=MESSAGE_MAX)) is Code.TOO_LARGE
        assert await alpha.grow(bytes=1_048_576) == {"data": bytes(1_048_576)}


async def test_failures_come_as_they_were_raised() -> None:
    async with serving() as (buses, _):
        for code in Code:
            with pytest.raises(Failure) as caught:
                await buses["alpha"].echo.refuse(code=code, text=f"because of {code.name}")
            assert (caught.value.code, caught.value.message) == (code, f"because of {code.name}")


async def test_a_caller_gets_what_the_schema_gives_it() -> None:
    async with serving() as (buses, _):
        alpha, beta = buses["alpha"], buses["beta"]
        assert await beta.echo.onlyBeta() == {}
        with pytest.raises(AttributeError, match="echo has no method onlyBeta for this organ"):
            _ = alpha.echo.onlyBeta
        # Who goes round the convenience is refused by the callee.
        assert await code_of(alpha.peers["echo"].call("onlyBeta", {})) is Code.FORBIDDEN
        with pytest.raises(AttributeError, match="echo has no method missing"):
            await alpha.peers["echo"].call("missing", {})
        with pytest.raises(AttributeError, match="call nothing of missing"):
            _ = alpha.missing
        assert Bus(schemas(), "gamma").peers == {}


async def test_wrong_parameters_are_the_callers_own_fault() -> None:
    async with serving() as (buses, _):
        with pytest.raises(TypeError, match=r"echo.data.data: bytes are needed"):
            await buses["alpha"].echo.data(data="text")
        with pytest.raises(ValueError, match=r"echo.data.more is not a field"):
            await buses["alpha"].echo.data(data=b"", more=1)


@pytest.mark.proves("INV-BUS-2")
async def test_a_deadline_ends_the_call_on_both_sides() -> None:
    async with serving() as (buses, handlers):
        assert await code_of(buses["alpha"].echo.hold(tag=1, deadline_ms=20)) is Code.DEADLINE
        await until(lambda: handlers.cancelled == 1)
        assert handlers.held == 0
        assert handlers.calls[0].deadline_ns <= time.monotonic_ns()
        # Time that is up is up before anything is sent.
        assert await code_of(buses["alpha"].echo.hold(tag=1, deadline_ms=0)) is Code.DEADLINE
        assert len(handlers.calls) == 1
        assert await buses["alpha"].echo.data(data=b"still there") == {"data": b"still there"}


async def test_calls_may_be_answered_in_any_order_and_be_cancelled() -> None:
    async with serving() as (buses, handlers):
        alpha = buses["alpha"]
        async with trio.open_nursery() as nursery:
            for tag in range(10):
                nursery.start_soon(lambda tag: alpha.echo.hold(tag=tag), tag)
            await until(lambda: handlers.held == 10)
            assert await alpha.echo.data(data=b"overtakes") == {"data": b"overtakes"}
            nursery.cancel_scope.cancel()
        assert not alpha.peers["echo"]._pending
        handlers.release.set()
        assert (await alpha.echo.hold(tag=1))["generation"] == 1
        assert alpha.peers["echo"].nonsense == 0


async def test_one_caller_at_its_limit_is_told_so_and_alone() -> None:
    async with serving() as (buses, handlers):
        alpha, beta = buses["alpha"], buses["beta"]
        async with trio.open_nursery() as nursery:
            for tag in range(CALLS_MAX):
                nursery.start_soon(lambda tag: alpha.echo.hold(tag=tag), tag)
            await until(lambda: handlers.held == CALLS_MAX)
            assert await code_of(alpha.echo.data(data=b"one more")) is Code.BUSY
            assert await beta.echo.data(data=b"unmoved") == {"data": b"unmoved"}
            handlers.release.set()
        assert await alpha.echo.data(data=b"again") == {"data": b"again"}


async def test_a_caller_that_lost_count_of_its_calls_is_told_so() -> None:
    with listening() as (directory, _):
        async with caller_of(directory) as bus:
            async with trio.open_nursery() as nursery:
                for tag in range(PENDING_MAX):
                    nursery.start_soon(lambda tag: bus.echo.once(tag=tag), tag)
                await until(lambda: len(bus.peers["echo"]._pending) == PENDING_MAX)
                assert await code_of(bus.echo.once(tag=1)) is Code.BUSY
                nursery.cancel_scope.cancel()
            assert not bus.peers["echo"]._pending


async def test_a_handler_that_fails_otherwise_ends_the_callee() -> None:
    async def broken(_: Call, __: dict[str, object]) -> dict[str, object]:
        raise KeyError("a fault of ours")

    table = {**Handlers().table(), "data": broken}
    with listening() as (directory, sockets), trio.fail_after(PATIENCE_S):
        listeners = {caller: bound.fileno() for caller, bound in sockets.items()}
        bus = Bus(schemas(), "alpha", directory)
        codes = []

        async def ask() -> None:
            codes.append(await code_of(bus.echo.data(data=b"", deadline_ms=1000)))

        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            nursery.start_soon(ask)
            with pytest.RaisesGroup(pytest.RaisesExc(KeyError), flatten_subgroups=True):
                await serve(ECHO, table, listeners, 1)
            await until(lambda: bool(codes))
            nursery.cancel_scope.cancel()
        assert codes == [Code.DEADLINE]


async def test_handlers_and_schema_must_agree() -> None:
    table = Handlers().table()
    del table["data"]
    with pytest.raises(ValueError, match="echo: handlers and schema differ in data"):
        await serve(ECHO, table, {}, 1)


async def test_calls_end_when_the_peer_runs_no_more() -> None:
    with listening() as (directory, _), trio.fail_after(PATIENCE_S):
        peer = Peer(ECHO, f"{directory}/echo.alpha")
        codes = []

        async def ask() -> None:
            codes.append(await code_of(peer.call("data", {"data": b""})))

        async with trio.open_nursery() as outer:
            async with trio.open_nursery() as inner:
                await inner.start(peer.run)
                outer.start_soon(ask)
                await until(lambda: bool(peer._pending))
                inner.cancel_scope.cancel()
        assert codes == [Code.PEER_DIED]
        with pytest.raises(trio.ClosedResourceError):
            await peer.call("data", {"data": b""})


async def test_the_alarm_asks_for_what_is_due_and_no_sooner() -> None:
    due: list[int] = []
    waiting: set[int] = set()

    def deal(now_ns: int) -> int:
        for when in sorted(waiting):
            if when <= now_ns:
                due.append(when)
                waiting.discard(when)
        return min(waiting, default=NEVER)

    alarm = Alarm(deal)
    start = time.monotonic_ns()
    times = [start + ms * 1_000_000 for ms in (30, 10, 20, 3_600_000)]
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            waiting.add(times[0])
            alarm.at(times[0])
            nursery.start_soon(alarm.run)
            await trio.lowlevel.checkpoint()
            for when in times[1:]:
                waiting.add(when)
                alarm.at(when)
            await until(lambda: len(due) == 3)
            nursery.cancel_scope.cancel()
    assert due == sorted(times[:3])
    assert waiting == {times[3]}


@asynccontextmanager
async def caller_of(directory: str) -> AsyncIterator[Bus]:
    bus = Bus(schemas(), "alpha", directory)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            yield bus
            nursery.cancel_scope.cancel()


async def begun(process: Callee, count: int) -> set[tuple[str, int]]:
    """The next `count` calls that the callee says it has begun."""
    lines = [await process.line() for _ in range(count)]
    return {(name, int(tag)) for name, tag, _, _ in lines}


@pytest.mark.proves("INV-BUS-4")
async def test_kill_9_with_calls_under_way() -> None:
    """Idempotent calls are answered by the next incarnation, the others fail at once and are not repeated."""
    results: dict[int, dict[str, object]] = {}
    codes: dict[int, Code] = {}
    with listening() as (directory, sockets):
        async with caller_of(directory) as bus:

            async def hold(tag: int) -> None:
                results[tag] = await bus.echo.hold(tag=tag)

            async def once(tag: int) -> None:
                codes[tag] = await code_of(bus.echo.once(tag=tag))

            async with trio.open_nursery() as nursery:
                async with callee(1, sockets) as first:
                    for tag in range(1, 51, 2):
                        nursery.start_soon(hold, tag)
                        nursery.start_soon(once, tag)
                    assert len(await begun(first, 50)) == 50
                    assert await first.kill() == []
                # Nobody is there; what may have been executed is answered for without waiting for the next.
                await until(lambda: len(codes) == 25)
                assert set(codes.values()) == {Code.PEER_DIED}
                assert not results
                async with callee(2, sockets) as second:
                    await until(lambda: len(results) == 25)
                    assert all(result == {"generation": 2, "attempt": 1} for result in results.values())
                    assert {name for name, _ in await begun(second, 25)} == {"hold"}
                    # A call made now comes after everything that could still be on its way.
                    assert await bus.echo.once(tag=1000) == {"generation": 2, "attempt": 0}
                    assert await begun(second, 1) == {("once", 1000)}
                    assert await second.kill() == []


async def test_a_loss_is_dealt_with_before_the_answer_of_a_later_incarnation() -> None:
    """The caller has not heard of the loss yet when the refusal of the next incarnation arrives."""
    with listening(("alpha",)) as (directory, bound), trio.fail_after(PATIENCE_S):
        peer = Peer(ECHO, f"{directory}/echo.alpha")
        codes = []

        async def once() -> None:
            codes.append(await code_of(peer.call("once", {"tag": 1})))

        async with trio.open_nursery() as nursery:
            await nursery.start(peer.run)
            with Listener(bound["alpha"].fileno()) as first:
                route, frame = await first.receive()
                assert frame is not None
                first.send(route, [pack(replace(unpack(frame), generation=1))])
                nursery.start_soon(once)
                await first.receive()
            # No task of ours runs between the end of the first incarnation and the word of the second.
            connection = peer._connection
            assert connection is not None
            monitor = int(connection._monitor.get(zmq.FD))
            assert select.select([monitor], [], [], PATIENCE_S)[0]
            assert peer.generation == 1
            body = pack_failure(Failure(Code.STALE))
            (id_,) = peer._pending
            peer._take(pack(Envelope(kind=Kind.FAILURE, id=id_, generation=2, body=body)))
            await until(lambda: bool(codes))
            nursery.cancel_scope.cancel()
        assert codes == [Code.PEER_DIED]


async def test_a_call_waits_for_a_callee_that_is_not_there_yet() -> None:
    with listening() as (directory, sockets):
        async with caller_of(directory) as bus:
            assert await code_of(bus.echo.once(tag=2, deadline_ms=20)) is Code.DEADLINE
            results = []

            async def once() -> None:
                results.append(await bus.echo.once(tag=4))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(once)
                async with callee(7, sockets) as process:
                    assert await begun(process, 1) == {("once", 4)}
                    await until(lambda: bool(results))
            assert results == [{"generation": 7, "attempt": 0}]


async def test_no_call_is_executed_twice_however_often_the_callee_dies() -> None:
    """Calls without pause while the callee is killed again and again; its own words are the evidence."""
    answered: dict[int, object] = {}
    died: dict[int, Code] = {}
    executed: list[tuple[int, int]] = []
    tag = 0
    with listening() as (directory, sockets):
        async with caller_of(directory) as bus:
            stop = False

            async def ask() -> None:
                nonlocal tag
                while not stop:
                    tag += 2
                    mine = tag
                    try:
                        answered[mine] = (await bus.echo.once(tag=mine))["generation"]
                    except Failure as failure:
                        died[mine] = failure.code

            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(ask)
                for generation in range(2, 6):
                    async with callee(generation, sockets) as process:
                        lines = [await process.line() for _ in range(20)]
                        lines += await process.kill()
                    assert all(line[0] == "once" for line in lines)
                    executed += [(int(line[1]), int(line[2])) for line in lines]
                stop = True
                async with callee(6, sockets) as process:
                    # The four that wait are answered, and end.
                    await until(lambda: len(nursery.child_tasks) == 0)
                    executed += [(int(line[1]), int(line[2])) for line in await process.kill()]
    tags = [executed_tag for executed_tag, _ in executed]
    assert len(tags) == len(set(tags)), "a call was executed twice"
    by_tag = dict(executed)
    assert {answered_tag: by_tag[answered_tag] for answered_tag in answered} == answered
    assert set(tags) <= answered.keys() | died.keys()
    assert set(died.values()) <= {Code.PEER_DIED}
    assert len(answered) >= 4 * 20 - 4 * 4
