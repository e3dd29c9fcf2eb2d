"""Which servers are asked for the time, when, and whether what they said is worth proposing.

Pure: `decide(state, event)` gives the next state and the effects, in order. Time is CLOCK_BOOTTIME, which no
answer changes, and what is proposed is on it too: *when the machine booted*. So neither a step of the clock
under way nor a late reader makes a proposal wrong, and to hear one twice is to hear it once. It lives as long
as its organ: who connects rooms again and again has no server asked more often.
Never: proposes on one answer, on one that took long, or what as many answers contradict.
Fails: it does not end by itself. Where no server answers it asks for ever, at long intervals.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Final

from organs.netroom.sntp import Kiss, Reply, Times

_SECOND_US: Final = 1_000_000
# A lease may name any number of them; more than four add nothing to a majority.
SERVERS_MAX: Final = 4
# How often each is asked in a round, and the pause between. RFC 5905's burst is eight, two seconds apart. One
# server has to answer three times; two datagrams that a network loses, or a cut, do not make a round void.
PASSES_MAX: Final = 5
PASS_US: Final = 2 * _SECOND_US
# After a proposal. bay0 hears one an hour, so this is a little more.
ROUND_US: Final = 65 * 60 * _SECOND_US
# After a round that came to nothing: the network may be slow to come up, or have no server at all.
AGAIN_US: Final = 10 * 60 * _SECOND_US
# An answer is wrong by half of its way at the most, so this is a bound of the error.
WAY_US_MAX: Final = 1 * _SECOND_US
# Answers agree that lie this near to their median: what two ways of the longest kind can differ by.
APART_US_MAX: Final = WAY_US_MAX // 2
AGREEING_MIN: Final = 3
# Servers that said "never again"; a network that names new ones all the time makes the oldest forgotten.
SHUNNED_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Question:
    """What a server was asked and has not answered yet."""

    server: IPv4Address
    nonce: bytes
    asked_us: int


@dataclass(frozen=True, slots=True)
class State:
    """Where the asking stands.

    `booted_us`: by each good answer, when the machine booted. `passes`: of this round. `due_us`: when the
    next one begins, or the round is judged. `hushed`: not to be asked in this round; `shunned`: never.
    """

    servers: tuple[IPv4Address, ...] = ()
    questions: tuple[Question, ...] = ()
    booted_us: tuple[int, ...] = ()
    passes: int = 0
    due_us: int = 0
    hushed: tuple[IPv4Address, ...] = ()
    shunned: tuple[IPv4Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """A room has a lease: its time servers, and the way out."""

    time_servers: tuple[IPv4Address, ...]
    router: IPv4Address | None


@dataclass(frozen=True, slots=True)
class Elapsed:
    """It is so late. `nonces`: as many as SERVERS_MAX, that nobody can guess."""

    now_us: int
    nonces: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Heard:
    """A server answered; `now_us` is when."""

    server: IPv4Address
    reply: Reply
    now_us: int


Event = Network | Elapsed | Heard


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a question."""

    server: IPv4Address
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Propose:
    """When the machine booted, in milliseconds since 1970, as far as the network can say."""

    booted_ms: int


Effect = Ask | Propose
Decision = tuple[State, tuple[Effect, ...]]


def decide(state: State, event: Event) -> Decision:
    """What follows from an event."""
    match event:
        case Network(time_servers, router):
            return _network(state, asked_for(time_servers, router)), ()
        case Elapsed(now_us, nonces):
            return _elapsed(state, now_us, nonces)
        case Heard(server, reply, now_us):
            return _heard(state, server, reply, now_us)


def asked_for(time_servers: Iterable[IPv4Address], router: IPv4Address | None) -> tuple[IPv4Address, ...]:
    """Who is asked: whom the network names, else its router: it often has the time, and is trusted anyway."""
    named = tuple(dict.fromkeys(time_servers))[:SERVERS_MAX]
    return named or (() if router is None else (router,))


def proposed(booted_us: tuple[int, ...]) -> int | None:
    """The median of these answers, if enough of them agree with it and they are most of them."""
    if len(booted_us) < AGREEING_MIN:
        return None
    median = sorted(booted_us)[len(booted_us) // 2]
    agreeing = sum(abs(each - median) <= APART_US_MAX for each in booted_us)
    return median if agreeing >= AGREEING_MIN and agreeing * 2 > len(booted_us) else None  # INV-TIME-4


def _network(state: State, servers: tuple[IPv4Address, ...]) -> State:
    if servers == state.servers:
        return state
    # Answers of different networks are not counted together. When the next pass begins does not change.
    return State(servers=servers, due_us=state.due_us, shunned=state.shunned)


def _elapsed(state: State, now_us: int, nonces: tuple[bytes, ...]) -> Decision:
    if now_us < state.due_us:
        return state, ()
    if (median := proposed(state.booted_us)) is not None:
        return _propose(state, median, now_us)
    silent = {*state.hushed, *state.shunned}
    able = [server for server in state.servers if server not in silent]
    if state.passes == PASSES_MAX or not able:
        return _over(state, now_us + AGAIN_US), ()
    asked = tuple(Question(server, nonce, now_us) for server, nonce in zip(able, nonces, strict=False))
    # What was not answered in its pass took too long.
    after = replace(state, questions=asked, passes=state.passes + 1, due_us=now_us + PASS_US)
    return after, tuple(Ask(question.server, question.nonce) for question in asked)


def _heard(state: State, server: IPv4Address, reply: Reply, now_us: int) -> Decision:
    question = next((q for q in state.questions if (q.server, q.nonce) == (server, reply.nonce)), None)
    if question is None:  # INV-TIME-5
        return state, ()
    after = replace(state, questions=tuple(q for q in state.questions if q is not question))
    match reply.said:
        case Kiss.RATE:
            return replace(after, hushed=(*after.hushed, server)), ()
        case Kiss.DENY:
            return replace(after, shunned=(*after.shunned, server)[-SHUNNED_MAX:]), ()
        case Kiss.OTHER:
            return after, ()
        case Times(heard_us, answered_us):
            way_us = now_us - question.asked_us - (answered_us - heard_us)
            if not 0 <= way_us <= WAY_US_MAX:
                return after, ()
            booted_us = (heard_us + answered_us - question.asked_us - now_us) // 2
            after = replace(after, booted_us=(*after.booted_us, booted_us))
    median = None if after.questions else proposed(after.booted_us)
    # Judged when all have answered: a fast one does not speak for the others.
    return (after, ()) if median is None else _propose(after, median, now_us)


def _propose(state: State, booted_us: int, now_us: int) -> Decision:
    return _over(state, now_us + ROUND_US), (Propose(booted_us // 1000),)


def _over(state: State, due_us: int) -> State:
    return State(servers=state.servers, due_us=due_us, shunned=state.shunned)
