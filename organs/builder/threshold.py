"""The last steps of a process before it is the room's: what it still holds goes, then a program of the image.

The process is the builder's code with the builder's memory, already in the room's namespaces and cgroup. It
imports nothing, opens nothing by a path but its own root, and runs one program or ends.
Touches: the calling process and nothing else.
Never: returns, tells the room anything but that line of its end.
Fails: by ending the process: 111 when the kernel refuses a step, 126 when the program cannot be run, 127 when
there is none; one line of why on its own standard error.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from organs.builder.furnishing import CAPABILITIES, PATH
from organs.kernel import namespaces, privileges, rights, seccomp, terminals
from organs.kernel.bpf import Prepared
from organs.kernel.syscalls import ROOM, ROOM_NETWORK
from organs.manifest import CAPABILITIES as ALL

EXIT_KERNEL, EXIT_NOT_RUNNABLE, EXIT_NOT_FOUND = 111, 126, 127
STANDARD: Final = (0, 1, 2)
_KEPT: Final = frozenset(ALL.index(name) for name in CAPABILITIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is to be run. `terminal`: its standard input becomes its controlling terminal."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    terminal: bool
    network: bool


def filters() -> Mapping[bool, Prepared]:
    """The filters of rooms, by whether there is a network. The builder asks once, before it makes any."""
    both = {False: frozenset({ROOM}), True: frozenset({ROOM, ROOM_NETWORK})}
    return {network: seccomp.prepared(groups) for network, groups in both.items()}


class Elsewhere(OSError):
    """The working directory is not inside the room."""


def cross(program: Program, standard: Sequence[int]) -> NoReturn:
    """Become the program, with these descriptors as its standard three and no other."""
    try:
        for number, fd in zip(STANDARD, standard, strict=True):
            os.dup2(fd, number)
        privileges.close_all_but(STANDARD)  # INV-ROOM-4
        # A change of the root from outside leaves the old working directory behind (CVE-2024-21626).
        os.chdir("/")
        if os.getcwd() != "/":
            raise Elsewhere(errno.ENOENT, "stand in the root of the room")
        os.setsid()
        if program.terminal:
            terminals.control(STANDARD[0])
        privileges.new_session_keyring()
        privileges.limit_room()
        # The interpreter ignores two signals, and what is ignored stays so in the next program.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        privileges.become_room_root(_KEPT)
        seccomp.confine_program(filters()[program.network])  # INV-ROOM-8
        _run(program)
    except OSError as error:
        _end(EXIT_KERNEL, f"unable to start {program.argv[0]}: {error}")


def _run(program: Program) -> NoReturn:
    """Resolve the name in the room, as whoever is in it, and run it."""
    name = program.argv[0]
    code, reason = EXIT_NOT_FOUND, os.strerror(errno.ENOENT)
    for folder in ("",) if "/" in name else PATH:
        try:
            os.execve(f"{folder}/{name}" if folder else name, program.argv, program.environment)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                code, reason = EXIT_NOT_RUNNABLE, os.strerror(error.errno or 0)
    _end(code, f"{name}: {reason}")


def _end(code: int, line: str) -> NoReturn:
    try:
        os.write(STANDARD[2], f"{line}\n".encode(errors="replace"))
    finally:
        os._exit(code)


def wait_for_standard(line: socket.socket) -> list[int]:
    """The standard three, when whoever makes the room has got so far; else this process ends.

    Only now, in its own cgroup, can the first process take its own view of the tree.
    """
    try:
        namespaces.own_cgroup_view()
        _, fds, _ = rights.receive(line, 1, len(STANDARD))
    except OSError:
        os._exit(EXIT_KERNEL)
    if len(fds) != len(STANDARD):
        os._exit(EXIT_KERNEL)
    return fds
