"""Sessions with real programs at the other ends of the pipes; freezer and builder are stood in for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from bus.envelope import Code, Failure
from organs.operator import sessions
from organs.operator.sessions import Sessions

PATIENCE_S = 60


class Starter:
    """Starts the program here, with the descriptors that came, and tells its end as the builder does."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.programs: list[subprocess.Popen[bytes]] = []
        self.tells = True

    async def call(
        self, method: str, params: Mapping[str, object], *, fds: Sequence[int] = ()
    ) -> dict[str, object]:
        assert method == "exec"
        if params["persona"] != "linda":
            raise Failure(Code.FROZEN, "it has not the focus")
        source, output, error, status = (os.dup(fd) for fd in fds)
        argv = params["argv"]
        assert isinstance(argv, list)
        program = subprocess.Popen(argv, stdin=source, stdout=output, stderr=error)
        for fd in (source, output, error):
            os.close(fd)
        self.programs.append(program)
        self._nursery.start_soon(self._wait, program, status)
        return {"pid": program.pid}

    async def _wait(self, program: subprocess.Popen[bytes], status: int) -> None:
        code = await trio.to_thread.run_sync(program.wait, abandon_on_cancel=True)
        if self.tells:
            with contextlib.suppress(BrokenPipeError):  # nobody wants to know any more
                os.write(status, f"exit {code}\n".encode() if code >= 0 else f"signal {-code}\n".encode())
        os.close(status)


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Sessions, Starter]]:
    async with trio.open_nursery() as nursery:
        starter = Starter(nursery)
        held = Sessions(starter)
        nursery.start_soon(held.run)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(PATIENCE_S):
            yield held, starter
        nursery.cancel_scope.cancel()
    for program in starter.programs:
        program.kill()
        program.wait()


async def started(held: Sessions, *argv: str) -> object:
    return (await held.exec({"persona": "linda", "argv": list(argv)}))["session"]


async def finished(held: Sessions, number: object) -> tuple[bytes, bytes, str]:
    """Everything that it wrote, and its end."""
    output, error = b"", b""
    while True:
        answer = await held.drain({"session": number, "waitMs": 1000})
        assert isinstance(answer["output"], bytes)
        assert isinstance(answer["error"], bytes)
        output, error = output + answer["output"], error + answer["error"]
        if answer["ended"]:
            return output, error, str(answer["ended"])


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_streams_and_exit_code() -> None:
    async with running() as (held, _):
        before = open_fds()
        number = await started(held, "sh", "-c", "cat; echo err >&2; exit 7")
        for piece, end in ((b"one ", False), (b"two", True)):
            assert await held.feed({"session": number, "data": piece, "end": end}) == {"taken": len(piece)}
        assert await finished(held, number) == (b"one two", b"err\n", "exit 7")
        await trio.testing.wait_all_tasks_blocked()
        assert open_fds() == before
        with pytest.raises(Failure) as refused:
            await held.drain({"session": number, "waitMs": 0})
        assert refused.value.code is Code.NOT_FOUND


async def test_a_signal_is_told_and_an_end_that_nobody_saw_is_unknown() -> None:
    async with running() as (held, starter):
        assert (await finished(held, await started(held, "sh", "-c", "kill -9 $$")))[2] == "signal 9"
        starter.tells = False
        assert (await finished(held, await started(held, "true")))[2] == "unknown"


async def test_a_flood_waits_for_its_reader_and_none_of_it_is_lost() -> None:
    async with running() as (held, _):
        count = 8 * sessions.KEPT_BYTES
        number = await started(held, "sh", "-c", f"head -c {count} /dev/zero")
        await trio.testing.wait_all_tasks_blocked(0.05)
        output, _, ended = await finished(held, number)
        assert (len(output), ended) == (count, "exit 0")


async def test_what_a_program_leaves_behind_does_not_hold_its_end_up() -> None:
    async with running() as (held, _):
        number = await started(held, "sh", "-c", "sleep 1000 & echo $!; exit 5")
        output, _, ended = await finished(held, number)
        assert ended == "exit 5"
        os.kill(int(output), signal.SIGKILL)


async def test_input_is_taken_as_fast_as_it_is_read() -> None:
    async with running() as (held, _):
        number = await started(held, "sh", "-c", "read first; wc -c")
        data, taken = b"x" * sessions.FEED_BYTES_MAX, 0
        while True:  # nobody reads: the pipe fills
            now = (await held.feed({"session": number, "data": data, "end": False}))["taken"]
            assert isinstance(now, int)
            if not now:
                break
            taken += now
        with pytest.raises(Failure) as refused:
            await held.feed({"session": number, "data": b"x" * (sessions.FEED_BYTES_MAX + 1), "end": False})
        assert refused.value.code is Code.TOO_LARGE
        for _ in range(2):
            last = b"\nlast"
            while last:
                now = (await held.feed({"session": number, "data": last, "end": True}))["taken"]
                assert isinstance(now, int)
                last = last[now:]
                await trio.sleep(0)
        assert (await finished(held, number))[2] == "exit 0"


async def test_a_program_that_does_not_read_loses_nothing_of_ours() -> None:
    async with running() as (held, _):
        number = await started(held, "true")
        assert (await finished(held, number))[2] == "exit 0"
        number = await started(held, "sh", "-c", "exec 0<&-; sleep 0.2")
        for _ in range(20):
            fed = await held.feed({"session": number, "data": b"x" * 4096, "end": False})
            assert fed["taken"] in (0, 4096)
        assert (await finished(held, number))[2] == "exit 0"


async def test_what_cannot_be_started_leaves_nothing() -> None:
    async with running() as (held, _):
        before = open_fds()
        with pytest.raises(Failure) as refused:
            await held.exec({"persona": "courier", "argv": ["true"]})
        assert refused.value.code is Code.FROZEN
        assert open_fds() == before


async def test_a_session_that_was_hung_up_is_gone_and_its_pipes_with_it() -> None:
    async with running() as (held, starter):
        before = open_fds()
        number = await started(held, "cat")
        assert await held.hang_up({"session": number}) == {}
        await trio.testing.wait_all_tasks_blocked(0.01)
        # Its input has ended, and so does it.
        assert await trio.to_thread.run_sync(starter.programs[0].wait) == 0
        while open_fds() > before:
            await trio.sleep(0.01)
        with pytest.raises(Failure) as refused:
            await held.drain({"session": number, "waitMs": 0})
        assert refused.value.code is Code.NOT_FOUND
        assert await held.hang_up({"session": number}) == {}


async def test_there_are_so_many_sessions_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody drains them: after this long they go, and the programs see the end of their input.
    monkeypatch.setattr(sessions, "IDLE_S", 1.0)
    async with running() as (held, _):
        for _ in range(sessions.SESSIONS_MAX):
            await started(held, "cat")
        with pytest.raises(Failure) as refused:
            await started(held, "cat")
        assert refused.value.code is Code.FULL
        number = await started_when_there_is_room(held)
        assert (await finished(held, number))[2] == "exit 0"


async def started_when_there_is_room(held: Sessions) -> object:
    while True:
        try:
            return await started(held, "true")
        except Failure:
            await trio.sleep(0.01)
