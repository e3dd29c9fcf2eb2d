"""The DHCP client, every state that it can reach: with each answer of two servers, and none, at each step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface

import pytest

from organs.netroom import lease
from organs.netroom.dhcp import Kind, Lease, Reply
from organs.netroom.lease import (
    HELD,
    Configure,
    Deconfigure,
    Effect,
    Elapsed,
    Event,
    Heard,
    Phase,
    Send,
    Start,
    State,
    Wait,
)
from tests.explore import Explored, explore

ONE, TWO = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
MINE, OTHER = IPv4Address("10.0.0.5"), IPv4Address("10.0.0.6")
FRESH = (1, 2)


def leased(address: IPv4Address, server: IPv4Address, seconds: int = 240) -> Lease:
    return Lease(
        IPv4Interface(f"{address}/24"), server, (), (), server, seconds // 2, seconds * 7 // 8, seconds
    )


LEASES = [leased(address, server) for address in (MINE, OTHER) for server in (ONE, TWO)]


@dataclass(frozen=True)
class World:
    """The machine, what the room has by what it was told, and whether a wait is under way."""

    state: State
    has: Lease | None = None
    waits: bool = False


def events(world: World) -> Iterable[Event]:
    if world.state.phase is Phase.INIT:
        yield from (Start(1), Start(1, MINE))
        return
    for fresh in FRESH:
        yield Start(fresh)
        yield Start(fresh, MINE)
        yield Elapsed(fresh)
    for number in FRESH:
        for server in (ONE, TWO, None):
            yield Heard(Reply(Kind.NAK, number, b"", server, None), 2)
            yield Heard(Reply(Kind.OFFER, number, b"", server, None), 2)
        for held in LEASES:
            for kind in (Kind.OFFER, Kind.ACK):
                yield Heard(Reply(kind, number, b"", held.server, held), 2)
        yield Heard(Reply(Kind.DISCOVER, number, b"", ONE, LEASES[0]), 2)


def step(world: World, event: Event) -> tuple[World, tuple[Effect, ...]]:
    state, effects = lease.decide(world.state, event)
    has, waits = world.has, world.waits and not isinstance(event, Elapsed)
    for effect in effects:
        match effect:
            case Configure(held):
                has = held
            case Deconfigure():
                has = None
            case Wait(seconds):
                assert seconds > 0
                waits = True
            case Send(question, to):
                # Who has an address asks as from it, and nobody else does.
                assert question.own == (None if has is None else has.interface.ip)
                assert to is None or (has is not None and to == has.server)
                assert question.transaction == state.transaction
    return World(state, has, waits), effects


def check(before: World, event: Event, after: World, effects: tuple[Effect, ...]) -> None:
    # There is always a wait that ends: the machine cannot fall asleep.
    assert after.waits
    # The room has an address exactly while the machine holds a lease.
    assert (after.has is not None) == (after.state.phase in HELD)
    assert after.has is None or after.has == after.state.lease
    if isinstance(event, Heard):
        reply = event.reply
        if reply.transaction != before.state.transaction or reply.server is None:
            assert (after, effects) == (before, ())
        if after.has != before.has and after.has is not None:
            assert reply.kind is Kind.ACK
            assert after.has == reply.lease
            assert before.state.phase in {
                Phase.REBOOTING,
                Phase.REQUESTING,
                Phase.RENEWING,
                Phase.REBINDING,
            }
        # An address is never changed for another without having been dropped.
        if before.has is not None and after.has is not None:
            assert before.has.interface.ip == after.has.interface.ip
    if isinstance(event, Start):
        # After a thaw: first of all the address goes, and nothing is remembered as still ours.
        assert effects[0] == Deconfigure()
        assert after.has is None


def explored() -> Explored[World]:
    return explore(World(State()), events, step, check)


@pytest.mark.proves("INV-NET-6")
def test_every_reachable_state() -> None:
    seen = explored()
    assert {world.state.phase for world in seen.edges} == set(Phase)
    # From everywhere an address can be had, and everywhere it can be lost.
    assert seen.reaches(lambda world: world.has is not None) == set(seen.edges)
    assert seen.reaches(lambda world: world.has is None) == set(seen.edges)


def walk(state: State, *happened: Event) -> tuple[State, list[Effect]]:
    told: list[Effect] = []
    for event in happened:
        state, effects = lease.decide(state, event)
        told += effects
    return state, told


def heard(kind: Kind, number: int, held: Lease | None, server: IPv4Address = ONE) -> Heard:
    return Heard(Reply(kind, number, b"", server, held), 99)


def test_four_messages_make_a_lease() -> None:
    held = LEASES[0]
    state, told = walk(State(), Start(7), heard(Kind.OFFER, 7, held), heard(Kind.ACK, 7, held))
    assert state.phase is Phase.BOUND
    questions = [effect.question for effect in told if isinstance(effect, Send)]
    assert [q.kind for q in questions] == [Kind.DISCOVER, Kind.REQUEST]
    assert (questions[1].wanted, questions[1].server) == (MINE, ONE)
    assert told[-2:] == [Configure(held), Wait(held.renew_s)]


def test_a_remembered_address_is_asked_for_and_used_only_when_confirmed() -> None:
    state, told = walk(State(), Start(7, MINE))
    assert state.phase is Phase.REBOOTING
    [sent] = [effect for effect in told if isinstance(effect, Send)]
    assert (sent.question.kind, sent.question.wanted, sent.question.server, sent.question.own) == (
        *(Kind.REQUEST, MINE),
        *(None, None),
    )
    assert not any(isinstance(effect, Configure) for effect in told)
    bound, _ = walk(state, heard(Kind.ACK, 7, LEASES[0]))
    assert bound.phase is Phase.BOUND
    other, effects = walk(state, heard(Kind.ACK, 7, leased(OTHER, ONE)))
    assert (other, effects) == (state, [])
    refused, _ = walk(state, heard(Kind.NAK, 7, None), Elapsed(8))
    assert refused.phase is Phase.SELECTING
    silent, _ = walk(state, *[Elapsed(8)] * lease.REQUESTS_MAX)
    assert silent.phase is Phase.SELECTING


def test_a_lease_is_renewed_rebound_and_ends() -> None:
    """The waits of a lease that nobody renews add up to its length, to the second."""
    held = leased(MINE, ONE, 3600)
    state = State(Phase.BOUND, 7, lease=held)
    waited, phases = held.renew_s, [Phase.BOUND]
    to: list[IPv4Address | None] = []
    while state.phase in HELD:
        state, effects = lease.decide(state, Elapsed(8))
        phases.append(state.phase)
        if state.phase in HELD:
            waited += sum(effect.seconds for effect in effects if isinstance(effect, Wait))
            to += [effect.to for effect in effects if isinstance(effect, Send)]
    assert waited == held.seconds
    assert phases == sorted(phases, key=[*Phase].index) or phases[-1] is Phase.SELECTING
    assert effects[0] == Deconfigure()
    asked_one = [each for each in to if each is not None]
    assert asked_one == [ONE] * len(asked_one)
    assert to == [*asked_one, *[None] * (len(to) - len(asked_one))]
    # Not more often than once a minute but for the last time, and more than once with each.
    assert 2 <= len(asked_one) <= 12


def test_renewed_by_its_server_and_by_no_other() -> None:
    held = LEASES[0]
    state, _ = walk(State(Phase.BOUND, 7, lease=held), Elapsed(8))
    assert state.phase is Phase.RENEWING
    stranger, effects = walk(state, heard(Kind.NAK, 8, None, TWO))
    assert (stranger, effects) == (state, [])
    longer = replace(held, seconds=480, renew_s=240, rebind_s=420)
    again, effects = walk(state, heard(Kind.ACK, 8, longer))
    assert again.phase is Phase.BOUND
    assert effects == [Configure(longer), Wait(240)]
    lost, effects = walk(state, heard(Kind.NAK, 8, None))
    assert effects == [Deconfigure(), Wait(lease.REFUSED_WAIT_S)]
    assert lost.phase is Phase.REFUSED
