"""A small model checker: visit every reachable state of a pure machine and check a property on each step.

Works on any machine whose states are hashable (frozen dataclasses are). It ends when no new state appears; a
machine that never ends holds something unbounded, which is a finding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)
E = TypeVar("E")
F = TypeVar("F")


@dataclass
class Explored(Generic[S]):
    """What was seen: every state, and for each the states one step on."""

    edges: dict[S, set[S]] = field(default_factory=dict)
    steps: int = 0

    def reaches(self, goal: Callable[[S], bool]) -> set[S]:
        """All seen states from which some state of `goal` can be reached (those themselves among them)."""
        before: dict[S, set[S]] = {}
        for state, nexts in self.edges.items():
            for after in nexts:
                before.setdefault(after, set()).add(state)
        found = {state for state in self.edges if goal(state)}
        queue = deque(found)
        while queue:
            for state in before.get(queue.popleft(), ()):
                if state not in found:
                    found.add(state)
                    queue.append(state)
        return found


def explore(
    initial: S,
    events: Callable[[S], Iterable[E]],
    step: Callable[[S, E], tuple[S, F]],
    check: Callable[[S, E, S, F], None],
    states_max: int = 200_000,
) -> Explored[S]:
    """Visit everything reachable from `initial`, breadth first. `events` says what can happen in a state."""
    seen: Explored[S] = Explored({initial: set()})
    queue = deque([initial])
    while queue:
        before = queue.popleft()
        for event in events(before):
            after, effects = step(before, event)
            check(before, event, after, effects)
            seen.steps += 1
            seen.edges[before].add(after)
            if after not in seen.edges:
                assert len(seen.edges) < states_max, (
                    "the machine's states are not finite enough to be explored"
                )
                seen.edges[after] = set()
                queue.append(after)
    return seen
