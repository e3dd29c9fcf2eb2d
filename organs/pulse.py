"""When everybody says that it lives: at one moment of the clock that all share, so that PID 1 wakes once.

Pure.
Never: leaves more than a heartbeat and a millisecond between two signs of life.
"""

from __future__ import annotations

from typing import Final

# A timer may end a little before the moment that it was set for, and two signs of life would come of it.
EARLY_NS: Final = 1_000_000


def until_beat_ns(now_ns: int, heartbeat_ms: int) -> int:
    """How long until the next sign of life is due. `now_ns` is of CLOCK_MONOTONIC."""
    period_ns = heartbeat_ms * 1_000_000
    return period_ns - (now_ns + EARLY_NS) % period_ns + EARLY_NS


def until_beat_ms(now_ns: int, heartbeat_ms: int) -> int:
    """The same in whole milliseconds, rounded up, for those who wait with `poll`."""
    return -(-until_beat_ns(now_ns, heartbeat_ms) // 1_000_000)
