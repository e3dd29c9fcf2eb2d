"""Namespaces of a room: its ids, entering it, and which of its processes is its first.

Touches: /proc/PID/{setgroups,uid_map,gid_map,status}, pidfds, unshare(2), setns(2), sethostname(2), the
`user.max_*` limits of the user namespace that the caller stands in.
Never: enters a namespace by a path inside a room; a room is entered by the pidfd of its first process.
Fails: KernelError or OSError naming what was refused; Gone when the room has no first process.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from organs.kernel import _libc

CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWCGROUP: Final = 0x0200_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000
# What a room is born with. Not time: its clocks are the machine's. Not the cgroup namespace: the kernel would
# root it in the maker's cgroup; the first process takes it where it stands (`own_cgroup_view`).
BIRTH: Final = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
# What is entered by who is to live in a room; the pid namespace before, by who makes it.
INSIDE: Final = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
# The same in a room that has begun.
BEGUN: Final = INSIDE | CLONE_NEWCGROUP
# The limits of a user namespace: no further namespace below it. One is the first process' own view of its
# cgroup, which it takes when it runs.
LIMITS_FOLDER: Final = "sys/user"
_LIMITS: Final = {
    **{f"max_{kind}_namespaces": 0 for kind in ("user", "pid", "mnt", "net", "ipc", "uts", "time")},
    "max_cgroup_namespaces": 1,
    # These are counted for the spine's root as well, who has made the namespace: a room takes its part.
    "max_inotify_instances": 64,
    "max_inotify_watches": 16384,
}


class Gone(ProcessLookupError):
    """The room has no first process: it never began or has ended."""


@dataclass(frozen=True, slots=True)
class First:
    """The first process of a room: its pid here, and a descriptor of it, its user here."""

    pid: int
    pidfd: int
    uid: int


def map_ids(pid: int, base: int, count: int) -> None:
    """Give a new user namespace its ids: 0 inside is `base` outside, and so on. Raises OSError.

    Groups cannot be dropped inside: a group that denies something would not deny it any more.
    """
    _write(f"/proc/{pid}/setgroups", "deny")
    _write(f"/proc/{pid}/uid_map", f"0 {base} {count}")
    _write(f"/proc/{pid}/gid_map", f"0 {base} {count}")


def user_namespace(pid: int) -> int:
    """A descriptor of the user namespace of a process that cannot end meanwhile. Raises OSError."""
    return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def own_network() -> int:
    """A descriptor of this process' network namespace. Raises OSError."""
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(pidfd: int, which: int) -> None:
    """Enter namespaces of the process behind a pidfd. Raises KernelError."""
    _libc.check(_libc.setns(pidfd, which), "enter the namespaces of", f"pidfd {pidfd}")


def own_cgroup_view() -> None:
    """From here on this process sees its cgroup as the root of the tree. Raises KernelError."""
    _libc.check(_libc.unshare(CLONE_NEWCGROUP), "unshare the cgroup namespace")


def set_hostname(name: str) -> None:
    """The name of the machine, in this process' uts namespace. Raises KernelError."""
    encoded = name.encode()
    _libc.check(_libc.numbered("sethostname", encoded, len(encoded)), "set the host name to", name)


def forbid_more(limits: int) -> None:
    """No further namespace in or below the user namespace of this process. Raises OSError.

    `limits` is a descriptor of `LIMITS_FOLDER` in a proc filesystem; whose limits they are is the caller's.
    """
    for name, limit in _LIMITS.items():
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=limits)
        try:
            os.write(fd, b"%d" % limit)  # INV-ROOM-5
        finally:
            os.close(fd)


def first_of(cgroup: int) -> First:
    """The first process of the room in this cgroup (a directory descriptor). Raises Gone, OSError.

    Nothing is remembered: it is the process of the cgroup that is number 1 of a pid namespace below ours.
    """
    with open(os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=cgroup), encoding="ascii") as file:
        pids = [int(line) for line in file]
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            numbers, uid = _identity(pid)
        except OSError:
            os.close(pidfd)
            continue
        # What was read is its own if it lives still: a pid is not given again before that.
        if len(numbers) > 1 and numbers[-1] == 1 and not _ended(pidfd):
            return First(pid, pidfd, uid)
        os.close(pidfd)
    raise Gone("the room has no first process")


def _identity(pid: int) -> tuple[list[int], int]:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        fields = _fields(file)
    return [int(word) for word in fields["NSpid"].split()], int(fields["Uid"].split()[0])


def _fields(lines: Iterable[str]) -> dict[str, str]:
    return {key: value for key, _, value in (line.partition(":") for line in lines)}


def _ended(pidfd: int) -> bool:
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    return bool(waiting.poll(0))


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)
