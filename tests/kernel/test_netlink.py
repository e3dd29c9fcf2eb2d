"""Links by rtnetlink: the decoder against any bytes, the requests against the kernel."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.kernel import netlink, network
from organs.kernel.netlink import Address, Answer, Garbled, Link, Message


def attribute(kind: int, value: bytes) -> bytes:
    """As the kernel writes one, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def link_message(link: Link, sequence: int, others: list[tuple[int, bytes]]) -> bytes:
    """A link as the kernel tells of it, with attributes that nobody here reads around it."""
    flags = netlink.IFF_UP * link.up | netlink.IFF_LOOPBACK * link.loopback
    body = struct.pack("=BxHiII", 0, 1 if link.ethernet else 772, link.index, flags, 0)
    body += b"".join(attribute(kind, value) for kind, value in others)
    body += attribute(netlink.IFLA_IFNAME, link.name.encode() + b"\0")
    if link.mac:
        body += attribute(netlink.IFLA_ADDRESS, link.mac)
    if link.kind:
        kind = attribute(netlink.IFLA_INFO_KIND, link.kind.encode())
        body += attribute(netlink.IFLA_LINKINFO, kind + attribute(netlink.IFLA_INFO_DATA, b"abcd"))
    if link.below:
        body += attribute(netlink.IFLA_LINK, struct.pack("=I", link.below))
    return struct.pack("=IHHII", 16 + len(body), netlink.RTM_NEWLINK, 2, sequence, 0) + body


LINKS = st.builds(
    Link,
    index=st.integers(1, 2**31 - 1),
    name=st.text("abcdefgh0123456789.@-_", min_size=1, max_size=15),
    mac=st.binary(min_size=6, max_size=6) | st.just(b""),
    up=st.booleans(),
    loopback=st.booleans(),
    ethernet=st.booleans(),
    kind=st.sampled_from(["", "veth", "macvlan"]),
    below=st.integers(0, 2**31 - 1),
)
OTHERS = st.lists(st.tuples(st.integers(100, 200), st.binary(max_size=40)), max_size=4)


@given(st.lists(st.tuples(LINKS, OTHERS), max_size=5), st.integers(0, 2**32 - 1))
def test_what_the_kernel_tells_is_read(
    links: list[tuple[Link, list[tuple[int, bytes]]]], number: int
) -> None:
    datagram = b"".join(link_message(link, number, others) for link, others in links)
    assert netlink.messages(datagram) == [Message(number, False, link) for link, _ in links]


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_garbled(datagram: bytes) -> None:
    with contextlib.suppress(Garbled):
        netlink.messages(datagram)


