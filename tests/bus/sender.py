"""A caller in a process of its own: `sender.py FOLDER SOCKETS` passes descriptors until it is killed.

It says `sent` after each round of answers.
"""

from __future__ import annotations

import os
import sys

import trio

from bus import wire
from bus.client import Bus
from bus.descriptors import close_all
from tests.bus.courier import file_with


async def main(folder: str, directory: str) -> None:
    peer = Bus(wire.load(f"{folder}/schemas.cgr"), "alpha", directory).peers["courier"]
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.run)

        async def ask() -> None:
            while True:
                fds = [file_with("a"), file_with("b")]
                _, given = await peer.call_fds("swap", {"tag": 2}, fds=fds)
                close_all([*fds, *given])
                os.write(1, b"sent\n")

        for _ in range(4):
            nursery.start_soon(ask)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
