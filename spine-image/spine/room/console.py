"""A room's console on this terminal.

Touches: the terminal's modes, which are put back whatever happens; the operator's port. Ctrl-] leaves.
"""

import contextlib
import os
import select
import termios
import time
import tty
from collections.abc import Iterator

from bus.envelope import Code
from spine.ground.port import PortFailure
from spine.room.lease import Lease

LEAVE = b"\x1d"
WAIT_MS = 50
READ_BYTES = 1024
# The terminal is raw: a line must say itself that it begins.
LOST = "\a\r\n[{0} stands still and hears nothing: ./spine focus {0} elsewhere, or Ctrl-] to leave]\r\n"
# What it means for the view that the room is not there, or not awake, just now.
GONE, ASLEEP = frozenset({Code.NOT_FOUND, Code.STALE}), frozenset({Code.FROZEN, Code.BUSY})


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """The terminal passes each key as it is, until this ends. Nothing for what is no terminal."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def view(lease: Lease, persona: str, source: int, output: int) -> str:
    """Show the console and type into it; why it is over: `left`, or `gone` when the room is.

    An input that ends is an end of typing only: what the console shows goes on.
    """
    after, pending, open_, heard = 0, b"", True, True
    with raw(source):
        while True:
            if open_ and not pending and select.select([source], [], [], 0)[0]:
                pending = os.read(source, READ_BYTES)
                open_ = bool(pending)
            if LEAVE in pending:
                return "left"
            if pending:
                taken = _type(lease, persona, pending)
                if taken is None and heard:
                    # Once, until it hears again: a person may be typing a whole line.
                    _write(output, LOST.format(persona).encode())
                heard = taken is not None
                pending = pending[len(pending) if taken is None else taken :]
            try:
                answer = lease.port().call(
                    "freezer.console", {"persona": persona, "after": after, "waitMs": WAIT_MS}
                )
            except PortFailure as failure:
                if failure.failure.code in GONE:
                    return "gone"
                if failure.failure.code not in ASLEEP:
                    raise
                time.sleep(WAIT_MS / 1000)
                continue
            following = int(str(answer["next"]))
            if following < after:
                after = 0  # the spine was started anew, and its clock with it
                continue
            data, after = answer["data"], following
            assert isinstance(data, bytes)
            _write(output, data)


def _write(output: int, data: bytes) -> None:
    while data:
        data = data[os.write(output, data) :]


def _type(lease: Lease, persona: str, data: bytes) -> int | None:
    """How much was taken. None: what is typed to a room that is frozen is lost, as at any dark screen."""
    try:
        return int(str(lease.port().call("freezer.type", {"persona": persona, "data": data})["taken"]))
    except PortFailure as failure:
        if failure.failure.code not in ASLEEP | GONE:
            raise
        return None
