"""A room's console on a terminal: a real pty here, the operator's two methods stood in for there."""

from __future__ import annotations

import os
import select
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from typing import cast

import pytest

from bus.envelope import Code, Failure
from spine.ground.port import PortFailure
from spine.room import console
from spine.room.lease import Lease

PATIENCE_S = 60.0


class Room:
    """A lease on a spine whose one room echoes what is typed, a few bytes at a time, while it is awake."""

    def __init__(self) -> None:
        # The place of its first byte, and what it showed since.
        self.console = 1000, b"# "
        self.typed = b""
        self.state: Code | None = None
        self.step = 3
        self.refused = b""
        self.refusing = threading.Condition()

    def port(self) -> Room:
        return self

    def show(self, more: bytes) -> None:
        first, shown = self.console
        self.console = first, shown + more

    def call(self, name: str, params: Mapping[str, object]) -> dict[str, object]:
        assert params["persona"] == "linda"
        if name == "freezer.console":
            # A frozen room's console can still be read.
            if self.state not in (None, Code.FROZEN):
                raise PortFailure(name, Failure(self.state, "so it is"))
            after = params["after"]
            assert isinstance(after, int)
            first, shown = self.console
            if after >= first + len(shown):
                time.sleep(0.001)
            return {"data": shown[max(0, after - first) :], "next": first + len(shown)}
        assert name == "freezer.type"
        data = params["data"]
        assert isinstance(data, bytes)
        if self.state is not None:
            with self.refusing:
                self.refused += data
                self.refusing.notify()
            raise PortFailure(name, Failure(self.state, "so it is"))
        taken = data[: self.step]
        self.typed += taken
        self.show(taken)
        return {"taken": len(taken)}


class Seat:
    """A person at a terminal."""

    def __init__(self, room: Room) -> None:
        self.hand, self._terminal = os.openpty()
        self.before = termios.tcgetattr(self._terminal)
        self.why = ""
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._sit, args=(room,), daemon=True)
        self._thread.start()

    def _sit(self, room: Room) -> None:
        try:
            self.why = console.view(cast(Lease, room), "linda", self._terminal, self._terminal)
        except BaseException as error:
            self.error = error

    def see(self, until: bytes) -> bytes:
        """What the terminal shows, up to this."""
        seen, end = b"", time.monotonic() + PATIENCE_S
        while until not in seen:
            assert select.select([self.hand], [], [], max(0.0, end - time.monotonic()))[0], seen
            seen += os.read(self.hand, 4096)
        return seen

    def type(self, keys: bytes) -> None:
        os.write(self.hand, keys)

    def over(self) -> str:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.why

    def modes(self) -> list[object]:
        return list(termios.tcgetattr(self._terminal))

    def close(self) -> None:
        os.close(self.hand)
        os.close(self._terminal)


@pytest.fixture(name="room")
def _room() -> Room:
    return Room()


@pytest.fixture(name="seat")
def _seat(room: Room) -> Iterator[Seat]:
    seat = Seat(room)
    seat.see(b"# ")
    yield seat
    seat.type(console.LEAVE)
    seat.over()
    seat.close()


def test_keys_go_to_the_room_as_they_are_and_the_leaving_one_does_not(room: Room, seat: Seat) -> None:
    seat.type(b"ls\r\x03\x04\x1b[A")
    seat.see(b"\x1b[A")
    assert seat.modes() != seat.before
    seat.type(b"lost" + console.LEAVE + b"too")
    assert seat.over() == "left"
    # Ctrl-C, ctrl-D and the arrows are the room's; the terminal echoes nothing by itself.
    assert room.typed == b"ls\r\x03\x04\x1b[A"
    assert seat.modes() == seat.before


def test_a_room_that_stands_still_hears_nothing_and_says_so_once(room: Room, seat: Seat) -> None:
    room.state = Code.FROZEN
    seat.type(b"a")
    assert b"./spine focus linda" in seat.see(b"leave]")
    seat.type(b"b")
    room.show(b"before")
    assert b"focus" not in seat.see(b"before")
    # What is shown says nothing of what was typed: that is another call.
    with room.refusing:
        assert room.refusing.wait_for(lambda: room.refused == b"ab", PATIENCE_S)
    room.state = None
    seat.type(b"c")
    seat.see(b"c")
    assert room.typed == b"c"
    room.state = Code.FROZEN
    seat.type(b"d")
    seat.see(b"leave]")


@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.STALE])
def test_a_room_that_is_gone_ends_the_view_and_gives_the_terminal_back(
    room: Room, seat: Seat, code: Code
) -> None:
    room.state = code
    assert seat.over() == "gone"
    assert seat.modes() == seat.before


def test_a_spine_that_breaks_gives_the_terminal_back(room: Room, seat: Seat) -> None:
    room.state = Code.PEER_DIED
    seat.over()
    assert isinstance(seat.error, PortFailure)
    assert seat.modes() == seat.before


@pytest.mark.parametrize("first", [2000, 500])
@pytest.mark.parametrize("shown", [b"#", b"$ ", b"as much as the one before, and more#"])
def test_of_another_freezer_nothing_is_skipped(room: Room, seat: Seat, first: int, shown: bytes) -> None:
    """Restarted, or of the next boot, whose clock begins again."""
    room.console = first, shown
    assert seat.see(shown) == shown
    seat.type(b"x")
    assert seat.see(b"x") == b"x"


def test_an_input_that_ended_goes_on_showing(room: Room) -> None:
    reading, writing = os.pipe()
    shown, output = os.pipe()
    os.write(writing, b"x\r")
    os.close(writing)
    why: list[str] = []
    view = threading.Thread(
        target=lambda: why.append(console.view(cast(Lease, room), "linda", reading, output)), daemon=True
    )
    view.start()
    with open(shown, "rb", buffering=0) as file:
        seen = b""
        while b"x\r" not in seen:
            seen += file.read(100)
        room.show(b"later")
        while b"later" not in seen:
            seen += file.read(100)
    room.state = Code.NOT_FOUND
    view.join(PATIENCE_S)
    assert why == ["gone"]
    os.close(reading)
    os.close(output)
