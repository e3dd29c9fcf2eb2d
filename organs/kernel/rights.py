"""Descriptors beside a datagram (SCM_RIGHTS), closed on exec from the moment that they are ours.

Python's `socket.recv_fds` takes flags and drops them (3.11): what it brings goes on into every program that
is started later, and it waits where it was told not to.
Touches: recvmsg(2) on a socket that it is given.
Never: waits longer than the socket or the flags say.
Fails: OSError from the kernel.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Iterable
from typing import Final

_FD_BYTES: Final = array.array("i").itemsize


def receive(line: socket.socket, size: int, count: int, flags: int = 0) -> tuple[bytes, list[int], int]:
    """A datagram of at most `size` bytes, at most `count` descriptors, what the kernel says of both.

    MSG_TRUNC in the last: there were more bytes. MSG_CTRUNC: there were more descriptors, which it closed.
    Raises OSError.
    """
    datagram, ancillary, said, _ = line.recvmsg(size, space(count), flags | socket.MSG_CMSG_CLOEXEC)
    return datagram, found(ancillary), said


def space(count: int) -> int:
    """The bytes that recvmsg needs beside a datagram for exactly so many descriptors."""
    return socket.CMSG_LEN(count * _FD_BYTES)


def found(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in what recvmsg brought beside a datagram."""
    fds: array.array[int] = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    return list(fds)
