"""A bare AF_UNIX socket that keeps the bounds of packets, blocking: `serve PATH` and `call PATH`.

A packet is at most 64 KiB, as a frame of ours; the first eight bytes of a message say how long it is.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import Final

from tests.bench.programs import asked

PACKET: Final = 64 * 1024
OVERHEAD: Final = 64


def send(sock: socket.socket, message: bytes) -> None:
    sock.send(len(message).to_bytes(8, "little") + message[: PACKET - 8])
    for at in range(PACKET - 8, len(message), PACKET):
        sock.send(message[at : at + PACKET])


def receive(sock: socket.socket) -> bytes:
    first = sock.recv(PACKET)
    if not first:
        raise EOFError
    total = int.from_bytes(first[:8], "little")
    if total <= PACKET - 8:
        return first[8:]
    parts, got = [first[8:]], len(first) - 8
    while got < total:
        parts.append(sock.recv(PACKET))
        got += len(parts[-1])
    return b"".join(parts)


def serve(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(path)
        listening.listen()
        asked.ready()
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
        sock, _ = listening.accept()
        with sock:
            while True:
                try:
                    send(sock, receive(sock))
                except (EOFError, OSError):
                    return


def call(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)
        asked.ready()
        for calls, callers, size in asked.questions():
            asked.answer(
                asked.pipelined(
                    calls, callers, lambda data: send(sock, data), lambda: receive(sock), size + OVERHEAD
                )
            )


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](sys.argv[2])
