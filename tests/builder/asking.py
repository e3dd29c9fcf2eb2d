"""A freezer's end of the line in the test's hand, and the builders that are started on it in turn."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

from organs.builder import protocol
from organs.builder.protocol import Answer, Device, Made, Refusal, Refused, Request, Verity, Welcome
from organs.kernel import rights

ROOT = Path(__file__).resolve().parents[2]
STANDING = ROOT / "tests/builder/standing.py"
DEADLINE_S = 30.0
ASKER = 7


class Freezer:
    """The other end of the line, and the builders that are started on it one after the other."""

    def __init__(self, homes: Path | None = None) -> None:
        """`homes` is where the cgroups of rooms are."""
        self.homes = homes
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(DEADLINE_S)
        self.generation = 0
        self.numbers = itertools.count(1)
        self.builder: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """The next incarnation; returns when it has said hello."""
        self.generation += 1
        self.builder = subprocess.Popen(
            [
                *(sys.executable, STANDING, str(self.generation), str(self.theirs.fileno())),
                *([str(self.homes)] if self.homes else []),
            ],
            pass_fds=[self.theirs.fileno()],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        answer, fds = self.hear()
        assert (answer, fds) == (Welcome(id=0, asker=0, generation=self.generation, devices=()), [])

    def end(self, number: int = signal.SIGKILL) -> None:
        """A signal, and wait for its end."""
        if self.builder is not None:
            self.builder.send_signal(number)
            self.builder.wait()
            self.builder = None
        # Rooms and those who make them are our children as they are bay0's. Nothing else of ours runs now.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def say(self, request: Request, *fds: int) -> None:
        socket.send_fds(self.ours, [protocol.encode(request)], fds)

    def hear(self) -> tuple[Answer, list[int]]:
        datagram, fds, _ = rights.receive(self.ours, protocol.DATAGRAM_BYTES_MAX, 16)
        return protocol.decode_answer(datagram), fds

    def forget(self) -> None:
        """Close what lies in the line: what the dead one had answered, and what it had not read yet.

        Descriptors in it hold a room's files and its device until somebody takes them.
        """
        while readable := select.select([self.ours, self.theirs], [], [], 0)[0]:
            for end in readable:
                _, fds, _ = rights.receive(end, protocol.DATAGRAM_BYTES_MAX, 16)
                for fd in fds:
                    os.close(fd)

    def ask(self, request: Request, *fds: int) -> tuple[Answer, list[int]]:
        self.say(request, *fds)
        answer, made = self.hear()
        assert (answer.id, answer.asker, answer.generation) == (request.id, ASKER, self.generation)
        return answer, made

    def head(self) -> dict[str, int]:
        return {"id": next(self.numbers), "asker": ASKER, "generation": self.generation}

    def device(self, backing: int, offset: int, length: int, tree: Verity | None = None) -> tuple[Made, int]:
        """A device that must be made."""
        request = Device(**self.head(), offset=offset, length=length, verity=tree)
        answer, fds = self.ask(request, backing)
        assert isinstance(answer, Made), answer
        assert answer.verified == (tree is not None)
        (fd,) = fds
        return answer, fd

    def refused(self, request: Request, why: Refusal, *fds: int) -> str:
        """The reason of a refusal that must come."""
        answer, made = self.ask(request, *fds)
        assert isinstance(answer, Refused), answer
        assert (answer.why, made) == (why, [])
        return answer.reason
