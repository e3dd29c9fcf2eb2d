"""The orderly end, every reachable state of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from organs.bay0.stop import Effect, State, due_ms, tick
from tests.explore import explore

DEADLINE_MS = 3

Happening = tuple[int, int]


def step(state: State, happening: Happening) -> tuple[State, Effect | None]:
    return tick(state, happening[0], DEADLINE_MS, happening[1])


def possible(_state: State) -> Iterable[Happening]:
    return itertools.product((0, 1, 2, 9), (0, 1, 2))


def check(before: State, happening: Happening, after: State, effect: Effect | None) -> None:
    elapsed_ms, alive = happening
    late = before.age_ms + elapsed_ms > DEADLINE_MS
    assert (effect is Effect.KILL_ALL) == (alive > 0 and late and not before.killed)
    assert (effect is Effect.FINISH) == (alive == 0 or (late and before.killed))
    assert before.killed <= after.killed
    assert after.age_ms <= DEADLINE_MS


def test_every_reachable_state() -> None:
    seen = explore(State(), possible, step, check)
    assert {state.killed for state in seen.edges} == {False, True}
    for state in seen.edges:
        assert step(state, (due_ms(state, DEADLINE_MS), 1))[1] is not None
