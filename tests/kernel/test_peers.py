"""Who is at the other end of a socket: what the kernel says, by both ways of asking it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from organs.kernel import peers

pytestmark = pytest.mark.container


def unified() -> Path:
    """Where the v2 tree is mounted here."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        return next(Path(line.split()[1]) for line in mounts if line.split()[2] == "cgroup2")


@pytest.fixture(name="cgroup")
def _cgroup() -> Iterator[Path]:
    path = unified() / f"peers-test-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


class Other:
    """A process in a cgroup that connects, and lives until it is let go."""

    def __init__(self, cgroup: Path, listener: socket.socket) -> None:
        hold, self._release = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._release)
                (cgroup / "cgroup.procs").write_text("0")
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(listener.getsockname())
                    os.read(hold, 1)
            finally:
                os._exit(0)
        os.close(hold)
        self.peer, _ = listener.accept()

    def end(self) -> None:
        """Let it go, and wait until it is gone."""
        os.close(self._release)
        os.waitpid(self.pid, 0)


@pytest.fixture(name="listener")
def _listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        yield listener


@pytest.mark.parametrize("direct", [True, False], ids=["asked", "looked-up"])
def test_a_peer_is_known_by_its_cgroup(
    cgroup: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    if not direct:
        monkeypatch.setattr(peers, "_asked", lambda _pidfd: None)
    other = Other(cgroup, listener)
    try:
        assert peers.credentials(other.peer) == (other.pid, os.getuid(), os.getgid())
        assert peers.cgroup_id(other.peer, str(unified())) == cgroup.stat().st_ino
    finally:
        other.end()
        other.peer.close()


def test_a_peer_that_is_gone_is_not_looked_up(
    cgroup: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_asked", lambda _pidfd: None)
    other = Other(cgroup, listener)
    other.end()
    with pytest.raises(OSError, match=r"."):
        peers.cgroup_id(other.peer, str(unified()))
    other.peer.close()


def test_what_is_no_socket_of_ours_says_nothing() -> None:
    with socket.socket(socket.AF_INET) as sock, pytest.raises(OSError, match=r"."):
        peers.cgroup_id(sock)
