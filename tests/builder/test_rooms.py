"""Rooms on this kernel: how they are born, what is done in them, what is left of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from organs.builder.protocol import Exec, Hello, Refusal, Refused, Room, Started
from organs.builder.verdict import COMMANDS_MAX, ERRANDS_MAX, IDS, UID_BASE
from organs.kernel import peers
from tests.builder.household import (
    BUSYBOX,
    CGROUPS,
    WRITABLE,
    Household,
    Living,
    opened,
    shown,
    tree,
    whole,
    within,
)
from tests.builder.test_builder import loop_of, until_gone

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]


@pytest.fixture(name="house")
def _house(tmp_path: Path) -> Iterator[Household]:
    house = Household(tmp_path, tmp_path.name[-8:])
    try:
        house.freezer.start()
        yield house
    finally:
        house.close()


@pytest.fixture(name="image", scope="module")
def _image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One image for all; each room of it has its own device."""
    folder = tmp_path_factory.mktemp("persona")
    maker = Household(folder, "maker")
    yield maker.image(tree(folder / "root"), "-all-root")
    maker.close()


@pytest.mark.proves("INV-ROOM-1")
def test_a_room_is_born_frozen_and_begins_when_it_is_thawed(house: Household, image: Path) -> None:
    room = house.room(
        image, "linda", init=("/bin/sh", "-c", "echo begun $$ $*; exec sleep 1000", "sh", "a b")
    )
    assert "frozen 1" in (room.home / "cgroup.events").read_text()
    # What the kernel itself did to fork is all there is, and it stays so.
    before = room.cpu()
    house.freezer.ask(Room(**_nothing(house)))
    assert room.cpu() == before
    assert room.pids() == [room.pid]
    os.set_blocking(room.holds["console"], False)
    with pytest.raises(BlockingIOError):
        os.read(room.holds["console"], 1)
    room.freeze(False)
    assert "begun 1 a b" in room.console("begun 1 a b")


def _nothing(house: Household) -> dict[str, Any]:
    """A room that is refused: a turn of the builder's loop."""
    return {
        **house.freezer.head(),
        "name": "",
        "hostname": "",
        "uid_base": 0,
        "init": (),
        "writable_bytes": 0,
        "network": False,
        "console": False,
    }


@pytest.mark.proves("INV-ROOM-1")
def test_a_cgroup_that_was_not_told_to_freeze_is_refused(house: Household, image: Path) -> None:
    home = house.home("linda", frozen=False)
    assert "not told to freeze" in house.refused(Refusal.INVALID, image, home=home)


def test_an_executed_command_says_how_it_ended(house: Household, image: Path) -> None:
    room = house.begun(image, "linda")
    done = house.run(room, "sh", "-c", "cat; echo oops >&2; exit 7", feed=b"fed\n")
    assert (done.ending, done.out, done.err) == ("exit 7", "fed\n", "oops\n")
    assert house.run(room, "/bin/sh", "-c", "kill -9 $$").ending == "signal 9"
    missing = house.run(room, "nothing")
    assert (missing.ending, missing.err) == ("exit 127", "nothing: No such file or directory\n")
    refused = house.run(room, "/etc/passwd")
    assert (refused.ending, refused.err) == ("exit 126", "/etc/passwd: Permission denied\n")
    assert house.run(room, "sh", "-c", "echo $MY $HOME", environment=["MY=own"]).out == "own /root\n"


def test_a_command_in_a_frozen_room_waits_with_it(house: Household, image: Path) -> None:
    room = house.begun(image, "linda")
    room.freeze(True)
    out, outward = os.pipe()
    status, telling = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    answer = house.start(room, "sh", "-c", "echo ran", standard=(null, outward, outward), status=telling)
    assert isinstance(answer, Started)
    for fd in (outward, telling, null):
        os.close(fd)
    within("frozen", lambda: "frozen 1" in (room.home / "cgroup.events").read_text())
    assert answer.pid in room.pids()
    os.set_blocking(out, False)
    with pytest.raises(BlockingIOError):
        os.read(out, 1)
    os.set_blocking(out, True)
    room.freeze(False)
    assert (whole(out), whole(status)) == ("ran\n", "exit 0\n")


def test_a_command_gets_a_terminal(house: Household, image: Path) -> None:
    room = house.begun(image, "linda")
    master, slave = os.openpty()
    status, telling = os.pipe()
    answer = house.start(
        room,
        "sh",
        "-c",
        "read x </dev/tty; echo got $x",
        standard=(slave,) * 3,
        status=telling,
        terminal=True,
    )
    assert isinstance(answer, Started)
    os.close(slave)
    os.close(telling)
    os.write(master, b"typed\n")
    assert "got typed" in shown(master, "got typed")
    assert whole(status) == "exit 0\n"
    os.close(master)


