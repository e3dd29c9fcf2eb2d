"""Bare pyzmq, ROUTER and DEALER: `serve PATH`, `call PATH`, `flood PATH`; with `trio` in front, under trio.

Nothing is checked. A frame is as long as ours with its header and its encoding.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque

import trio
import zmq

from tests.bench.programs import asked

OVERHEAD = 64
"""What the bus adds: a header of 40 bytes, and 24 of Cap'n Proto for a message of one field."""
FLOOD = 64


def serve(path: str) -> None:
    router = zmq.Context().socket(zmq.ROUTER)
    router.bind(f"ipc://{path}")
    asked.ready()
    until_closed(path)
    while True:
        route, frame = router.recv_multipart()
        if frame == b"end":
            return
        router.send_multipart([route, frame])


def until_closed(path: str) -> None:
    """The bench ends us by closing our input; a blocking receive is told by a message of our own."""

    def wait() -> None:
        sys.stdin.read()
        dealer = zmq.Context().socket(zmq.DEALER)
        dealer.connect(f"ipc://{path}")
        dealer.send(b"end")
        time.sleep(1)

    threading.Thread(target=wait, daemon=True).start()


def call(path: str) -> None:
    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.connect(f"ipc://{path}")
    asked.ready()
    for calls, callers, size in asked.questions():
        asked.answer(asked.pipelined(calls, callers, dealer.send, dealer.recv, size + OVERHEAD))


def flood(path: str) -> None:
    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(f"ipc://{path}")
    closed = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        closed.set()

    threading.Thread(target=wait, daemon=True).start()
    for _ in range(FLOOD):
        dealer.send(bytes(200 + OVERHEAD))
    asked.ready()
    while not closed.is_set():
        dealer.send(dealer.recv())


async def readable(socket: zmq.Socket[bytes]) -> None:
    """The least that is right: the descriptor tells of changes, the events tell what is so."""
    while not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
        await trio.lowlevel.wait_readable(socket.fileno())


async def trio_serve(path: str) -> None:
    router = zmq.Context().socket(zmq.ROUTER)
    router.bind(f"ipc://{path}")
    asked.ready()
    until_closed(path)
    while True:
        await readable(router)
        route, frame = router.recv_multipart(zmq.DONTWAIT)
        if frame == b"end":
            return
        router.send_multipart([route, frame], zmq.DONTWAIT)


async def trio_call(path: str) -> None:
    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.connect(f"ipc://{path}")
    asked.ready()
    for calls, callers, size in asked.questions():
        asked.answer(await trio_round(dealer, calls, callers, size + OVERHEAD))


async def trio_round(dealer: zmq.Socket[bytes], calls: int, callers: int, size: int) -> dict[str, object]:
    payload = bytes(size)
    sent: deque[int] = deque()
    took: list[int] = []
    clock = time.perf_counter_ns
    began = clock()
    for _ in range(callers):
        sent.append(clock())
        dealer.send(payload, zmq.DONTWAIT)
    left = calls - callers
    while sent:
        await readable(dealer)
        got = dealer.recv(zmq.DONTWAIT)
        took.append(clock() - sent.popleft())
        assert len(got) == size
        if left > 0:
            left -= 1
            sent.append(clock())
            dealer.send(payload, zmq.DONTWAIT)
    return asked.told(took, began)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", path]:
            serve(path)
        case ["call", path]:
            call(path)
        case ["flood", path]:
            flood(path)
        case ["trio", "serve", path]:
            trio.run(trio_serve, path)
        case ["trio", "call", path]:
            trio.run(trio_call, path)
