"""Mounts: the API filesystems of the early boot, and an organ's own mount namespace.

Touches: mount(2), umount2(2), unshare(2), /proc/filesystems and /proc/self/mountinfo to read.
Never: resolves a path below a mounted image; follows what a configuration file says.
Fails: KernelError naming the mount point.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from organs.kernel import _libc

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_NOATIME: Final = 0x400
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x4_0000
CLONE_NEWNS: Final = 0x2_0000

# What no filesystem of the spine needs but the root: set-id bits, device nodes, programs.
INERT: Final = MS_NOSUID | MS_NODEV | MS_NOEXEC


class Need(Enum):
    """What a missing filesystem means."""

    ALWAYS = "panic"
    IF_OFFERED = "left out when the kernel does not offer it"


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyMount:
    """One filesystem that PID 1 mounts before anything else. What is mounted already is left."""

    type: str
    at: str
    flags: int
    data: str = ""
    need: Need = Need.ALWAYS


# In this order: a mount point may lie in a filesystem above it. Memory filesystems are small on purpose: what
# fills them is a defect, and it should be found before memory is.
EARLY: Final = (
    EarlyMount(type="proc", at="/proc", flags=INERT),
    EarlyMount(type="sysfs", at="/sys", flags=INERT | MS_RDONLY),
    EarlyMount(type="devtmpfs", at="/dev", flags=MS_NOSUID | MS_NOEXEC, data="mode=0755"),
    EarlyMount(type="tmpfs", at="/run", flags=INERT, data="mode=0755,size=16m"),
    EarlyMount(type="tmpfs", at="/tmp", flags=INERT, data="mode=1777,size=16m"),
    EarlyMount(type="cgroup2", at="/sys/fs/cgroup", flags=INERT, data="nsdelegate"),
    EarlyMount(type="securityfs", at="/sys/kernel/security", flags=INERT, need=Need.IF_OFFERED),
    EarlyMount(type="pstore", at="/sys/fs/pstore", flags=INERT, need=Need.IF_OFFERED),
)


def plan(table: Iterable[EarlyMount], mounted: frozenset[str], offered: frozenset[str]) -> list[EarlyMount]:
    """What is left to mount: not what is there, nor what the kernel lacks and we can do without."""
    return [
        entry
        for entry in table
        if entry.at not in mounted and (entry.need is Need.ALWAYS or entry.type in offered)
    ]


def early() -> list[str]:
    """Mount the API filesystems; the mount points that were mounted now. Raises KernelError."""
    proc = EARLY[0]
    done = []
    if not os.path.ismount(proc.at):
        mount(proc.type, proc.at, proc.type, proc.flags, proc.data)
        done.append(proc.at)
    for entry in plan(EARLY, mount_points(), offered_types()):
        mount(entry.type, entry.at, entry.type, entry.flags, entry.data)
        done.append(entry.at)
    return done


def mount(source: str, at: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2). Raises KernelError."""
    result = _libc.mount(source.encode(), at.encode(), kind.encode(), flags, data.encode())
    _libc.check(result, f"mount {kind} at", at)


def own_namespace() -> None:
    """Leave the shared mount namespace: nobody else sees what is mounted from here on. Raises KernelError."""
    _libc.check(_libc.unshare(CLONE_NEWNS), "unshare the mount namespace")
    # A shared parent mount would carry our mounts back into the namespace we came from.
    _libc.check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make mounts private at", "/")


def mount_points(pid: int | None = None) -> frozenset[str]:
    """Where something is mounted, as the process sees it."""
    with open(f"/proc/{pid or 'self'}/mountinfo", encoding="utf-8") as file:
        return frozenset(line.split()[4] for line in file)


def offered_types() -> frozenset[str]:
    """The filesystem types this kernel has."""
    with open("/proc/filesystems", encoding="ascii") as file:
        return frozenset(line.split()[-1] for line in file)
