"""Peers: what the kernel says of the process at the other end of a UNIX socket.

Touches: socket options, the pidfd of a peer, /proc/PID/cgroup to read.
Never: believes anything that the peer sent.
Fails: OSError where the kernel does not say; whoever asks then treats the peer as a stranger.

What the kernel remembers is who called connect(2), not who writes now: a socket can be handed on. So these
facts are checked beside the listening socket that the connection came in by, never instead of it.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from typing import Final, Protocol

# Where the cgroup v2 tree is mounted.
CGROUPS: Final = "/sys/fs/cgroup"
SO_PEERPIDFD: Final = 77
# linux/pidfd.h: struct pidfd_info of 64 bytes, offered from 6.13 on.
PIDFD_GET_INFO: Final = 0xC040_FF0B
_INFO: Final = struct.Struct("<QQ48x")
INFO_CGROUPID: Final = 1 << 2
_UCRED: Final = struct.Struct("=iII")


class Peer(Protocol):
    """A connected socket, of the standard library or of a loop."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def credentials(peer: Peer) -> tuple[int, int, int]:
    """(pid, uid, gid) of who connected; the pid is for logs only. Raises OSError."""
    pid, uid, gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def cgroup_id(peer: Peer, root: str = CGROUPS) -> int:
    """The id of the cgroup of who connected: the inode of its directory. Raises OSError.

    `root` is where the cgroup v2 tree is mounted. A process that is gone is an error on kernels that have
    only /proc to tell; newer ones remember.
    """
    size = struct.calcsize("=i")
    (pidfd,) = struct.unpack("=i", peer.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, size))
    try:
        known = _asked(pidfd)
        return known if known is not None else _looked_up(pidfd, root)
    finally:
        os.close(pidfd)


def _asked(pidfd: int) -> int | None:
    """What the kernel answers to the direct question; None when it does not know the question."""
    info = bytearray(_INFO.pack(INFO_CGROUPID, 0))
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info, True)
    except OSError:
        return None
    mask, identity = _INFO.unpack(info)
    return identity if mask & INFO_CGROUPID else None


def _looked_up(pidfd: int, root: str) -> int:
    """The same by name. A pid may be another process' by now, so the pidfd is asked at the end."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        pid = next(int(line.split()[1]) for line in file if line.startswith("Pid:"))
    if pid <= 0:
        raise ProcessLookupError("the peer is gone")
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        path = next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), None)
    if path is None or ".." in path.split("/"):
        raise ProcessLookupError("the peer is in no cgroup that can be seen from here")
    identity = os.stat(root + path).st_ino
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    if waiting.poll(0):
        raise ProcessLookupError("the peer ended while it was looked at")
    return identity
