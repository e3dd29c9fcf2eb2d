"""A callee with descriptors, in this process or in one of its own that says what it executes.

`courier.py FOLDER GENERATION {"CALLER": FD, "CALLER.fds": FD}`. Lines: `ready`; `read TAG GENERATION ATTEMPT`
when a call begins, and `fds TAG GENERATION N` when one asks how many descriptors the process has (tag 0 of
`plain`). A call of `read`, `readAgain` or `swap` with an odd tag never ends in generation 1.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping

import trio

from bus import wire
from bus.server import Answer, Call, Handler, serve

Told = Callable[[str], None]


def open_fds() -> set[int]:
    """The descriptors of this process."""
    with os.scandir("/proc/self/fd") as entries:
        found = {int(entry.name) for entry in entries}
    return {fd for fd in found if os.path.lexists(f"/proc/self/fd/{fd}")}


def file_with(text: str) -> int:
    """A file in memory that begins with this."""
    fd = os.memfd_create("courier")
    os.write(fd, text.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def beginning(fd: int) -> str:
    """What a file begins with."""
    return os.pread(fd, 100, 0).decode()


def handlers(generation: int, told: Told) -> dict[str, Handler]:
    async def begin(name: str, call: Call, tag: object) -> None:
        assert isinstance(tag, int)
        told(f"{name} {tag} {generation} {call.attempt}")
        if tag % 2 == 1 and generation == 1:
            await trio.sleep_forever()

    def reading(name: str) -> Handler:
        async def read(call: Call, params: dict[str, object]) -> dict[str, object]:
            await begin(name, call, params["tag"])
            return {"texts": [beginning(fd) for fd in call.fds]}

        return read

    async def open_(_: Call, params: dict[str, object]) -> Answer:
        texts = params["texts"]
        assert isinstance(texts, list)
        return Answer({"number": len(texts)}, tuple(file_with(text) for text in texts))

    async def swap(call: Call, params: dict[str, object]) -> Answer:
        await begin("swap", call, params["tag"])
        return Answer({"tag": params["tag"]}, call.take()[::-1])

    async def plain(_: Call, params: dict[str, object]) -> dict[str, object]:
        if params["tag"] == 0:
            told(f"fds 0 {generation} {len(open_fds())}")
        return params

    return {
        "read": reading("read"),
        "readAgain": reading("readAgain"),
        "open": open_,
        "swap": swap,
        "plain": plain,
    }


def split(sockets: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """The listeners of callers, and those for descriptors."""
    beside = {label.removesuffix(".fds"): fd for label, fd in sockets.items() if label.endswith(".fds")}
    return {label: fd for label, fd in sockets.items() if not label.endswith(".fds")}, beside


async def main(folder: str, generation: int, sockets: dict[str, int]) -> None:
    interface = wire.load(f"{folder}/schemas.cgr").interfaces["courier"]
    listeners, beside = split(sockets)

    def told(line: str) -> None:
        os.write(1, f"{line}\n".encode())

    async with trio.open_nursery() as nursery:

        async def serving(*, task_status: trio.TaskStatus[None]) -> None:
            table = handlers(generation, told)
            await serve(interface, table, listeners, generation, descriptors=beside, task_status=task_status)

        await nursery.start(serving)
        told("ready")


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
