"""One alarm clock for many deadlines: cheaper than a cancel scope for each call.

It holds no deadline but the earliest. When that passes it asks its owner to deal with whatever is due, and
for the earliest of what remains. So a call that ends in time costs the clock nothing, and a process without
calls is never woken.
"""

import math
import time
from collections.abc import Callable
from typing import Final

import trio

NEVER: Final = (1 << 63) - 1
"""A time that CLOCK_MONOTONIC does not reach, in nanoseconds."""


class Alarm:
    """Calls `due(now_ns)` when the earliest time given to `at` has come; `due` answers with the next, or
    NEVER.

    Times are nanoseconds of CLOCK_MONOTONIC. `run` must be running.
    """

    __slots__ = ("_due", "_next_ns", "_scope")

    def __init__(self, due: Callable[[int], int]) -> None:
        self._due = due
        self._next_ns = NEVER
        self._scope: trio.CancelScope | None = None

    def at(self, when_ns: int) -> None:
        """There is something due at that time."""
        if when_ns < self._next_ns:
            self._next_ns = when_ns
            if self._scope is not None:
                self._scope.deadline = _on_trio_clock(when_ns)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with trio.CancelScope(deadline=_on_trio_clock(self._next_ns)) as self._scope:
                await trio.sleep_forever()
            # A time given meanwhile is among what `due` looks at, or comes by `at` after it.
            self._next_ns = NEVER
            self._next_ns = self._due(time.monotonic_ns())


def _on_trio_clock(when_ns: int) -> float:
    """trio counts seconds from a moment of its own."""
    if when_ns == NEVER:
        return math.inf
    return trio.current_time() + (when_ns - time.monotonic_ns()) / 1e9
