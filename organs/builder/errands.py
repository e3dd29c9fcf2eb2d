"""Errands: what takes its time is done by a process of its own, which holds only what it is given.

A room that is made of a slow image, or a command for a room that is frozen, must not keep the builder from
its heartbeat, and the processes that are born on the way must not keep the builder's descriptors open.
Touches: clone3, a pair of sockets for each errand, pidfds.
Never: waits; the builder polls what `watched` names.
Fails: an errand that ends without a word, or is not back in time, is answered for: it was not done.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from organs.builder import protocol
from organs.builder.protocol import (
    DATAGRAM_BYTES_MAX,
    DESCRIPTORS_MAX,
    Answer,
    Exec,
    Refusal,
    Refused,
    Room,
    Started,
)
from organs.kernel import privileges, processes, rights
from organs.kernel.nodes import Missing

# A large image on a slow machine takes seconds. Nobody waits for the builder meanwhile but who asked.
DEADLINE_S: Final = 60.0

Long = Room | Exec
# What an errand runs: it is given the descriptors that came with the request and its line to the builder, and
# answers there. What it raises is answered as a refusal.
Work = Callable[[socket.socket, tuple[int, ...]], None]


class Unfit(Exception):
    """The image, or what lives in the room, does not allow it; `str()` says what it is."""


class Lost(Exception):
    """There is nothing in the room to ask."""


def refused(request: protocol.Request, own: int, why: Refusal, reason: str) -> Refused:
    """The refusal of a request by the incarnation `own`."""
    return Refused(id=request.id, asker=request.asker, generation=own, why=why, reason=reason)


def say(line: socket.socket, answer: Answer, *fds: int) -> None:
    """The errand's answer. Raises OSError when the builder is gone; then there is nobody to do it for."""
    socket.send_fds(line, [protocol.encode(answer)], fds)


def attempt(request: Long, own: int, line: socket.socket, act: Callable[[], None]) -> bool:
    """Do a part of an errand; what stands in its way is said. Whether it was done."""
    try:
        act()
        return True
    except Unfit as unfit:
        say(line, refused(request, own, Refusal.IMAGE, str(unfit)))
    except Lost as lost:
        say(line, refused(request, own, Refusal.UNKNOWN, str(lost)))
    except Missing as missing:
        say(line, refused(request, own, Refusal.MISSING, str(missing)))
    except OSError as error:
        say(line, refused(request, own, Refusal.KERNEL, str(error)))
    return False


@dataclass(frozen=True, slots=True)
class _Errand:
    request: Long
    line: socket.socket
    ends: float
    status: int | None  # where the end of a command is to be written
    child: bool


@dataclass(frozen=True, slots=True)
class _Command:
    status: int
    pid: int


class Errands:
    """What is under way, and the commands that run."""

    def __init__(self, own: int) -> None:
        self._own = own
        self._under_way: dict[int, _Errand] = {}
        self._running: dict[int, _Command] = {}
        # The commands whose ends somebody may still hear, by the pipe for it.
        self._heard: dict[int, int] = {}

    @property
    def under_way(self) -> int:
        """How many errands there are."""
        return len(self._under_way)

    @property
    def running(self) -> int:
        """How many commands run, or are being started."""
        starting = sum(errand.status is not None for errand in self._under_way.values())
        return len(self._running) + starting

    def watched(self) -> Mapping[int, int]:
        """Descriptors to poll, and for what. A pipe without a reader is an error, which is never masked."""
        return dict.fromkeys((*self._under_way, *self._running), select.POLLIN) | dict.fromkeys(
            self._heard, 0
        )

    def hung_up(self, ready: int) -> bool:
        """Whether this was the pipe of a command: nobody can hear of its end any more, so it ends now.

        Closes nothing; what is watched besides stays what it is.
        """
        pidfd = self._heard.pop(ready, None)
        if pidfd is None:
            return False
        processes.kill_session(self._running[pidfd].pid, pidfd)  # INV-ROOM-11
        return True

    def start(
        self, request: Long, fds: tuple[int, ...], work: Work, *, status: int | None, sibling: bool
    ) -> None:
        """Send a process off. `status` becomes ours. Raises OSError, and then nothing was begun or is left.

        `sibling`: it is a child of our parent, and so are the children that it makes as siblings.
        """
        with contextlib.ExitStack() as undo:
            if status is not None:
                undo.callback(os.close, status)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            undo.callback(theirs.close)
            pid, pidfd = processes.clone(None, sibling=sibling)
            undo.pop_all()
        if pid == 0:
            _go(request, self._own, fds, theirs, work)
        theirs.close()
        ours.setblocking(False)
        self._under_way[pidfd] = _Errand(request, ours, time.monotonic() + DEADLINE_S, status, not sibling)

    def settle(self, ready: int) -> tuple[Answer, list[int]] | None:
        """A watched descriptor is readable: the answer that is due, with its descriptors, or None."""
        if (command := self._running.pop(ready, None)) is not None:
            self._heard.pop(command.status, None)
            _tell(command.status, _ending(ready))
            os.close(ready)
            return None
        errand = self._under_way.pop(ready)
        answer, fds = self._word(errand)
        if errand.child:
            _ending(ready)
        os.close(ready)
        errand.line.close()
        if isinstance(answer, Started) and errand.status is not None and len(fds) == 1:
            # The one descriptor is the command's own; it is not the freezer's.
            pidfd = fds.pop()
            self._running[pidfd] = _Command(errand.status, answer.pid)
            self._heard[errand.status] = pidfd
        elif errand.status is not None:
            os.close(errand.status)
        return answer, fds

    def overdue(self) -> None:
        """End what is late; that it ended is noticed as any end."""
        now = time.monotonic()
        for pidfd, errand in self._under_way.items():
            if now > errand.ends:
                self._under_way[pidfd] = replace(errand, ends=now + DEADLINE_S)
                processes.kill(pidfd, signal.SIGKILL)

    def _word(self, errand: _Errand) -> tuple[Answer, list[int]]:
        """What the errand said before it ended."""
        try:
            datagram, fds, _ = rights.receive(errand.line, DATAGRAM_BYTES_MAX, DESCRIPTORS_MAX)
        except OSError:
            datagram, fds = b"", []
        if not datagram:
            late = "it took too long, or ended without a word"
            return refused(errand.request, self._own, Refusal.KERNEL, late), []
        return protocol.decode_answer(datagram), list(fds)


def _go(request: Long, own: int, fds: tuple[int, ...], line: socket.socket, work: Work) -> NoReturn:
    """The process: what it was not given goes, also the log; then its work."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        privileges.close_all_but({0, 1, 2, line.fileno(), *fds})
        attempt(request, own, line, lambda: work(line, fds))
        code = 0
    except BaseException as error:  # the last frame of the process: our own mistake is said, then it ends
        say(line, refused(request, own, Refusal.KERNEL, f"the builder was wrong: {error!r}"))
    finally:
        sys.stderr.flush()
        os._exit(code)


def _ending(pidfd: int) -> str:
    """How a child ended; it is reaped. It must have ended."""
    try:
        found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return ""
    if found is None:
        return ""
    return f"exit {found.si_status}" if found.si_code == os.CLD_EXITED else f"signal {found.si_status}"


def _tell(status: int, line: str) -> None:
    """One line into the pipe of a command, which may have no reader any more."""
    try:
        os.set_blocking(status, False)
        if line:
            os.write(status, f"{line}\n".encode())
    except OSError:
        pass  # who asked is gone, or does not read: nobody wants to know
    finally:
        os.close(status)
