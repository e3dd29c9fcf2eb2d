"""netroom between two real namespaces: what is there and what comes is parked, what cannot go stays down."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping

import pytest
import trio

from bus.server import Events
from organs.kernel import netlink, network
from organs.netroom import organ
from organs.netroom.organ import Netroom
from tests.bus.wiring import own_schemas

pytestmark = pytest.mark.container


class Two:
    """A spine's namespace and a parking, and netroom's view of both."""

    def __init__(self) -> None:
        self.spine, self.parking = network.new_namespace(), network.new_namespace()
        self.sockets = [network.netlink_in(self.spine), network.netlink_in(self.parking)]
        self.here, self.there = (netlink.through(os.dup(fd)) for fd in self.sockets)

    def netroom(self) -> Netroom:
        """A fresh incarnation."""
        return Netroom(self.here, self.there, self.parking)

    def ip(self, *words: str) -> None:
        """The tool `ip` in the spine's namespace."""
        command = ["nsenter", f"--net=/proc/self/fd/{self.spine}", "ip", *words]
        subprocess.run(command, pass_fds=[self.spine], check=True)

    def names(self) -> tuple[set[str], set[str]]:
        """Links here, and links parked."""
        return {link.name for link in self.here.links()}, {link.name for link in self.there.links()}

    def close(self) -> None:
        """Let both namespaces end."""
        for fd in (self.spine, self.parking, *self.sockets):
            os.close(fd)


@pytest.fixture(name="two")
def _two() -> Iterator[Two]:
    two = Two()
    yield two
    two.close()


@pytest.mark.proves("INV-NET-1")
def test_what_is_there_is_parked_and_down(two: Two) -> None:
    two.ip("link", "add", "eth0", "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", "eth1")
    for name in ("lo", "eth0", "eth1"):
        two.ip("link", "set", name, "up")
    two.ip("address", "add", "10.0.0.1/24", "dev", "eth0")
    netroom = two.netroom()
    netroom.settle()
    assert two.names() == ({"lo"}, {"lo", "eth0", "eth1"})
    assert not any(link.up for link in (*two.here.links(), *two.there.links()))
    assert {"name": "eth0", "mac": "02:00:00:00:00:01", "state": "parked"} in netroom.links()
    # The next incarnation finds all done.
    two.netroom().settle()
    assert two.names() == ({"lo"}, {"lo", "eth0", "eth1"})
    # A link of the same name comes later: it is parked beside the first.
    two.ip("link", "add", "eth0", "type", "veth", "peer", "name", "nic0")
    two.netroom().settle()
    assert two.names() == ({"lo"}, {"lo", "eth0", "eth1", "nic0", "nic1"})


@pytest.mark.proves("INV-NET-3")
def test_what_cannot_be_moved_stays_down(two: Two, capfd: pytest.CaptureFixture[str]) -> None:
    two.ip("link", "add", "bridge0", "type", "bridge")
    two.ip("link", "set", "bridge0", "up")
    netroom = two.netroom()
    netroom.settle()
    netroom.settle()
    assert two.names() == ({"lo", "bridge0"}, {"lo"})
    assert not any(link.up for link in two.here.links())
    assert [(link["name"], link["state"]) for link in netroom.links()] == [("bridge0", "fixed")]
    assert capfd.readouterr().err.count("by nature") == 1


class Nobody:
    """A call that nothing goes beside."""

    fds = ()


class Standing:
    """The runtime as netroom sees it."""

    def __init__(self, two: Two) -> None:
        self.fds = {"netlink:parking": os.dup(two.sockets[1]), "netns:parking": two.parking}
        self.schemas = own_schemas()
        self.serving = trio.Event()
        self.handlers: Mapping[str, organ.Handler] = {}

    async def serve(self, handlers: Mapping[str, organ.Handler], _events: Events) -> None:
        """Never returns."""
        self.handlers = handlers
        self.serving.set()
        await trio.sleep_forever()

    async def request(self, message: Mapping[str, object]) -> dict[str, object]:
        """No room is connected, so bay0 is not asked."""
        raise AssertionError(message)


@pytest.mark.proves("INV-NET-1")
async def test_what_comes_later_is_parked(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "here", lambda: two.here)
    monkeypatch.setattr(netlink, "watch", lambda: watch_in(two.spine))
    two.ip("link", "add", "early", "type", "veth", "peer", "name", "bird")
    standing = Standing(two)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(organ.main, standing)
            await standing.serving.wait()
            # Ready means parked.
            assert two.names() == ({"lo"}, {"lo", "early", "bird"})
            for turn in range(20):
                two.ip("link", "add", f"late{turn}", "type", "veth", "peer", "name", f"comer{turn}")
            while len(two.names()[1]) < 43:
                await trio.sleep(0.005)
            answer = await standing.handlers["links"](Nobody(), {})
            assert len(answer["links"]) == 42  # type: ignore[arg-type]  # a list, by the schema
            assert two.names()[0] == {"lo"}
            nursery.cancel_scope.cancel()


def watch_in(namespace: int) -> socket.socket:
    """As `netlink.watch`, in another namespace than this process'."""
    changes = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE, fileno=network.netlink_in(namespace)
    )
    changes.setblocking(False)
    changes.bind((0, netlink.RTMGRP_LINK))
    return changes


def test_a_queue_that_ran_over_is_emptied(two: Two) -> None:
    changes = watch_in(two.spine)
    with changes:
        changes.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for turn in range(10):
            two.ip("link", "add", f"a{turn}", "type", "veth", "peer", "name", f"b{turn}")
        organ.drain(changes)
        with pytest.raises(BlockingIOError):
            changes.recv(1)
