"""Processes: making one in its cgroup, reaping, killing, reading what the kernel says of one.

Touches: clone3, waitpid, pidfd signals, prctl, /proc.
Never: waits for a process; `reap` returns at once.
Fails: KernelError from clone3; what is gone already is not an error to kill.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
from collections.abc import Iterator
from typing import Final

from organs.kernel import _libc

CLONE_PIDFD: Final = 0x1000
CLONE_PARENT: Final = 0x8000
CLONE_CHILD_CLEARTID: Final = 0x0020_0000
CLONE_CHILD_SETTID: Final = 0x0100_0000
CLONE_INTO_CGROUP: Final = 0x2_0000_0000
PR_SET_NAME: Final = 15

# malloc.h of glibc.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
# Bytes of freed memory that a process may keep. Enough for the copies of usual messages; an organ
# that has had larger ones keeps this much and no more.
FREED_KEPT: Final = 2 * 1024 * 1024

# struct pthread of glibc is about 2300 bytes, the thread id stands at 720 on x86-64: the scan stays inside.
_THREAD_SCAN_BYTES: Final = 1024


def clone(cgroup_fd: int | None, *, sibling: bool = False, namespaces: int = 0) -> tuple[int, int]:
    """Fork this single-threaded process, into a cgroup if one is given, into new namespaces (CLONE_NEW...).

    Returns (pid, pidfd), and (0, -1) in the child. A child of a frozen cgroup is frozen before it returns.
    `sibling` makes the child a child of this process' parent, which then reaps it and gets SIGCHLD for it.
    Raises KernelError.
    """
    pidfd = ctypes.c_int(-1)
    flags = CLONE_PIDFD | namespaces
    args = _libc.CloneArgs(pidfd=ctypes.addressof(pidfd))
    if cgroup_fd is not None:
        flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup_fd
    if sibling:
        # The kernel takes the exit signal of a sibling from its maker and wants none here.
        flags |= CLONE_PARENT
    else:
        args.exit_signal = signal.SIGCHLD
    if address := _thread_id_address():
        # glibc keeps the thread id in its thread block and its own fork() lets the kernel renew it. We go
        # past that fork, so we ask for the same; a child with a stale id must not start threads.
        flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID
        args.child_tid = address
    args.flags = flags
    # What os.fork() does around its own system call: the import lock, the allocator, the at-fork hooks.
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _libc.clone3(args)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    error = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise _libc.KernelError(error, "clone3")
    return pid, pidfd.value


def _thread_id_address() -> int:
    """Where glibc keeps this thread's id; 0 when the place is not certain (then nothing is written)."""
    base, wanted = _libc.pthread_self(), os.getpid()
    # Safe: reading memory of our own thread block, which is larger than what is read.
    words = (ctypes.c_int * (_THREAD_SCAN_BYTES // 4)).from_address(base)
    places = [index for index, word in enumerate(words) if word == wanted]
    return base + 4 * places[0] if len(places) == 1 else 0


def reap() -> Iterator[tuple[int, int]]:
    """Collect every dead child, adopted ones too: (pid, exit code, negative for a signal). Never waits."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def kill(pidfd: int, number: int) -> None:
    """Send a signal to the process behind a pidfd; nothing happens when it is gone."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return


def dead(pidfd: int) -> bool:
    """Whether the process behind a pidfd has ended, reaped or not."""
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    return bool(ended.poll(0))


def kill_session(pid: int, pidfd: int) -> None:
    """End a process and what it started in its own process group. It must be a child that was not reaped yet.

    Both: until it has a group of its own there is none of that number.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    kill(pidfd, signal.SIGKILL)


def pss_kb(pid: int) -> int:
    """The process' share of memory (proportional set size) in KiB; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def started_ms() -> int:
    """CLOCK_BOOTTIME of this process' start, in ms (the kernel counts it in hundredths of a second)."""
    with open("/proc/self/stat", encoding="ascii") as file:
        after_name = file.read().rpartition(")")[2].split()
    return int(after_name[19]) * 1000 // os.sysconf("SC_CLK_TCK")


def rename(name: str) -> None:
    """The name that the kernel shows for this process, at most 15 bytes of it. Needs no /proc."""
    told = ctypes.create_string_buffer(name.encode("ascii"))
    # Safe: the kernel reads 16 bytes at most and ends at the zero byte; `told` lives until it has.
    _libc.check(_libc.prctl(PR_SET_NAME, ctypes.addressof(told), 0, 0, 0), "name this process")


def keep_freed() -> None:
    """Keep up to `FREED_KEPT` of what is freed, in this process and those it forks, rather than give it back.

    A message of 256 KiB is copied a dozen times on its way. By default malloc maps each copy anew and unmaps
    it, and the page faults took longer than all the copying.
    """
    for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        if not _libc.mallopt(option, FREED_KEPT):
            raise _libc.KernelError(errno.EINVAL, "mallopt", option)


def park(fd: int, lowest: int) -> int:
    """A copy of `fd` at `lowest` or above, closed on exec."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
