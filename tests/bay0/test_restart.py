"""The restart policy, every reachable state of it, and what a child that hangs or crashes ends in."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from organs.bay0.restart import Effect, Event, Limits, Phase, State, Step, due_ms, happen, tick
from tests.explore import Explored, explore

# Small numbers reach the same corners as real ones; each of them differs, so that none stands for another.
LIMITS = Limits(silence_ms=3, start_ms=4, kill_ms=2, stretch_ms=5, deaths_max=3, backoff_ms=(0, 1, 2))
TICKS = (0, 1, 2, 7)

Happening = Event | tuple[int, bool]
GONE = {Event.DIED, Event.DIED_OF_DATA, Event.LOST}
PANIC = {Effect.PANIC_DEATHS, Effect.PANIC_STUCK}


def step(state: State, happening: Happening) -> Step:
    if isinstance(happening, Event):
        return happen(LIMITS, state, happening)
    return tick(LIMITS, state, happening[0], may_start=happening[1])


def possible(state: State) -> Iterable[Happening]:
    """Everything, in every state: an event that should not come must do no harm. After a panic, nothing."""
    if state.deaths > LIMITS.deaths_max:
        return
    assert not (state.closed and state.data_deaths)
    yield from Event
    yield from itertools.product(TICKS, (True, False))


def check(before: State, happening: Happening, after: State, effect: Effect | None) -> None:
    lived = before.phase is not Phase.WAITING
    of_data = happening is Event.DIED_OF_DATA and lived and not before.closed
    died = happening in (Event.DIED, Event.DIED_OF_DATA) and lived and not of_data
    too_often = died and before.deaths == LIMITS.deaths_max
    assert (effect is Effect.PANIC_DEATHS) == too_often
    assert after.deaths in (before.deaths, before.deaths + 1 if died else 0)
    # Data are never the reason of a panic; over the limit they close, for good, and before it they do not.
    closes = of_data and before.data_deaths == LIMITS.deaths_max
    assert after.closed == (before.closed or closes)
    if of_data:
        assert effect is None
        assert after.deaths == before.deaths
        assert after.data_deaths == (0 if closes else before.data_deaths + 1)
    elif after.data_deaths != before.data_deaths:
        assert happening is Event.BEAT
        assert (after.data_deaths, after.proven_ms) == (0, LIMITS.stretch_ms)
    elapsed_ms = happening[0] if isinstance(happening, tuple) else 0
    stuck = before.phase is Phase.STOPPING and before.clock_ms + elapsed_ms > LIMITS.kill_ms
    assert (effect is Effect.PANIC_STUCK) == stuck
    # One incarnation at a time: a start comes from WAITING only, and only a confirmed end leads there.
    if effect is Effect.START:
        assert before.phase is Phase.WAITING
        assert after.phase is Phase.STARTING
    if after.phase is Phase.WAITING and before.phase is not Phase.WAITING:
        assert happening in GONE
    if happening in GONE:
        assert after.phase is Phase.WAITING
    if after.phase is Phase.STARTING and before.phase is not Phase.STARTING:
        assert effect is Effect.START
    # Killed and stopping are the same moment, and silence or lateness is the only reason.
    if effect is Effect.KILL:
        assert before.phase in (Phase.STARTING, Phase.READY)
        assert after.phase is Phase.STOPPING
    if after.phase is Phase.READY and before.phase is not Phase.READY:
        assert happening is Event.READY
        assert after.proven_ms == 0
    # Forgiven only by a beat that completes a healthy stretch.
    if after.deaths < before.deaths:
        assert happening is Event.BEAT
        assert after.proven_ms == LIMITS.stretch_ms
    assert 0 <= after.clock_ms <= max(LIMITS.start_ms, LIMITS.silence_ms, LIMITS.kill_ms)


@pytest.fixture(scope="module", name="seen")
def _seen() -> Explored[State]:
    return explore(State(), possible, step, check)


@pytest.mark.proves("INV-REAP-1")
@pytest.mark.proves("INV-STATE-3")
def test_every_reachable_state(seen: Explored[State]) -> None:
    assert len(seen.edges) > 500
    assert any(state.closed for state in seen.edges)
    assert {state.phase for state in seen.edges} == set(Phase)


def test_every_state_has_a_way_on(seen: Explored[State]) -> None:
    living = {state for state in seen.edges if state.deaths <= LIMITS.deaths_max}
    assert living <= seen.reaches(lambda s: s.phase is Phase.READY and s.deaths == 0)
    assert living <= seen.reaches(lambda s: s.phase is Phase.READY and s.closed)
    assert living <= seen.reaches(lambda s: s.deaths > LIMITS.deaths_max)


def test_due_is_exactly_when_time_does_something(seen: Explored[State]) -> None:
    for state in seen.edges:
        due = due_ms(LIMITS, state)
        assert tick(LIMITS, state, due, may_start=True)[1] is not None
        if due > 0:
            assert tick(LIMITS, state, due - 1, may_start=True)[1] is None


@pytest.mark.proves("INV-STATE-3")
def test_who_dies_of_data_alone_never_panics_and_ends_closed() -> None:
    """All that can happen to an organ but a death that is none of its data's, and one that will not end."""

    def happens(state: State) -> Iterable[Happening]:
        yield from (Event.READY, Event.BEAT, Event.LOST)
        if not state.closed:
            yield Event.DIED_OF_DATA
        if state.phase is not Phase.STOPPING:
            yield from ((ms, True) for ms in TICKS)

    def calm(before: State, happening: Happening, after: State, effect: Effect | None) -> None:
        check(before, happening, after, effect)
        assert effect not in PANIC
        assert after.deaths == 0

    seen = explore(State(), happens, step, calm)
    assert set(seen.edges) <= seen.reaches(lambda s: s.closed and s.phase is Phase.READY)


