"""The builder on this kernel: a freezer's end of the line in the test's hand, real loop devices.

The device mapper is not on every host; where it is missing, the builder says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from organs.builder import protocol
from organs.builder.protocol import (
    Answer,
    Device,
    Hello,
    Made,
    Refusal,
    Refused,
    Release,
    Released,
    Verity,
    Welcome,
)
from organs.builder.verdict import BLOCK, DEVICES_MAX
from organs.kernel import loops
from spine.image import verity
from tests.builder.asking import ASKER, DEADLINE_S, Freezer

pytestmark = pytest.mark.container


def has_device_mapper() -> bool:
    return " device-mapper\n" in Path("/proc/misc").read_text() + Path("/proc/devices").read_text()


@pytest.fixture(name="freezer")
def _freezer() -> Iterator[Freezer]:
    freezer = Freezer()
    try:
        freezer.start()
        yield freezer
    finally:
        freezer.end()
        freezer.ours.close()
        freezer.theirs.close()


@pytest.fixture(name="backing")
def _backing(tmp_path: Path) -> Iterator[int]:
    """Sixteen blocks, each with its number in it."""
    path = tmp_path / "backing"
    path.write_bytes(b"".join(bytes([number]) * BLOCK for number in range(16)))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def loop_of(fd: int) -> Path:
    """The kernel's folder of a loop device."""
    number = os.fstat(fd).st_rdev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")


def until_gone(*folders: Path) -> None:
    """Wait until these loop devices have nothing below them any more."""
    end = time.monotonic() + DEADLINE_S
    while any((folder / "loop").exists() for folder in folders):
        assert time.monotonic() < end, "a loop device stays"
        time.sleep(0.005)


@pytest.mark.proves("INV-BUILD-3")
def test_a_region_becomes_a_device_that_nobody_writes(freezer: Freezer, backing: int) -> None:
    made, fd = freezer.device(backing, 2 * BLOCK, 3 * BLOCK)
    folder = loop_of(fd)
    content = os.pread(fd, 16 * BLOCK, 0)
    assert content == b"".join(bytes([number]) * BLOCK for number in (2, 3, 4))
    assert (folder / "ro").read_text() == "1\n"
    status = loops.status(fd)
    assert (status.offset, status.size_limit, status.name) == (2 * BLOCK, 3 * BLOCK, made.name)
    assert status.flags & (loops.READ_ONLY | loops.AUTOCLEAR) == loops.READ_ONLY | loops.AUTOCLEAR
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(fd, b"x", 0)
    # The same file a second time is another device: no block of one is a page of the other.
    _, second = freezer.device(backing, 2 * BLOCK, 3 * BLOCK)
    assert os.fstat(second).st_rdev != os.fstat(fd).st_rdev
    for each in (fd, second):
        os.close(each)


@pytest.mark.proves("INV-BUILD-4")
def test_a_device_lives_while_somebody_holds_it(freezer: Freezer, backing: int) -> None:
    made, fd = freezer.device(backing, 0, BLOCK)
    folder = loop_of(fd)
    os.close(fd)
    answer, _ = freezer.ask(Hello(**freezer.head()))
    assert isinstance(answer, Welcome)
    assert answer.devices == (made.name,)
    assert (folder / "loop").exists()
    released, _ = freezer.ask(Release(**freezer.head(), name=made.name))
    assert isinstance(released, Released)
    until_gone(folder)
    reason = freezer.refused(Release(**freezer.head(), name=made.name), Refusal.UNKNOWN)
    assert reason == "there is no such device"
    # Released by the builder, held by us.
    made, fd = freezer.device(backing, BLOCK, BLOCK)
    freezer.ask(Release(**freezer.head(), name=made.name))
    assert os.pread(fd, 1, 0) == b"\1"
    folder = loop_of(fd)
    os.close(fd)
    until_gone(folder)


@pytest.mark.proves("INV-BUILD-2")
@pytest.mark.proves("INV-BUILD-4")
def test_nothing_is_left_of_a_builder_that_was_killed(freezer: Freezer, backing: int) -> None:
    held = [freezer.device(backing, number * BLOCK, BLOCK) for number in range(4)]
    folders = [loop_of(fd) for _, fd in held]
    for _, fd in held[1:]:
        os.close(fd)
    freezer.end()
    until_gone(*folders[1:])
    # What we hold goes on; the room in it would not notice.
    assert os.pread(held[0][1], 1, 0) == b"\0"
    # A request to the dead one waits in the line and is void for the next.
    late = Device(**freezer.head(), offset=0, length=BLOCK, verity=None)
    freezer.say(late, backing)
    freezer.start()
    answer, fds = freezer.hear()
    assert isinstance(answer, Refused)
    assert (answer.why, answer.id, answer.generation, fds) == (Refusal.STALE, late.id, 2, [])
    stale = Release(id=99, asker=ASKER, generation=1, name=held[0][0].name)
    assert "incarnation 1" in freezer.refused(stale, Refusal.STALE)
    made, fd = freezer.device(backing, 0, BLOCK)
    assert made.name != held[0][0].name
    folders += [loop_of(fd)]
    freezer.end(signal.SIGTERM)
    for each in (fd, held[0][1]):
        os.close(each)
    until_gone(*folders)


