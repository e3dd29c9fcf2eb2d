"""Into a room that lives: starting a command in it.

Nothing is remembered of a room: its first process is found in its cgroup each time, and the room is entered
by a descriptor of that process.
Touches: clone3, setns(2).
Never: enters a room whose first process is not the room's own yet; trusts a path of the room.
Fails: Lost when nothing lives there; OSError.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import Final, NoReturn

from organs.builder import furnishing, threshold
from organs.builder.errands import Lost, say
from organs.builder.protocol import Exec, Started
from organs.builder.verdict import UID_BASE
from organs.kernel import mounts, namespaces, processes

# How long a room that was just thawed may take to its own first line, and how often that is looked at.
BEGIN_S: Final = 5.0
POLL_S: Final = 0.002
_NOT_BEGUN: Final = "the room has not begun"


def start(request: Exec, own: int, line: socket.socket, cgroup: int, standard: tuple[int, ...]) -> None:
    """A command in the room: born in its cgroup, so frozen while the room is. Says Started, and its pidfd."""
    first = _first(cgroup)
    network = _look(first)
    program = threshold.Program(
        argv=request.argv,
        environment=furnishing.environment(request.environment, terminal=request.terminal),
        terminal=request.terminal,
        network=network,
    )
    # A sibling: the child of the builder, who waits for it.
    pid, pidfd = processes.clone(cgroup, sibling=True)
    if pid == 0:
        _live(program, first.pidfd, standard)
    answer = Started(id=request.id, asker=request.asker, generation=own, name=request.name, pid=pid)
    say(line, answer, pidfd)


def _look(first: namespaces.First) -> bool:
    """Enter the room's pid namespace; whether the room has a network.

    A room that was thawed a moment ago may still be at its threshold, where nobody can look into its first
    process. Raises Lost when it stays there, OSError.
    """
    end = time.monotonic() + BEGIN_S
    while True:
        try:
            # A room with a network, and no other, has this mount, and rooms cannot change their mounts.
            network = f"/etc/{furnishing.RESOLV}" in mounts.mount_points(first.pid)
            namespaces.enter(first.pidfd, namespaces.CLONE_NEWPID)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES):
                raise
            if time.monotonic() > end:
                raise Lost(_NOT_BEGUN) from None
            time.sleep(POLL_S)
        else:
            return network


def _live(program: threshold.Program, first: int, standard: tuple[int, ...]) -> NoReturn:
    """The command's process: ours, and undumpable, until it is the room's."""
    try:
        namespaces.enter(first, namespaces.BEGUN)
    except OSError:
        os._exit(threshold.EXIT_KERNEL)
    threshold.cross(program, standard)


def _first(cgroup: int) -> namespaces.First:
    end = time.monotonic() + BEGIN_S
    while True:
        try:
            first = namespaces.first_of(cgroup)
        except namespaces.Gone as gone:
            raise Lost(str(gone)) from None
        # It has the ids of whoever made it until it runs what it was made for.
        if first.uid >= UID_BASE:
            return first
        os.close(first.pidfd)
        if time.monotonic() > end:
            raise Lost(_NOT_BEGUN)
        time.sleep(POLL_S)
