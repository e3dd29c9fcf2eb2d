"""A freezer's side of the line to the builder, put into the image for a test: it asks and says what it saw.

`ask_builder` runs in a thread of the real freezer, with its powers. Each fact is one line of
JSON in the freezer's log after `asker: `.
"""

import hashlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Protocol

from organs.builder import protocol
from organs.builder.protocol import Answer, Device, Hello, Made, Release, Request, Verity, Welcome

BLOCK, BLOCKS = 4096, 8
SALT = b"salt of a test"
DEADLINE_S = 60.0


class Place(Protocol):
    """What it uses of the runtime."""

    @property
    def generation(self) -> int: ...

    @property
    def fds(self) -> Mapping[str, int]: ...


def tell(fact: str, value: object) -> None:
    print("asker: " + json.dumps({fact: value}), file=sys.stderr, flush=True)


def hear(line: socket.socket) -> tuple[Answer, list[int]]:
    datagram, fds, _, _ = socket.recv_fds(line, protocol.DATAGRAM_BYTES_MAX, protocol.DESCRIPTORS_MAX)
    return protocol.decode_answer(datagram), fds


def ask(line: socket.socket, request: Request, *fds: int) -> tuple[Answer, list[int]]:
    socket.send_fds(line, [protocol.encode(request)], fds)
    while True:
        answer, made = hear(line)
        if (answer.id, answer.asker) == (request.id, request.asker):
            return answer, made
        for fd in made:
            os.close(fd)


def persona() -> tuple[bytes, bytes, str]:
    """Some data, its hash tree, its root hash."""
    data = b"".join(bytes([number]) * BLOCK for number in range(BLOCKS))
    leaves = [hashlib.sha256(SALT + data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK)]
    tree = b"".join(leaves).ljust(BLOCK, b"\0")
    return data, tree, hashlib.sha256(SALT + tree).hexdigest()


def read(fd: int, number: int) -> str:
    """The first byte of a block, or the kernel's error."""
    try:
        return os.pread(fd, BLOCK, number * BLOCK)[:1].hex()
    except OSError as error:
        return os.strerror(error.errno or 0)


def mapped() -> int:
    """How many devices of the device mapper there are."""
    return sum(name.startswith("dm-") for name in os.listdir("/sys/block"))


def until_mapped(number: int) -> bool:
    """Whether it comes to this many."""
    end = time.monotonic() + DEADLINE_S
    while mapped() != number and time.monotonic() < end:
        time.sleep(0.05)
    return mapped() == number


def ask_builder(place: Place) -> None:
    """The whole conversation. What goes wrong is in the log."""
    try:
        converse(place)
    except (OSError, ValueError, AssertionError):
        traceback.print_exc()


def converse(place: Place) -> None:
    line = socket.socket(fileno=os.dup(place.fds["pair:builder"]))
    line.setblocking(True)
    before = mapped()
    asker = place.generation
    welcome, _ = ask(line, Hello(id=1, asker=asker))
    data, tree, root_hash = persona()
    changed = bytearray(data)
    changed[3 * BLOCK] ^= 1

    def device(number: int, content: bytes, root: str) -> tuple[Made, int]:
        with open(f"/tmp/asker{number}", "wb") as file:
            file.write(content)
        verity = Verity(root_hash=root, salt=SALT.hex(), blocks=BLOCKS, hash_offset=len(data))
        with open(f"/tmp/asker{number}", "rb") as file:
            request = Device(
                id=number,
                asker=asker,
                generation=welcome.generation,
                offset=0,
                length=len(content),
                verity=verity,
            )
            answer, fds = ask(line, request, file.fileno())
        assert isinstance(answer, Made), answer
        return answer, fds[0]

    good, good_fd = device(2, data + tree, root_hash)
    tell("checked", good.verified)
    tell("same", os.pread(good_fd, 2 * len(data), 0) == data)
    _, bad_fd = device(3, bytes(changed) + tree, root_hash)
    tell("blocks", [read(bad_fd, number) for number in range(BLOCKS)])
    _, wrong_fd = device(4, data + tree, "0" * 64)
    tell("wrong root", read(wrong_fd, 0))
    for fd in (good_fd, wrong_fd):
        os.close(fd)
    ask(line, Release(id=5, asker=asker, generation=welcome.generation, name=good.name))
    tell("released is gone", until_mapped(before + 2))
    tell("kill the builder", None)
    while True:
        answer, fds = hear(line)
        if isinstance(answer, Welcome) and answer.generation > welcome.generation:
            break
        for fd in fds:
            os.close(fd)
    tell("its own is gone", until_mapped(before + 1))
    tell("held goes on", read(bad_fd, 1))
    os.close(bad_fd)
    tell("all is gone", until_mapped(before))
