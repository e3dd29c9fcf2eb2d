"""A room gets the network and loses it: real namespaces, a real wire, a real DHCP server at its far end."""

from __future__ import annotations

import errno
import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import trio

from bus.envelope import Code, Failure
from organs.kernel import netlink, network
from organs.netroom import dhcp, lease, organ
from organs.netroom.organ import own_mac
from tests.netroom.world import ROOT, Given, Net, Room, net, room, sent, serving, tool, within

pytestmark = pytest.mark.container

# Long enough for an answer from the next namespace, which takes microseconds; the kernel asks twice in it.
NO_ANSWER_S = 1.5
DEADLINE_S = 60
ROUTER = ("10.77.0.1", 7)


async def until(what: str, true: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    with trio.move_on_after(DEADLINE_S / 2):
        while not true():
            await trio.sleep(0.01)
        return
    raise AssertionError(f"not {what}")


def echoed(by: socket.socket) -> bytes:
    """What the router says back to a client in the room."""
    with by:
        by.settimeout(DEADLINE_S)
        by.connect(ROUTER)
        by.sendall(b"is anybody there?")
        return by.recv(100)


def knock(world: Net, address: str, port: int) -> str:
    """What a client outside meets at a port of the room."""
    with world.client() as client:
        client.settimeout(NO_ANSWER_S)
        try:
            client.connect((address, port))
        except TimeoutError:
            return "no answer"
        except ConnectionRefusedError:
            return "refused"
        return "accepted"


def host(answer: dict[str, object]) -> str:
    return str(answer["address"]).split("/")[0]


@pytest.fixture(name="world")
def _world() -> Iterator[Net]:
    with net() as made:
        yield made


@pytest.fixture(name="linda")
def _linda() -> Iterator[Room]:
    with room("linda") as made:
        yield made


@pytest.mark.proves("INV-NET-5")
async def test_connect_cut_and_connect_again(world: Net, linda: Room) -> None:
    with trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            answer = await netroom.connect(linda)
            assert answer == {"address": "10.77.0.100/24", "router": "10.77.0.1"}
            assert linda.addresses() == ["10.77.0.100/24"]
            assert linda.resolv_conf() == "nameserver 10.77.0.1\n"
            assert echoed(linda.socket()) == b"is anybody there?"
            route = tool(linda.namespace, "ip", "route", "get", "10.0.0.1")
            assert "via 10.77.0.1 dev eth0 src 10.77.0.100" in route
            established = linda.socket()
            established.connect(ROUTER)

            await netroom.cut(linda)
            link = linda.link()
            assert link is not None
            assert not link.up
            assert linda.addresses() == []
            assert tool(linda.namespace, "ip", "route") == ""
            # Whatever the room does now, no packet leaves it; nor does a connection that it had.
            before = linda.sent()
            with established, pytest.raises(OSError, match="unreachable"):
                linda.socket().connect(ROUTER)
            with within(linda.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as asking:
                with pytest.raises(OSError, match="unreachable"):
                    asking.sendto(b"hello", ROUTER)
            await trio.sleep(NO_ANSWER_S)
            assert linda.sent() == before

            # The address of the last time is asked for by name; one round trip.
            assert await netroom.connect(linda) == answer
            assert echoed(linda.socket()) == b"is anybody there?"
            again = linda.link()
            assert again is not None
            assert (again.index, again.mac) == (link.index, link.mac)


@pytest.mark.proves("INV-NET-4")
async def test_only_declared_ports_answer(world: Net, linda: Room) -> None:
    """80 is declared; 81 has a server that nobody may reach; behind 82 nobody listens."""
    with linda.listener(80), linda.listener(81), trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            address = host(await netroom.connect(linda, 80, 82))
            assert knock(world, address, 80) == "accepted"
            assert knock(world, address, 82) == "refused"
            assert knock(world, address, 81) == "no answer"
            assert knock(world, address, 83) == "no answer"
            # The next connect closes what it does not open.
            assert host(await netroom.connect(linda, 81)) == address
            assert knock(world, address, 80) == "no answer"
            assert knock(world, address, 81) == "accepted"
            await netroom.cut(linda)
            assert knock(world, address, 81) != "accepted"


async def test_without_the_filter_they_would(world: Net, linda: Room) -> None:
    """The judge of the test above notices: the same doors, with the filter taken away."""
    with linda.listener(81), trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            address = host(await netroom.connect(linda, 80))
            assert (knock(world, address, 81), knock(world, address, 83)) == ("no answer", "no answer")
            table = subprocess.run(
                [
                    "nsenter",
                    f"--net=/proc/self/fd/{linda.namespace}",
                    "nft",
                    "delete",
                    "table",
                    "inet",
                    "room",
                ],
                pass_fds=[linda.namespace],
                check=False,
                capture_output=True,
            )
            if table.returncode:
                pytest.skip("needs nft, of the Debian package nftables")
            assert (knock(world, address, 81), knock(world, address, 83)) == ("accepted", "refused")


@pytest.mark.proves("INV-NET-4")
async def test_the_filter_comes_before_the_link(world: Net, linda: Room) -> None:
    """Where the filter is refused there is no link; the filter's socket is one that cannot load any."""
    with trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            fds = list(linda.handed())
            os.close(fds[2])
            fds[2] = os.dup(linda.route)
            with Given(*fds) as given, pytest.raises(Failure) as refused:
                await netroom.handlers["connect"](given, {"room": "linda", "inbound": []})
            assert refused.value.code is Code.REFUSED
            assert linda.link() is None
            assert world.up() == set()


@pytest.mark.proves("INV-NET-3")
async def test_what_carries_is_up_only_while_a_room_is_connected(world: Net, linda: Room) -> None:
    with room("mark") as mark, trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            assert world.up() == set()
            await netroom.connect(linda)
            assert world.up() == {"eth0"}
            assert [link["state"] for link in (await netroom.handlers["links"](Given(), {}))["links"]] == [  # type: ignore[attr-defined]
                "carrying"
            ]
            # It is in nobody's namespace, has no address of any family, and says nothing of its own.
            [card] = [link for link in world.there.links() if link.name == "eth0"]
            assert tool(world.parking, "ip", "-brief", "address", "show", "eth0").split()[2:] == []
            assert tool(world.parking, "ip", "route") == tool(world.parking, "ip", "-6", "route") == ""
            await netroom.connect(mark)
            assert world.up() == {"eth0"}
            await netroom.cut(linda)
            assert world.up() == {"eth0"}
            await netroom.cut(mark)
            assert world.up() == set()
            await netroom.connect(mark)
            assert world.up() == {"eth0"}
            await netroom.forget(mark)
            assert world.up() == set()
            # All that went over the wire came from the rooms' own links: the card sent what they sent.
            assert 0 < sent(world.parking, "eth0") <= linda.sent() + mark.sent()
            assert card.mac not in {link.mac for link in (linda.link(), mark.link()) if link is not None}


@pytest.mark.proves("INV-NET-3")
async def test_a_card_in_use_gives_itself_no_address(world: Net, linda: Room) -> None:
    """A router on the wire that offers addresses to everybody (IPv6) gets none taken."""
    with trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            await netroom.connect(linda)
            for namespace in (world.parking, linda.namespace):
                shown = tool(namespace, "ip", "-6", "-brief", "address")
                assert [line.split()[2:] for line in shown.splitlines() if "eth0" in line] == []
            # In the room IPv6 is there, on the loopback, and nowhere else.
            asking = within(linda.namespace, lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            with asking, pytest.raises(OSError, match=r"unreachable|assign|permitted"):
                asking.sendto(b"hello", ("2001:db8::1", 9))


async def test_another_incarnation_begins_with_silence(world: Net, linda: Room) -> None:
    with trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            first = await netroom.connect(linda)
        # Killed. The room's link is there, but what carried it goes down with the first look of the next.
        async with serving(world) as netroom:
            assert world.up() == set()
            assert await netroom.connect(linda) == first
            assert echoed(linda.socket()) == b"is anybody there?"
        async with serving(world) as netroom:
            # And it can cut a room that it does not know.
            await netroom.cut(linda)
            assert linda.addresses() == []
            link = linda.link()
            assert link is not None
            assert not link.up
            await netroom.cut(linda)


async def test_what_an_incarnation_left_half_made_goes(
    world: Net, linda: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed when it had made the link and not named it; or another card carries by now."""
    with trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            [card] = [link for link in world.there.links() if link.name == "eth0"]
            world.there.add_macvlan("eth0", card.index, linda.namespace, bytes.fromhex("020000000001"))
            assert [link.name for link in linda.inside.links()] == ["lo", "macvlan0"]
            await netroom.connect(linda)
            first = linda.link()
            assert first is not None
            assert [link.name for link in linda.inside.links()] == ["lo", "eth0"]
            await netroom.cut(linda)
            monkeypatch.setattr(organ, "ANSWER_S", 0.1)
            # Another card is there, and the one before is gone, but not its links.
            tool(world.parking, "ip", "link", "add", "nic9", "type", "veth", "peer", "name", "far9")
            elsewhere = network.new_namespace()
            world.there.move("eth0", card.index, elsewhere, "away")
            os.close(elsewhere)
            await netroom.connect(linda)
            second = linda.link()
            assert second is not None
            assert second.mac != first.mac


async def test_without_a_card_and_with_one_that_comes(linda: Room) -> None:
    with net(plugged=False) as world, trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            assert await netroom.connect(linda, 80) == {"address": "", "router": ""}
            assert linda.link() is None
            world.plug()
            await until("an address", lambda: linda.addresses() == ["10.77.0.100/24"])
            assert echoed(linda.socket()) == b"is anybody there?"
            # Pulled out: the room's link goes as well. Put in again: another one comes.
            world.unplug()
            await until("no link", lambda: linda.link() is None)
            world.plug()
            await until("an address again", lambda: linda.addresses() == ["10.77.0.100/24"])
            assert echoed(linda.socket()) == b"is anybody there?"


async def test_a_server_that_is_silent_holds_nobody_up_for_long(
    world: Net, linda: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(organ, "ANSWER_S", 0.1)
    monkeypatch.setattr(lease, "ANSWER_WAITS_S", (1,))
    world.stall()
    with trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            assert await netroom.connect(linda) == {"address": "", "router": ""}
            assert linda.addresses() == []
            # A room without an address can be cut, and connected again.
            await netroom.cut(linda)
            assert await netroom.connect(linda) == {"address": "", "router": ""}
            world.go_on()
            await until("an address", lambda: linda.addresses() == ["10.77.0.100/24"])
            assert linda.resolv_conf() == "nameserver 10.77.0.1\n"


async def test_a_lease_is_renewed_and_its_end_takes_the_address(
    linda: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shorter lease than would be taken: 4 s, renewed after 2, over when nobody answers."""
    monkeypatch.setattr(dhcp, "LEASE_S_MIN", 4)
    with net(lease_s=4) as world, trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            await netroom.connect(linda)
            before = linda.sent()
            await until("asked again", lambda: linda.sent() > before)
            assert linda.addresses() == ["10.77.0.100/24"]
            world.stall()
            await until("no address", lambda: linda.addresses() == [])
            assert linda.resolv_conf() == ""
            world.go_on()
            await until("an address", lambda: linda.addresses() == ["10.77.0.100/24"])


async def test_what_is_asked_wrongly_is_refused_and_nothing_leaks(world: Net, linda: Room) -> None:
    with trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:

            async def refused(given: Given, method: str, **params: object) -> Code:
                with given, pytest.raises(Failure) as failure:
                    await netroom.handlers[method](given, params)
                return failure.value.code

            gc.collect()  # what earlier tests left open is not this one's
            open_before = len(os.listdir("/proc/self/fd"))
            for name in ("", "Linda", "a b", "l" * 16, "../x", "1a", "linda\n"):
                assert await refused(Given(), "forget", room=name) is Code.INVALID
                assert await refused(Given(*linda.handed()), "connect", room=name, inbound=[]) is Code.INVALID
            for inbound in ([0], [65536], [*range(1, 40)]):
                given = Given(*linda.handed())
                assert await refused(given, "connect", room="linda", inbound=inbound) is Code.INVALID
            short = Given(*(os.dup(fd) for fd in (linda.namespace, linda.route)))
            assert await refused(short, "connect", room="linda", inbound=[]) is Code.INVALID
            assert await refused(Given(os.dup(linda.route)), "cut", room="linda") is Code.INVALID
            # Descriptors that are something else.
            nonsense = Given(*(os.open("/dev/null", os.O_RDWR) for _ in range(5)))
            assert await refused(nonsense, "connect", room="linda", inbound=[]) is Code.REFUSED
            two = Given(*(os.open("/dev/null", os.O_RDWR) for _ in range(2)))
            assert await refused(two, "cut", room="linda") is Code.REFUSED
            assert len(os.listdir("/proc/self/fd")) == open_before
            assert linda.link() is None
            # After a good connect and its end there are no more either.
            await netroom.connect(linda)
            await netroom.connect(linda)
            await netroom.cut(linda)
            assert len(os.listdir("/proc/self/fd")) == open_before


async def test_there_are_no_more_rooms_than_slots(
    world: Net, linda: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(organ, "ANSWER_S", 0)
    with trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            for number in range(organ.ROOMS_MAX):
                await netroom.connect(named(linda, f"r{number}"))
            with pytest.raises(Failure) as full:
                await netroom.connect(linda)
            assert full.value.code is Code.FULL
            await netroom.forget(named(linda, "r3"))
            await netroom.connect(linda)


async def test_a_room_that_is_remembered_only_keeps_no_other_out(
    world: Net, linda: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(organ, "ROOMS_MAX", 1)
    with trio.fail_after(DEADLINE_S):
        async with serving(world) as netroom:
            gone = named(linda, "gone")
            assert host(await netroom.connect(gone)) != ""
            await netroom.cut(gone)
            # It ended, and nobody said so.
            assert host(await netroom.connect(linda)) != ""
            with pytest.raises(Failure) as full:
                await netroom.connect(gone)
            assert full.value.code is Code.FULL


def named(one: Room, name: str) -> Room:
    """The same room under another name."""
    other = object.__new__(Room)
    other.__dict__.update(one.__dict__, name=name)
    return other


def test_a_hardware_address_is_local_and_says_nothing() -> None:
    seen = {own_mac(name, below) for name in ("linda", "mark") for below in (b"\0" * 6, b"\2" + b"\0" * 5)}
    assert len(seen) == 4
    for mac in seen:
        assert len(mac) == 6
        assert mac[0] & 0x03 == 0x02
    assert own_mac("linda", bytes(6)) == own_mac("linda", bytes(6))


def test_only_a_refusal_of_the_kernel_is_the_room_s() -> None:
    with pytest.raises(organ.RoomRefused, match=r"linda: .*No such device"), organ.in_room("linda"):
        raise OSError(errno.ENODEV, "No such device")
    with pytest.raises(organ.RoomRefused), organ.in_room("linda"):
        raise netlink.Garbled("bytes")
    with pytest.raises(KeyError), organ.in_room("linda"):
        raise KeyError("ours")


def test_a_world_is_gone_when_it_is_closed() -> None:
    """The tests' own: neither a namespace nor a process of the wire stays."""
    with net() as world:
        assert world.wire is not None
        pid = world.wire.pid
    assert not os.path.exists(f"/proc/{pid}")


def confined(world: Net, linda: Room, *before: str) -> list[object]:
    """What netroom answers when it holds what its stanza gives it, and its calls are filtered."""
    fds = [world.parking, world.sockets[1], linda.namespace, linda.route, linda.filter, linda.dhcp]
    fds.append(linda.resolv)
    enter = ["nsenter", f"--net=/proc/self/fd/{world.spine}"]
    command = [*enter, sys.executable, "-m", "tests.netroom.confined", *before, *map(str, fds)]
    done = subprocess.run(
        command,
        pass_fds=[world.spine, *fds],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'spine-image'}"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=DEADLINE_S,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.proves("INV-PRIV-2")
def test_with_the_powers_of_its_stanza_it_can_do_all_of_this(world: Net, linda: Room) -> None:
    """The room's namespaces belong to a user namespace of its own; its NET_ADMIN is of the first one."""
    address = {"address": "10.77.0.100/24", "router": "10.77.0.1"}
    assert confined(world, linda) == [address, {}, address]
    assert linda.resolv_conf() == "nameserver 10.77.0.1\n"
    # It was ended while the room was connected.
    assert linda.addresses() == ["10.77.0.100/24"]


def test_without_its_capability_it_could_not(linda: Room) -> None:
    with net(plugged=False) as world:
        assert confined(world, linda, "--powerless") == ["REFUSED", {}, "REFUSED"]
