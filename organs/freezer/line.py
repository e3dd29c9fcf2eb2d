"""The freezer's end of the line to the builder: one question, one answer, descriptors beside both.

The line outlives the builder and us; each message says of which incarnations it is (`builder/protocol.py`).
Touches: one SEQPACKET socket that was handed over, and the descriptors that come on it.
Never: waits for a builder that has not greeted longer than the asker's own deadline; believes an answer to
another question, or to one of an earlier incarnation.
Fails: with Failure. PEER_DIED: the builder was started anew, and what became of the question nobody knows.
Descriptors of an answer that nobody waits for are closed, and a device that it made is given back, as is what
an incarnation of ours that is gone had left with the builder.
"""

from __future__ import annotations

import array
import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from bus.envelope import Code, Failure
from organs.builder import protocol
from organs.builder.protocol import Answer, Hello, Refusal, Refused, Release, Request, Unreadable, Welcome
from organs.kernel import rights

CODES: Final = {
    Refusal.INVALID: Code.INVALID,
    Refusal.STALE: Code.PEER_DIED,
    Refusal.LIMIT: Code.FULL,
    Refusal.UNKNOWN: Code.NOT_FOUND,
    Refusal.IMAGE: Code.REFUSED,
    Refusal.MISSING: Code.REFUSED,
    Refusal.KERNEL: Code.REFUSED,
}
# How long a builder may take to let go of something, its restart included.
RELEASE_S: Final = 10.0


@dataclass(slots=True)
class _Question:
    """Somebody waits for this answer."""

    generation: int
    over: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None
    fds: tuple[int, ...] = ()


class Line:
    """The line of one incarnation of the freezer. `run` must be running for questions to be answered."""

    def __init__(self, fd: int, generation: int) -> None:
        self._socket = trio.socket.from_stdlib_socket(socket.socket(fileno=os.dup(fd)))
        self._own = generation
        self._builder: int | None = None
        self._greeted = trio.Event()
        self._questions: dict[int, _Question] = {}
        self._last = 0
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Ask who is there, then hear answers. Never returns."""
        self._last += 1
        await self._socket.send(protocol.encode(Hello(id=self._last, asker=self._own)))
        async with trio.open_nursery() as self._nursery:
            while True:
                datagram, fds = await self._receive()
                try:
                    answer = protocol.decode_answer(datagram)
                except Unreadable as error:
                    _close(fds)
                    print(f"freezer: not an answer of the builder: {error}", file=sys.stderr, flush=True)
                    continue
                self._take(answer, fds)

    async def _receive(self) -> tuple[bytes, tuple[int, ...]]:
        datagram, ancillary, flags, _ = await self._socket.recvmsg(
            protocol.DATAGRAM_BYTES_MAX, rights.space(protocol.DESCRIPTORS_MAX), socket.MSG_CMSG_CLOEXEC
        )
        fds = rights.found(ancillary)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            _close(fds)
            return b"", ()
        return datagram, tuple(fds)

    def _take(self, answer: Answer, fds: tuple[int, ...]) -> None:
        if isinstance(answer, Welcome) or answer.generation > (self._builder or 0):
            # A greeting that did not fit into the line is lost; then its first answer is the greeting.
            self._meet(answer.generation)
        if isinstance(answer, Welcome):
            _close(fds)
            # Nothing was asked of it yet: what it holds, an incarnation of ours left that is gone.
            for name in answer.devices:
                self._let_go(name, answer.generation)
            return
        question = self._questions.get(answer.id) if answer.asker == self._own else None
        if question is None or question.generation != answer.generation:
            _close(fds)
            if isinstance(answer, protocol.Made):
                self._let_go(answer.name, answer.generation)  # nobody waits for it
            return
        del self._questions[answer.id]
        question.answer, question.fds = answer, fds
        question.over.set()

    def _let_go(self, device: str, generation: int) -> None:
        if generation == self._builder:
            assert self._nursery is not None
            self._nursery.start_soon(self.release, device)

    async def release(self, device: str) -> None:
        """Have the builder let go of a device. What cannot be asked in time dies with the builder."""
        with trio.move_on_after(RELEASE_S):
            try:
                await self.ask(
                    lambda number, own, other: Release(id=number, asker=own, generation=other, name=device),
                    (),
                )
            except Failure as failure:
                print(f"freezer: {device} is not let go of: {failure}", file=sys.stderr, flush=True)

    def _meet(self, generation: int) -> None:
        """A builder says that it is there. What was asked of the one before is lost."""
        if self._builder is not None and generation < self._builder:
            return  # the greeting of one that is gone
        self._builder = generation
        for number, question in list(self._questions.items()):
            if question.generation != generation:
                del self._questions[number]
                question.over.set()
        self._greeted.set()

    async def ask(
        self, make: Callable[[int, int, int], Request], fds: Sequence[int]
    ) -> tuple[Answer, tuple[int, ...]]:
        """Ask what `make(id, asker, generation)` makes; the answer and its descriptors, which are ours now.

        Cancelled at the caller's deadline. Raises Failure.
        """
        await self._greeted.wait()
        assert self._builder is not None
        self._last += 1
        number = self._last
        question = self._questions[number] = _Question(self._builder)
        try:
            beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            await self._socket.sendmsg([protocol.encode(make(number, self._own, self._builder))], beside)
            await question.over.wait()
        except trio.Cancelled:
            # The answer may have come in the same moment.
            _close(question.fds)
            if isinstance(question.answer, protocol.Made):
                self._let_go(question.answer.name, question.generation)
            raise
        finally:
            self._questions.pop(number, None)
        if question.answer is None:
            raise Failure(Code.PEER_DIED, "the builder was started anew")
        if isinstance(question.answer, Refused):
            _close(question.fds)
            raise Failure(CODES[question.answer.why], f"builder: {question.answer.reason}")
        return question.answer, question.fds


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
