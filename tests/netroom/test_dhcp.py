"""The DHCP codec: what a client says, byte for byte; any answer is read strictly or is garbled."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv4Address, IPv4Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.netroom import dhcp
from organs.netroom.dhcp import Garbled, Kind, Lease, Question, Reply
from spine.ground import wire

MAC = bytes.fromhex("020000000001")
SERVER = IPv4Address("10.0.0.1")
# A good answer's options, by number.
GOOD = {
    53: b"\x05",
    54: SERVER.packed,
    51: struct.pack(">I", 3600),
    1: bytes([255, 255, 255, 0]),
    3: SERVER.packed,
    6: bytes([10, 0, 0, 2, 10, 0, 0, 3]),
}


def answer(options: dict[int, bytes], *, yours: str = "10.0.0.5", head: bytes = b"\x02\x01\x06\x00") -> bytes:
    """A server's datagram."""
    text = head + struct.pack(">IHH", 7, 0, 0) + bytes(4) + IPv4Address(yours).packed + bytes(8)
    text += MAC.ljust(16, b"\0") + bytes(192) + dhcp.COOKIE
    return text + b"".join(bytes([n, len(v)]) + v for n, v in options.items()) + b"\xff"


def lease_of(**changed: object) -> Lease | None:
    """What is made of the good answer with some options changed (`o51=...`) or left out (None)."""
    options = dict(GOOD)
    yours = str(changed.pop("yours", "10.0.0.5"))
    for name, value in changed.items():
        number = int(name[1:])
        options.pop(number, None)
        if isinstance(value, bytes):
            options[number] = value
    return dhcp.decode(answer(options, yours=yours)).lease


def test_a_question_byte_for_byte() -> None:
    asked = Question(Kind.REQUEST, 0x01020304, wanted=IPv4Address("10.0.0.5"), server=SERVER)
    assert dhcp.encode(asked, MAC) == (
        b"\x01\x01\x06\x00\x01\x02\x03\x04\x00\x00\x80\x00"
        + bytes(16)
        + MAC
        + bytes(10 + 192)
        + b"\x63\x82\x53\x63"
        + b"\x35\x01\x03"
        + b"\x3d\x07\x01"
        + MAC
        + b"\x32\x04\x0a\x00\x00\x05"
        + b"\x36\x04\x0a\x00\x00\x01"
        + b"\x37\x04\x01\x03\x06\x2a\xff"
    ).ljust(300, b"\0")


QUESTIONS = st.builds(
    Question,
    kind=st.sampled_from([Kind.DISCOVER, Kind.REQUEST]),
    transaction=st.integers(0, 2**32 - 1),
    own=st.none() | st.ip_addresses(v=4),
    wanted=st.none() | st.ip_addresses(v=4),
    server=st.none() | st.ip_addresses(v=4),
)


@pytest.mark.proves("INV-NET-6")
@given(QUESTIONS, st.binary(min_size=6, max_size=6))
def test_a_question_says_nothing_of_who_asks_but_its_hardware_address(question: Question, mac: bytes) -> None:
    sent = dhcp.encode(question, mac)
    options = wire.read_options(sent[240:])
    # Kind, client, wanted address, server, wanted options: no host name (12), vendor (60), user class (77).
    assert options.keys() <= {53, 61, 50, 54, 55}
    assert options[61] == b"\x01" + mac
    own = bytes(4) if question.own is None else question.own.packed
    asked = struct.pack(">I", question.transaction)
    head = b"\x01\x01\x06\x00" + asked + b"\x00\x00" + (b"\x80\x00" if question.own is None else b"\x00\x00")
    assert sent[:240] == head + own + bytes(12) + mac + bytes(10 + 192) + dhcp.COOKIE


def test_a_good_answer() -> None:
    assert dhcp.decode(answer(GOOD)) == Reply(
        Kind.ACK,
        7,
        MAC,
        SERVER,
        Lease(
            interface=IPv4Interface("10.0.0.5/24"),
            router=SERVER,
            name_servers=(IPv4Address("10.0.0.2"), IPv4Address("10.0.0.3")),
            time_servers=(),
            server=SERVER,
            renew_s=1800,
            rebind_s=3150,
            seconds=3600,
        ),
    )


def test_an_answer_of_the_wire_is_read() -> None:
    """Another reader and writer of the same protocol understands what is asked, and is understood."""
    server = wire.Server(60)
    asked = dhcp.encode(Question(Kind.DISCOVER, 9), MAC)
    answered = server.answer(asked)
    assert answered is not None
    offer = dhcp.decode(answered[0])
    assert (offer.kind, offer.transaction, offer.mac, offer.server) == (
        Kind.OFFER,
        9,
        MAC,
        wire.ROUTER.ip,
    )
    assert offer.lease is not None
    assert offer.lease.interface == IPv4Interface("10.77.0.100/24")


# One broken rule a row: why there is no lease.
UNUSABLE: list[tuple[str, dict[str, object]]] = [
    ("no server", {"o54": None}),
    ("a server that is a group", {"o54": bytes([224, 0, 0, 1])}),
    ("two servers", {"o54": SERVER.packed * 2}),
    ("no time", {"o51": None}),
    ("too short a time", {"o51": struct.pack(">I", dhcp.LEASE_S_MIN - 1)}),
    ("no address", {"yours": "0.0.0.0"}),
    ("loopback", {"yours": "127.0.0.1"}),
    ("a group", {"yours": "239.1.2.3"}),
    ("everybody", {"yours": "255.255.255.255"}),
    ("the network itself", {"yours": "10.0.0.0"}),
    ("all of the network", {"yours": "10.0.0.255"}),
    ("a mask with a hole", {"o1": bytes([255, 0, 255, 0])}),
    ("a mask of everything", {"o1": bytes(4)}),
]


