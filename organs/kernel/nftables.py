"""Packet filters by nf_tables: one table of base chains, put in the place of the last one in a single step.

A chain is values; the upper half encodes them, purely, as the kernel's expressions; the lower half sends them
on a socket that was opened in the namespace they are for.
Touches: AF_NETLINK sockets of NETLINK_NETFILTER.
Never: decides what passes (`organs/netroom/closed.py` does); leaves a namespace between two tables: the
kernel takes a batch whole or not at all.
Fails: KernelError when the kernel refuses; the table before it, if any, then stands.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, unique
from typing import Final

from organs.kernel import netlink
from organs.kernel._libc import KernelError
from organs.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    Answer,
    attribute,
    message,
    nested,
)

# linux/netlink.h
NETLINK_NETFILTER: Final = 12
# linux/netfilter/nfnetlink.h
_GENERIC: Final = struct.Struct(">BBH")  # family, version, resource
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NFNL_SUBSYS_NFTABLES: Final = 10
# linux/netfilter.h
NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6 = 1, 2, 10
NF_DROP, NF_ACCEPT = 0, 1
# linux/netfilter/nf_tables.h
NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE = 0, 2, 3, 6
NFTA_TABLE_NAME: Final = 1
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE = 1, 3, 4, 5, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY = 1, 2
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS = 1, 2, 4
NFTA_LIST_ELEM, NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 1, 2
NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_VERDICT_CODE = 1, 2, 1
NFT_REG_VERDICT, NFT_REG_1 = 0, 1
NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA, NFT_CMP_EQ, NFT_CMP_NEQ = 1, 2, 3, 0, 1
NFTA_META_DREG, NFTA_META_KEY = 1, 2
NFT_META_IIFNAME, NFT_META_OIFNAME, NFT_META_NFPROTO, NFT_META_L4PROTO = 6, 7, 15, 16
NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN = 1, 2, 3, 4
NFT_PAYLOAD_TRANSPORT_HEADER: Final = 2
NFTA_CT_DREG, NFTA_CT_KEY, NFT_CT_STATE = 1, 2, 0
NFTA_BITWISE_SREG, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN, NFTA_BITWISE_MASK, NFTA_BITWISE_XOR = 1, 2, 3, 4, 5
NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA = 1, 2
# linux/netfilter/nf_conntrack_common.h: NF_CT_STATE_BIT of IP_CT_ESTABLISHED and IP_CT_RELATED.
CT_ESTABLISHED, CT_RELATED = 1 << 1, 1 << 2
IPPROTO_TCP, IPPROTO_UDP = 6, 17
SOURCE_PORT_AT, DESTINATION_PORT_AT, PORT_BYTES = 0, 2, 2


@unique
class Hook(Enum):
    """Where a base chain stands. The number is the kernel's (linux/netfilter.h, enum nf_inet_hooks)."""

    INPUT = 1
    FORWARD = 2
    OUTPUT = 3


@dataclass(frozen=True, slots=True)
class Known:
    """Belongs to a connection that this namespace began, or that passed before; or is an error about one."""


