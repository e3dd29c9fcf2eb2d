"""Peers that do what they should not: each is answered with a typed failure or dropped; nobody else notices.

The hostile peer is always a caller that the kernel lets in: `alpha` with its own socket. The witness is
`beta`.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial

import pytest
import trio
import trio.testing
import zmq

from bus import sockets
from bus.admission import CALL_BYTES_MAX
from bus.client import Bus, Peer
from bus.envelope import (
    CHUNK_MAX,
    FRAME_MAX,
    MESSAGE_MAX,
    Code,
    Envelope,
    Failure,
    Kind,
    Reassembler,
    frames,
    pack,
    pack_failure,
    unpack,
    unpack_failure,
)
from bus.server import UNFINISHED_MAX, Call, serve
from bus.sockets import Listener
from tests.bus.test_calls import ECHO, Handlers, until
from tests.bus.wiring import PATIENCE_S, listening, schemas

GENERATION = 5
METHODS = ECHO.methods


def call(method: str, id_: int = 1, **params: object) -> Envelope:
    """An honest call, to be made dishonest with `replace`."""
    found = METHODS[method]
    return Envelope(
        kind=Kind.CALL,
        id=id_,
        generation=GENERATION,
        deadline_ns=time.monotonic_ns() + PATIENCE_S * 1_000_000_000,
        interface=ECHO.id,
        ordinal=found.ordinal,
        body=found.encode_params(params),
    )


def readable(peer: zmq.Socket[bytes]) -> bool:
    """Whether something has arrived."""
    return bool(int(peer.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


class Hostile:
    """A connection of alpha that sends what it likes."""

    def __init__(self, path: str, **options: int | bytes) -> None:
        self.socket = sockets._context().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        self.socket.connect(f"ipc://{path}")

    async def send(self, *frames_: bytes) -> None:
        while True:
            try:
                self.socket.send_multipart(frames_, zmq.DONTWAIT)
                return
            except zmq.Again:
                await trio.lowlevel.checkpoint()

    async def answer(self) -> Envelope:
        await until(lambda: readable(self.socket))
        return unpack(self.socket.recv(zmq.DONTWAIT))

    async def ask(self, *frames_: bytes) -> Envelope | Failure:
        """The answer to one message: a failure, or the reply as it is."""
        await self.send(*frames_)
        answer = await self.answer()
        return unpack_failure(answer.body) if answer.kind is Kind.FAILURE else answer

    async def code(self, *frames_: bytes) -> Code:
        failure = await self.ask(*frames_)
        assert isinstance(failure, Failure)
        return failure.code


class Scene:
    """A callee in this process, hostile connections to it, and the witness."""

    def __init__(self, directory: str, handlers: Handlers, bus: Bus) -> None:
        self.directory = directory
        self.path = f"{directory}/echo.alpha"
        self.handlers = handlers
        self._bus = bus
        self._hostiles: list[Hostile] = []

    def hostile(self, **options: int | bytes) -> Hostile:
        self._hostiles.append(Hostile(self.path, **options))
        return self._hostiles[-1]

    async def beta_is_served(self) -> None:
        assert await self._bus.echo.data(data=b"witness") == {"data": b"witness"}

    async def others_are_served(self) -> None:
        """Beta, and other connections of alpha itself."""
        await self.beta_is_served()
        assert await self.hostile().code(pack(replace(call("onlyBeta")))) is Code.FORBIDDEN

    def close(self) -> None:
        while self._hostiles:
            self._hostiles.pop().socket.close()


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    handlers = Handlers()
    with listening() as (directory, bound), trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            fds = {caller: listener.fileno() for caller, listener in bound.items()}
            await nursery.start(serve, ECHO, handlers.table(), fds, GENERATION)
            bus = Bus(schemas(), "beta", directory)
            await nursery.start(bus.run)
            here = Scene(directory, handlers, bus)
            try:
                yield here
                await here.beta_is_served()
                here.close()
                await here.others_are_served()
            finally:
                here.close()
            nursery.cancel_scope.cancel()


Wrong = Callable[[], Envelope]
WRONG: dict[str, tuple[Wrong, Code]] = {
    "an earlier generation": (lambda: replace(call("onlyBeta"), generation=GENERATION - 1), Code.STALE),
    "a generation to come": (lambda: replace(call("data", data=b""), generation=GENERATION + 1), Code.STALE),
    "no generation": (lambda: replace(call("data", data=b""), generation=0), Code.STALE),
    "another interface": (lambda: replace(call("data", data=b""), interface=1), Code.UNKNOWN_METHOD),
    "no such method": (lambda: replace(call("data", data=b""), ordinal=99), Code.UNKNOWN_METHOD),
    "somebody else's method": (lambda: call("onlyBeta"), Code.FORBIDDEN),
    "time that is up": (lambda: replace(call("data", data=b""), deadline_ns=1), Code.DEADLINE),
    "time that never was": (lambda: replace(call("data", data=b""), deadline_ns=-1), Code.DEADLINE),
    "a body of another method": (
        lambda: replace(call("data", data=b""), body=b"\xff" * 64),
        Code.BAD_MESSAGE,
    ),
    "no body": (lambda: replace(call("data", data=b""), body=b""), Code.BAD_MESSAGE),
    "a reply": (lambda: replace(call("data", data=b""), kind=Kind.REPLY), Code.BAD_MESSAGE),
    "a failure": (lambda: replace(call("data", data=b""), kind=Kind.FAILURE), Code.BAD_MESSAGE),
    "an event": (lambda: replace(call("data", data=b""), kind=Kind.EVENT), Code.BAD_MESSAGE),
    "a part of nothing": (lambda: replace(call("data", data=b""), part=3), Code.BAD_MESSAGE),
    "an empty part": (lambda: replace(call("data", data=b""), more=True, body=b""), Code.BAD_MESSAGE),
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_wrong_call_is_answered_and_not_executed(what: str) -> None:
    wrong, code = WRONG[what]
    async with scene() as here:
        hostile = here.hostile()
        envelope = replace(wrong(), id=77)
        await hostile.send(pack(envelope))
        answer = await hostile.answer()
        assert (answer.kind, answer.id, answer.generation) == (Kind.FAILURE, 77, GENERATION)
        assert unpack_failure(answer.body).code is code
        assert not here.handlers.calls
        # The same connection may go on as if nothing had been.
        assert isinstance(await hostile.ask(pack(call("data", data=b"honest"))), Envelope)


@pytest.mark.parametrize(
    "message",
    [[b""], [b"x"], [b"\0" * 40], [b"SPNE" + b"\xff" * 60], [b"a", b"b"], [b""] * 3, [b"x" * 100] * 3000],
    ids=["empty", "short", "zeros", "version", "two parts", "three empty parts", "3000 parts"],
)
async def test_what_is_no_message_is_answered(message: list[bytes]) -> None:
    async with scene() as here:
        assert await here.hostile().code(*message) is Code.BAD_MESSAGE


async def test_hello_tells_the_true_generation_whatever_it_claims() -> None:
    async with scene() as here:
        for claimed in (0, GENERATION, 0xFFFFFFFF):
            hello = Envelope(kind=Kind.HELLO, id=3, generation=claimed, body=b"let me in")
            answer = await here.hostile().ask(pack(hello))
            assert isinstance(answer, Envelope)
            assert (answer.kind, answer.id, answer.generation) == (Kind.HELLO, 3, GENERATION)


async def test_no_hello_is_needed_to_be_judged_by_the_generation() -> None:
    """Hello tells a caller what to address; it grants nothing."""
    async with scene() as here:
        assert isinstance(await here.hostile().ask(pack(call("data", data=b""))), Envelope)


async def test_an_id_may_be_repeated_at_ones_own_cost() -> None:
    async with scene() as here:
        hostile = here.hostile()
        for _ in range(3):
            await hostile.send(pack(call("data", 8, data=b"same")))
        answers = [await hostile.answer() for _ in range(3)]
        assert [(answer.kind, answer.id) for answer in answers] == [(Kind.REPLY, 8)] * 3
        assert len(here.handlers.calls) == 3


async def test_a_deadline_beyond_the_schemas_is_shortened() -> None:
    async with scene() as here:
        far = replace(call("data", data=b""), deadline_ns=(1 << 63) - 1)
        assert isinstance(await here.hostile().ask(pack(far)), Envelope)
        limit_ns = METHODS["data"].deadline_ms * 1_000_000
        assert here.handlers.calls[0].deadline_ns <= time.monotonic_ns() + limit_ns


async def test_the_callee_ends_what_is_due_by_itself() -> None:
    async with scene() as here:
        soon = replace(call("hold", tag=1), deadline_ns=time.monotonic_ns() + 20_000_000)
        assert await here.hostile().code(pack(soon)) is Code.DEADLINE
        assert here.handlers.cancelled == 1


async def test_bytes_under_way_are_limited_and_given_back() -> None:
    async with scene() as here:
        hostile = here.hostile()
        big = replace(call("hold", tag=1), body=call("data", data=bytes(MESSAGE_MAX - 100)).body)
        fits = CALL_BYTES_MAX // len(big.body)
        for id_ in range(fits + 1):
            for frame in frames(replace(big, id=id_)):
                await hostile.send(frame)
        answer = await hostile.answer()
        assert (answer.id, unpack_failure(answer.body).code) == (fits, Code.BUSY)
        here.handlers.release.set()
        assert sorted([(await hostile.answer()).id for _ in range(fits)]) == list(range(fits))
        for frame in frames(replace(big, id=9)):
            await hostile.send(frame)
        assert (await hostile.answer()).kind is Kind.REPLY


async def test_half_sent_messages_are_limited_and_forgotten() -> None:
    """More connections than may be half way: the oldest loses, the newest completes."""
    async with scene() as here:
        long = call("data", data=bytes(3 * CHUNK_MAX))
        first, *rest = frames(long)
        halves = [here.hostile() for _ in range(UNFINISHED_MAX + 1)]
        for half in halves:
            await half.send(first)
            # A complete exchange on another connection comes after it; then it has arrived.
            await here.others_are_served()
        for frame in rest:
            await halves[-1].send(frame)
        assert (await halves[-1].answer()).kind is Kind.REPLY
        for frame in rest:
            await halves[0].send(frame)
        answer = await halves[0].answer()
        assert unpack_failure(answer.body).code is Code.BAD_MESSAGE


async def test_a_message_longer_than_any_is_refused_once() -> None:
    async with scene() as here:
        hostile = here.hostile()
        endless = call("data", data=bytes(2 * CHUNK_MAX))
        for part in range(60):
            await hostile.send(
                pack(replace(endless, more=part < 59, part=part, body=endless.body[:CHUNK_MAX]))
            )
        assert await hostile.code(pack(call("onlyBeta", 2))) is Code.BAD_MESSAGE
        answer = await hostile.answer()
        assert (answer.id, unpack_failure(answer.body).code) == (2, Code.FORBIDDEN)
        assert not here.handlers.calls


async def test_a_frame_over_the_limit_costs_the_connection() -> None:
    async with scene() as here:
        hostile = here.hostile()
        assert isinstance(await hostile.ask(pack(call("data", data=b""))), Envelope)
        monitor = hostile.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        await hostile.send(bytes(FRAME_MAX + 1))
        await until(lambda: readable(monitor))
        hostile.socket.disable_monitor()


async def test_a_flood_of_nonsense_without_reading_answers() -> None:
    async with scene() as here:
        hostile = here.hostile(RCVHWM=1)
        for number in range(3000):
            with_answer = pack(call("grow", number, bytes=60_000)) if number % 8 == 0 else os.urandom(50)
            try:
                hostile.socket.send(with_answer, zmq.DONTWAIT)
            except zmq.Again:
                break
        for _ in range(20):
            await here.beta_is_served()


async def test_the_callee_ends_cleanly_with_calls_at_the_door() -> None:
    """Idle workers, waiting messages, and a handler that ends it all: nobody is woken who was told to end."""
    for _ in range(20):
        handlers = Handlers()
        with listening(("alpha",)) as (directory, bound), trio.fail_after(PATIENCE_S):
            hostile = Hostile(f"{directory}/echo.alpha")
            async with trio.open_nursery() as nursery:

                async def end(_: Call, __: dict[str, object], end: trio.CancelScope) -> dict[str, object]:
                    end.cancel()
                    return {"data": b""}

                table = {**handlers.table(), "grow": partial(end, end=nursery.cancel_scope)}
                await nursery.start(serve, ECHO, table, {"alpha": bound["alpha"].fileno()}, GENERATION)
                for id_ in range(5):
                    await hostile.send(pack(call("hold", id_, tag=1)))
                await until(partial(lambda held: held.held == 5, handlers))
                handlers.release.set()
                for _ in range(5):
                    await hostile.answer()
                for id_ in range(30):
                    await hostile.send(pack(call("grow", id_, bytes=0)))
                await trio.sleep_forever()
            hostile.socket.close()


async def test_a_caller_that_does_not_read_answers_is_not_worked_for() -> None:
    """Its calls wait until what was answered is read; then all of them are answered."""
    asked = 50
    async with scene() as here:
        deaf = here.hostile(RCVHWM=1)
        for id_ in range(asked):
            await deaf.send(pack(call("grow", id_, bytes=1_000_000)))
        await here.beta_is_served()
        await until(lambda: here.handlers.grown > 0)
        await trio.testing.wait_all_tasks_blocked()
        await here.beta_is_served()
        assert here.handlers.grown < asked // 2
        answers = Reassembler()
        whole: list[Envelope] = []
        while len(whole) < asked:
            answer = answers.add(await deaf.answer())
            whole += [answer] if answer else []
        assert {answer.kind for answer in whole} == {Kind.REPLY}
        assert here.handlers.grown == asked


@contextmanager
def raw_connection(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.setblocking(False)
        raw.connect(path)
        yield raw


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
READY = b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"[:28]


async def test_bytes_that_are_no_zmtp_at_all() -> None:
    """Noise, noise after a true greeting, greetings cut short; connections left open and dropped."""
    chance = random.Random(7)
    async with scene() as here:
        for round_ in range(40):
            noise = chance.randbytes(chance.randrange(1, 3000))
            prefix = (b"", GREETING, GREETING + READY, GREETING[: chance.randrange(64)])[round_ % 4]
            with raw_connection(here.path) as raw:
                raw.send(prefix + noise)
                if round_ % 8 == 0:
                    await here.others_are_served()


async def test_connections_that_say_nothing() -> None:
    async with scene() as here:
        silent = [raw_connection(here.path) for _ in range(30)]
        opened = [connection.__enter__() for connection in silent]
        await here.others_are_served()
        for connection in opened:
            connection.close()


async def test_identity_is_the_socket_whatever_the_peer_calls_itself() -> None:
    """What comes in on alpha's socket is alpha's; the name that ZeroMQ lets a peer choose means nothing."""
    async with scene() as here:
        pretender = here.hostile(ROUTING_ID=b"beta")
        assert await pretender.code(pack(call("onlyBeta"))) is Code.FORBIDDEN


Answers = Callable[[Envelope], list[bytes]]


def reply(to: Envelope, **changes: object) -> bytes:
    """An honest answer, or one with other fields than it should have."""
    fields: dict[str, object] = {"kind": Kind.REPLY, "generation": GENERATION, "deadline_ns": 0, **changes}
    return pack(replace(to, **fields))  # type: ignore[arg-type]  # fields by name


DISHONEST: dict[str, Answers] = {
    "noise before the answer": lambda to: [b"", b"x" * 100, pack(replace(to, body=b"")), reply(to)],
    "the answer twice": lambda to: [reply(to), reply(to), reply(to)],
    "an answer to nothing": lambda to: [reply(to, id=999), reply(to, id=0), reply(to)],
    "an answer to another attempt": lambda to: [reply(to, attempt=9, body=b"wrong"), reply(to)],
    "a hello that was not asked for": lambda to: [
        pack(Envelope(kind=Kind.HELLO, id=999, generation=9)),
        reply(to),
    ],
    "an event": lambda to: [pack(Envelope(kind=Kind.EVENT, id=1)), reply(to)],
    "half an answer, then a whole one": lambda to: [
        reply(to, more=True, body=b"half"),
        reply(to, part=7, body=b"x"),
        reply(to),
    ],
}


async def dishonest_callee(listener: Listener, answers: Answers) -> None:
    """Answers hello as it should and everything else as told."""
    while True:
        route, frame = await listener.receive()
        assert frame is not None
        envelope = unpack(frame)
        if envelope.kind is Kind.HELLO:
            listener.send(route, [pack(replace(envelope, generation=GENERATION))])
        else:
            listener.send(route, answers(envelope))


@asynccontextmanager
async def calling(answers: Answers) -> AsyncIterator[Peer]:
    with listening(("alpha",)) as (directory, bound), trio.fail_after(PATIENCE_S):
        with Listener(bound["alpha"].fileno()) as listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dishonest_callee, listener, answers)
                peer = Peer(ECHO, f"{directory}/echo.alpha")
                await nursery.start(peer.run)
                yield peer
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("what", DISHONEST)
async def test_a_dishonest_callee_disturbs_nothing_but_its_own_answers(what: str) -> None:
    async with calling(DISHONEST[what]) as peer:
        for number in range(3):
            assert await peer.call("data", {"data": bytes([number])}) == {"data": bytes([number])}
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(peer.call, "data", {"data": b"many"})


async def test_half_an_answer_of_a_callee_that_died_spoils_no_later_one() -> None:
    with listening(("alpha",)) as (directory, bound), trio.fail_after(PATIENCE_S):
        peer = Peer(ECHO, f"{directory}/echo.alpha")
        answers: list[dict[str, object]] = []

        async def ask() -> None:
            answers.append(await peer.call("data", {"data": b"whole"}))

        def half(to: Envelope) -> list[bytes]:
            return [reply(to, more=True, body=b"half")]

        def whole(to: Envelope) -> list[bytes]:
            return [reply(to)]

        async def answering(answer: Answers, done: Callable[[], bool]) -> None:
            with Listener(bound["alpha"].fileno()) as listener:
                async with trio.open_nursery() as life:
                    life.start_soon(dishonest_callee, listener, answer)
                    await until(done)
                    life.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            await nursery.start(peer.run)
            nursery.start_soon(ask)
            await answering(half, lambda: peer._answers.held_bytes > 0)
            await until(lambda: peer.generation is None)
            await answering(whole, lambda: bool(answers))
            nursery.cancel_scope.cancel()
        assert answers == [{"data": b"whole"}]


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        (lambda to: [reply(to, body=b"\xff" * 16)], Code.BAD_MESSAGE),
        (lambda to: [reply(replace(to, kind=Kind.FAILURE), body=b"")], Code.BAD_MESSAGE),
        (lambda to: [pack(replace(to, kind=Kind.FAILURE, body=b""))], Code.BAD_MESSAGE),
        (lambda to: [pack(replace(to, kind=Kind.FAILURE, body=b"\xff\xff"))], Code.BAD_MESSAGE),
        (lambda to: [pack(replace(to, kind=Kind.FAILURE, body=pack_failure(Failure(Code.FULL))))], Code.FULL),
        (lambda _: [], Code.DEADLINE),
    ],
)
async def test_an_answer_that_is_none_is_a_failure(answers: Answers, code: Code) -> None:
    async with calling(answers) as peer:
        with pytest.raises(Failure) as caught:
            await peer.call("data", {"data": b""}, deadline_ms=50 if code is Code.DEADLINE else None)
        assert caught.value.code is code