def test_a_room_that_has_ended_or_not_begun_takes_no_command(house: Household, image: Path) -> None:
    room = house.room(image, "linda")
    null = os.open("/dev/null", os.O_RDWR)
    answer = house.start(room, "true", standard=(null,) * 3, status=null)
    assert isinstance(answer, Refused)
    assert (answer.why, answer.reason) == (Refusal.UNKNOWN, "the room has not begun")
    os.kill(room.pid, signal.SIGKILL)
    within("dead", lambda: "populated 0" in (room.home / "cgroup.events").read_text())
    answer = house.start(room, "true", standard=(null,) * 3, status=null)
    assert isinstance(answer, Refused)
    assert (answer.why, answer.reason) == (Refusal.UNKNOWN, "the room has no first process")
    os.close(null)


def test_the_umbilical_is_reached_from_inside_and_known_from_outside(house: Household, image: Path) -> None:
    room = house.begun(image, "linda", 3)
    listener = socket.socket(fileno=room.holds["listener"])
    status, telling = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    words = ("probe", "connect", "/run/umbilical", "hello")
    answer = house.start(room, *words, standard=(null,) * 3, status=telling)
    assert isinstance(answer, Started)
    os.close(telling)
    listener.settimeout(30)
    peer, _ = listener.accept()
    with peer:
        assert peer.recv(5) == b"hello"
        pid, uid, gid = peers.credentials(peer)
        assert (pid, uid, gid) == (answer.pid, UID_BASE + 3 * IDS, UID_BASE + 3 * IDS)
        assert peers.cgroup_id(peer, str(CGROUPS)) == room.home.stat().st_ino
        peer.send(b"!")
    assert whole(status) == "exit 0\n"
    os.close(null)
    listener.close()


def test_a_builder_that_was_killed_finds_the_room_again(house: Household, image: Path) -> None:
    room = house.begun(image, "linda")
    house.freezer.end()
    assert room.pid in room.pids()
    house.freezer.start()
    assert house.out(room, "echo still here") == "still here\n"


def test_a_builder_killed_in_the_making_leaves_nothing(house: Household, image: Path) -> None:
    for turn in range(12):
        made, device = house.device(image)
        folder = loop_of(device)
        home = house.home("linda")
        fields = {**_nothing(house), "name": "linda", "hostname": "linda", "uid_base": UID_BASE}
        fields |= {"init": ("/bin/sh",), "writable_bytes": WRITABLE}
        with opened(home) as cgroup:
            house.freezer.say(Room(**fields), cgroup, device)
        time.sleep(turn * 0.004)
        house.freezer.end()
        os.close(device)
        house.remove(home)
        house.freezer.forget()
        until_gone(folder)
        house.freezer.start()
        assert made.name


def children(house: Household) -> list[int]:
    """The processes that the builder has made and that have not ended."""
    assert house.freezer.builder is not None
    pid = house.freezer.builder.pid
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def sent_off(house: Household, room: Living) -> int:
    """Ask for a command and do not wait for the answer; the number of the request."""
    request = Exec(**house.freezer.head(), name=room.name, argv=("true",), environment=(), terminal=False)
    null = os.open("/dev/null", os.O_RDWR)
    with opened(room.home) as cgroup:
        house.freezer.say(request, cgroup, *(null,) * 4)
    os.close(null)
    return request.id


def test_the_builder_answers_while_an_errand_takes_its_time(house: Household, image: Path) -> None:
    """An errand that is stopped is one of a slow machine: others are served, and it is answered at last."""
    room = house.begun(image, "linda")
    asked = []
    for _ in range(ERRANDS_MAX):
        before = set(children(house))
        asked.append(sent_off(house, room))
        # Whichever is there when we look is stopped; one that was quicker has answered.
        for pid in set(children(house)) - before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
    answers = []
    hello = Hello(**house.freezer.head())
    house.freezer.say(hello)
    while hello.id not in answers:
        answer, fds = house.freezer.hear()
        answers.append(answer.id)
        for fd in fds:
            os.close(fd)
    for pid in children(house):
        os.kill(pid, signal.SIGCONT)
    while set(asked) - set(answers):
        answer, fds = house.freezer.hear()
        answers.append(answer.id)
        assert isinstance(answer, Started)
        for fd in fds:
            os.close(fd)


