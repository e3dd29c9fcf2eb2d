"""Restart policy: what bay0 does when a child dies, goes silent, or does not get ready.

Pure: time comes in as integer milliseconds, what to do leaves as an Effect. One state per child, the zygote
among them.
Never: looks at a process, waits, reads a clock; that is `organs/bay0/children.py`.
Asked and confirmed differ: a killed child is STOPPING until the kernel says that it and all it made are
gone, so a second incarnation cannot start beside the first.
A child that keeps dying, or keeps hanging, ends in PANIC: the boot counter then chooses another slot. One
that keeps dying of its data does not, for another slot would find the same data: it is started *closed*,
without them, for the rest of the boot. A closed one has no data to die of, so its deaths are deaths again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Phase(Enum):
    """Where a child is in its life. The values are what `organs.json` says."""

    WAITING = "waiting"  # no process; starts when its delay is over
    STARTING = "starting"  # asked to start
    READY = "ready"  # said that it answers
    STOPPING = "stopping"  # killed, not yet gone


class Event(Enum):
    """What happens to a child, besides time passing (`tick`)."""

    READY = "it says that it answers"
    BEAT = "it says that it lives"
    DIED = "it is gone, and all that it made; or it could not be made"
    DIED_OF_DATA = "the same, and it says that its data are bad, which no other slot would change"
    LOST = "the zygote died before it made it: not the child's fault"


class Effect(Enum):
    """What the shell must do now."""

    START = "start the next incarnation"
    KILL = "kill this one whole"
    PANIC_DEATHS = "it died too often"
    PANIC_STUCK = "it was killed and is still there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The manifest's policy, scaled to the speed of the ground. Milliseconds, but for `deaths_max`."""

    silence_ms: int
    start_ms: int
    kill_ms: int
    stretch_ms: int
    deaths_max: int
    # The wait before the next start after the first, second, ... death; the last one repeats. The first is 0:
    # a single crash should cost its callers nothing but the start.
    backoff_ms: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One child. `clock_ms` is the time left in WAITING, the time since the last sign of life in READY, and
    the time in the phase otherwise. `proven_ms` is how long it has been ready up to its last beat. `closed`:
    it is started without its data; it stays so until the next boot."""

    phase: Phase = Phase.WAITING
    clock_ms: int = 0
    proven_ms: int = 0
    deaths: int = 0
    data_deaths: int = 0
    closed: bool = False


Step = tuple[State, Effect | None]


def happen(limits: Limits, state: State, event: Event) -> Step:
    """The next state after an event, and what to do. An event that cannot matter any more changes nothing."""
    match state.phase, event:
        case Phase.STARTING, Event.READY:
            return replace(state, phase=Phase.READY, clock_ms=0, proven_ms=0), None
        case Phase.READY, Event.BEAT:
            # Only the time up to a beat counts: a child that hangs has proven nothing since its last one, so
            # a hang cannot earn forgiveness by the time it took to be found.
            proven_ms = min(limits.stretch_ms, state.proven_ms + state.clock_ms)
            state = replace(state, clock_ms=0, proven_ms=proven_ms)
            if proven_ms == limits.stretch_ms:
                state = replace(state, deaths=0, data_deaths=0)
            return state, None
        case ((Phase.STARTING | Phase.READY | Phase.STOPPING), Event.DIED):
            return _died(limits, state)
        case ((Phase.STARTING | Phase.READY | Phase.STOPPING), Event.DIED_OF_DATA):
            return _died(limits, state) if state.closed else _died_of_data(limits, state)
        case ((Phase.STARTING | Phase.READY | Phase.STOPPING), Event.LOST):
            # READY as well: it can say so before the zygote, which then dies, has said its pid.
            return _waiting(state, 0), None
    return state, None


def tick(limits: Limits, state: State, elapsed_ms: int, *, may_start: bool) -> Step:
    """The next state after `elapsed_ms`, and what to do. `may_start`: the zygote can make children."""
    assert elapsed_ms >= 0
    match state.phase:
        case Phase.WAITING:
            left_ms = max(0, state.clock_ms - elapsed_ms)
            if left_ms == 0 and may_start:
                return replace(state, phase=Phase.STARTING, clock_ms=0), Effect.START
            return replace(state, clock_ms=left_ms), None
        case Phase.STARTING:
            return _patience(state, elapsed_ms, limits.start_ms, Effect.KILL)
        case Phase.READY:
            return _patience(state, elapsed_ms, limits.silence_ms, Effect.KILL)
        case Phase.STOPPING:
            return _patience(state, elapsed_ms, limits.kill_ms, Effect.PANIC_STUCK)


def due_ms(limits: Limits, state: State) -> int:
    """After how long a `tick` would have something to do, if nothing happens before."""
    match state.phase:
        case Phase.WAITING:
            return state.clock_ms
        case Phase.STARTING:
            return limits.start_ms - state.clock_ms + 1
        case Phase.READY:
            return limits.silence_ms - state.clock_ms + 1
        case Phase.STOPPING:
            return limits.kill_ms - state.clock_ms + 1


def _died(limits: Limits, state: State) -> Step:
    deaths = state.deaths + 1
    if deaths > limits.deaths_max:  # INV-REAP-1
        return replace(_waiting(state, 0), deaths=deaths), Effect.PANIC_DEATHS
    return replace(_waiting(state, _delay_ms(limits, deaths)), deaths=deaths), None


def _died_of_data(limits: Limits, state: State) -> Step:
    data_deaths = state.data_deaths + 1
    if data_deaths > limits.deaths_max:  # INV-STATE-3
        return replace(_waiting(state, 0), data_deaths=0, closed=True), None
    return replace(_waiting(state, _delay_ms(limits, data_deaths)), data_deaths=data_deaths), None


def _waiting(state: State, delay_ms: int) -> State:
    return replace(state, phase=Phase.WAITING, clock_ms=delay_ms, proven_ms=0)


def _delay_ms(limits: Limits, deaths: int) -> int:
    return limits.backoff_ms[min(deaths, len(limits.backoff_ms)) - 1]


def _patience(state: State, elapsed_ms: int, limit_ms: int, effect: Effect) -> Step:
    """Age in the phase; when the limit is over, the effect and STOPPING. Ages stay finite."""
    age_ms = state.clock_ms + elapsed_ms
    if age_ms <= limit_ms:
        return replace(state, clock_ms=age_ms), None
    return replace(state, phase=Phase.STOPPING, clock_ms=0, proven_ms=0), effect