@dataclass(frozen=True, slots=True)
class Through:
    """Came in by this link (`Hook.INPUT`), or goes out by it; or, with `other`, by any but this."""

    link: str
    hook: Hook
    other: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """IPv4 or IPv6."""

    version: int


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP or UDP (their number) with these ports; None: whichever."""

    protocol: int
    destination: int
    source: int | None = None


Match = Known | Through | Family | Ports


@dataclass(frozen=True, slots=True)
class Rule:
    """What all the matches hold for is accepted or dropped."""

    matches: tuple[Match, ...]
    accept: bool


@dataclass(frozen=True, slots=True)
class Chain:
    """The rules of one hook, and what becomes of the rest."""

    hook: Hook
    rules: tuple[Rule, ...]
    accept_rest: bool


def batch(table: str, chains: Iterable[Chain], sequence: int) -> tuple[bytes, int]:
    """The batch that makes `table` hold these chains and nothing else, and the number of its last message.

    Its messages are numbered from `sequence` on. The kernel answers the last one, or the first that it
    refuses. ValueError for a name that cannot be a link's.
    """
    named = attribute(NFTA_TABLE_NAME, _text(table))
    parts = [
        # It is made first, so that removing it is no error where there was none.
        (NFT_MSG_NEWTABLE, NLM_F_CREATE, named),
        (NFT_MSG_DELTABLE, 0, named),
        (NFT_MSG_NEWTABLE, NLM_F_CREATE, named),
    ]
    for chain in chains:
        parts.append((NFT_MSG_NEWCHAIN, NLM_F_CREATE, _chain(table, chain)))
        parts += [
            (NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, _rule(table, chain, rule)) for rule in chain.rules
        ]
    last = sequence + len(parts)
    begin = _GENERIC.pack(0, 0, NFNL_SUBSYS_NFTABLES)
    found = message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, sequence, begin)
    for number, (kind, flags, body) in enumerate(parts, sequence + 1):
        asked = NLM_F_REQUEST | flags | (NLM_F_ACK if number == last else 0)
        whole = _GENERIC.pack(NFPROTO_INET, 0, 0) + body
        found += message(NFNL_SUBSYS_NFTABLES << 8 | kind, asked, number, whole)
    return found + message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, last + 1, begin), last


def _chain(table: str, chain: Chain) -> bytes:
    hook = attribute(NFTA_HOOK_HOOKNUM, _word(chain.hook.value)) + attribute(NFTA_HOOK_PRIORITY, _word(0))
    return (
        attribute(NFTA_CHAIN_TABLE, _text(table))
        + attribute(NFTA_CHAIN_NAME, _text(chain.hook.name.lower()))
        + nested(NFTA_CHAIN_HOOK, hook)
        + attribute(NFTA_CHAIN_POLICY, _word(NF_ACCEPT if chain.accept_rest else NF_DROP))
        + attribute(NFTA_CHAIN_TYPE, _text("filter"))
    )


def _rule(table: str, chain: Chain, rule: Rule) -> bytes:
    verdict = attribute(NFTA_VERDICT_CODE, _word(NF_ACCEPT if rule.accept else NF_DROP))
    expressions = [
        *(expression for match in rule.matches for expression in _match(match)),
        _expression(
            "immediate",
            attribute(NFTA_IMMEDIATE_DREG, _word(NFT_REG_VERDICT))
            + nested(NFTA_IMMEDIATE_DATA, nested(NFTA_DATA_VERDICT, verdict)),
        ),
    ]
    return (
        attribute(NFTA_RULE_TABLE, _text(table))
        + attribute(NFTA_RULE_CHAIN, _text(chain.hook.name.lower()))
        + nested(NFTA_RULE_EXPRESSIONS, b"".join(expressions))
    )


def _match(match: Match) -> Iterator[bytes]:
    match match:
        case Known():
            yield _expression(
                "ct", attribute(NFTA_CT_KEY, _word(NFT_CT_STATE)) + attribute(NFTA_CT_DREG, _word(NFT_REG_1))
            )
            # The bits of a state are a number of this machine, not of the network.
            mask = struct.pack("=I", CT_ESTABLISHED | CT_RELATED)
            yield _expression(
                "bitwise",
                attribute(NFTA_BITWISE_SREG, _word(NFT_REG_1))
                + attribute(NFTA_BITWISE_DREG, _word(NFT_REG_1))
                + attribute(NFTA_BITWISE_LEN, _word(len(mask)))
                + nested(NFTA_BITWISE_MASK, attribute(NFTA_DATA_VALUE, mask))
                + nested(NFTA_BITWISE_XOR, attribute(NFTA_DATA_VALUE, bytes(len(mask)))),
            )
            yield _compare(NFT_CMP_NEQ, bytes(len(mask)))
        case Through(link, hook, other):
            yield _meta(NFT_META_IIFNAME if hook is Hook.INPUT else NFT_META_OIFNAME)
            name = netlink.link_name(link).ljust(netlink.NAME_BYTES_MAX, b"\0")
            yield _compare(NFT_CMP_NEQ if other else NFT_CMP_EQ, name)
        case Family(version):
            yield _meta(NFT_META_NFPROTO)
            yield _compare(NFT_CMP_EQ, bytes([{4: NFPROTO_IPV4, 6: NFPROTO_IPV6}[version]]))
        case Ports(protocol, destination, source):
            yield _meta(NFT_META_L4PROTO)
            yield _compare(NFT_CMP_EQ, bytes([protocol]))
            if source is not None:
                yield from _port(SOURCE_PORT_AT, source)
            yield from _port(DESTINATION_PORT_AT, destination)


def _port(at: int, port: int) -> Iterator[bytes]:
    yield _expression(
        "payload",
        attribute(NFTA_PAYLOAD_DREG, _word(NFT_REG_1))
        + attribute(NFTA_PAYLOAD_BASE, _word(NFT_PAYLOAD_TRANSPORT_HEADER))
        + attribute(NFTA_PAYLOAD_OFFSET, _word(at))
        + attribute(NFTA_PAYLOAD_LEN, _word(PORT_BYTES)),
    )
    yield _compare(NFT_CMP_EQ, port.to_bytes(PORT_BYTES, "big"))


def _meta(key: int) -> bytes:
    return _expression(
        "meta", attribute(NFTA_META_KEY, _word(key)) + attribute(NFTA_META_DREG, _word(NFT_REG_1))
    )


def _compare(how: int, value: bytes) -> bytes:
    return _expression(
        "cmp",
        attribute(NFTA_CMP_SREG, _word(NFT_REG_1))
        + attribute(NFTA_CMP_OP, _word(how))
        + nested(NFTA_CMP_DATA, attribute(NFTA_DATA_VALUE, value)),
    )


def _expression(name: str, data: bytes) -> bytes:
    return nested(NFTA_LIST_ELEM, attribute(NFTA_EXPR_NAME, _text(name)) + nested(NFTA_EXPR_DATA, data))


def _word(number: int) -> bytes:
    return struct.pack(">I", number)


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def load(fd: int, table: str, chains: Iterable[Chain]) -> None:
    """Put a table in place, through a socket of NETLINK_NETFILTER that becomes ours. Raises OSError."""
    with netlink.adopted(fd, NETLINK_NETFILTER) as opened:
        opened.settimeout(netlink.ANSWER_S)
        request, last = batch(table, chains, 1)
        opened.send(request)
        while True:
            datagram, sender = opened.recvfrom(netlink.DATAGRAM_BYTES_MAX)
            for told in netlink.messages(datagram) if sender[0] == 0 else ():
                if isinstance(told.content, Answer) and told.content.errno:
                    raise KernelError(told.content.errno, "load the filter", table)
                if isinstance(told.content, Answer) and told.sequence == last:
                    return


def netfilter_socket() -> socket.socket:
    """A socket to load filters by, in the namespace of this process. Raises OSError."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
