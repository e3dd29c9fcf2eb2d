"""Descriptors beside the bus: they come with their call or with its answer, and nobody keeps one that is not
his, whoever lies or dies, and when.

Every test compares the descriptors of this process before and after. Files tell which is which.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import descriptors
from bus.client import Bus, Peer
from bus.descriptors import (
    CONNECTIONS_MAX,
    HELD_MAX,
    NOTE_BYTES,
    Channel,
    Entrance,
    Unsent,
    close_all,
    pack_note,
    unpack_note,
)
from bus.envelope import (
    BESIDE_BYTES,
    DESCRIPTORS_MAX,
    MESSAGE_MAX,
    Code,
    Envelope,
    Failure,
    Kind,
    PeerError,
    pack,
    pack_beside,
    split_beside,
    unpack,
)
from bus.server import Answer, Call, Handler, serve
from bus.sockets import Listener
from bus.tap import Side, Tap, unpack_record
from tests.bus.courier import beginning, file_with, handlers, open_fds, split
from tests.bus.test_calls import code_of, until
from tests.bus.test_hostile import Hostile
from tests.bus.test_tap import Outlet
from tests.bus.wiring import PATIENCE_S, ROOT, Callee, callee, compiled, listening, schemas

COURIER = schemas("courier").interfaces["courier"]
GENERATION = 7
WORDS = [f"file {number}" for number in range(DESCRIPTORS_MAX)]


@contextmanager
def no_leak() -> Iterator[None]:
    """What runs inside leaves this process the descriptors it found."""
    # libzmq and trio keep some for ever, which are there after the first use.
    before = open_fds()
    yield
    end = time.monotonic() + PATIENCE_S
    # libzmq's own thread closes what was closed here a little later.
    while extra := open_fds() - before:
        assert time.monotonic() < end, {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in extra}


@contextmanager
def files(*texts: str) -> Iterator[tuple[int, ...]]:
    """Descriptors of files that begin with these words."""
    fds = tuple(file_with(text) for text in texts)
    try:
        yield fds
    finally:
        close_all(fds)


@asynccontextmanager
async def serving(
    table: dict[str, Handler] | None = None, told: list[str] | None = None, tap: Tap | None = None
) -> AsyncIterator[tuple[Peer, str]]:
    """Callee and caller in this process; the caller, and where the sockets are."""
    lines = [] if told is None else told
    found = handlers(GENERATION, lines.append) | (table or {})
    with (
        listening(("alpha",), "courier", ("alpha",)) as (directory, bound),
        trio.fail_after(PATIENCE_S),
    ):
        listeners, beside = split({label: one.fileno() for label, one in bound.items()})
        async with trio.open_nursery() as nursery:

            async def callee(*, task_status: trio.TaskStatus[None]) -> None:
                await serve(
                    COURIER,
                    found,
                    listeners,
                    GENERATION,
                    descriptors=beside,
                    tap=tap,
                    task_status=task_status,
                )

            await nursery.start(callee)
            peer = Peer(COURIER, f"{directory}/courier.alpha", tap)
            await nursery.start(peer.run)
            yield peer, directory
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def warm() -> None:
    """What the process opens once and keeps: libzmq's threads, trio's loop."""

    async def once() -> None:
        async with serving() as (peer, _):
            await peer.call("plain", {"tag": 1})

    trio.run(once)


async def read(peer: Peer, words: Sequence[str], method: str = "read", tag: int = 2) -> object:
    """What the callee reads in files that begin with these words."""
    params: dict[str, object] = {"tag": tag} | ({"word": ""} if method == "read" else {})
    with files(*words) as fds:
        return (await peer.call(method, params, fds=fds))["texts"]


# Honest calls


@pytest.mark.proves("INV-BUS-7")
async def test_descriptors_come_with_their_call() -> None:
    with no_leak():
        async with serving() as (peer, _):
            for number in range(1, DESCRIPTORS_MAX + 1):
                assert await read(peer, WORDS[:number]) == WORDS[:number]
            assert await peer.call("plain", {"tag": 1}) == {"tag": 1}


async def test_descriptors_come_with_the_answer_and_are_the_callers() -> None:
    with no_leak():
        async with serving() as (peer, _):
            for number in range(1, DESCRIPTORS_MAX + 1):
                results, fds = await peer.call_fds("open", {"texts": WORDS[:number]})
                assert results == {"number": number}
                assert [beginning(fd) for fd in fds] == WORDS[:number]
                assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)
                close_all(fds)


async def test_both_ways_at_once() -> None:
    with no_leak(), files(*WORDS) as sent:
        async with serving() as (peer, _):
            results, fds = await peer.call_fds("swap", {"tag": 4}, fds=sent)
            assert results == {"tag": 4}
            assert [beginning(fd) for fd in fds] == WORDS[::-1]
            close_all(fds)


async def test_the_caller_may_close_its_own_before_the_call_is_sent() -> None:
    """Nobody is there yet: the call waits, with copies of its own."""
    with listening(("alpha",), "courier", ("alpha",)) as (directory, bound), trio.fail_after(PATIENCE_S):
        peer = Peer(COURIER, f"{directory}/courier.alpha")
        got = []

        async def ask() -> None:
            got.append(await read(peer, ["kept"]))

        async with trio.open_nursery() as nursery:
            await nursery.start(peer.run)
            fds = [file_with("kept")]
            nursery.start_soon(partial(peer.call, "read", {"tag": 2, "word": ""}, fds=fds))
            await until(lambda: bool(peer._pending))
            close_all(fds)
            listeners, beside = split({label: one.fileno() for label, one in bound.items()})
            told: list[str] = []
            nursery.start_soon(
                partial(
                    serve,
                    COURIER,
                    handlers(GENERATION, told.append),
                    listeners,
                    GENERATION,
                    descriptors=beside,
                )
            )
            await until(lambda: not peer._pending)
            await ask()
            nursery.cancel_scope.cancel()
        assert got == [["kept"]]


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from(["read", "open", "swap", "plain"]), st.integers(1, DESCRIPTORS_MAX)),
        min_size=1,
        max_size=7,
    )
)
def test_calls_at_the_same_time_keep_their_own(calls: list[tuple[str, int]]) -> None:
    async def one(peer: Peer, number: int, what: str, count: int) -> None:
        words = [f"{number}/{index}" for index in range(count)]
        if what == "read":
            assert await read(peer, words) == words
        elif what == "plain":
            assert await peer.call("plain", {"tag": number + 1}) == {"tag": number + 1}
        else:
            with files(*words) as sent:
                params: dict[str, object] = {"texts": words} if what == "open" else {"tag": 2}
                _, fds = await peer.call_fds(what, params, fds=sent if what == "swap" else ())
                assert [beginning(fd) for fd in fds] == (words if what == "open" else words[::-1])
                close_all(fds)

    async def main() -> None:
        async with serving() as (peer, _), trio.open_nursery() as nursery:
            for number, (what, count) in enumerate(calls):
                nursery.start_soon(one, peer, number, what, count)

    with no_leak():
        trio.run(main)


async def test_answers_in_another_order_than_the_calls() -> None:
    gates = {number: trio.Event() for number in range(6)}

    async def swap(call: Call, params: dict[str, object]) -> Answer:
        tag = params["tag"]
        assert isinstance(tag, int)
        fds = call.take()
        await gates[tag].wait()
        return Answer({"tag": tag}, fds)

    with no_leak():
        async with serving({"swap": swap}) as (peer, _), trio.open_nursery() as nursery:

            async def ask(number: int) -> None:
                with files(f"of {number}") as sent:
                    results, fds = await peer.call_fds("swap", {"tag": number}, fds=sent)
                    assert (results, [beginning(fd) for fd in fds]) == ({"tag": number}, [f"of {number}"])
                    close_all(fds)

            for number in gates:
                nursery.start_soon(ask, number)
            await until(lambda: all(pending.state.name == "SENT" for pending in peer._pending.values()))
            for number in (3, 0, 5, 1, 2, 4):
                gates[number].set()
                await until(lambda: len(peer._pending) < len(gates))


# What a program can do wrong


async def test_what_does_not_fit_the_schema_is_refused_before_it_is_sent() -> None:
    with no_leak(), files(*WORDS, "ninth") as fds:
        async with serving() as (peer, directory):
            word: dict[str, object] = {"tag": 2, "word": ""}
            wrong: list[tuple[Callable[[], object], type[Exception], str]] = [
                (partial(peer.call, "read", word), TypeError, "courier.read takes descriptors"),
                (partial(peer.call, "read", word, fds=fds), ValueError, "takes at most 8 descriptors, not 9"),
                (partial(peer.call, "plain", {"tag": 1}, fds=fds[:1]), TypeError, "plain takes no"),
                (partial(peer.call, "open", {"texts": []}), TypeError, "open gives descriptors: call_fds"),
                (partial(peer.call_fds, "open", {"texts": []}, fds=fds[:1]), TypeError, "open takes no"),
                (partial(peer.call_fds, "plain", {"tag": 1}), TypeError, "plain gives no descriptors"),
                (partial(peer.call_fds, "none", {}), AttributeError, "has no method none"),
                (partial(peer.call, "read", {"tag": 2}, fds=fds[:1]), ValueError, "word is missing"),
                (partial(peer.call, "read", word, fds=[10_000]), OSError, "Bad file descriptor"),
                (partial(peer.call_raw, COURIER.methods["read"], b"", 1 << 62), TypeError, "carries"),
            ]
            for ask, kind, text in wrong:
                with pytest.raises(kind, match=text):
                    await ask()  # type: ignore[misc]
            large = {"tag": 2, "word": "x" * (MESSAGE_MAX - 40)}
            assert await code_of(peer.call("read", large, fds=fds[:1])) is Code.TOO_LARGE
            bus = Bus(schemas("courier"), "alpha", directory)
            with pytest.raises(AttributeError, match=r"courier.read carries descriptors: call it by `peers"):
                _ = bus.courier.read
            assert callable(bus.courier.plain)
            assert await read(peer, ["unmoved"]) == ["unmoved"]


@pytest.mark.parametrize("number", [0, DESCRIPTORS_MAX + 1])
async def test_an_answer_with_a_wrong_number_ends_the_callee(number: int) -> None:
    made: list[int] = []

    async def wrong(_: Call, __: dict[str, object]) -> Answer:
        made.extend(file_with("x") for _ in range(number))
        return Answer({"number": 0}, tuple(made))

    with no_leak():
        await ends_the_callee(wrong, ValueError)


async def test_an_answer_that_is_none_ends_the_callee() -> None:
    async def wrong(_: Call, __: dict[str, object]) -> dict[str, object]:
        return {"number": 0}

    with no_leak():
        await ends_the_callee(wrong, TypeError)


async def ends_the_callee(handler: Handler, kind: type[Exception]) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(kind), flatten_subgroups=True):
        async with serving({"open": handler}) as (peer, _):
            await code_of(peer.call_fds("open", {"texts": []}))


async def test_what_came_with_a_call_is_not_given_back_without_taking_it() -> None:
    async def wrong(call: Call, params: dict[str, object]) -> Answer:
        return Answer({"tag": params["tag"]}, call.fds)

    with no_leak(), pytest.RaisesGroup(pytest.RaisesExc(ValueError), flatten_subgroups=True):
        async with serving({"swap": wrong}) as (peer, _):
            with files("mine") as fds:
                await code_of(peer.call_fds("swap", {"tag": 2}, fds=fds))


async def test_an_answer_in_the_wrong_place_ends_the_callee() -> None:
    async def wrong(_: Call, __: dict[str, object]) -> Answer:
        return Answer({}, ())

    with pytest.RaisesGroup(pytest.RaisesExc(TypeError), flatten_subgroups=True):
        async with serving({"plain": wrong}) as (peer, _):
            await code_of(peer.call("plain", {"tag": 1}))


# Calls that end otherwise


async def test_the_descriptors_of_a_failed_call_are_closed() -> None:
    async def fail(call: Call, _: dict[str, object]) -> dict[str, object]:
        assert [beginning(fd) for fd in call.fds] == WORDS
        raise Failure(Code.REFUSED, "no")

    with no_leak():
        async with serving({"read": fail}) as (peer, _):
            for _ in range(20):
                assert await code_of(read(peer, WORDS)) is Code.REFUSED


async def test_the_descriptors_of_a_call_that_is_too_late_are_closed() -> None:
    seen: list[int] = []

    async def slow(call: Call, _: dict[str, object]) -> dict[str, object]:
        seen.extend(call.fds)
        await trio.sleep_forever()
        raise AssertionError

    with no_leak():
        async with serving({"read": slow}) as (peer, _):
            with files("a", "b") as fds:
                word: dict[str, object] = {"tag": 2, "word": ""}
                assert await code_of(peer.call("read", word, 50, fds=fds)) is Code.DEADLINE
            await until(lambda: bool(seen) and not set(seen) & open_fds())


@pytest.mark.proves("INV-BUS-8")
async def test_an_answer_that_nobody_waits_for_any_more_is_closed_at_once() -> None:
    gate = trio.Event()
    answered = trio.Event()

    async def late(_: Call, __: dict[str, object]) -> Answer:
        with trio.CancelScope(shield=True):
            await gate.wait()
        answered.set()
        return Answer({"number": 1}, (file_with("late"),))

    with no_leak():
        async with serving({"open": late}) as (peer, _):
            assert await code_of(peer.call_fds("open", {"texts": []}, 50)) is Code.DEADLINE
            with trio.move_on_after(0.05):
                # Cancelled by its own caller.
                await peer.call_fds("open", {"texts": []})
            before = open_fds()
            gate.set()
            await answered.wait()
            # What is answered after them shows that they were dealt with.
            assert await read(peer, ["next"]) == ["next"]
            assert open_fds() == before


async def test_a_handler_that_takes_them_keeps_them() -> None:
    kept: list[int] = []

    async def keep(call: Call, _: dict[str, object]) -> dict[str, object]:
        kept.extend(call.take())
        assert call.fds == call.take() == ()
        return {"texts": []}

    with no_leak():
        async with serving({"read": keep}) as (peer, _):
            assert await read(peer, ["one", "two"]) == []
        assert [beginning(fd) for fd in kept] == ["one", "two"]
        close_all(kept)


@pytest.mark.proves("INV-BUS-8")
async def test_calls_that_hold_too_many_are_told_so() -> None:
    gate = trio.Event()
    codes: list[Code] = []
    texts: list[object] = []

    async def hold(call: Call, _: dict[str, object]) -> dict[str, object]:
        await gate.wait()
        return {"texts": [beginning(fd) for fd in call.fds]}

    with no_leak():
        async with serving({"read": hold}) as (peer, _):

            async def ask() -> None:
                try:
                    texts.append(await read(peer, WORDS))
                except Failure as failure:
                    codes.append(failure.code)

            async with trio.open_nursery() as nursery:
                for _ in range(HELD_MAX // DESCRIPTORS_MAX + 3):
                    nursery.start_soon(ask)
                await until(lambda: len(codes) == 3)
                gate.set()
            assert codes == [Code.BUSY] * 3
            assert texts == [WORDS] * (HELD_MAX // DESCRIPTORS_MAX)
            assert await read(peer, WORDS) == WORDS


# Hostile callers: alpha, with its own sockets


class Crook:
    """A caller that sends what it likes, on both sockets."""

    def __init__(self, directory: str) -> None:
        self.bus = Hostile(f"{directory}/courier.alpha")
        self.path = f"{directory}/courier.alpha.fds"
        self.sockets: list[socket.socket] = []
        self.beside = self.connected()

    def connected(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made.connect(self.path)
        self.sockets.append(made)
        return made

    def announce(
        self,
        token: int,
        count: int = 1,
        generation: int = GENERATION,
        note: bytes | None = None,
        by: socket.socket | None = None,
    ) -> None:
        data = pack_note(generation, token) if note is None else note
        with files(*["crook"] * count) as fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
            (by or self.beside).sendmsg([data], rights, socket.MSG_DONTWAIT)

    def call(self, token: int, count: int = 1, method: str = "read", **changes: Any) -> bytes:
        found = COURIER.methods[method]
        params: dict[str, object] = {"texts": []} if method == "open" else {"tag": 2, "word": ""}
        envelope = Envelope(
            kind=Kind.CALL,
            id=1,
            generation=GENERATION,
            deadline_ns=time.monotonic_ns() + PATIENCE_S * 10**9,
            interface=COURIER.id,
            ordinal=found.ordinal,
            body=pack_beside(token, count) + found.encode_params(params),
        )
        return pack(replace(envelope, **changes))

    def close(self) -> None:
        self.bus.socket.close()
        for one in self.sockets:
            one.close()


@asynccontextmanager
async def crooked() -> AsyncIterator[tuple[Crook, Peer]]:
    """A crook, and an honest connection of the same caller beside it."""
    async with serving() as (peer, directory):
        await peer.call("plain", {"tag": 1})
        crook = Crook(directory)
        try:
            # From here on libzmq opens nothing more for it.
            await crook.bus.ask(pack(Envelope(kind=Kind.HELLO, id=1)))
            yield crook, peer
        finally:
            crook.close()


TOKEN = 0x0BAD_CAFE_0000_0001
LIES: dict[str, tuple[Callable[[Crook], None], Callable[[Crook], bytes]]] = {
    "nothing was sent": (lambda _: None, lambda c: c.call(TOKEN)),
    "another token": (lambda c: c.announce(TOKEN + 1), lambda c: c.call(TOKEN)),
    "another connection's token": (lambda c: c.announce(TOKEN), lambda c: c.call(TOKEN ^ 1 << 40)),
    "fewer than announced": (lambda c: c.announce(TOKEN, 1), lambda c: c.call(TOKEN, 2)),
    "more than announced": (lambda c: c.announce(TOKEN, 2), lambda c: c.call(TOKEN, 1)),
    "none": (lambda c: c.announce(TOKEN, 0), lambda c: c.call(TOKEN, 0)),
    "nine": (lambda c: c.announce(TOKEN, 9), lambda c: c.call(TOKEN, 8)),
    "250": (lambda c: c.announce(TOKEN, 250), lambda c: c.call(TOKEN, 8)),
    "some for a method that takes none": (
        lambda c: c.announce(TOKEN, 1),
        lambda c: c.call(TOKEN, 1, "open"),
    ),
    "a body without the announcement": (lambda c: c.announce(TOKEN), lambda c: c.call(TOKEN, body=b"")),
    "a body that is none": (
        lambda c: c.announce(TOKEN),
        lambda c: c.call(TOKEN, body=pack_beside(TOKEN, 1) + b"\xff" * 16),
    ),
    "an impossible count": (
        lambda c: c.announce(TOKEN),
        lambda c: c.call(TOKEN, body=pack_beside(TOKEN, 1)[:8] + b"\xff" * 8),
    ),
    "an older incarnation's note": (
        lambda c: c.announce(TOKEN, generation=GENERATION - 1),
        lambda c: c.call(TOKEN),
    ),
    "no note": (lambda c: c.announce(TOKEN, note=b""), lambda c: c.call(TOKEN)),
    "half a note": (lambda c: c.announce(TOKEN, note=b"SPFD"), lambda c: c.call(TOKEN)),
    "a long note": (lambda c: c.announce(TOKEN, note=bytes(5000)), lambda c: c.call(TOKEN)),
    "another magic": (lambda c: c.announce(TOKEN, note=bytes(NOTE_BYTES)), lambda c: c.call(TOKEN)),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_about_descriptors_is_refused_and_nothing_stays(lie: str) -> None:
    announce, call = LIES[lie]
    with no_leak():
        async with crooked() as (crook, peer):
            announce(crook)
            assert await crook.bus.code(call(crook)) is Code.BAD_MESSAGE
            assert await read(peer, ["honest"]) == ["honest"]


REFUSED: dict[str, tuple[dict[str, Any], Code]] = {
    "stale": ({"generation": GENERATION - 1}, Code.STALE),
    "no time": ({"deadline_ns": 1}, Code.DEADLINE),
    "unknown": ({"ordinal": 99}, Code.UNKNOWN_METHOD),
    "another interface": ({"interface": 1}, Code.UNKNOWN_METHOD),
}


@pytest.mark.parametrize("why", REFUSED)
async def test_the_descriptors_of_a_refused_call_are_closed(why: str) -> None:
    changes, code = REFUSED[why]
    with no_leak():
        async with crooked() as (crook, _):
            before = open_fds()
            crook.announce(TOKEN)
            assert await crook.bus.code(crook.call(TOKEN, **changes)) is code
            # The next announcement of this connection shows that the one before it came to nothing.
            crook.announce(TOKEN + 1)
            answer = await crook.bus.ask(crook.call(TOKEN + 1))
            assert isinstance(answer, Envelope)
            await until(lambda: len(open_fds() - before) <= 1)  # its accepted connection


@pytest.mark.proves("INV-BUS-8")
async def test_what_nobody_claims_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "UNCLAIMED_S", 0.02)
    with no_leak():
        async with crooked() as (crook, peer):
            before = open_fds()
            for number in range(8):
                crook.announce(TOKEN + number, DESCRIPTORS_MAX)
            # Cut off, with all that was queued behind it.
            await until(lambda: closed(crook.beside))
            await until(lambda: open_fds() <= before)
            assert await read(peer, ["honest"]) == ["honest"]


def closed(one: socket.socket) -> bool:
    """Whether the other end has gone."""
    one.setblocking(False)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.proves("INV-BUS-8")
async def test_what_nobody_claims_is_closed_when_its_connection_ends() -> None:
    with no_leak():
        async with crooked() as (crook, _):
            before = open_fds()
            crook.announce(TOKEN, DESCRIPTORS_MAX)
            crook.beside.close()
            assert await crook.bus.code(crook.call(TOKEN + 9)) is Code.BAD_MESSAGE
            await until(lambda: open_fds() < before)


async def test_a_flood_of_announcements_costs_one_message_of_descriptors() -> None:
    with no_leak():
        async with crooked() as (crook, peer):
            before = open_fds()
            crook.beside.setblocking(False)
            sent = 0
            with suppress(BlockingIOError):
                while sent < descriptors.READS_MAX:
                    crook.announce(TOKEN, DESCRIPTORS_MAX)
                    sent += 1
            assert 100 < sent < descriptors.READS_MAX
            assert await read(peer, ["honest"]) == ["honest"]
            # Besides: its connection, and both ends of the honest one.
            assert len(open_fds() - before) <= DESCRIPTORS_MAX + 3


async def test_more_connections_than_allowed_close_the_oldest() -> None:
    with no_leak():
        async with crooked() as (crook, peer):
            before = open_fds()
            for _ in range(CONNECTIONS_MAX + 5):
                crook.connected()
            await until(lambda: closed(crook.sockets[4]))
            accepted = len(open_fds() - before) - (CONNECTIONS_MAX + 5)
            assert accepted <= CONNECTIONS_MAX
            # The honest connection was among the oldest; it is made again without a word.
            assert await read(peer, ["honest"]) == ["honest"]


async def test_a_caller_that_may_pass_none_has_no_way_to() -> None:
    """beta may call `plain` only; without a socket for descriptors the others are FORBIDDEN all the same."""
    with listening(("beta",), "courier") as (directory, bound), trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            told: list[str] = []
            table = handlers(GENERATION, told.append)
            await nursery.start(serve, COURIER, table, {"beta": bound["beta"].fileno()}, GENERATION)
            crook = Hostile(f"{directory}/courier.beta")
            body = pack_beside(TOKEN, 1) + COURIER.methods["readAgain"].encode_params({"tag": 2})
            call = Envelope(
                kind=Kind.CALL,
                id=1,
                generation=GENERATION,
                deadline_ns=time.monotonic_ns() + PATIENCE_S * 10**9,
                interface=COURIER.id,
                ordinal=COURIER.methods["readAgain"].ordinal,
                body=body,
            )
            assert await crook.code(pack(call)) is Code.FORBIDDEN
            crook.socket.close()
            nursery.cancel_scope.cancel()


# Hostile callees


Trick = Callable[[Channel, int], tuple[int, int]]


def gave(number: int, announced: int, wrong_token: int = 0) -> Trick:
    def trick(channel: Channel, token: int) -> tuple[int, int]:
        with files(*["crook"] * number) as fds:
            channel.send(token + wrong_token, fds)
        return token, announced

    return trick


TRICKS: dict[str, Trick] = {
    "nothing was sent": lambda _, token: (token, 1),
    "fewer": gave(1, 2),
    "more": gave(2, 1),
    "under another token": gave(1, 1, wrong_token=1),
    "an answer to another call": lambda _, token: (token + 1, 1),
    "none at all": lambda _, token: (token, 0),
}


@pytest.mark.parametrize("trick", TRICKS)
async def test_an_answer_whose_descriptors_do_not_come_is_a_failure(trick: str) -> None:
    async with tricked(TRICKS[trick]) as peer:
        for _ in range(3):
            assert await code_of(peer.call_fds("open", {"texts": []})) is Code.BAD_MESSAGE
        assert peer.nonsense == 3


def hangs_up(channel: Channel, token: int) -> tuple[int, int]:
    channel.close()
    return token, 1


async def test_an_answer_whose_descriptors_are_lost_is_none() -> None:
    """The call is idempotent: it is asked again, as after a death, until its time is up."""
    async with tricked(hangs_up) as peer:
        assert await code_of(peer.call_fds("open", {"texts": []}, 100)) is Code.DEADLINE


@asynccontextmanager
async def tricked(trick: Trick) -> AsyncIterator[Peer]:
    """A caller whose callee deals with the descriptors of each answer by a trick."""
    with (
        no_leak(),
        listening(("alpha",), "courier", ("alpha",)) as (directory, bound),
        trio.fail_after(PATIENCE_S),
        Listener(bound["alpha"].fileno()) as listener,
    ):
        entrance = Entrance(bound["alpha.fds"].fileno(), GENERATION)

        async def callee() -> None:
            while True:
                route, frame = await listener.receive()
                assert frame is not None
                envelope = unpack(frame)
                if envelope.kind is Kind.HELLO:
                    listener.send(route, [pack(replace(envelope, generation=GENERATION))])
                    continue
                token, _, _ = split_beside(envelope.body)
                claimed = entrance.claim(token)
                assert claimed is not None
                named, announced = trick(claimed[0], token)
                body = COURIER.methods["open"].encode_results({"number": 1})
                reply = replace(envelope, kind=Kind.REPLY, body=pack_beside(named, announced) + body)
                listener.send(route, [pack(reply)])

        async with trio.open_nursery() as nursery:
            await nursery.start(entrance.run)
            nursery.start_soon(callee)
            peer = Peer(COURIER, f"{directory}/courier.alpha")
            await nursery.start(peer.run)
            yield peer
            nursery.cancel_scope.cancel()


# The kernel's limits


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[Channel, Channel]]:
    """Both ends of a connection."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ends = Channel(one, GENERATION), Channel(other, GENERATION)
    try:
        with trio.fail_after(PATIENCE_S):
            yield ends
    finally:
        for end in ends:
            end.close()


