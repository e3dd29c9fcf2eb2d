"""A listener to the taps at these sockets: reads every record and forgets it."""

from __future__ import annotations

import sys

import trio

from bus.sockets import Subscriber
from bus.tap import RECORD_MAX
from tests.bench.programs import asked


async def main(paths: list[str]) -> None:
    async with trio.open_nursery() as nursery:

        async def listen(path: str) -> None:
            with Subscriber(path, RECORD_MAX) as subscriber:
                while True:
                    await subscriber.receive()

        for path in paths:
            nursery.start_soon(listen, path)
        asked.ready()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
