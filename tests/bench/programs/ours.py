"""Our own bus: `serve FOLDER {"CALLER": FD} TAP-FD` and `call FOLDER DIRECTORY CALLER TAP-FD`; no tap: -1.

`flood FOLDER DIRECTORY CALLER` keeps as many calls under way as a callee admits of one caller, until its
input is closed.
"""

from __future__ import annotations

import json
import sys
import time

import trio

from bus import wire
from bus.admission import CALLS_MAX
from bus.client import Bus
from bus.server import Call, serve
from bus.sockets import Publisher
from bus.tap import Tap
from organs.kernel import processes
from tests.bench.programs import asked


def tap(name: str, schemas: wire.Schemas, fd: int, nursery: trio.Nursery) -> Tap | None:
    """The tap of an organ of a development image."""
    if fd < 0:
        return None
    publisher = Publisher(fd)
    nursery.start_soon(publisher.run)
    return Tap(name, schemas, publisher)


async def answering(folder: str, listeners: dict[str, int], tap_fd: int) -> None:
    schemas = wire.load(f"{folder}/schemas.cgr")

    async def same(_: Call, params: dict[str, object]) -> dict[str, object]:
        return params

    async with trio.open_nursery() as nursery:
        shown = tap("echo", schemas, tap_fd, nursery)
        interface = schemas.interfaces["echo"]

        async def serving(*, task_status: trio.TaskStatus[None]) -> None:
            await serve(interface, {"same": same}, listeners, 1, tap=shown, task_status=task_status)

        await nursery.start(serving)
        asked.ready()
        # The bench ends us by closing our input.
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


async def calling(folder: str, directory: str, caller: str, tap_fd: int) -> None:
    schemas = wire.load(f"{folder}/schemas.cgr")
    async with trio.open_nursery() as nursery:
        bus = Bus(schemas, caller, directory, tap(caller, schemas, tap_fd, nursery))
        await nursery.start(bus.run)
        await bus.echo.same(data=b"")
        asked.ready()
        rounds = asked.questions()
        while (question := await trio.to_thread.run_sync(next, rounds, None)) is not None:
            asked.answer(await one_round(bus, *question))
        nursery.cancel_scope.cancel()


async def one_round(bus: Bus, calls: int, callers: int, size: int) -> dict[str, object]:
    payload = bytes(size)
    took: list[int] = []
    clock = time.perf_counter_ns
    same = bus.echo.same

    async def call(count: int) -> None:
        for _ in range(count):
            began = clock()
            answer = await same(data=payload)
            took.append(clock() - began)
            assert len(answer["data"]) == size  # type: ignore[arg-type]

    began = clock()
    if callers == 1:
        await call(calls)
    else:
        async with trio.open_nursery() as nursery:
            for _ in range(callers):
                nursery.start_soon(call, calls // callers)
    return asked.told(took, began)


async def flooding(folder: str, directory: str, caller: str) -> None:
    bus = Bus(wire.load(f"{folder}/schemas.cgr"), caller, directory)

    async def flood() -> None:
        while True:
            await bus.echo.same(data=bytes(200))

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.echo.same(data=b"")
        for _ in range(CALLS_MAX):
            nursery.start_soon(flood)
        asked.ready()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    processes.keep_freed()  # as the zygote does for every organ
    match sys.argv[1:]:
        case ["serve", folder, listeners, tap_fd]:
            trio.run(answering, folder, json.loads(listeners), int(tap_fd))
        case ["call", folder, directory, caller, tap_fd]:
            trio.run(calling, folder, directory, caller, int(tap_fd))
        case ["flood", folder, directory, caller]:
            trio.run(flooding, folder, directory, caller)