@pytest.mark.proves("INV-STATE-3")
def test_deaths_of_both_kinds_do_not_hide_each_other() -> None:
    """In turn: the panic comes with the last death of the slot's, as it would without the others between."""
    state, effects = State(), []
    for event in [Event.DIED_OF_DATA, Event.DIED] * (LIMITS.deaths_max + 1):
        state, effect = tick(LIMITS, state, due_ms(LIMITS, state), may_start=True)
        assert effect is Effect.START
        state, effect = happen(LIMITS, state, event)
        effects.append(effect)
    assert state.closed
    assert effects == [None] * (2 * LIMITS.deaths_max + 1) + [Effect.PANIC_DEATHS]


def incarnation(state: State, beats: int) -> Step:
    """One life that beats so often, each millisecond, then hangs until it is found, killed and reaped."""
    state, effect = tick(LIMITS, state, due_ms(LIMITS, state), may_start=True)
    assert effect is Effect.START
    state, _ = happen(LIMITS, state, Event.READY)
    for _ in range(beats):
        state, _ = tick(LIMITS, state, 1, may_start=True)
        state, _ = happen(LIMITS, state, Event.BEAT)
    state, effect = tick(LIMITS, state, due_ms(LIMITS, state), may_start=True)
    assert effect is Effect.KILL
    return happen(LIMITS, state, Event.DIED)


@pytest.mark.parametrize("beats", range(LIMITS.stretch_ms))
def test_hangs_trip_the_limit_too(beats: int) -> None:
    state, effect = State(), None
    for _ in range(LIMITS.deaths_max):
        state, effect = incarnation(state, beats)
        assert effect is None
    assert incarnation(state, beats)[1] is Effect.PANIC_DEATHS


def test_a_healthy_stretch_forgives() -> None:
    state, effect = State(), None
    for _ in range(10 * LIMITS.deaths_max):
        state, effect = incarnation(state, LIMITS.stretch_ms)
        assert effect is None
        assert state.deaths == 1


def test_the_first_restart_is_immediate_and_later_ones_wait() -> None:
    state, delays = State(), []
    for _ in range(LIMITS.deaths_max):
        state, _ = incarnation(state, 0)
        delays.append(due_ms(LIMITS, state))
    assert delays == list(LIMITS.backoff_ms)


def test_a_lost_start_is_not_the_childs_fault() -> None:
    state, _ = tick(LIMITS, State(deaths=2), 0, may_start=True)
    assert happen(LIMITS, state, Event.LOST) == (State(deaths=2), None)
