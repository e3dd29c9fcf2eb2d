"""The freezer's end of the builder's line, over a real socket; the builder's end is the test's."""

from __future__ import annotations

import array
import gc
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from bus.envelope import Code, Failure
from organs.builder import protocol
from organs.builder.protocol import Made, Refusal, Refused, Release, Released, Request, Welcome
from organs.freezer.line import CODES, Line

PATIENCE_S = 30
OWN = 7


def test_every_refusal_of_the_builder_has_a_code() -> None:
    assert CODES.keys() == set(Refusal)


class Far:
    """The builder's end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = trio.socket.from_stdlib_socket(sock)

    async def hear(self) -> Request:
        """The next request."""
        return protocol.decode_request(await self.sock.recv(protocol.DATAGRAM_BYTES_MAX))

    async def say(self, answer: protocol.Answer, *fds: int) -> None:
        """An answer, descriptors beside it."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        await self.sock.sendmsg([protocol.encode(answer)], rights)

    async def welcome(self, generation: int) -> None:
        """As each builder does at its start."""
        await self.say(Welcome(id=0, asker=0, generation=generation, devices=()))


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[Line, Far]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line, far = Line(ours.fileno(), OWN), Far(theirs)
    with ours, far.sock, trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.run)
            assert await far.hear() == protocol.Hello(id=1, asker=OWN)
            yield line, far
            nursery.cancel_scope.cancel()


def release(number: int, own: int, other: int) -> Request:
    return Release(id=number, asker=own, generation=other, name="room-1-1")


async def asked(line: Line, into: list[object], *fds: int) -> None:
    """Ask, and keep what came of it."""
    try:
        into.append(await line.ask(release, fds))
    except Failure as failure:
        into.append(failure)


def open_fds() -> int:
    gc.collect()  # lines of earlier tests
    return len(os.listdir("/proc/self/fd"))


async def test_a_question_waits_for_a_builder_and_gets_its_answer() -> None:
    async with joined() as (line, far):
        came: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked, line, came)
            await trio.testing.wait_all_tasks_blocked()
            assert came == []
            await far.welcome(3)
            request = await far.hear()
            assert request == release(2, OWN, 3)
            await far.say(Released(id=2, asker=OWN, generation=3, name="room-1-1"))
        assert came == [(Released(id=2, asker=OWN, generation=3, name="room-1-1"), ())]


async def test_a_refusal_is_a_failure_with_its_code() -> None:
    async with joined() as (line, far):
        await far.welcome(3)
        for why, code in (
            (Refusal.INVALID, Code.INVALID),
            (Refusal.UNKNOWN, Code.NOT_FOUND),
            (Refusal.LIMIT, Code.FULL),
            (Refusal.STALE, Code.PEER_DIED),
            (Refusal.KERNEL, Code.REFUSED),
        ):
            came: list[object] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(asked, line, came)
                request = await far.hear()
                await far.say(Refused(id=request.id, asker=OWN, generation=3, why=why, reason="because"))
            [failure] = came
            assert isinstance(failure, Failure)
            assert failure.code is code
            assert "because" in failure.message


async def test_a_new_builder_ends_what_was_asked_of_the_one_before() -> None:
    async with joined() as (line, far):
        await far.welcome(3)
        came: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked, line, came)
            await far.hear()
            await far.welcome(4)
        [failure] = came
        assert isinstance(failure, Failure)
        assert failure.code is Code.PEER_DIED
        # The old one's answer, and its greeting, which lay in the line: both void.
        await far.say(Released(id=2, asker=OWN, generation=3, name="room-1-1"))
        await far.welcome(3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked, line, came)
            assert (await far.hear()).generation == 4
            await far.say(Released(id=3, asker=OWN, generation=4, name="room-1-1"))
        assert isinstance(came[1], tuple)


async def test_descriptors_that_nobody_waits_for_are_closed() -> None:
    async with joined() as (line, far):
        await far.welcome(3)
        before = open_fds()
        reader, writer = os.pipe()
        for number, asker in ((99, OWN), (2, OWN + 1)):
            await far.say(Made(id=number, asker=asker, generation=3, name="room-3-1", verified=True), reader)
        await far.sock.send(b"nonsense")
        await far.sock.send(b"{" * protocol.DATAGRAM_BYTES_MAX)
        # The builder is told to let go of them as well.
        for _ in range(2):
            request = await far.hear()
            assert isinstance(request, Release)
            await far.say(Released(id=request.id, asker=OWN, generation=3, name=request.name))
        came: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked, line, came)
            request = await far.hear()
            await far.say(
                Made(id=request.id, asker=OWN, generation=3, name="room-3-1", verified=True), reader
            )
        [answered] = came
        assert isinstance(answered, tuple)
        fds = answered[1]
        assert len(fds) == 1
        assert os.fstat(fds[0]).st_ino == os.fstat(reader).st_ino
        for fd in (*fds, reader, writer):
            os.close(fd)
        assert open_fds() == before


async def test_a_cancelled_question_is_forgotten() -> None:
    async with joined() as (line, far):
        await far.welcome(3)
        before = open_fds()
        with trio.move_on_after(0):
            await line.ask(release, ())
        with trio.move_on_after(0.05):
            await line.ask(release, ())
        request = await far.hear()
        reader, writer = os.pipe()
        await far.say(Made(id=request.id, asker=OWN, generation=3, name="late", verified=False), reader)
        await trio.testing.wait_all_tasks_blocked()
        os.close(reader)
        os.close(writer)
        assert open_fds() == before


async def test_what_an_incarnation_of_ours_left_with_the_builder_is_let_go_of() -> None:
    async with joined() as (line, far):
        await far.say(Welcome(id=1, asker=OWN, generation=3, devices=("room-3-1", "room-3-2")))
        left = []
        for _ in range(2):
            request = await far.hear()
            assert isinstance(request, Release)
            left.append(request.name)
            await far.say(Released(id=request.id, asker=OWN, generation=3, name=request.name))
        assert sorted(left) == ["room-3-1", "room-3-2"]
        assert line is not None


async def test_a_builder_whose_greeting_was_lost_is_known_by_its_first_answer() -> None:
    async with joined() as (line, far):
        await far.welcome(3)
        came: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked, line, came)
            request = await far.hear()
            refused = Refused(id=request.id, asker=OWN, generation=4, why=Refusal.STALE, reason="not for us")
            await far.say(refused)
        [failure] = came
        assert isinstance(failure, Failure)
        assert failure.code is Code.PEER_DIED
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked, line, came)
            request = await far.hear()
            assert request.generation == 4
            await far.say(Released(id=request.id, asker=OWN, generation=4, name="room-1-1"))
        assert isinstance(came[1], tuple)


async def test_an_answer_in_the_moment_of_the_cancellation_leaks_nothing() -> None:
    async with joined() as (line, far):
        await far.welcome(3)
        reader, writer = os.pipe()
        before = open_fds()
        for _ in range(40):
            came: list[object] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(asked, line, came)
                request = await far.hear()
                while not isinstance(request, Release) or request.name != "room-1-1":
                    request = await far.hear()
                await far.say(
                    Made(id=request.id, asker=OWN, generation=3, name="late", verified=False), reader
                )
                nursery.cancel_scope.cancel()
            for answered in came:  # it was in time
                assert isinstance(answered, tuple)
                os.close(answered[1][0])
        await trio.testing.wait_all_tasks_blocked()
        assert open_fds() == before
        os.close(reader)
        os.close(writer)


async def test_nothing_is_asked_where_nobody_greets() -> None:
    async with joined() as (line, _):
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.05):
            await line.ask(release, ())
