"""A small world of real namespaces: a spine, a parking, rooms, and a network behind a real wire."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import trio

from bus.server import Events
from organs.kernel import netlink, network, nftables
from organs.netroom import organ
from organs.netroom.organ import Netroom
from tests.bus.wiring import own_schemas

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
NETNS = "/proc/self/ns/net"


def within(namespace: int, act: Callable[[], T]) -> T:
    """Do something in another network namespace; this thread is back in its own afterwards."""
    home = os.open(NETNS, os.O_RDONLY)
    try:
        network._enter(namespace)
        try:
            return act()
        finally:
            network._enter(home)
    finally:
        os.close(home)


def tool(namespace: int, *words: str) -> str:
    """A program inside a network namespace."""
    command = ["nsenter", f"--net=/proc/self/fd/{namespace}", *words]
    done = subprocess.run(command, pass_fds=[namespace], capture_output=True, text=True, check=True)
    return done.stdout


def sent(namespace: int, link: str) -> int:
    """Packets that a link has sent, as the kernel counts them. (/sys shows those of whoever mounted it.)"""
    [shown] = json.loads(tool(namespace, "ip", "-json", "-statistics", "link", "show", link))
    return int(shown["stats64"]["tx"]["packets"])


def owned_namespace() -> int:
    """A network namespace that belongs to a user namespace of its own, as a room's does."""
    maker = subprocess.Popen(
        ["unshare", "--user", "--net", "sh", "-c", "echo made; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert maker.stdin is not None
    assert maker.stdout is not None
    try:
        assert maker.stdout.readline() == b"made\n"
        return os.open(f"/proc/{maker.pid}/ns/net", os.O_RDONLY)
    finally:
        maker.stdin.close()
        maker.wait()
        maker.stdout.close()


def dhcp_socket() -> int:
    """What the builder makes in a room for netroom to ask by."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("0.0.0.0", 68))
    return made.detach()


@dataclass
class Room:
    """A room's network, and what the builder would hand over of it."""

    name: str
    namespace: int = field(default_factory=owned_namespace)
    resolv: int = field(default_factory=lambda: os.memfd_create("resolv.conf"))

    def __post_init__(self) -> None:
        self.route = network.netlink_in(self.namespace)
        self.filter = within(self.namespace, lambda: nftables.netfilter_socket().detach())
        self.dhcp = within(self.namespace, dhcp_socket)
        tool(self.namespace, "ip", "link", "set", "lo", "up")
        self.inside = netlink.through(os.dup(self.route))

    def handed(self) -> tuple[int, ...]:
        """For connect."""
        mine = (self.namespace, self.route, self.filter, self.dhcp, self.resolv)
        return tuple(os.dup(fd) for fd in mine)

    def link(self) -> netlink.Link | None:
        """Its own link to the network."""
        return next((link for link in self.inside.links() if link.name == "eth0"), None)

    def addresses(self) -> list[str]:
        """What it is called on the network."""
        link = self.link()
        return [] if link is None else [str(a.interface) for a in self.inside.addresses(link.index)]

    def resolv_conf(self) -> str:
        """What it would read."""
        return os.pread(self.resolv, 4096, 0).decode()

    def sent(self) -> int:
        """Packets that its link has sent, as the kernel counts them."""
        return sent(self.namespace, "eth0")

    def listener(self, port: int) -> socket.socket:
        """A server in the room."""
        return within(self.namespace, lambda: socket.create_server(("0.0.0.0", port)))

    def socket(self) -> socket.socket:
        """A client in the room."""
        return within(self.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))

    def close(self) -> None:
        """Let its network end."""
        self.inside.close()
        for fd in (self.namespace, self.route, self.filter, self.dhcp, self.resolv):
            os.close(fd)


class Given:
    """A call with descriptors, as a handler sees it."""

    def __init__(self, *fds: int) -> None:
        self.fds = fds

    def __enter__(self) -> Given:
        return self

    def __exit__(self, *_: object) -> None:
        """As the server does when the handler has returned."""
        for fd in self.fds:
            os.close(fd)


class Net:
    """The namespaces of a spine, and of a network that its card is plugged into."""

    def __init__(self, *, lease_s: int = 3600, plugged: bool = True) -> None:
        self.spine, self.parking = network.new_namespace(), network.new_namespace()
        self.sockets = [network.netlink_in(self.spine), network.netlink_in(self.parking)]
        self.here, self.there = (netlink.through(os.dup(fd)) for fd in self.sockets)
        self.lease_s = lease_s
        self.wire: subprocess.Popen[str] | None = None
        if plugged:
            self.plug()

    def plug(self) -> None:
        """Put a card in, which is the near end of a wire."""
        self.wire = subprocess.Popen(
            [sys.executable, "-m", "spine.ground.wire", str(self.spine), str(os.getpid()), str(self.lease_s)],
            pass_fds=[self.spine],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'spine-image'}"},
        )
        assert self.wire.stdout is not None
        assert self.wire.stdout.readline() == "ready\n"

    def unplug(self) -> None:
        """Pull the card out: both ends of the wire go."""
        if self.wire is not None:
            assert self.wire.stdout is not None
            self.wire.stdout.close()
            self.wire.kill()
            self.wire.wait()
            self.wire = None

    def outside(self, act: Callable[[], T]) -> T:
        """Do something where the router is."""
        assert self.wire is not None
        namespace = os.open(f"/proc/{self.wire.pid}/ns/net", os.O_RDONLY)
        try:
            return within(namespace, act)
        finally:
            os.close(namespace)

    def client(self) -> socket.socket:
        """A socket out there."""
        return self.outside(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))

    def stall(self) -> None:
        """The network does not answer any more; its namespace and wire are there."""
        assert self.wire is not None
        self.wire.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again."""
        assert self.wire is not None
        self.wire.send_signal(signal.SIGCONT)

    def netroom(self) -> Netroom:
        """A fresh incarnation's view."""
        return Netroom(self.here, self.there, self.parking)

    def up(self) -> set[str]:
        """Links that are up in the spine's namespace or in the parking."""
        return {link.name for link in (*self.here.links(), *self.there.links()) if link.up}

    def close(self) -> None:
        """Let all namespaces end."""
        self.unplug()
        self.here.close()
        self.there.close()
        for fd in (self.spine, self.parking, *self.sockets):
            os.close(fd)


