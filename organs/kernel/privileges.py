"""Privileges: giving up root, in the one order in which every step is still allowed and none can be undone.

Touches: the calling process and nothing else: capabilities, user and group ids, limits, descriptors.
Never: raises a power. After `drop` no exec, no set-id file and no call can bring one back.
Fails: KernelError or OSError at the first step that the kernel refuses; the caller must end the process, for
it is then half-dropped.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
from collections.abc import Collection, Iterable
from typing import Final

from organs.kernel import _libc

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_SECUREBITS: Final = 28
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CAP_VERSION_3: Final = 0x2008_0522
CAP_SETPCAP: Final = 8
# linux/keyctl.h
KEYCTL_JOIN_SESSION_KEYRING: Final = 1

# NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE with their locks: uid 0 means nothing any more, for ever.
# KEEP_CAPS stays off and gets its lock as well.
SECUREBITS_LOCKED: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80
# The kernel defines fewer; a bit it does not know ends the walk.
CAPABILITIES_MAX: Final = 64
# Files that an organ creates are its own business.
UMASK: Final = 0o077
# What programs of a room make, others of the room may read, as on any system.
ROOM_UMASK: Final = 0o022
# What programs expect: above it, some walk through every possible descriptor.
ROOM_NOFILE: Final = 1024


def allow_descriptors(nofile_max: int) -> None:
    """Let children be given this many descriptors; the kernel gives its first process 4096.

    Where that is fewer it takes SYS_RESOURCE. Raises OSError, and ValueError, Python's name for EPERM here.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < nofile_max:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, nofile_max))


def limit(nofile_max: int) -> None:
    """Resource limits that hold from here on: descriptors, no core files. Raises OSError."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (nofile_max, nofile_max))
    # A core file holds secrets and would go to a disk that the gate does not meter.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def drop(uid: int, gid: int, capabilities: Collection[int]) -> None:
    """Become `uid` with these capabilities (numbers) and no way to get more. Raises KernelError, OSError.

    Root is for a process that is given capabilities by name: it holds no more than these either, because the
    secure bits leave nothing to uid 0 but the files it owns.
    """
    assert (uid > 0 and gid > 0) or (uid == gid == 0 and capabilities)
    os.umask(UMASK)
    # 1 While we still hold SETPCAP: whatever is run later, it can never hold more than this.
    _bound(capabilities)
    # 2 Keep the permitted set across the change of uid; without this there is nothing left to choose from.
    _prctl("keep capabilities", PR_SET_KEEPCAPS, 1)
    # 3 Groups before ids: afterwards we may not. All three ids at once, so that no saved id leads back.
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # 4 SETPCAP is still permitted but not effective since the uid changed: raise it for the locks only.
    _capset({*capabilities, CAP_SETPCAP})
    _prctl("clear ambient capabilities", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    _prctl("lock the secure bits", PR_SET_SECUREBITS, SECUREBITS_LOCKED)
    # 5 The chosen set and nothing else. Inheritable is empty: nothing passes through an exec.
    _capset(capabilities)  # INV-PRIV-1
    # 6 No exec can raise anything from here on; a seccomp filter will need this as well.
    _prctl("set no_new_privs", PR_SET_NO_NEW_PRIVS, 1)
    # 7 The change of uid did this already; said again because the memory of an organ is a secret.
    _prctl("make undumpable", PR_SET_DUMPABLE, 0)


def become_room_root(capabilities: Collection[int]) -> None:
    """In a user namespace that was just entered: its root, with these capabilities (numbers) and never more.

    Uid 0 keeps its meaning inside: a program of the room may give it up, and cannot come back to more than
    this. Raises KernelError, OSError.
    """
    become_fitter()
    # What a program of the room's root begins with is what this set leaves of everything.
    _bound(capabilities)  # INV-ROOM-6
    _capset(capabilities)
    _prctl("clear ambient capabilities", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    _prctl("set no_new_privs", PR_SET_NO_NEW_PRIVS, 1)


def become_fitter() -> None:
    """In a user namespace that was just entered: its root, with every power inside and none outside.

    Until here the ids were the builder's, which have no name inside. All three at once. Raises OSError.
    """
    os.umask(ROOM_UMASK)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def dumpable(yes: bool) -> None:
    """Whether processes of the same user may look into this one, and into what is forked from it."""
    _prctl("set dumpable", PR_SET_DUMPABLE, int(yes))


def end_with_parent() -> None:
    """Die when the process that made this one does."""
    _prctl("set the parent's signal", PR_SET_PDEATHSIG, signal.SIGKILL)


def new_session_keyring() -> None:
    """Leave the keys of whoever made this process, where the kernel has keys at all. Raises KernelError."""
    result = _libc.numbered("keyctl", KEYCTL_JOIN_SESSION_KEYRING, None)
    if result < 0 and ctypes.get_errno() != errno.ENOSYS:
        _libc.check(result, "join a session keyring of its own")


def limit_room() -> None:
    """The limits that a program in a room begins with: it may raise the soft ones. Raises OSError."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(ROOM_NOFILE, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def narrow(capabilities: Collection[int]) -> None:
    """Stay root with these capabilities (numbers), where there are that many, and no way to get more.

    A container's root may have come with fewer. Raises KernelError.
    """
    held = {number for number in capabilities if _libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1}
    _bound(held)
    _capset(held)


def _bound(capabilities: Collection[int]) -> None:
    for number in range(CAPABILITIES_MAX):
        if number in capabilities:
            continue
        held = _libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0)
        if held < 0:
            break
        if held:
            _prctl("drop from the bounding set", PR_CAPBSET_DROP, number, number)


def _prctl(what: str, option: int, value: int, on: object = "") -> None:
    # Safe: integers only, no pointer is passed by any option used here.
    _libc.check(_libc.prctl(option, value, 0, 0, 0), what, on)


def _capset(numbers: Iterable[int]) -> None:
    """Permitted and effective become exactly these; inheritable becomes empty."""
    bits = sum(1 << number for number in set(numbers))
    header = _libc.CapHeader(CAP_VERSION_3, 0)
    data = (_libc.CapData * 2)(
        _libc.CapData(bits & 0xFFFF_FFFF, bits & 0xFFFF_FFFF, 0), _libc.CapData(bits >> 32, bits >> 32, 0)
    )
    _libc.check(_libc.capset(header, data), "set capabilities")


def close_all_but(keep: Collection[int]) -> None:
    """Close every descriptor that is not listed. Raises KernelError."""
    low = 0
    for fd in [*sorted(set(keep)), 2**32 - 1]:
        if fd > low:
            _libc.check(_libc.close_range(low, fd - 1, 0), "close descriptors from", low)
        low = fd + 1
