"""D-Bus by dbus-fast, both ends, over a daemon: `serve`, `call` or `flood`, then ADDRESS and NAME."""

from __future__ import annotations

import asyncio
import sys
import time

from dbus_fast import Message, MessageType  # type: ignore[import-not-found]  # in the bench's own venv
from dbus_fast.aio import MessageBus  # type: ignore[import-not-found]

from tests.bench.programs import asked

FLOOD = 64


def message(name: str, payload: bytes) -> object:
    return Message(
        destination=name, path="/echo", interface="bench.Echo", member="Same", signature="ay", body=[payload]
    )


async def serve(address: str, name: str) -> None:
    bus = await MessageBus(bus_address=address).connect()

    def answer(asking: Message) -> object:
        if asking.message_type is MessageType.METHOD_CALL and asking.member == "Same":
            return Message.new_method_return(asking, "ay", [asking.body[0]])
        return None

    bus.add_message_handler(answer)
    await bus.request_name(name)
    asked.ready()
    await asyncio.to_thread(sys.stdin.read)


async def call(address: str, name: str) -> None:
    bus = await MessageBus(bus_address=address).connect()
    asked.ready()
    rounds = asked.questions()
    while (question := await asyncio.to_thread(next, rounds, None)) is not None:
        asked.answer(await one_round(bus, name, *question))


async def one_round(bus: object, name: str, calls: int, callers: int, size: int) -> dict[str, object]:
    payload = bytes(size)
    took: list[int] = []
    clock = time.perf_counter_ns

    async def ask(count: int) -> None:
        for _ in range(count):
            began = clock()
            reply = await bus.call(message(name, payload))  # type: ignore[attr-defined]
            took.append(clock() - began)
            assert len(reply.body[0]) == size, reply.body

    began = clock()
    await asyncio.gather(*(ask(calls // callers) for _ in range(callers)))
    return asked.told(took, began)


async def flood(address: str, name: str) -> None:
    bus = await MessageBus(bus_address=address).connect()

    async def ask() -> None:
        while True:
            await bus.call(message(name, bytes(200)))

    tasks = [asyncio.create_task(ask()) for _ in range(FLOOD)]
    asked.ready()
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    asyncio.run({"serve": serve, "call": call, "flood": flood}[sys.argv[1]](*sys.argv[2:]))