@given(LINKS, st.data())
def test_a_changed_datagram_is_messages_or_garbled(link: Link, data: st.DataObject) -> None:
    datagram = bytearray(link_message(link, 1, [(150, b"abc")]))
    for _ in range(data.draw(st.integers(1, 4))):
        datagram[data.draw(st.integers(0, len(datagram) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Garbled):
        netlink.messages(bytes(datagram[: data.draw(st.integers(0, len(datagram)))]))


@pytest.mark.parametrize("name", ["", "a" * 16, "a\0b"])
def test_what_cannot_be_a_name_is_not_sent(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        netlink.move(1, 2, 3, name)
    with pytest.raises(ValueError, match="cannot be the name"):
        netlink.rename(1, 2, name)


def test_what_cannot_be_a_hardware_address_is_not_sent() -> None:
    with pytest.raises(ValueError, match="cannot be a hardware address"):
        netlink.add_macvlan(1, 2, 3, bytes(5))


def test_a_macvlan_is_asked_for_without_a_name() -> None:
    """Before 6.15 a kernel refuses a name that is taken in the namespace of the asker."""
    [(_, _, _, body)] = netlink.split(netlink.add_macvlan(1, 2, 3, bytes(6)))
    asked = dict(netlink.attributes(body[16:]))
    assert netlink.IFLA_IFNAME not in asked
    assert asked[netlink.IFLA_NET_NS_FD] == struct.pack("=I", 3)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 2**31 - 1),
    st.ip_addresses(v=4),
    st.integers(0, 32),
    st.binary(min_size=1, max_size=8),
)
def test_an_address_is_read_as_the_kernel_tells_it(
    number: int, index: int, address: IPv4Address, length: int, label: bytes
) -> None:
    body = struct.pack("=BBBBI", socket.AF_INET, length, 0x80, 0, index)
    body += attribute(netlink.IFA_ADDRESS, address.packed) + attribute(netlink.IFA_LOCAL, address.packed)
    body += attribute(3, label)
    datagram = struct.pack("=IHHII", 16 + len(body), netlink.RTM_NEWADDR, 2, number, 0) + body
    told = Address(index, IPv4Interface(f"{address}/{length}"))
    assert netlink.messages(datagram + bytes(-len(datagram) % 4)) == [Message(number, False, told)]


@pytest.mark.parametrize(("length", "packed"), [(33, b"\x0a\0\0\1"), (24, b"\x0a\0\0"), (24, b"")])
def test_what_is_no_address_is_garbled(length: int, packed: bytes) -> None:
    body = struct.pack("=BBBBI", socket.AF_INET, length, 0, 0, 1) + attribute(netlink.IFA_LOCAL, packed)
    with pytest.raises(Garbled):
        netlink.messages(struct.pack("=IHHII", 16 + len(body), netlink.RTM_NEWADDR, 2, 1, 0) + body)


def test_a_verdict() -> None:
    refused = struct.pack("=IHHIIi", 20, netlink.NLMSG_ERROR, 0, 7, 0, -19)
    assert netlink.messages(refused) == [Message(7, False, Answer(19))]
    interrupted = struct.pack("=IHHIIi", 20, netlink.NLMSG_DONE, netlink.NLM_F_DUMP_INTR, 7, 0, 0)
    assert netlink.messages(interrupted) == [Message(7, True, Answer(0))]


@pytest.fixture(name="namespace")
def _namespace() -> Iterator[int]:
    made = network.new_namespace()
    yield made
    os.close(made)


def ip(namespace: int, *words: str) -> str:
    """The tool `ip` inside a namespace."""
    command = ["nsenter", f"--net=/proc/self/fd/{namespace}", "ip", *words]
    done = subprocess.run(command, pass_fds=[namespace], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.container
def test_links_of_a_namespace(namespace: int) -> None:
    before = os.readlink("/proc/self/ns/net")
    links = netlink.through(network.netlink_in(namespace))
    assert os.readlink("/proc/self/ns/net") == before != os.readlink(f"/proc/self/fd/{namespace}")
    assert links.links() == [Link(1, "lo", bytes(6), False, True)]
    ip(namespace, "link", "add", "one", "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", "two")
    ip(namespace, "link", "set", "one", "up")
    by_name = {link.name: link for link in links.links()}
    assert set(by_name) == {"lo", "one", "two"}
    assert (by_name["one"].mac, by_name["one"].up) == (bytes.fromhex("020000000001"), True)
    links.take_down("one", by_name["one"].index)
    assert not any(link.up for link in links.links())
    other = network.new_namespace()
    try:
        links.move("one", by_name["one"].index, other, "moved")
        assert {link.name for link in links.links()} == {"lo", "two"}
        there = netlink.through(network.netlink_in(other))
        assert {link.name for link in there.links()} == {"lo", "moved"}
        with pytest.raises(OSError, match="unable to take down one: No such device"):
            links.take_down("one", by_name["one"].index)
    finally:
        os.close(other)


@pytest.mark.container
def test_a_link_above_another_with_an_address_and_a_route(namespace: int) -> None:
    """What we ask of the kernel, in the words of `ip`."""
    below = netlink.through(network.netlink_in(namespace))
    ip(namespace, "link", "add", "eth0", "type", "veth", "peer", "name", "far")
    card = next(link for link in below.links() if link.name == "eth0")
    other = network.new_namespace()
    try:
        inside = netlink.through(network.netlink_in(other))
        below.add_macvlan("eth0", card.index, other, bytes.fromhex("020000000009"))
        [born] = [link for link in inside.links() if not link.loopback]
        inside.rename(born.name, born.index, "eth0")
        made = next(link for link in inside.links() if link.name == "eth0")
        assert (made.kind, made.below, made.up) == ("macvlan", card.index, False)
        assert made.mac == bytes.fromhex("020000000009")
        details = ip(other, "-details", "link", "show", "eth0")
        assert "macvlan mode private" in details
        with pytest.raises(OSError, match="unable to add a macvlan above gone: No such device"):
            below.add_macvlan("gone", 12345, other, bytes.fromhex("02000000000a"))
        for name in ("eth0", "far"):
            below.bring_up(name, next(link.index for link in below.links() if link.name == name))
        inside.without_own_address("eth0", made.index)
        inside.bring_up("eth0", made.index)
        interface = IPv4Interface("10.0.0.5/24")
        inside.set_address("eth0", made.index, interface)
        inside.set_address("eth0", made.index, interface)
        inside.set_default_route("eth0", made.index, IPv4Address("10.0.0.1"), interface.ip)
        assert inside.addresses(made.index) == [Address(made.index, interface)]
        # The kernel adds `linkdown` while it has not looked at the far end yet.
        assert "default via 10.0.0.1 dev eth0 proto dhcp src 10.0.0.5 onlink" in ip(other, "route")
        assert "brd 10.0.0.255" in ip(other, "address")
        # Another address: the first one goes, and its routes with it.
        alone = IPv4Interface("192.168.7.7/32")
        inside.set_address("eth0", made.index, alone)
        assert inside.addresses(made.index) == [Address(made.index, alone)]
        assert ip(other, "route") == ""
        # A router beyond the network of a single address is reached all the same.
        inside.set_default_route("eth0", made.index, IPv4Address("10.9.9.9"), alone.ip)
        assert "10.9.9.9" in ip(other, "route", "get", "8.8.8.8")
        inside.take_down("eth0", made.index)
        assert ip(other, "route") == ""
        inside.drop_addresses("eth0", made.index)
        assert inside.addresses(made.index) == []
        inside.remove_link("eth0", made.index)
        assert {link.name for link in inside.links()} == {"lo"}
    finally:
        os.close(other)


@pytest.mark.container
def test_what_another_holder_left_unread_is_not_an_answer(namespace: int) -> None:
    kept = network.netlink_in(namespace)
    killed = netlink.through(os.dup(kept))
    # It asks with the number that the next one begins with, and is gone before it reads: a refusal waits.
    killed._socket.send(netlink.take_down(1, 12345))
    killed.close()
    assert [link.name for link in netlink.through(kept).links()] == ["lo"]


@pytest.mark.container
def test_many_links_come_in_several_datagrams(namespace: int) -> None:
    links = netlink.through(network.netlink_in(namespace))
    commands = "\n".join(f"link add v{n} type veth peer name w{n}" for n in range(60))
    subprocess.run(
        ["nsenter", f"--net=/proc/self/fd/{namespace}", "ip", "-batch", "-"],
        pass_fds=[namespace],
        input=commands.encode(),
        check=True,
    )
    assert len({link.name for link in links.links()}) == 121


@pytest.mark.container
def test_another_process_is_not_believed() -> None:
    """A message to our port from a port that is not the kernel's, with the very number we wait for."""
    ours = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    ours.bind((0, 0))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as other:
        other.bind((0, 0))
        forged = link_message(Link(99, "forged", b"", False, False), 1, [])
        other.sendto(forged, (ours.getsockname()[0], 0))
    names = {link.name for link in netlink.Namespace(ours).links()}
    assert "forged" not in names
    assert "lo" in names
