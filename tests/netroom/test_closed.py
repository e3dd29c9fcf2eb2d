"""What passes: the rules as values, as bytes, as the kernel lists them back, and in the words of `nft`."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.kernel import netlink, network, nftables
from organs.kernel.nftables import Chain, Hook, Rule, Through
from organs.netroom import closed
from tests.netroom.world import tool, within

NFT_MSG_GETCHAIN, NFT_MSG_GETRULE = 4, 7


@given(st.lists(st.integers(-2, 70000), max_size=40))
def test_ports_that_can_be_opened_are_and_no_others(inbound: list[int]) -> None:
    good = all(1 <= port <= 65535 for port in inbound) and len(set(inbound)) <= closed.INBOUND_PORTS_MAX
    if not good:
        with pytest.raises(ValueError, match=r"port"):
            closed.chains(inbound)
        return
    chains = {chain.hook: chain for chain in closed.chains(inbound)}
    assert not chains[Hook.INPUT].accept_rest
    assert not chains[Hook.FORWARD].accept_rest
    opened = [
        match.destination
        for rule in chains[Hook.INPUT].rules
        for match in rule.matches
        if isinstance(match, nftables.Ports) and match.protocol == nftables.IPPROTO_TCP
    ]
    assert opened == sorted(set(inbound))


def test_a_name_that_cannot_be_a_link_is_not_sent() -> None:
    for name in ("a" * 16, "a\0b"):
        rule = Rule((Through(name, Hook.INPUT),), accept=True)
        with pytest.raises(ValueError, match="cannot be the name"):
            nftables.batch("t", [Chain(Hook.INPUT, (rule,), accept_rest=True)], 1)


def test_a_batch_byte_for_byte() -> None:
    """The smallest table, written out by hand from linux/netfilter/nf_tables.h."""
    batch, last = nftables.batch("t", [Chain(Hook.FORWARD, (), accept_rest=False)], 7)
    named = b"\x06\x00\x01\x00t\0\0\0"

    def message(kind: int, flags: int, number: int, body: bytes) -> bytes:
        return struct.pack("=IHHII", 16 + len(body), kind, flags, number, 0) + body

    chain = (
        b"\x06\x00\x01\x00t\0\0\0"
        + b"\x0c\x00\x03\x00forward\0"
        + b"\x14\x00\x04\x80"
        + b"\x08\x00\x01\x00\x00\x00\x00\x02"
        + b"\x08\x00\x02\x00\x00\x00\x00\x00"
        + b"\x08\x00\x05\x00\x00\x00\x00\x00"
        + b"\x0b\x00\x07\x00filter\0\0"
    )
    head = b"\x01\x00\x00\x00"
    assert batch == (
        message(0x10, 0x1, 7, b"\x00\x00\x00\x0a")
        + message(0xA00, 0x401, 8, head + named)
        + message(0xA02, 0x1, 9, head + named)
        + message(0xA00, 0x401, 10, head + named)
        + message(0xA03, 0x405, 11, head + chain)
        + message(0x11, 0x1, 12, b"\x00\x00\x00\x0a")
    )
    assert last == 11


@pytest.fixture(name="namespace")
def _namespace() -> Iterator[int]:
    made = network.new_namespace()
    yield made
    os.close(made)


def load(namespace: int, inbound: list[int]) -> None:
    """As netroom does."""
    opened = within(namespace, lambda: nftables.netfilter_socket().detach())
    nftables.load(opened, closed.TABLE, closed.chains(inbound))


# Attributes that hold attributes, by the name of the expression that they are of.
NESTED = {
    "cmp": {nftables.NFTA_CMP_DATA},
    "bitwise": {nftables.NFTA_BITWISE_MASK, nftables.NFTA_BITWISE_XOR},
    "immediate": {nftables.NFTA_IMMEDIATE_DATA},
}


def expressions(rule: bytes) -> list[tuple[str, dict[int, bytes]]]:
    """The expressions of a rule: name, and its attributes as they are on the wire."""
    found = []
    whole = dict(netlink.attributes(rule))
    for _, element in netlink.attributes(whole[nftables.NFTA_RULE_EXPRESSIONS]):
        parts = dict(netlink.attributes(element))
        name = parts[nftables.NFTA_EXPR_NAME].rstrip(b"\0").decode()
        data = dict(netlink.attributes(parts[nftables.NFTA_EXPR_DATA]))
        inner = NESTED.get(name, set())
        flat = {
            number: b"|".join(text for _, text in netlink.attributes(value)) if number in inner else value
            for number, value in data.items()
        }
        if name == "immediate":
            verdict = dict(netlink.attributes(data[nftables.NFTA_IMMEDIATE_DATA]))
            code = dict(netlink.attributes(verdict[nftables.NFTA_DATA_VERDICT]))
            flat[nftables.NFTA_IMMEDIATE_DATA] = code[nftables.NFTA_VERDICT_CODE]
        found.append((name, flat))
    return found


def listed(namespace: int) -> list[bytes]:
    """Every rule, as the kernel dumps it."""
    body = struct.pack(">BBH", nftables.NFPROTO_INET, 0, 0)
    kind = nftables.NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE
    asked = netlink.message(kind, netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP, 1, body)
    found: list[bytes] = []
    with within(namespace, nftables.netfilter_socket) as opened:
        opened.send(asked)
        while True:
            for told, _, _, rest in netlink.split(opened.recv(netlink.DATAGRAM_BYTES_MAX)):
                if told in (netlink.NLMSG_DONE, netlink.NLMSG_ERROR):
                    return found
                found.append(rest[4:])


@pytest.mark.container
@pytest.mark.proves("INV-NET-4")
def test_the_kernel_lists_back_what_was_sent(namespace: int) -> None:
    ports = [22, 80, 443, 65535]
    load(namespace, ports)
    batch, _ = nftables.batch(closed.TABLE, closed.chains(ports), 1)
    new_rule = nftables.NFNL_SUBSYS_NFTABLES << 8 | nftables.NFT_MSG_NEWRULE
    sent = [expressions(body[4:]) for kind, _, _, body in netlink.split(batch) if kind == new_rule]
    back = [expressions(rule) for rule in listed(namespace)]
    assert len(back) == len(sent) == 3 + len(ports) + 1
    for ours, theirs in zip(sent, back, strict=True):
        assert [name for name, _ in ours] == [name for name, _ in theirs]
        for (name, mine), (_, whole) in zip(ours, theirs, strict=True):
            # The kernel adds what it takes for granted; what was said is there unchanged.
            assert mine.items() <= whole.items(), name


RULESET = """table inet room {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iifname "lo" accept
		meta nfproto ipv4 udp sport 67 udp dport 68 accept
		meta nfproto ipv4 tcp dport 80 accept
		meta nfproto ipv4 tcp dport 443 accept
	}

	chain forward {
		type filter hook forward priority filter; policy drop;
	}

	chain output {
		type filter hook output priority filter; policy accept;
		oifname != "lo" meta nfproto ipv6 drop
	}
}
"""


@pytest.mark.container
@pytest.mark.proves("INV-NET-4")
@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft, of the Debian package nftables")
def test_in_the_words_of_nft(namespace: int) -> None:
    load(namespace, [443, 80, 443])
    assert tool(namespace, "nft", "list", "ruleset") == RULESET
    # Another table in its place, not beside it; and what is not ours stays.
    tool(namespace, "nft", "add", "table", "ip", "theirs")
    load(namespace, [])
    now = tool(namespace, "nft", "list", "ruleset")
    assert "dport 80" not in now
    assert now.count("table inet room") == 1
    assert "table ip theirs" in now


@pytest.mark.container
def test_a_refused_batch_changes_nothing(namespace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    load(namespace, [80])
    before = listed(namespace)
    whole, last = nftables.batch(closed.TABLE, closed.chains([81, 82]), 1)
    # The verdict of the very last rule is one that there is not; all before it is good.
    head, tail = whole.rsplit(b"immediate\0", 1)
    monkeypatch.setattr(nftables, "batch", lambda *_: (head + b"imnediate\0" + tail, last))
    with pytest.raises(OSError, match="unable to load the filter room"):
        load(namespace, [])
    assert listed(namespace) == before


@pytest.mark.container
def test_only_the_kernel_is_believed(namespace: int) -> None:
    """A verdict from another process' port, before the kernel's: the socket is emptied first."""

    def forged() -> int:
        ours = nftables.netfilter_socket()
        ours.bind((0, 0))
        with nftables.netfilter_socket() as other:
            other.bind((0, 0))
            refused = struct.pack("=IHHIIi", 20, netlink.NLMSG_ERROR, 0, 1, 0, -1)
            other.sendto(refused, (ours.getsockname()[0], 0))
        return ours.detach()

    nftables.load(within(namespace, forged), closed.TABLE, closed.chains([80]))
    assert len(listed(namespace)) == 5
