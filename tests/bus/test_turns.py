"""Whose turn it is: who receives while callers wait, and how much one caller gets done before the others."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import trio
import trio.testing

from bus.client import Peer
from bus.envelope import Code, Failure
from bus.server import _waits, serve
from tests.bus.test_calls import ECHO, Handlers, code_of, serving, until
from tests.bus.wiring import PATIENCE_S, listening


async def test_what_waits_for_nothing_is_over_at_once() -> None:
    begun: list[str] = []

    async def at_once() -> None:
        begun.append("ran")

    assert not await _waits(at_once(), lambda: begun.append("waits"))
    assert begun == ["ran"]


async def test_the_first_wait_is_told_and_only_that() -> None:
    seen: list[str] = []

    async def twice() -> None:
        await trio.lowlevel.checkpoint()
        seen.append("between")
        await trio.lowlevel.checkpoint()

    assert await _waits(twice(), lambda: seen.append("waits"))
    assert seen == ["waits", "between"]


async def test_what_fails_fails_the_same_way() -> None:
    async def fails(after: bool) -> None:
        if after:
            await trio.lowlevel.checkpoint()
        raise Failure(Code.REFUSED, "no")

    for after in (False, True):
        assert await code_of(_waits(fails(after), lambda: None)) is Code.REFUSED


async def test_what_is_cancelled_is_cancelled_inside() -> None:
    seen: list[str] = []

    async def waits() -> None:
        try:
            await trio.sleep_forever()
        finally:
            seen.append("left")

    with trio.move_on_after(0.01) as scope:
        await _waits(waits(), lambda: seen.append("waits"))
    assert scope.cancelled_caught
    assert seen == ["waits", "left"]


def test_who_is_closed_while_waiting_is_closed_inside() -> None:
    seen: list[str] = []

    async def waits() -> None:
        try:
            await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            seen.append("left")

    async def outer() -> bool:
        return await _waits(waits(), lambda: None)

    running = outer()
    running.send(None)
    running.close()
    assert seen == ["left"]


async def test_a_caller_that_receives_for_all_and_goes_leaves_the_others_their_answers() -> None:
    async with serving() as (buses, handlers):
        echo = buses["alpha"].echo
        await echo.data(data=b"")
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            got: list[object] = []

            async def first() -> None:
                with scope:
                    await echo.hold(tag=0)

            async def second() -> None:
                got.append(await echo.hold(tag=2))

            nursery.start_soon(first)
            await until(lambda: handlers.held == 1)
            nursery.start_soon(second)
            await until(lambda: handlers.held == 2)
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            handlers.release.set()
        assert got == [{"generation": 1, "attempt": 0}]
        assert await echo.data(data=b"after") == {"data": b"after"}


@pytest.mark.proves("INV-BUS-2")
async def test_the_deadline_of_one_that_receives() -> None:
    async with serving() as (buses, _):
        echo = buses["alpha"].echo
        await echo.data(data=b"")
        assert await code_of(echo.hold(tag=0, deadline_ms=20)) is Code.DEADLINE
        # Its answer comes late and is nobody's.
        assert await echo.data(data=b"after") == {"data": b"after"}


async def test_a_link_that_ends_under_one_that_receives() -> None:
    handlers = Handlers()
    with listening() as (directory, sockets), trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            listeners = {caller: bound.fileno() for caller, bound in sockets.items()}
            await nursery.start(serve, ECHO, handlers.table(), listeners, 1)
            peer = Peer(ECHO, f"{directory}/echo.alpha")
            async with trio.open_nursery() as calling:
                await calling.start(peer.run)
                asking = trio.Event()

                async def ask() -> None:
                    asking.set()
                    assert await code_of(peer.call("hold", {"tag": 0})) is Code.PEER_DIED

                nursery.start_soon(ask)
                await until(lambda: handlers.held == 1)
                calling.cancel_scope.cancel()
            nursery.cancel_scope.cancel()


async def test_a_caller_gets_one_call_done_in_a_turn() -> None:
    async with serving() as (buses, handlers):
        alpha = buses["alpha"]
        await alpha.echo.data(data=b"")
        done: list[int] = []

        async def turns() -> None:
            while True:
                done.append(len(handlers.calls))
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns)
            async with trio.open_nursery() as calling:
                for _ in range(60):
                    calling.start_soon(partial(alpha.echo.data, data=b"x"))
            nursery.cancel_scope.cancel()
        assert len(handlers.calls) == 61
        steps = [later - before for before, later in pairwise(done)]
        # Two turns of this task may lie on either side of two of the desk's.
        assert max(steps) <= 2
