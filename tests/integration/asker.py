"""A freezer's side of the line to the builder, put into the image for a test: it asks and says what it saw.

`ask_builder` runs in a thread of the real freezer, with its powers. Each fact is one line of
JSON in the freezer's log after `asker: `.
"""

import base64
import hashlib
import json
import os
import select
import socket
import struct
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Protocol

from organs import layout
from organs.builder import protocol
from organs.builder.protocol import (
    Answer,
    Device,
    Exec,
    Hello,
    Made,
    Release,
    Request,
    Room,
    RoomMade,
    Verity,
    Welcome,
)
from organs.kernel import rights

BLOCK, BLOCKS = 4096, 8
SALT = b"salt of a test"
DEADLINE_S = 60.0
# The persona: a SquashFS in base64, put here by the test.
IMAGE = ""
ROOMS = "/sys/fs/cgroup/rooms"
RANGE = 5
YEAR_S = 365 * 86400


class Place(Protocol):
    """What it uses of the runtime."""

    @property
    def generation(self) -> int: ...

    @property
    def fds(self) -> Mapping[str, int]: ...

    async def request(self, message: Mapping[str, object]) -> dict[str, object]: ...


def tell(fact: str, value: object) -> None:
    print("asker: " + json.dumps({fact: value}), file=sys.stderr, flush=True)


def hear(line: socket.socket) -> tuple[Answer, list[int]]:
    datagram, fds, _ = rights.receive(line, protocol.DATAGRAM_BYTES_MAX, protocol.DESCRIPTORS_MAX)
    return protocol.decode_answer(datagram), fds


def ask(line: socket.socket, request: Request, *fds: int) -> tuple[Answer, list[int]]:
    socket.send_fds(line, [protocol.encode(request)], fds)
    while True:
        answer, made = hear(line)
        if (answer.id, answer.asker) == (request.id, request.asker):
            return answer, made
        for fd in made:
            os.close(fd)


async def ask_time(spine: Place) -> None:
    """bay0 hears proposals of the time, and the clock of the machine does what it answers."""
    with open(layout.RELEASE, encoding="utf-8") as file:
        built_s = json.load(file)["built"]

    def boot_s() -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    # The machine came up in another century: since bay0 began the clock runs from the build.
    tell("the clock of the boot is the build", 0 <= time.time() - built_s < boot_s())
    answers = {}
    for name, after_s in {
        "before the build": -3600 - boot_s(),
        "decades on": 21 * YEAR_S,
        "years on": 3 * YEAR_S,
        "at once again": 3 * YEAR_S + 60,
    }.items():
        asked = {"ask": "time", "bootedMs": int((built_s + after_s) * 1000)}
        answers[name] = str((await spine.request(asked)).get("error", "moved"))
    tell("proposals", answers)
    tell("the clock follows", abs(time.time() - boot_s() - built_s - 3 * YEAR_S) < 1)


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


def make_room(line: socket.socket, asker: int, generation: int) -> tuple[int, int]:
    """A room of the persona, in a cgroup that is frozen; then it is let run, once. Its cgroup, its device."""
    home = f"{ROOMS}/asked"
    os.mkdir(home)
    write(f"{home}/cgroup.freeze", "1")
    content = base64.b64decode(IMAGE)
    leaves = [
        hashlib.sha256(SALT + content[at : at + BLOCK]).digest() for at in range(0, len(content), BLOCK)
    ]
    tree = b"".join(leaves).ljust(BLOCK, b"\0")
    assert 1 < len(leaves) <= BLOCK // 32
    with open("/tmp/persona", "wb") as file:
        file.write(content + tree)
    head = {"asker": asker, "generation": generation}
    verity = Verity(
        root_hash=hashlib.sha256(SALT + tree).hexdigest(),
        salt=SALT.hex(),
        blocks=len(leaves),
        hash_offset=len(content),
    )
    with open("/tmp/persona", "rb") as file:
        size = len(content) + len(tree)
        wanted = Device(id=20, **head, offset=0, length=size, verity=verity)
        made, (device,) = ask(line, wanted, file.fileno())
    assert isinstance(made, Made), made
    cgroup = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    wish = Room(
        id=21,
        **head,
        name="asked",
        hostname="asked",
        uid_base=0x10_0000 + RANGE * 0x1_0000,
        init=("/first",),
        writable_bytes=1024**2,
        network=False,
        console=True,
    )
    room, fds = ask(line, wish, cgroup, device)
    tell("room", list(room.holds) if isinstance(room, RoomMade) else repr(room))
    assert isinstance(room, RoomMade)
    held = dict(zip(room.holds, fds, strict=True))
    tell("born", read_text(f"{home}/cgroup.events").split())
    tell("said frozen", bool(select.select([held["console"]], [], [], 0.5)[0]))
    write(f"{home}/cgroup.freeze", "0")
    text = b""
    while b"done" not in text and select.select([held["console"]], [], [], DEADLINE_S)[0]:
        text += os.read(held["console"], 65536)
    tell("console", text.decode())
    with socket.socket(fileno=held["listener"]) as listener:
        listener.settimeout(DEADLINE_S)
        peer, _ = listener.accept()
        tell("umbilical", peer.recv(5).decode())
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        tell("peer", struct.unpack("=iII", credentials)[1])
    run(line, asker, generation, cgroup)
    return cgroup, device


def run(line: socket.socket, asker: int, generation: int, cgroup: int) -> None:
    """A command in the room, and how it ended."""
    null = os.open("/dev/null", os.O_RDWR)
    ended, telling = os.pipe()
    wish = Exec(
        id=22,
        asker=asker,
        generation=generation,
        name="asked",
        argv=("/first", "end"),
        environment=(),
        terminal=False,
    )
    answer, _ = ask(line, wish, cgroup, null, null, null, telling)
    os.close(telling)
    with open(ended) as file:
        tell(f"ran for {generation}", [type(answer).__name__, file.read()])


def write(path: str, text: str) -> None:
    with open(os.open(path, os.O_WRONLY), "w") as file:
        file.write(text)


def read_text(path: str) -> str:
    with open(path) as file:
        return file.read()


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
    cgroup, held = make_room(line, asker, welcome.generation)
    tell("kill the builder", None)
    while True:
        answer, fds = hear(line)
        if isinstance(answer, Welcome) and answer.generation > welcome.generation:
            break
        for fd in fds:
            os.close(fd)
    # The device that is held here, and the one that the room has mounted.
    tell("its own is gone", until_mapped(before + 2))
    run(line, asker, answer.generation, cgroup)
    write(f"{ROOMS}/asked/cgroup.kill", "1")
    os.close(held)
    tell("the room's device is gone", until_mapped(before + 1))
    tell("held goes on", read(bad_fd, 1))
    os.close(bad_fd)
    tell("all is gone", until_mapped(before))
