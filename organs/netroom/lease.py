"""The DHCP client's decisions, as RFC 2131 has them: what to send, what to believe, when to try again.

Pure: `decide(state, event)` gives the next state and the effects, in order. There is one timer; each `Wait`
sets it anew, and its end is the event Elapsed. Time is counted in whole seconds of waiting, so the machine
needs no clock. An address is a room's from Configure to Deconfigure, and before any other is asked for it is
dropped.
Never: uses an answer to another question, an address after its lease, a lease that was remembered without the
server's word that it holds.
Fails: it does not end by itself. Where no server answers it asks for ever, at long intervals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, unique
from ipaddress import IPv4Address
from typing import Final

from organs.netroom.dhcp import Kind, Lease, Question, Reply

# Waits for an answer: the first is short because the asker holds up a person; the last repeats for ever, so
# that a network without a server hears of a room once a minute.
ANSWER_WAITS_S: Final = (1, 2, 4, 8, 16, 64)
# How often a remembered address, or an offer, is asked for before another is looked for.
REQUESTS_MAX: Final = 3
# RFC 2131, 4.4.5: between two tries to renew, half of what is left, and no less than a minute.
RENEW_WAIT_S_MIN: Final = 60
# After a NAK. Without it a server that says no to everything would be asked without a pause.
REFUSED_WAIT_S: Final = 4


@unique
class Phase(Enum):
    """The states of RFC 2131."""

    INIT = "nothing was asked"
    REFUSED = "a server said no; asked anew after a pause"
    REBOOTING = "the address of the last time was asked for"
    SELECTING = "any offer is welcome"
    REQUESTING = "an offer was taken up"
    BOUND = "the address is ours"
    RENEWING = "ours, and its server was asked for more time"
    REBINDING = "ours, and any server was asked for more time"


HELD: Final = frozenset({Phase.BOUND, Phase.RENEWING, Phase.REBINDING})


@dataclass(frozen=True, slots=True)
class State:
    """Where the client stands.

    `asked`: questions of this kind so far. `lease`: offered (REQUESTING) or held. `left_s`: until the phase
    ends (RENEWING: until rebinding; REBINDING: until the lease is over), after the wait that runs.
    """

    phase: Phase = Phase.INIT
    transaction: int = 0
    asked: int = 0
    address: IPv4Address | None = None
    lease: Lease | None = None
    left_s: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """The link came up. `remembered`: the address of the last time. `fresh`: a number nobody can guess."""

    fresh: int
    remembered: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Elapsed:
    """The wait that was asked for last is over."""

    fresh: int


@dataclass(frozen=True, slots=True)
class Heard:
    """A server answered, to our hardware address."""

    reply: Reply
    fresh: int


Event = Start | Elapsed | Heard


@dataclass(frozen=True, slots=True)
class Send:
    """Ask one server, from the address that is held, or everybody (None)."""

    question: Question
    to: IPv4Address | None


@dataclass(frozen=True, slots=True)
class Wait:
    """Set the timer."""

    seconds: int


@dataclass(frozen=True, slots=True)
class Configure:
    """The room has this address, route and name servers from now on."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Deconfigure:
    """The room has no address."""


Effect = Send | Wait | Configure | Deconfigure
Decision = tuple[State, tuple[Effect, ...]]


def decide(state: State, event: Event) -> Decision:
    """What follows from an event."""
    match event:
        case Start(fresh, remembered):
            drop = (Deconfigure(),)
            after, effects = _discover(fresh) if remembered is None else _reboot(remembered, fresh)
            return after, (*drop, *effects)
        case Elapsed(fresh):
            return _elapsed(state, fresh)
        case Heard(reply, fresh):
            return _heard(state, reply, fresh)


def _discover(fresh: int) -> Decision:
    return _again(State(Phase.SELECTING, fresh))


def _reboot(address: IPv4Address, fresh: int) -> Decision:
    return _again(State(Phase.REBOOTING, fresh, address=address))


def _again(state: State) -> Decision:
    """Ask the question of a phase without an address once more."""
    wait = ANSWER_WAITS_S[min(state.asked, len(ANSWER_WAITS_S) - 1)]
    # The count stops where it no longer matters, so that there are finitely many states.
    asked = min(state.asked + 1, len(ANSWER_WAITS_S))
    kind = Kind.DISCOVER if state.phase is Phase.SELECTING else Kind.REQUEST
    wanted, server = state.address, None
    if state.phase is Phase.REQUESTING and state.lease is not None:
        wanted, server = state.lease.interface.ip, state.lease.server
    question = Question(kind, state.transaction, wanted=wanted, server=server)
    return replace(state, asked=asked), (Send(question, None), Wait(wait))


def _elapsed(state: State, fresh: int) -> Decision:
    if state.phase in (Phase.INIT, Phase.REFUSED):
        return _discover(fresh)
    if state.phase is Phase.SELECTING:
        return _again(state)
    if state.phase in (Phase.REBOOTING, Phase.REQUESTING):
        return _again(state) if state.asked < REQUESTS_MAX else _discover(fresh)
    assert state.lease is not None
    if state.phase is Phase.BOUND:
        left = state.lease.rebind_s - state.lease.renew_s
        return _extend(replace(state, phase=Phase.RENEWING, transaction=fresh, left_s=left))
    if state.left_s > 0:
        return _extend(state)
    if state.phase is Phase.RENEWING:
        left = state.lease.seconds - state.lease.rebind_s
        return _extend(replace(state, phase=Phase.REBINDING, left_s=left))
    # The lease is over.
    after, effects = _discover(fresh)
    return after, (Deconfigure(), *effects)


def _extend(state: State) -> Decision:
    """Ask for more time: the server that gave the address, or later any."""
    assert state.lease is not None
    wait = min(state.left_s, max(RENEW_WAIT_S_MIN, state.left_s // 2))
    question = Question(Kind.REQUEST, state.transaction, own=state.lease.interface.ip)
    to = state.lease.server if state.phase is Phase.RENEWING else None
    return replace(state, left_s=state.left_s - wait), (Send(question, to), Wait(wait))


def _heard(state: State, reply: Reply, fresh: int) -> Decision:
    if reply.transaction != state.transaction or reply.server is None:
        return state, ()
    if state.phase is Phase.SELECTING and reply.kind is Kind.OFFER and reply.lease is not None:
        # The same transaction goes on, as the RFC wants.
        return _again(State(Phase.REQUESTING, state.transaction, lease=reply.lease))
    if state.phase not in {Phase.REBOOTING, Phase.REQUESTING, Phase.RENEWING, Phase.REBINDING}:
        return state, ()
    if state.phase in (Phase.REQUESTING, Phase.RENEWING) and (
        state.lease is None or reply.server != state.lease.server
    ):
        # Another server than the one that was asked has no say.
        return state, ()
    if reply.kind is Kind.NAK:
        return State(Phase.REFUSED), (Deconfigure(), Wait(REFUSED_WAIT_S))
    if reply.kind is Kind.ACK and reply.lease is not None and _expected(state, reply.lease):
        bound = State(Phase.BOUND, fresh, lease=reply.lease)
        return bound, (Configure(reply.lease), Wait(reply.lease.renew_s))
    return state, ()


def _expected(state: State, lease: Lease) -> bool:
    """Whether the address that is confirmed is the one that was asked for."""
    asked = state.address if state.lease is None else state.lease.interface.ip
    return lease.interface.ip == asked
