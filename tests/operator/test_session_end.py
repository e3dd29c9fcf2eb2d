"""The end of one client of the port, told late, does not end the calls of the next one.

A virtio port is one stream for all clients, and that the host went away is told beside it: it may be heard
after the first call of the next client was read.
"""

from __future__ import annotations

import base64
import os
import signal
from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from bus.envelope import Envelope, Kind, pack, unpack
from organs.operator.organ import Changes, Session
from spine.ground import port

PATIENCE_S = 30


class Wire:
    """A stream from memory: what is read comes in order, b"" is the end of a client."""

    def __init__(self) -> None:
        self.give, self._take = trio.open_memory_channel[bytes](8)
        self.written: list[Envelope] = []

    async def read(self) -> bytes:
        return await self._take.receive()

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.written += [unpack(base64.b64decode(line)) for line in data.splitlines()]


def call(number: int) -> bytes:
    """A line that asks for what a program wrote."""
    method = port.schemas().interfaces["operator"].methods["drain"]
    envelope = Envelope(
        kind=Kind.CALL,
        id=number,
        deadline_ns=10**10,
        interface=method.interface_id,
        ordinal=method.ordinal,
        body=method.encode_params({"session": 1, "waitMs": 0}),
    )
    return base64.b64encode(pack(envelope)) + b"\n"


def session(wire: Wire, released: trio.Event) -> Session:
    """A session whose programs write nothing before they are released."""

    async def drain(_params: object) -> dict[str, object]:
        await released.wait()
        return {"output": b"x", "error": b"", "ended": ""}

    spine = SimpleNamespace(name="operator", generation=7, schemas=port.schemas())
    sessions = SimpleNamespace(exec=None, feed=None, drain=drain, hang_up=None)
    return Session(cast(Any, spine), cast(Any, sessions), wire)


async def test_a_call_outlives_the_end_of_the_client_before(autojump_clock: trio.abc.Clock) -> None:
    assert autojump_clock
    wire, released = Wire(), trio.Event()
    device = session(wire, released)
    async with trio.open_nursery() as calls:
        for number in (1, 2):
            # The call is in two parts, and the news of the last client's end comes between them or after.
            whole = call(number)
            for part in (whole[:10], b"", whole[10:], b"") if number == 1 else (whole, b""):
                await wire.give.send(part)
            await device.run(calls)
            if number == 1:
                await device.run(calls)
        await trio.testing.wait_all_tasks_blocked()
        assert wire.written == []
        released.set()
    assert sorted((answer.id, answer.kind) for answer in wire.written) == [(1, Kind.REPLY), (2, Kind.REPLY)]


async def test_the_calls_of_a_client_that_has_a_stream_of_its_own_end_with_it(
    autojump_clock: trio.abc.Clock,
) -> None:
    assert autojump_clock
    wire, released = Wire(), trio.Event()
    own = session(wire, released)
    await wire.give.send(call(1))
    await wire.give.send(b"")
    await own.run()
    released.set()
    await trio.testing.wait_all_tasks_blocked()
    assert wire.written == []


async def test_every_port_hears_that_a_host_came_or_went() -> None:
    """Of several readers of one signal in a process only the last would hear it."""
    changes, woken = Changes(), list[str]()

    async def port(name: str) -> None:
        await changes.next.wait()
        woken.append(name)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(changes.run)
            async with trio.open_nursery() as ports:
                for name in ("one", "other"):
                    ports.start_soon(port, name)
                await trio.testing.wait_all_tasks_blocked()
                os.kill(os.getpid(), signal.SIGIO)
            assert sorted(woken) == ["one", "other"]
            nursery.cancel_scope.cancel()
