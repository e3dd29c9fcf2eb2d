"""Descriptors beside a datagram: closed on exec, none is lost unsaid, and no wait that was not asked for."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from organs.kernel import rights

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


def taken(fds: list[int]) -> list[bool]:
    """Whether each goes on into a program; it is closed."""
    inheritable = [os.get_inheritable(fd) for fd in fds]
    for fd in fds:
        os.close(fd)
    return inheritable


@pytest.mark.proves("INV-PRIV-5")
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_what_came_is_closed_on_exec(pair: Pair, count: int) -> None:
    with open(os.devnull, "rb") as null:
        os.set_inheritable(null.fileno(), True)
        socket.send_fds(pair[0], [b"word"], [null.fileno()] * count)
        datagram, fds, said = rights.receive(pair[1], 16, 7)
        assert (datagram, taken(fds)) == (b"word", [False] * count)
        assert not said & (socket.MSG_TRUNC | socket.MSG_CTRUNC)


@pytest.mark.parametrize(("size", "count", "flag"), [(2, 3, socket.MSG_TRUNC), (16, 2, socket.MSG_CTRUNC)])
def test_what_did_not_fit_is_told(pair: Pair, size: int, count: int, flag: int) -> None:
    with open(os.devnull, "rb") as null:
        socket.send_fds(pair[0], [b"word"], [null.fileno()] * 3)
        datagram, fds, said = rights.receive(pair[1], size, count)
        assert datagram == b"word"[:size]
        assert len(taken(fds)) == count
        assert said & (socket.MSG_TRUNC | socket.MSG_CTRUNC) == flag


def test_who_does_not_want_to_wait_does_not(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        rights.receive(pair[1], 16, 1, socket.MSG_DONTWAIT)
