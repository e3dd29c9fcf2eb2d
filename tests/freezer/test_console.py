"""A room's console on a real terminal: what is kept, what is forgotten, what is typed."""

from __future__ import annotations

import os
import time

import pytest
import trio

from organs.freezer.console import KEPT_BYTES, Console

PATIENCE_S = 30


async def until(console: Console, written: int) -> None:
    with trio.fail_after(PATIENCE_S):
        await console.wait(written - 1)


@pytest.fixture(name="terminal")
def _terminal() -> tuple[int, int]:
    master, slave = os.openpty()
    return master, slave


async def test_what_a_room_writes_is_kept_and_can_be_read_again(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    console = Console(master, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(console.pump)
        assert console.since(0) == (b"", 0)
        os.write(slave, b"hello\n")
        await until(console, 7)
        assert console.since(0) == (b"hello\r\n", 7)
        assert console.since(5) == (b"\r\n", 7)
        assert console.since(10**9) == (b"", 7)
        assert console.type(b"typed\n") == 6
        assert os.read(slave, 64) == b"typed\n"
        nursery.cancel_scope.cancel()
    os.close(master)
    os.close(slave)


async def test_a_reader_of_an_earlier_console_finds_all_of_a_later_one(terminal: tuple[int, int]) -> None:
    """However much the later one has shown by then."""
    master, slave = terminal
    place = 0
    for number in range(1, 4):
        console = Console(os.dup(master), time.monotonic_ns())
        # Nothing is there yet: nobody is answered at once, wherever they stand.
        with trio.move_on_after(0.01) as waited:
            await console.wait(place)
        assert waited.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(console.pump)
            os.write(slave, b"%d\n" % number * number)
            await until(console, console.written + 3 * number)
            # It ends, as that of a freezer that was killed does; the terminal stays.
            nursery.cancel_scope.cancel()
        data, following = console.since(place)
        assert data == b"%d\r\n" % number * number
        assert following > place + len(data)
        place = following
    os.close(master)
    os.close(slave)


async def test_a_room_that_floods_waits_for_nobody(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    console = Console(master, 0)
    line = b"x" * 1023 + b"\n"
    lines = 2 * KEPT_BYTES // len(line)

    def flood() -> None:
        for _ in range(lines):
            os.write(slave, line)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(console.pump)
        with trio.fail_after(PATIENCE_S):
            await trio.to_thread.run_sync(flood)
        await until(console, lines * 1025)
        kept, following = console.since(0)
        assert (len(kept), following) == (KEPT_BYTES, lines * 1025)
        nursery.cancel_scope.cancel()
    os.close(master)
    os.close(slave)


async def test_a_terminal_without_another_side_is_not_the_end(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    console = Console(master, 0)
    name = os.ttyname(slave)
    os.close(slave)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(console.pump)
        again = os.open(name, os.O_RDWR | os.O_NOCTTY)
        os.write(again, b"back\n")
        await until(console, 6)
        assert console.since(0)[0] == b"back\r\n"
        os.close(again)
        nursery.cancel_scope.cancel()
    os.close(master)
