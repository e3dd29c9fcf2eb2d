"""The sockets: no wait is lost, whoever used the socket in between; queues are bounded; a fork is noticed."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import zmq

from bus import sockets
from bus.envelope import FRAME_MAX
from bus.sockets import BATCH, OUT_BYTES_MAX, SEND_QUEUE_FRAMES, Connection, Listener
from tests.bus.wiring import PATIENCE_S, listening


@pytest.fixture
def pair() -> Iterator[tuple[str, socket.socket]]:
    with listening(("alpha",)) as (directory, bound):
        yield f"{directory}/echo.alpha", bound["alpha"]


def plain(path: str, **options: int) -> zmq.Socket[bytes]:
    """A peer that does as it likes."""
    peer = sockets._context().socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, 0)
    for name, value in options.items():
        peer.setsockopt(getattr(zmq, name), value)
    peer.connect(f"ipc://{path}")
    return peer


def readable(peer: zmq.Socket[bytes]) -> bool:
    """Whether something has arrived."""
    return bool(int(peer.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


async def next_of(peer: zmq.Socket[bytes]) -> bytes:
    """The next message of a peer, while our own tasks go on."""
    while not readable(peer):
        await trio.lowlevel.checkpoint()
    return peer.recv(zmq.DONTWAIT)


def wait_readable(fd: int) -> None:
    """Blocks the whole process, so that no task of ours can touch the socket meanwhile."""
    assert select.select([fd], [], [], PATIENCE_S)[0], "nothing arrived"


def swallow_the_edge(listener: Listener, peer: zmq.Socket[bytes], route: bytes) -> None:
    """Something arrives while the receiver sleeps, and before it can wake, somebody sends."""
    peer.send(b"arrived")
    wait_readable(listener._fd)
    while select.select([listener._fd], [], [], 0)[0]:
        listener.send(route, [b"sent by another task"])
    assert listener._events() & zmq.POLLIN


@pytest.mark.proves("INV-BUS-6")
async def test_a_receiver_wakes_though_a_sender_swallowed_the_edge(pair: tuple[str, socket.socket]) -> None:
    path, bound = pair
    with Listener(bound.fileno()) as listener, plain(path) as peer, trio.fail_after(PATIENCE_S):
        peer.send(b"first")
        route, frame = await listener.receive()
        assert frame == b"first"
        received = []

        async def receive() -> None:
            received.append(await listener.receive())

        for _ in range(50):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await trio.testing.wait_all_tasks_blocked()
                swallow_the_edge(listener, peer, route)
        assert received == [(route, b"arrived")] * 50


async def test_the_naive_receiver_does_hang(pair: tuple[str, socket.socket]) -> None:
    """The control: the same steps, with a receiver that merely waits for the descriptor, lose the wake-up."""
    path, bound = pair
    with Listener(bound.fileno()) as listener, plain(path) as peer:
        peer.send(b"first")
        with trio.fail_after(PATIENCE_S):
            route, _ = await listener.receive()
        woken = trio.Event()

        async def naive() -> None:
            assert not listener._events() & zmq.POLLIN
            await trio.lowlevel.wait_readable(listener._fd)
            woken.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(naive)
            await trio.testing.wait_all_tasks_blocked()
            swallow_the_edge(listener, peer, route)
            await trio.testing.wait_all_tasks_blocked()
            assert listener._events() & zmq.POLLIN
            assert not woken.is_set()
            nursery.cancel_scope.cancel()


async def test_two_messages_for_one_wake(pair: tuple[str, socket.socket]) -> None:
    path, bound = pair
    count = 3 * BATCH
    with Listener(bound.fileno()) as listener, plain(path) as peer, trio.fail_after(PATIENCE_S):
        for _ in range(20):
            for number in range(count):
                peer.send(struct.pack("<I", number))
            for number in range(count):
                assert (await listener.receive())[1] == struct.pack("<I", number)


BIG = bytes(FRAME_MAX - 8)


async def fill(listener: Listener, route: bytes, frames: int) -> int:
    """Sends to a peer that does not read until that many frames wait for it; how many were sent."""
    sent = 0
    while len(listener._out.get(route, ())) < frames:
        listener.send(route, [struct.pack("<Q", sent) + BIG])
        sent += 1
    assert sent >= SEND_QUEUE_FRAMES + frames
    return sent


@asynccontextmanager
async def receiving(listener: Listener) -> AsyncIterator[None]:
    """While somebody receives, as always somebody does."""

    async def receive() -> None:
        while True:
            await listener.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        yield
        nursery.cancel_scope.cancel()


async def test_what_waits_for_a_slow_peer_comes_in_order(pair: tuple[str, socket.socket]) -> None:
    path, bound = pair
    with Listener(bound.fileno()) as listener, plain(path, RCVHWM=2) as peer, trio.fail_after(PATIENCE_S):
        peer.send(b"hello")
        route, _ = await listener.receive()
        sent = await fill(listener, route, 100)
        async with receiving(listener):
            for number in range(sent):
                assert (await next_of(peer))[:8] == struct.pack("<Q", number)
        assert not listener._out
        assert listener.out_bytes == 0


async def test_a_connection_that_does_not_read_is_in_no_others_way(pair: tuple[str, socket.socket]) -> None:
    path, bound = pair
    with (
        Listener(bound.fileno()) as listener,
        plain(path, RCVHWM=2) as deaf,
        plain(path) as other,
        trio.fail_after(PATIENCE_S),
    ):
        deaf.send(b"deaf")
        deaf_route, _ = await listener.receive()
        other.send(b"other")
        other_route, _ = await listener.receive()
        sent = await fill(listener, deaf_route, 10)
        listener.send(other_route, [b"at once"])
        assert await next_of(other) == b"at once"
        async with receiving(listener):
            for number in range(sent):
                assert (await next_of(deaf))[:8] == struct.pack("<Q", number)


async def test_what_waits_for_a_connection_that_dies_is_forgotten(pair: tuple[str, socket.socket]) -> None:
    """Also when the dead one had sent what nobody has read yet: libzmq keeps the connection until it is."""
    path, bound = pair
    with Listener(bound.fileno()) as listener, trio.fail_after(PATIENCE_S):
        with plain(path, RCVHWM=2) as dying:
            dying.send(b"hello")
            route, _ = await listener.receive()
            await fill(listener, route, 100)
            assert not listener._events() & zmq.POLLIN
            for _ in range(3):
                dying.send(b"unread")
            wait_readable(listener._fd)
        async with receiving(listener):
            while listener._out:
                await trio.lowlevel.checkpoint()
        assert listener.out_bytes == 0


async def test_there_is_room_again_when_the_peer_reads(pair: tuple[str, socket.socket]) -> None:
    path, bound = pair
    with Listener(bound.fileno()) as listener, plain(path, RCVHWM=2) as peer, trio.fail_after(PATIENCE_S):
        await listener.room()
        peer.send(b"hello")
        route, _ = await listener.receive()
        sent = await fill(listener, route, OUT_BYTES_MAX // FRAME_MAX + 1)
        async with receiving(listener), trio.open_nursery() as nursery:
            nursery.start_soon(listener.room)
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            for _ in range(sent):
                await next_of(peer)


async def test_who_never_reads_is_not_listened_to(
    pair: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "OUT_FRAMES_MAX", 10)
    path, bound = pair
    with (
        Listener(bound.fileno()) as listener,
        plain(path, RCVHWM=2) as deaf,
        plain(path) as other,
        trio.fail_after(PATIENCE_S),
    ):
        deaf.send(b"hello")
        route, _ = await listener.receive()
        await fill(listener, route, 10)
        for _ in range(100):
            deaf.send(b"more")
        other.send(b"other")
        assert (await listener.receive())[1] == b"other"


async def test_an_answer_to_a_peer_that_is_gone_is_forgotten(pair: tuple[str, socket.socket]) -> None:
    path, bound = pair
    with Listener(bound.fileno()) as listener, trio.fail_after(PATIENCE_S):
        with plain(path) as gone:
            gone.send(b"hello")
            route, _ = await listener.receive()
        with plain(path) as peer:
            peer.send(b"next")
            next_route, _ = await listener.receive()
            assert next_route != route
            listener.send(route, [b"for nobody"] * 3)
            listener.send(next_route, [b"for you"])
            assert not listener._out
            assert peer.recv() == b"for you"


async def test_a_message_of_other_than_one_frame_is_no_message(pair: tuple[str, socket.socket]) -> None:
    path, bound = pair
    with Listener(bound.fileno()) as listener, plain(path) as peer, trio.fail_after(PATIENCE_S):
        peer.send_multipart([b"two", b"parts"])
        peer.send_multipart([b"x"] * 5000)
        peer.send(b"")
        peer.send(b"one")
        frames = [(await listener.receive())[1] for _ in range(4)]
        assert frames == [None, None, b"", b"one"]


async def test_a_connection_tells_of_its_links_in_order(pair: tuple[str, socket.socket]) -> None:
    path, bound = pair
    told: list[object] = []
    news = trio.Event()

    def linked(up: bool) -> None:
        told.append(up)
        news.set()

    async def next_news() -> None:
        nonlocal news
        await news.wait()
        news = trio.Event()

    with Connection(path, told.append, linked) as connection, trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            for _ in range(3):
                with Listener(bound.fileno()) as listener:
                    await next_news()
                    assert told == [True]
                    connection.send([b"call"])
                    route, frame = await listener.receive()
                    assert frame == b"call"
                    listener.send(route, [b"answer"])
                    while len(told) < 2:
                        await trio.lowlevel.checkpoint()
                    assert told == [True, b"answer"]
                await next_news()
                assert told == [True, b"answer", False]
                told.clear()
            nursery.cancel_scope.cancel()


async def test_what_is_sent_while_nobody_is_there_is_not_kept_for_the_next(
    pair: tuple[str, socket.socket],
) -> None:
    path, bound = pair
    links: list[bool] = []
    with Connection(path, lambda _: None, links.append) as connection, trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            with Listener(bound.fileno()):
                while links != [True]:
                    await trio.lowlevel.checkpoint()
                connection.hear()
            # The connection is lost, and we send before any task of ours has heard of it.
            wait_readable(int(connection._monitor.get(zmq.FD)))
            connection.send([b"to nobody"])
            assert links == [True]
            while links != [True, False]:
                await trio.lowlevel.checkpoint()
            assert not connection._out
            with Listener(bound.fileno()) as listener:
                while links != [True, False, True]:
                    await trio.lowlevel.checkpoint()
                connection.send([b"to you"])
                assert (await listener.receive())[1] == b"to you"
            nursery.cancel_scope.cancel()


async def test_callers_wait_in_the_backlog_and_callees_do_not_wait_for_silence(
    pair: tuple[str, socket.socket],
) -> None:
    """libzmq's own patience of 30 s would make a waiting caller connect again, and fill the backlog."""
    path, bound = pair
    with Listener(bound.fileno()) as listener:
        assert listener._socket.get(zmq.HANDSHAKE_IVL) == sockets.HANDSHAKE_MS
    with Connection(path, lambda _: None, lambda _: None) as connection:
        assert connection._socket.get(zmq.HANDSHAKE_IVL) == 0


def test_the_listening_socket_survives_its_listeners(pair: tuple[str, socket.socket]) -> None:
    path, bound = pair
    for _ in range(3):
        with Listener(bound.fileno()):
            pass
        assert os.path.exists(path)
        assert bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def test_a_context_is_not_used_after_a_fork(pair: tuple[str, socket.socket]) -> None:
    _, bound = pair
    with Listener(bound.fileno()):
        pass
    pid = os.fork()
    if pid == 0:
        try:
            Listener(bound.fileno())
        except AssertionError:
            os._exit(7)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
