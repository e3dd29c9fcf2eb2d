"""What becomes of calls, decided: the table whole, and the whole protocol explored with the real decisions.

The model has one caller with one call, a callee that may die at any moment, and a connection that loses what
is under way. The caller learns of a loss late, and what it sends meanwhile reaches the next incarnation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import pytest

from bus.admission import CALL_BYTES_MAX, CALLS_MAX, Load, admit
from bus.envelope import Code, Envelope, Failure, Kind
from bus.link import Action, CallState, Event, decide
from tests.explore import explore


def test_every_state_and_event_has_an_action() -> None:
    for state, event, idempotent in product(CallState, Event, (False, True)):
        action = decide(state, event, idempotent=idempotent)
        assert (action is Action.SEND) == (state is CallState.WAITING and event is Event.READY)
        assert (action is Action.FINISH) == (state is CallState.SENT and event is Event.ANSWER)
        if state is CallState.SENT and event is Event.LOST:
            assert action is (Action.AGAIN if idempotent else Action.DIED)
        else:
            assert action not in (Action.AGAIN, Action.DIED)


@dataclass(frozen=True, slots=True)
class Rules:
    callers: tuple[str, ...] = ("alpha",)
    deadline_ms: int = 1


NOW_NS = 1_000_000_000
RULES = Rules()


@pytest.mark.proves("INV-BUS-1")
def test_admission_whole() -> None:
    """Every combination of what can be wrong: the first reason in the order of the list is the answer."""
    wrong: dict[str, Code] = {
        "generation": Code.STALE,
        "method": Code.UNKNOWN_METHOD,
        "caller": Code.FORBIDDEN,
        "deadline": Code.DEADLINE,
        "calls": Code.BUSY,
        "bytes": Code.BUSY,
    }
    for faults in product((False, True), repeat=len(wrong)):
        broken = {name for name, fault in zip(wrong, faults, strict=True) if fault}
        verdict = admit(
            Envelope(
                kind=Kind.CALL,
                id=1,
                generation=4 if "generation" in broken else 5,
                deadline_ns=NOW_NS if "deadline" in broken else NOW_NS + 1,
                body=b"12",
            ),
            None if "method" in broken else RULES,
            caller="beta" if "caller" in broken else "alpha",
            generation=5,
            now_ns=NOW_NS,
            load=Load(
                CALLS_MAX if "calls" in broken else CALLS_MAX - 1,
                CALL_BYTES_MAX - 1 if "bytes" in broken else CALL_BYTES_MAX - 2,
            ),
        )
        expected = next((code for name, code in wrong.items() if name in broken), None)
        if isinstance(verdict, Failure):
            assert verdict.code is expected
        else:
            assert expected is None
            assert verdict == NOW_NS + 1


def test_the_schema_limits_the_deadline() -> None:
    call = Envelope(kind=Kind.CALL, id=1, deadline_ns=(1 << 63) - 1)
    verdict = admit(call, RULES, caller="alpha", generation=0, now_ns=NOW_NS, load=Load(0, 0))
    assert verdict == NOW_NS + 1_000_000


GENERATIONS = 3
ATTEMPTS = 4
"""The model ends where the call was sent so often: nothing in the decisions depends on the number."""

Answer = tuple[Literal["reply", "failure"], int, int]


@dataclass(frozen=True, slots=True)
class World:
    """One call on its way. Messages under way are (generation, attempt), answers have their kind before."""

    idempotent: bool
    state: CallState | None = CallState.WAITING
    """None when the caller has its answer."""
    outcome: str = ""
    attempt: int = 0
    caller_generation: int | None = None
    """What the caller believes."""
    callee: int = 1
    connected: bool = False
    lost: bool = False
    """The connection is lost and the caller has not heard of it."""
    calls: tuple[tuple[int, int], ...] = ()
    answers: tuple[Answer, ...] = ()
    executed: tuple[tuple[int, int, int], ...] = ()
    """(generation that executed it, generation it was addressed to, attempt)."""


def happens(world: World) -> Iterator[str]:
    if world.callee < GENERATIONS:
        yield "die"
    if not world.connected:
        yield "connect"
    if world.lost:
        yield "hear"
    elif world.connected and world.caller_generation is None:
        yield "hello"
    if world.calls and world.connected:
        yield "call arrives"
    if world.answers:
        yield "answer arrives"


def step(world: World, event: str) -> tuple[World, None]:
    match event:
        case "die":
            # What was under way on the connection is lost both ways; so may be what the caller has not read.
            world = replace(
                world,
                callee=world.callee + 1,
                connected=False,
                lost=world.lost or world.caller_generation is not None,
                calls=(),
                answers=(),
            )
        case "connect":
            world = replace(world, connected=True)
        case "hear":
            world = act(replace(world, lost=False, caller_generation=None), Event.LOST)
        case "hello":
            world = act(replace(world, caller_generation=world.callee), Event.READY)
        case "call arrives":
            (generation, attempt), *rest = world.calls
            verdict = admit(
                Envelope(kind=Kind.CALL, id=1, generation=generation, deadline_ns=NOW_NS + 1),
                RULES,
                caller="alpha",
                generation=world.callee,
                now_ns=NOW_NS,
                load=Load(0, 0),
            )
            kind: Literal["reply", "failure"] = "failure" if isinstance(verdict, Failure) else "reply"
            if kind == "reply":
                world = replace(world, executed=(*world.executed, (world.callee, generation, attempt)))
            world = replace(world, calls=tuple(rest), answers=(*world.answers, (kind, world.callee, attempt)))
        case "answer arrives":
            (kind, generation, attempt), world = world.answers[0], replace(world, answers=world.answers[1:])
            if world.lost and generation != world.caller_generation:
                world = step(world, "hear")[
                    0
                ]  # As the client does on an answer of a generation it has not met.
            if world.state is not None:
                answer = Event.ANSWER if attempt == world.attempt else Event.OLD_ANSWER
                world = act(world, answer, kind)
    # A call that was made while the caller believed in a dead incarnation goes to whoever is there now.
    return world, None


def act(world: World, event: Event, outcome: str = "") -> World:
    if world.state is None:
        return world
    match decide(world.state, event, idempotent=world.idempotent):
        case Action.SEND:
            assert world.caller_generation is not None
            sent = (world.caller_generation, world.attempt)
            return replace(world, state=CallState.SENT, calls=(*world.calls, sent))
        case Action.AGAIN:
            return replace(world, state=CallState.WAITING, attempt=min(world.attempt + 1, ATTEMPTS))
        case Action.FINISH:
            return replace(world, state=None, outcome=outcome)
        case Action.DIED:
            return replace(world, state=None, outcome="died")
        case Action.NOTHING:
            return world


def make_late_call(world: World) -> Iterator[World]:
    """A call made while the caller does not know yet that the callee it speaks to is gone."""
    yield world
    yield replace(world, caller_generation=1, lost=True, callee=2, connected=True)
    yield replace(world, caller_generation=1, lost=True, callee=2, connected=False)


@pytest.mark.proves("INV-BUS-3")
@pytest.mark.proves("INV-BUS-4")
@pytest.mark.parametrize("idempotent", [False, True])
def test_the_protocol_explored(idempotent: bool) -> None:
    def check(before: World, _event: str, after: World, _: None) -> None:
        for generation, addressed, _attempt in after.executed:
            assert generation == addressed, "a later incarnation executed a call"
        if not idempotent:
            assert len(after.executed) <= 1, "a call that must not be repeated was"
        assert len({attempt for _, _, attempt in after.executed}) == len(after.executed)
        if after.outcome == "reply":
            assert after.executed, "an answer without an execution"
        if after.outcome == "failure":
            assert not after.executed, "a refusal of what was executed"
        assert before.state is not None or after.outcome == before.outcome

    for start in make_late_call(World(idempotent)):
        begun = start if start.caller_generation is None else act(start, Event.READY)
        seen = explore(begun, happens, step, check)
        # From everywhere the call can still end (its deadline aside, which ends it in any case).
        assert seen.reaches(lambda world: world.state is None) == set(seen.edges)
        outcomes = {world.outcome for world in seen.edges}
        assert ("died" in outcomes) == (not idempotent)
        assert "reply" in outcomes or start.lost