@pytest.mark.parametrize("changed", [row[1] for row in UNUSABLE], ids=[row[0] for row in UNUSABLE])
def test_an_answer_that_cannot_be_used_has_no_lease(changed: dict[str, object]) -> None:
    assert lease_of() is not None
    assert lease_of(**changed) is None


def test_what_may_be_missing_and_what_is_cut() -> None:
    bare = lease_of(o1=None, o3=None, o6=None)
    assert bare is not None
    assert (str(bare.interface), bare.router, bare.name_servers) == ("10.0.0.5/32", None, ())
    endless = lease_of(o51=b"\xff" * 4)
    assert endless is not None
    assert endless.seconds == dhcp.LEASE_S_MAX
    many = lease_of(o6=b"".join(bytes([10, 0, 0, n]) for n in range(1, 9)))
    assert many is not None
    assert len(many.name_servers) == dhcp.NAME_SERVERS_MAX
    clocks = lease_of(o42=b"".join(bytes([10, 0, 0, n]) for n in range(1, 9)))
    assert clocks is not None
    # 10.0.0.5 is the room's own.
    assert clocks.time_servers == tuple(IPv4Address(f"10.0.0.{n}") for n in (1, 2, 3, 4))
    nobody = lease_of(o42=bytes([127, 0, 0, 1, 10, 0, 0, 5, 224, 0, 1, 1, 0, 0, 0, 0, 255, 255, 255, 255]))
    assert nobody is not None
    assert nobody.time_servers == ()
    own = lease_of(o3=bytes([127, 0, 0, 1, 10, 0, 0, 5, 10, 0, 0, 9]))
    assert own is not None
    assert own.router == IPv4Address("10.0.0.9")
    timed = lease_of(o58=struct.pack(">I", 10), o59=struct.pack(">I", 20))
    assert timed is not None
    assert (timed.renew_s, timed.rebind_s) == (10, 20)
    for renew, rebind in ((20, 10), (0, 10), (10, 3600)):
        odd = lease_of(o58=struct.pack(">I", renew), o59=struct.pack(">I", rebind))
        assert odd is not None
        assert (odd.renew_s, odd.rebind_s) == (1800, 3150)


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        answer(GOOD)[:239],
        answer(GOOD)[:-1],
        answer(GOOD, head=b"\x01\x01\x06\x00"),
        answer(GOOD, head=b"\x02\x06\x06\x00"),
        answer(GOOD, head=b"\x02\x01\x08\x00"),
        answer(GOOD).replace(dhcp.COOKIE, b"abcd"),
        answer({**GOOD, 53: b"\x09"}),
        answer({**GOOD, 53: b"\x05\x05"}),
        answer({k: v for k, v in GOOD.items() if k != 53}),
        answer({**GOOD, 54: b"\x0a\x00\x00"}),
        answer({**GOOD, 51: b"\x0a\x00"}),
        answer({**GOOD, 6: b"\x0a\x00\x00\x01\x0a"}),
        answer(GOOD).ljust(dhcp.REPLY_BYTES_MAX + 1, b"\0"),
    ],
)
def test_what_is_no_answer_is_garbled(datagram: bytes) -> None:
    with pytest.raises(Garbled):
        dhcp.decode(datagram)


def usable(lease: Lease) -> bool:
    address, network = lease.interface.ip, lease.interface.network
    hosts = (address, lease.server, *lease.name_servers, *filter(None, [lease.router]))
    return (
        all(not (h.is_multicast or h.is_loopback or h.is_unspecified) for h in hosts)
        and 1 <= network.prefixlen <= 32
        and 0 < lease.renew_s < lease.rebind_s < lease.seconds
        and dhcp.LEASE_S_MIN <= lease.seconds <= dhcp.LEASE_S_MAX
        and len(lease.name_servers) <= dhcp.NAME_SERVERS_MAX
        and address != lease.router
    )


@pytest.mark.proves("INV-NET-6")
@given(st.data())
def test_a_changed_answer_is_usable_or_refused(data: st.DataObject) -> None:
    numbers = st.sampled_from([*GOOD, 0, 12, 15, 52, 58, 59, 121, 255])
    options = {**GOOD, **data.draw(st.dictionaries(numbers, st.binary(max_size=20), max_size=4))}
    datagram = bytearray(answer(options, yours=str(data.draw(st.ip_addresses(v=4)))))
    for _ in range(data.draw(st.integers(0, 3))):
        datagram[data.draw(st.integers(0, len(datagram) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Garbled):
        reply = dhcp.decode(bytes(datagram[: data.draw(st.integers(200, len(datagram)))]))
        assert reply.lease is None or usable(reply.lease)


@given(st.binary(max_size=100), st.binary(max_size=400))
def test_any_bytes_are_an_answer_or_garbled(start: bytes, rest: bytes) -> None:
    for datagram in (start + rest, answer({})[:240] + rest):
        with contextlib.suppress(Garbled):
            dhcp.decode(datagram)


@pytest.mark.proves("INV-NET-7")
@given(st.lists(st.ip_addresses(v=4), max_size=6), st.binary(max_size=60))
def test_a_resolv_conf_holds_addresses_and_nothing_else(servers: list[IPv4Address], word: bytes) -> None:
    options = {**GOOD, 6: b"".join(s.packed for s in servers), 15: word, 12: word, 119: word}
    lease = dhcp.decode(answer(options)).lease
    assert lease is not None
    lines = dhcp.resolv_conf(lease).decode().splitlines()
    assert len(lines) <= dhcp.NAME_SERVERS_MAX
    for line in lines:
        word_, address = line.split(" ")
        assert word_ == "nameserver"
        assert IPv4Address(address) in servers