def test_an_errand_that_is_killed_is_answered_for(house: Household, image: Path) -> None:
    room = house.begun(image, "linda")
    for _ in range(200):
        sent_off(house, room)
        for pid in children(house):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        answer, fds = house.freezer.hear()
        for fd in fds:
            os.close(fd)
        if isinstance(answer, Refused):
            assert (answer.why, answer.reason) == (
                Refusal.KERNEL,
                "it took too long, or ended without a word",
            )
            return
    raise AssertionError("no errand was caught under way")


def test_there_are_no_more_commands_than_the_limit(house: Household, image: Path) -> None:
    room = house.begun(image, "linda")
    null = os.open("/dev/null", os.O_RDWR)
    pipes = []
    for _ in range(COMMANDS_MAX):
        ended, telling = os.pipe()
        assert isinstance(house.start(room, "sleep", "1000", standard=(null,) * 3, status=telling), Started)
        os.close(telling)
        pipes.append(ended)
    answer = house.start(room, "true", standard=(null,) * 3, status=null)
    assert isinstance(answer, Refused)
    assert (answer.why, answer.reason) == (Refusal.LIMIT, f"{COMMANDS_MAX} commands run already")
    house.remove(room.home)
    assert [whole(fd) for fd in pipes] == ["signal 9\n"] * COMMANDS_MAX
    os.close(null)


def test_a_command_whose_builder_died_ends_without_a_line(house: Household, image: Path) -> None:
    room = house.begun(image, "linda")
    null = os.open("/dev/null", os.O_RDWR)
    ended, telling = os.pipe()
    answer = house.start(room, "sleep", "1000", standard=(null,) * 3, status=telling)
    assert isinstance(answer, Started)
    for fd in (null, telling):
        os.close(fd)
    house.freezer.end()
    assert whole(ended) == ""
    assert answer.pid in room.pids()
    house.freezer.start()


def test_descriptors_that_cannot_be_meant_are_refused(house: Household, image: Path, tmp_path: Path) -> None:
    made, device = house.device(image)
    home = house.home("linda")
    other = house.home("other")
    (home / "below").mkdir()
    fields = {**_nothing(house), "name": "linda", "hostname": "linda", "uid_base": UID_BASE}
    fields |= {"init": ("/bin/sh",), "writable_bytes": WRITABLE}

    def refused(*paths: Path | int, why: Refusal = Refusal.INVALID, **changed: Any) -> str:
        fds = [path if isinstance(path, int) else os.open(path, os.O_RDONLY) for path in paths]
        try:
            request = Room(**{**fields, **house.freezer.head(), **changed})
            return house.freezer.refused(request, why, *fds)
        finally:
            for fd, path in zip(fds, paths, strict=True):
                if not isinstance(path, int):
                    os.close(fd)

    assert "cgroup" in refused()
    assert "own cgroup" in refused(tmp_path, device)
    assert "own cgroup" in refused(other, device)
    assert "own cgroup" in refused(home / "below", device)
    assert "own cgroup" in refused(house.homes, device)
    assert "own cgroup" in refused(image, device)
    assert "the device" in refused(home)
    assert "a builder made" in refused(home, image)
    assert "a builder made" in refused(home, Path("/dev/null"))
    assert "incarnation 9" in refused(home, device, why=Refusal.STALE, generation=9)
    # A device of the same image that somebody else has made.
    losetup = ["losetup", "--find", "--show", "--read-only", str(image)]
    foreign = subprocess.run(losetup, capture_output=True, text=True, check=True).stdout.strip()
    try:
        assert "a builder made" in refused(home, Path(foreign))
    finally:
        subprocess.run(["losetup", "--detach", foreign], check=True)
    os.close(device)
    house.release(made)
    (home / "below").rmdir()


@pytest.mark.proves("INV-ROOM-11")
def test_a_command_whose_end_nobody_hears_ends(house: Household, image: Path) -> None:
    room = house.begun(image, "linda")
    null = os.open("/dev/null", os.O_RDWR)
    ends, pids = [], []
    for _ in range(2):
        status, telling = os.pipe()
        answer = house.start(room, "sh", "-c", "sleep 1000; :", standard=(null,) * 3, status=telling)
        assert isinstance(answer, Started)
        os.close(telling)
        ends.append(status)
        pids.append(answer.pid)
    within("both have their child", lambda: len(room.pids()) == 5)
    room.freeze(True)
    os.close(ends[0])
    # Also in a room that stands still; its child is in its process group.
    within("one has ended", lambda: len(room.pids()) == 3)
    assert {room.pid, pids[1]} <= set(room.pids())
    # Nobody who hears is ended by it, and the builder goes on.
    room.freeze(False)
    assert house.run(room, "sh", "-c", "exit 3").ending == "exit 3"
    os.kill(pids[1], signal.SIGTERM)
    assert whole(ends[1]) == "signal 15\n"
    os.close(null)