@contextmanager
def room_for(number: int) -> Iterator[None]:
    """So many descriptors more and no other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = open_fds()
    # Each free number below the highest counts: they are filled.
    filled = [os.dup(0) for _ in range(max(used) + 1 - len(used))]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_fds()) + 1 + number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        close_all(filled)


async def test_where_there_is_no_room_for_all_there_are_none() -> None:
    with no_leak():
        async with joined() as (one, other):
            token = one.token()
            with files(*WORDS) as fds:
                one.send(token, fds)
            with room_for(3):
                assert other.claim(token) == ()
            with files("after") as fds:
                token = one.token()
                one.send(token, fds)
            (fd,) = other.claim(token) or ()
            assert beginning(fd) == "after"
            os.close(fd)


def test_no_room_for_a_connection_is_said() -> None:
    with room_for(0), pytest.raises(Unsent, match="open files"):
        descriptors.connect("/nowhere")


async def test_no_room_for_copies_is_a_failure_of_the_call() -> None:
    with no_leak(), files(*WORDS) as fds:
        async with serving() as (peer, _):
            word: dict[str, object] = {"tag": 2, "word": ""}
            with room_for(3):
                assert await code_of(peer.call("read", word, fds=fds)) is Code.BUSY
            assert await read(peer, WORDS) == WORDS


async def test_a_full_queue_is_told_and_nothing_is_sent() -> None:
    with no_leak():
        async with joined() as (one, other):
            sent = 0
            with suppress(Unsent), files("x") as fds:
                while sent < descriptors.READS_MAX:
                    one.send(one.token(), fds)
                    sent += 1
            assert 0 < sent < descriptors.READS_MAX
            assert other.claim(0) is None
            # It was passed over, and there is room again.
            with files("y") as fds:
                token = one.token()
                one.send(token, fds)
            (fd,) = other.claim(token) or ()
            assert beginning(fd) == "y"
            os.close(fd)


async def test_what_came_before_an_end_with_unread_words_is_still_there() -> None:
    """The kernel says ECONNRESET before it gives what had come."""
    with no_leak():
        async with joined() as (one, other):
            other.send(1, ())
            token = one.token()
            with files("last words") as fds:
                one.send(token, fds)
            one.close()
            (fd,) = other.claim(token) or ()
            assert beginning(fd) == "last words"
            os.close(fd)
            assert other.claim(token) is None
            assert other.ended
            with pytest.raises(Unsent) as caught:
                other.send(2, ())
            assert caught.value.gone


# Bytes


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_notes_come_back(generation: int, token: int) -> None:
    assert unpack_note(pack_note(generation, token)) == (generation, token)


@given(st.binary(max_size=3 * NOTE_BYTES) | st.binary(max_size=12).map(lambda tail: b"SPFD" + tail))
def test_any_datagram_is_a_note_or_refused(data: bytes) -> None:
    try:
        generation, token = unpack_note(data)
    except PeerError:
        return
    assert pack_note(generation, token) == data


@given(st.binary(max_size=3 * BESIDE_BYTES))
def test_any_body_begins_with_an_announcement_or_is_refused(data: bytes) -> None:
    try:
        token, count, body = split_beside(data)
    except PeerError:
        return
    assert pack_beside(token, count) + body == data


@pytest.mark.parametrize(("token", "count"), [(-1, 0), (2**64, 0), (0, -1), (0, 9)])
def test_an_announcement_that_is_none_is_not_made(token: int, count: int) -> None:
    with pytest.raises(ValueError, match=r"descriptors|token"):
        pack_beside(token, count)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),
            st.sampled_from([GENERATION, GENERATION - 1]),
            st.integers(0, 4) | st.none(),
            st.binary(max_size=20) | st.none(),
        ),
        max_size=12,
    )
)
def test_whatever_a_caller_does_on_both_sockets_nothing_stays(
    moves: list[tuple[int, int, int | None, bytes | None]],
) -> None:
    """Datagrams of any number and kind between calls that claim one of them or none."""

    async def main() -> None:
        async with crooked() as (crook, peer):
            for count, generation, claimed, note in moves:
                try:
                    crook.announce(TOKEN + count, count, generation, note)
                except (BrokenPipeError, ConnectionResetError):
                    crook.beside = crook.connected()
                if claimed is not None:
                    answer = await crook.bus.ask(crook.call(TOKEN + claimed, max(1, claimed)))
                    assert isinstance(answer, Envelope) or answer.code is Code.BAD_MESSAGE
            assert await read(peer, ["honest"]) == ["honest"]

    with no_leak():
        trio.run(main)


# Death


async def begun(process: Callee, count: int) -> list[list[str]]:
    return [await process.line() for _ in range(count)]


@pytest.mark.proves("INV-BUS-4")
@pytest.mark.proves("INV-BUS-8")
async def test_kill_9_of_the_callee_with_calls_under_way() -> None:
    """Idempotent calls reach the next incarnation with their descriptors; the others fail at once."""
    texts: dict[int, object] = {}
    codes: dict[int, Code] = {}
    with (
        no_leak(),
        listening(("alpha",), "courier", ("alpha",)) as (directory, bound),
        trio.fail_after(PATIENCE_S),
    ):
        peer = Peer(COURIER, f"{directory}/courier.alpha")

        async def again(tag: int) -> None:
            texts[tag] = await read(peer, [f"{tag}", "more"], "readAgain", tag)

        async def swap(tag: int) -> None:
            with files(f"{tag}") as sent:
                _, fds = await peer.call_fds("swap", {"tag": tag}, fds=sent)
                texts[tag] = [beginning(fd) for fd in fds] + ["more"]
                close_all(fds)

        async def once(tag: int) -> None:
            codes[tag] = await code_of(read(peer, [f"{tag}"], "read", tag))

        async with trio.open_nursery() as nursery:
            await nursery.start(peer.run)
            async with callee(1, bound, "courier") as first:
                for tag in range(1, 31, 6):
                    nursery.start_soon(again, tag)
                    nursery.start_soon(swap, tag + 2)
                    nursery.start_soon(once, tag + 4)
                await begun(first, 15)
                await first.kill()
            await until(lambda: len(codes) == 5)
            assert set(codes.values()) == {Code.PEER_DIED}
            assert not texts
            async with callee(2, bound, "courier") as second:
                await until(lambda: len(texts) == 10)
                assert texts == {tag: [f"{tag}", "more"] for tag in texts}
                lines = await begun(second, 10)
                assert {name for name, *_ in lines} == {"readAgain", "swap"}
                assert {attempt for *_, attempt in lines} == {"1"}
                # Nothing of the twenty descriptors stays in the callee either.
                counts = set()
                for _ in range(3):
                    assert await peer.call("plain", {"tag": 0}) == {"tag": 0}
                    counts.add((await second.line())[3])
                    assert await read(peer, WORDS) == WORDS
                    await second.line()
                assert len(counts) == 1
                await second.kill()
            nursery.cancel_scope.cancel()


@pytest.mark.proves("INV-BUS-2")
@pytest.mark.proves("INV-BUS-8")
async def test_every_call_ends_however_often_the_callee_is_killed() -> None:
    ended = {"answered": 0, "failed": 0}
    codes: set[Code] = set()
    texts: set[str] = set()
    begun_calls = 0
    with (
        no_leak(),
        listening(("alpha",), "courier", ("alpha",)) as (directory, bound),
        trio.fail_after(PATIENCE_S),
    ):
        peer = Peer(COURIER, f"{directory}/courier.alpha")
        stop = False

        async def ask(method: str) -> None:
            nonlocal begun_calls
            while not stop:
                begun_calls += 1
                try:
                    if method == "swap":
                        with files(*WORDS[:3]) as sent:
                            _, fds = await peer.call_fds("swap", {"tag": 2}, fds=sent)
                        assert [beginning(fd) for fd in fds] == WORDS[2::-1]
                        close_all(fds)
                    else:
                        assert await read(peer, WORDS[:2], method) == WORDS[:2]
                    ended["answered"] += 1
                except Failure as failure:
                    codes.add(failure.code)
                    texts.add(str(failure))
                    ended["failed"] += 1

        async with trio.open_nursery() as outer:
            await outer.start(peer.run)
            async with trio.open_nursery() as nursery:
                for method in ("read", "readAgain", "swap", "swap"):
                    nursery.start_soon(ask, method)
                for generation in range(2, 7):
                    async with callee(generation, bound, "courier") as process:
                        for _ in range(20):
                            await process.line()
                        await process.kill()
                stop = True
                async with callee(7, bound, "courier"):
                    await until(lambda: not nursery.child_tasks)
            outer.cancel_scope.cancel()
        assert codes <= {Code.PEER_DIED}, texts
        assert sum(ended.values()) == begun_calls
        assert ended["answered"] >= 40


@pytest.mark.proves("INV-BUS-8")
async def test_kill_9_of_the_caller_leaves_nothing_in_the_callee() -> None:
    with no_leak():
        async with serving() as (peer, directory):
            await read(peer, ["warm"])
            before = open_fds()
            for _ in range(4):
                process = subprocess.Popen(
                    [sys.executable, str(ROOT / "tests/bus/sender.py"), str(compiled("courier")), directory],
                    stdout=subprocess.PIPE,
                    cwd=ROOT,
                    env={"PYTHONPATH": str(ROOT)},
                )
                assert process.stdout is not None
                lines = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
                process.stdout.close()
                got = b""
                while got.count(b"\n") < 40:
                    got += await lines.receive_some()
                process.kill()
                process.wait()
                await lines.aclose()
                await until(lambda: open_fds() <= before)
            assert await read(peer, ["still here"]) == ["still here"]


# The tap


async def test_the_tap_shows_how_many_and_no_secret() -> None:
    outlet = Outlet(wanted=True)
    with files("a", "b", "c") as sent:
        async with serving(tap=Tap("courier", schemas("courier"), outlet)) as (peer, _):
            await peer.call("read", {"tag": 2, "word": "canary-canary"}, fds=sent)
            _, fds = await peer.call_fds("open", {"texts": WORDS[:5]})
            close_all(fds)
    assert not any(b"canary" in record for record in outlet.records)
    shown = [unpack_record(record) for record in outlet.records]
    assert all(record.whole for record in shown)
    counts = [
        (record.envelope.kind.name, record.side, split_beside(record.envelope.body)[1])
        for record in shown
        if record.envelope.kind in (Kind.CALL, Kind.REPLY)
    ]
    both = (Side.SENT, Side.RECEIVED)
    assert counts == [
        *(("CALL", side, 3) for side in both),
        *(("REPLY", side, 0) for side in both),
        *(("CALL", side, 0) for side in both),
        *(("REPLY", side, 5) for side in both),
    ]
