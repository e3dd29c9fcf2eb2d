"""A callee in a process of its own: says on its standard output what it executes.

`callee.py FOLDER GENERATION {"CALLER": FD}`. Lines: `ready`, then `hold TAG` and `once TAG` when such a call
begins. `hold` and `once` with an even tag end at once; with an odd tag they never end in generation 1.
"""

from __future__ import annotations

import json
import os
import sys

import trio

from bus import wire
from bus.envelope import Code, Failure
from bus.server import Call, Handler, serve


def handlers(generation: int) -> dict[str, Handler]:
    async def same(_: Call, params: dict[str, object]) -> dict[str, object]:
        return params

    def telling(name: str) -> Handler:
        async def handler(call: Call, params: dict[str, object]) -> dict[str, object]:
            tag = params["tag"]
            assert isinstance(tag, int)
            os.write(1, f"{name} {tag} {generation} {call.attempt}\n".encode())
            if tag % 2 == 1 and generation == 1:
                await trio.sleep_forever()
            return {"generation": generation, "attempt": call.attempt}

        return handler

    async def nothing(_: Call, params: dict[str, object]) -> dict[str, object]:
        assert not params
        return {}

    async def refuse(_: Call, params: dict[str, object]) -> dict[str, object]:
        code = params["code"]
        assert isinstance(code, int)
        raise Failure(Code(code), str(params["text"]))

    async def grow(_: Call, params: dict[str, object]) -> dict[str, object]:
        size = params["bytes"]
        assert isinstance(size, int)
        return {"data": bytes(size)}

    return {
        "values": same,
        "data": same,
        "hold": telling("hold"),
        "once": telling("once"),
        "onlyBeta": nothing,
        "refuse": refuse,
        "grow": grow,
    }


async def main(folder: str, generation: int, listeners: dict[str, int]) -> None:
    interface = wire.load(f"{folder}/schemas.cgr").interfaces["echo"]
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, interface, handlers(generation), listeners, generation)
        os.write(1, b"ready\n")


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
