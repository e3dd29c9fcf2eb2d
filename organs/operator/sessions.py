"""Sessions: programs that the person at ./spine had started in a room, each with three streams and an end.

The program gets pipes; here are their other ends. What it writes waits here until it is drained, a bounded
amount: then the pipe fills and the program waits, as it would for any slow reader.
Touches: pipes of its own; the freezer, which has the program started.
Never: looks at a byte, keeps a session that nobody drains. A program ends with its session, or with its room.
Fails: with Failure. A program whose end nobody can tell any more has ended `unknown`.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from bus.envelope import Code, Failure

# A person has as many hands; each session holds four descriptors and two buffers.
SESSIONS_MAX: Final = 16
# What waits to be drained of one stream. The answer to a drain holds both.
KEPT_BYTES: Final = 256 * 1024
READ_BYTES: Final = 64 * 1024
FEED_BYTES_MAX: Final = 64 * 1024
# A session that was not drained for this long has no reader any more.
IDLE_S: Final = 120.0
WAIT_S_MAX: Final = 5.0
END_BYTES_MAX: Final = 64
END: Final = re.compile(r"(exit|signal) [0-9]{1,3}")
UNKNOWN: Final = "unknown"


class Freezer(Protocol):
    """Who starts the program."""

    async def call(
        self, method: str, params: Mapping[str, object], *, fds: Sequence[int] = ()
    ) -> dict[str, object]: ...


@dataclass(slots=True)
class _Stream:
    """One stream of the program that is read here."""

    fd: int
    kept: bytearray = field(default_factory=bytearray)
    open: bool = True

    def fill(self, limit: int) -> None:
        """Take what is there, as far as it is kept. Never waits."""
        while self.open and len(self.kept) < limit:
            try:
                data = os.read(self.fd, min(READ_BYTES, limit - len(self.kept)))
            except BlockingIOError:
                return
            self.kept += data
            self.open = bool(data)

    def take(self) -> bytes:
        """Everything that waits."""
        data = bytes(self.kept)
        self.kept.clear()
        return data


@dataclass(slots=True)
class _Session:
    """One program. `input` is None when no more will be fed."""

    input: int | None
    output: _Stream
    error: _Stream
    status: _Stream
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    changed: trio.Event = field(default_factory=trio.Event)
    drained_s: float = 0.0

    @property
    def streams(self) -> tuple[_Stream, _Stream, _Stream]:
        """Those that are read here."""
        return self.output, self.error, self.status

    @property
    def ended(self) -> str:
        """How the program ended; empty while that, or something that it wrote, is still to come.

        What it started and left behind may hold its streams for ever; they are not waited for.
        """
        if self.status.open:
            return ""
        for stream in (self.output, self.error):
            stream.fill(KEPT_BYTES)  # all that the program wrote is there by now
        if self.output.kept or self.error.kept:
            return ""
        text = self.status.kept.decode("ascii", errors="replace").strip()
        return text if END.fullmatch(text) else UNKNOWN

    def happen(self) -> None:
        """Something changed: wake who waits."""
        self.changed.set()
        self.changed = trio.Event()

    def end_input(self) -> None:
        """No more will be fed."""
        if self.input is not None:
            os.close(self.input)
            self.input = None


class Sessions:
    """All sessions. `run` must be running."""

    def __init__(self, freezer: Freezer) -> None:
        self._freezer = freezer
        self._sessions: dict[int, _Session] = {}
        self._numbers = itertools.count(1)
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await trio.sleep_forever()

    async def exec(self, params: Mapping[str, object]) -> dict[str, object]:
        """Have a program started. Raises Failure."""
        if len(self._sessions) >= SESSIONS_MAX:
            raise Failure(Code.FULL, f"there are {SESSIONS_MAX} sessions already")
        ours, theirs = _pipes()
        output, error, status = (_Stream(fd) for fd in ours[1:])
        number, session = next(self._numbers), _Session(ours[0], output, error, status)
        self._sessions[number] = session
        try:
            await self._freezer.call(
                "exec", {"persona": params["persona"], "argv": params["argv"]}, fds=theirs
            )
        except BaseException:
            self._close(number)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        assert self._nursery is not None
        session.drained_s = trio.current_time()
        self._nursery.start_soon(self._live, number, session)
        return {"session": number}

    async def _live(self, number: int, session: _Session) -> None:
        """Read what the program writes, until nobody drains it."""
        with session.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, session, session.output, KEPT_BYTES)
                nursery.start_soon(self._pump, session, session.error, KEPT_BYTES)
                nursery.start_soon(self._pump, session, session.status, END_BYTES_MAX)
                while (left_s := session.drained_s + IDLE_S - trio.current_time()) > 0:
                    await trio.sleep(left_s)
                nursery.cancel_scope.cancel()
        self._close(number)

    async def _pump(self, session: _Session, stream: _Stream, limit: int) -> None:
        while stream.open:
            while len(stream.kept) >= limit:
                await session.changed.wait()
            await trio.lowlevel.wait_readable(stream.fd)
            stream.fill(limit)
            session.happen()

    def _close(self, number: int) -> None:
        session = self._sessions.pop(number, None)
        if session is not None:
            session.end_input()
            for stream in session.streams:
                os.close(stream.fd)

    def _find(self, number: object) -> _Session:
        session = self._sessions.get(int(str(number)))
        if session is None:
            raise Failure(Code.NOT_FOUND, "there is no such session any more")
        return session

    async def feed(self, params: Mapping[str, object]) -> dict[str, object]:
        """Give to the program's input what it takes now. Raises Failure."""
        session, data = self._find(params["session"]), params["data"]
        assert isinstance(data, bytes)
        if len(data) > FEED_BYTES_MAX:
            raise Failure(Code.TOO_LARGE, f"at most {FEED_BYTES_MAX} bytes at a time")
        taken = len(data)
        if session.input is not None and data:
            try:
                taken = os.write(session.input, data)
            except BlockingIOError:
                taken = 0
            except BrokenPipeError:
                session.end_input()  # it reads no more: what is fed is as good as taken
        if params["end"] and taken == len(data):
            session.end_input()
        return {"taken": taken}

    async def drain(self, params: Mapping[str, object]) -> dict[str, object]:
        """What the program wrote, and how it ended. Raises Failure."""
        session = self._find(params["session"])
        session.drained_s = trio.current_time()
        with trio.move_on_after(min(WAIT_S_MAX, int(str(params["waitMs"])) / 1000)):
            while not (session.output.kept or session.error.kept or session.ended):
                await session.changed.wait()
        answer: dict[str, object] = {"output": session.output.take(), "error": session.error.take()}
        session.happen()
        answer["ended"] = session.ended if not (answer["output"] or answer["error"]) else ""
        if answer["ended"]:
            session.scope.cancel()
        return answer

    async def hang_up(self, params: Mapping[str, object]) -> dict[str, object]:
        """Nobody wants to hear any more: the builder ends a program whose end nobody hears."""
        session = self._sessions.get(int(str(params["session"])))
        if session is not None:
            session.scope.cancel()
        return {}


def _pipes() -> tuple[list[int], list[int]]:
    """Four pipes: input, output, error, end. Ours do not block; theirs are a program's and do."""
    ours, theirs = [], []
    for ours_writes in (True, False, False, False):
        reading, writing = os.pipe2(os.O_CLOEXEC)
        mine, other = (writing, reading) if ours_writes else (reading, writing)
        os.set_blocking(mine, False)
        ours.append(mine)
        theirs.append(other)
    return ours, theirs
