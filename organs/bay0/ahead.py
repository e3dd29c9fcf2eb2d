"""Starts the first zygote's interpreter before bay0 imports what it needs itself: each has a processor.

Half of a boot are imports, and most of those the zygote's. So its process is spawned first, with bay0's
ends of its pipes kept here; bay0 adopts it when there is a cgroup to put it in.
Touches: two pipes, a socket pair, posix_spawn. Nothing is mounted yet, and no message can be kept.
Never: waits; imports what takes long (neither socket nor typing); gives the zygote a descriptor of ours.
Fails: it does not. With no early zygote bay0 starts one as it starts all others, and says what is wrong then.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import sys
import time

COMMAND = ("-I", "-m", "organs.bay0.zygote")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8"}
# Above every descriptor that is put in its place, so that none is overwritten before it is moved.
FD_PARKING = 64


def places(null: int, log: int, line: int, status: int) -> tuple[int, ...]:
    """What `organs/bay0/zygote.py` finds at descriptors 0, 1, 2, ..."""
    return null, log, log, line, status


class Ahead:
    """A process that becomes the zygote, and bay0's ends of its descriptors."""

    def __init__(self, pid: int, pidfd: int, line: int, status: int, stderr: int, since_ms: int) -> None:
        """`since_ms`, of CLOCK_MONOTONIC: how long its imports take is the measure of this ground."""
        self.pid, self.pidfd, self.since_ms = pid, pidfd, since_ms
        self.line, self.status, self.stderr = line, status, stderr

    def close(self) -> None:
        """Let go of it."""
        for fd in (self.pidfd, self.line, self.status, self.stderr):
            os.close(fd)


def start() -> Ahead | None:
    """Start the interpreter of the first zygote, or let it be."""
    opened: list[int] = []
    try:
        return _start(opened)
    except OSError:
        return None
    finally:
        for fd in opened:
            os.close(fd)


def _start(opened: list[int]) -> Ahead:
    """`opened` gets what is to be closed in any case. Raises OSError."""
    # Its hashes are seeded when it starts: not before the kernel has something to seed them with.
    os.getrandom(1, os.GRND_NONBLOCK)
    line, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    opened += (line.detach(), theirs.detach())
    opened += os.pipe2(os.O_CLOEXEC)
    opened += os.pipe2(os.O_CLOEXEC)
    opened.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
    line_fd, their_line, status, their_status, stderr, their_stderr, null = opened
    parked = []
    for fd in places(null, their_stderr, their_line, their_status):
        parked.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FD_PARKING))
        opened.append(parked[-1])
    # What bay0 was started with (in a container: the operator's port) is not the zygote's.
    actions: list[tuple[int, int, int] | tuple[int, int]]
    actions = [(os.POSIX_SPAWN_DUP2, fd, place) for place, fd in enumerate(parked)]
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in range(len(parked), FD_PARKING)]  # INV-PRIV-5
    since_ms = time.monotonic_ns() // 10**6
    pid = os.posix_spawn(sys.executable, [sys.executable, *COMMAND], ENVIRONMENT, file_actions=actions)
    # Should this fail, it meets the end of its line and ends.
    pidfd = os.pidfd_open(pid)
    for fd in (line_fd, status, stderr):
        opened.remove(fd)
    return Ahead(pid, pidfd, line_fd, status, stderr, since_ms)
