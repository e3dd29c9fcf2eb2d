"""The line to the zygote, bay0's end: starting one, asking it for organs, reading its answers.

Requests and answers keep their order, so an answer needs no name: it is for the organ asked for first.
Touches: clone3 and execve for the zygote; one SEQPACKET socket, never waited for.
Never: decides; believes an answer that nobody asked for.
Fails: OSError where the kernel refuses; a line that broke says so (`Over`) and is of no use any more.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from organs.bay0 import request
from organs.bay0.ahead import COMMAND, ENVIRONMENT, FD_PARKING, places
from organs.bay0.loop import Callback, Loop
from organs.bay0.request import Made, Request
from organs.kernel import processes, rights


@dataclass(frozen=True, slots=True)
class Answer:
    """The zygote made an organ (then there is a pidfd), or could not."""

    organ: str
    made: Made
    pidfd: int | None


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing will come over this line any more: the zygote broke it, or (None) has just ended."""

    reason: str | None


class Line:
    """At most one socket at a time, to the present zygote."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._socket: socket.socket | None = None
        self._awaited: deque[str] = deque()

    @property
    def open(self) -> bool:
        """Whether there is a zygote to ask."""
        return self._socket is not None

    @property
    def awaited(self) -> tuple[str, ...]:
        """The organs asked for and not answered for, oldest first."""
        return tuple(self._awaited)

    def connect(self, on_answer: Callback) -> socket.socket:
        """A new line; the zygote's end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self.take(ours, on_answer)
        return theirs

    def take(self, ours: socket.socket, on_answer: Callback) -> None:
        """A line whose other end a zygote has already."""
        assert self._socket is None
        self._socket = ours
        self._socket.setblocking(False)
        self._loop.add(self._socket.fileno(), on_answer)

    def ask(self, asked: Request, fds: Mapping[str, int]) -> None:
        """Ask for one organ, its descriptors in the request's order. Raises OSError when it is not taken."""
        assert self._socket is not None
        socket.send_fds(self._socket, [asked.encode()], [fds[name] for name in asked.fds])
        self._awaited.append(asked.organ)

    def read(self) -> Answer | Over | None:
        """The next answer, if there is one."""
        assert self._socket is not None
        try:
            datagram, fds, _ = rights.receive(self._socket, request.DATAGRAM_BYTES_MAX, 1)  # INV-PRIV-5
            if not datagram:
                return Over(None)
            made = request.decode_made(datagram)
        except BlockingIOError:
            return None
        except (OSError, request.RequestRefused) as error:
            return Over(str(error))
        if not self._awaited or (made.pid is None) == bool(fds):
            return Over("an answer that nobody asked for")
        return Answer(self._awaited.popleft(), made, fds[0] if fds else None)

    def close(self) -> None:
        """Let go of the socket. What was asked and not answered for stays known until `forget`."""
        if self._socket is not None:
            self._loop.remove(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def forget(self) -> tuple[str, ...]:
        """The zygote is dead: the organs it never answered for."""
        lost = self.awaited
        self._awaited.clear()
        return lost


def start_zygote(cgroup_fd: int, line: socket.socket, pipes: Mapping[str, int]) -> tuple[int, int]:
    """A fresh interpreter in its cgroup: (pid, pidfd). Raises OSError."""
    pid, pidfd = processes.clone(cgroup_fd)
    if pid == 0:
        _become_zygote(line.fileno(), pipes["status"], pipes["stderr"])
    return pid, pidfd


def _become_zygote(line_fd: int, status_fd: int, stderr_fd: int) -> None:
    """In the child: descriptors in their places, then exec."""
    try:
        null = os.open("/dev/null", os.O_RDWR)
        parked = [processes.park(fd, FD_PARKING) for fd in places(null, stderr_fd, line_fd, status_fd)]
        for target, fd in enumerate(parked):
            os.dup2(fd, target)
        os.execve(sys.executable, [sys.executable, *COMMAND], ENVIRONMENT)
    finally:
        os._exit(111)