@contextlib.contextmanager
def net(**how: object) -> Iterator[Net]:
    """A network for the time of a test."""
    made = Net(**how)  # type: ignore[arg-type]  # as its constructor has them
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def room(name: str = "linda") -> Iterator[Room]:
    """A room for the time of a test."""
    made = Room(name)
    try:
        yield made
    finally:
        made.close()


class Serving:
    """An incarnation of netroom: the real `main`, with a world of ours about it."""

    def __init__(self, world: Net) -> None:
        self.schemas = own_schemas()
        self.fds = {"netlink:parking": os.dup(world.sockets[1]), "netns:parking": world.parking}
        self.handlers: Mapping[str, organ.Handler] = {}
        self.events: Events | None = None
        self.serving = trio.Event()
        self.asked: list[Mapping[str, object]] = []
        """What bay0 was asked, and what it answers."""
        self.answer: dict[str, object] = {"ok": {"movedMs": 0}}

    async def serve(self, handlers: Mapping[str, organ.Handler], events: Events) -> None:
        """Never returns."""
        self.handlers, self.events = handlers, events
        self.serving.set()
        await trio.sleep_forever()

    async def request(self, message: Mapping[str, object]) -> dict[str, object]:
        """Ask bay0."""
        self.asked.append(message)
        return self.answer

    def told(self) -> dict[str, str]:
        """The connected rooms and their addresses, as the freezer hears them."""
        assert self.events is not None
        schema = self.schemas.interfaces["netroom"].events["connected"]
        told = [schema.decode_params(body) for _, body in self.events.present()]
        return {str(values["room"]): str(values["address"]) for values in told}

    async def connect(self, to: Room, *inbound: int) -> dict[str, object]:
        """As the freezer calls it."""
        asked: dict[str, object] = {"room": to.name, "inbound": list(inbound)}
        with Given(*to.handed()) as given:
            return await self.handlers["connect"](given, asked)

    async def cut(self, of: Room) -> None:
        """As the freezer calls it."""
        with Given(os.dup(of.namespace), os.dup(of.route)) as given:
            assert await self.handlers["cut"](given, {"room": of.name}) == {}

    async def forget(self, of: Room) -> None:
        """As the freezer calls it."""
        assert await self.handlers["forget"](Given(), {"room": of.name}) == {}


@contextlib.asynccontextmanager
async def serving(world: Net) -> AsyncIterator[Serving]:
    """One incarnation, for a while; killed at the end."""
    one = Serving(world)
    changes = within(world.spine, netlink.watch)
    here = netlink.through(os.dup(world.sockets[0]))
    with changes, contextlib.closing(here):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(organ.live, one, here, changes)
            await one.serving.wait()
            yield one
            nursery.cancel_scope.cancel()