def test_a_killed_builder_again_and_again(freezer: Freezer, backing: int) -> None:
    folders = set()
    for _ in range(10):
        for number in range(3):
            # Asked and not waited for: the kill comes anywhere.
            freezer.say(Device(**freezer.head(), offset=number * BLOCK, length=BLOCK, verity=None), backing)
        answer, fds = freezer.hear()
        assert isinstance(answer, Made)
        folders.add(loop_of(fds[0]))
        os.close(fds[0])
        freezer.end()
        freezer.ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                for fd in freezer.hear()[1]:
                    folders.add(loop_of(fd))
                    os.close(fd)
        freezer.ours.settimeout(DEADLINE_S)
        # What was left in the line is answered as stale, after the hello.
        freezer.start()
        settled, _ = drained(freezer)
        assert isinstance(settled, Welcome)
    freezer.end()
    until_gone(*folders)


def drained(freezer: Freezer) -> tuple[Answer, list[int]]:
    """Pass over what is stale, up to the answer to a hello of now."""
    hello = Hello(**freezer.head())
    freezer.say(hello)
    while True:
        answer, fds = freezer.hear()
        if answer.id == hello.id:
            return answer, fds
        assert isinstance(answer, Refused)
        assert answer.why is Refusal.STALE


def test_what_cannot_be_meant_is_refused(freezer: Freezer, backing: int, tmp_path: Path) -> None:
    def device(**other: object) -> Device:
        fields = {**freezer.head(), "offset": 0, "length": BLOCK, "verity": None, **other}
        return Device(**fields)  # type: ignore[arg-type]  # the fields are a device's

    assert "exactly one" in freezer.refused(device(), Refusal.INVALID)
    assert "exactly one" in freezer.refused(device(), Refusal.INVALID, backing, backing)
    assert "multiples" in freezer.refused(device(offset=1), Refusal.INVALID, backing)
    assert "ends at" in freezer.refused(device(length=17 * BLOCK), Refusal.INVALID, backing)
    assert "within" in freezer.refused(
        device(
            length=2 * BLOCK, verity=Verity(root_hash="ab" * 32, salt="", blocks=2, hash_offset=2 * BLOCK)
        ),
        Refusal.INVALID,
        backing,
    )
    with open(tmp_path / "written", "wb") as written:
        assert "read from" in freezer.refused(device(), Refusal.INVALID, written.fileno())
    path_only = os.open(tmp_path / "written", os.O_PATH)
    assert "read from" in freezer.refused(device(), Refusal.INVALID, path_only)
    one, other = socket.socketpair()
    with one, other:
        assert "regular file" in freezer.refused(device(), Refusal.INVALID, one.fileno())
    null = os.open("/dev/null", os.O_RDONLY)
    assert "regular file" in freezer.refused(device(), Refusal.INVALID, null)
    for fd in (path_only, null):
        os.close(fd)


def test_nonsense_neither_kills_nor_leaks(freezer: Freezer, backing: int) -> None:
    assert freezer.builder is not None
    folder = Path(f"/proc/{freezer.builder.pid}/fd")
    freezer.ask(Hello(**freezer.head()))
    before = len(list(folder.iterdir()))
    for datagram in (b"{", b"\xff" * 4096, b"x" * 20000, b"[" * 4000, b'{"kind": "hello"}'):
        socket.send_fds(freezer.ours, [datagram], [backing] * 3)
    socket.send_fds(freezer.ours, [protocol.encode(Hello(**freezer.head()))], [backing] * 100)
    # None of these is answered; the next request is.
    answer, _ = freezer.ask(Hello(**freezer.head()))
    assert isinstance(answer, Welcome)
    assert len(list(folder.iterdir())) == before


def test_a_line_without_another_end_ends_the_builder(freezer: Freezer) -> None:
    """bay0 keeps both ends for the whole boot, so this is the end of bay0. An empty datagram is not."""
    assert freezer.builder is not None
    freezer.ours.send(b"")
    assert isinstance(freezer.ask(Hello(**freezer.head()))[0], Welcome)
    freezer.theirs.close()
    freezer.ours.close()
    assert freezer.builder.wait(DEADLINE_S) == 1


def test_there_are_no_more_devices_than_the_limit(freezer: Freezer, backing: int) -> None:
    folders = []
    for _ in range(DEVICES_MAX):
        _, fd = freezer.device(backing, 0, BLOCK)
        folders.append(loop_of(fd))
        os.close(fd)
    request = Device(**freezer.head(), offset=0, length=BLOCK, verity=None)
    assert f"{DEVICES_MAX} devices" in freezer.refused(request, Refusal.LIMIT, backing)
    freezer.end()
    until_gone(*folders)


def test_a_hash_tree(freezer: Freezer, tmp_path: Path) -> None:
    data = os.urandom(8 * BLOCK)
    tree = verity.tree(data)
    path = tmp_path / "persona"
    path.write_bytes(data + tree.data)
    asked = Verity(root_hash=tree.root_hash, salt=verity.SALT.hex(), blocks=8, hash_offset=8 * BLOCK)
    with open(path, "rb") as file:
        if not has_device_mapper():
            request = Device(**freezer.head(), offset=0, length=path.stat().st_size, verity=asked)
            reason = freezer.refused(request, Refusal.MISSING, file.fileno())
            assert reason == "missing: device-mapper"
            return
        _, fd = freezer.device(file.fileno(), 0, path.stat().st_size, asked)
    assert os.pread(fd, len(data), 0) == data
    os.close(fd)
