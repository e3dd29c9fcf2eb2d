"""Pace: how the manifest's waits stretch on a slow ground.

Pure. An emulated machine may need ten times as long for everything; a wait that is right on a fast one would
kill healthy organs there. The measure is a piece of work each boot does anyway: the zygote's imports.
"""

from __future__ import annotations

from typing import Final

from organs.bay0.restart import Limits
from organs.manifest import Policy

# On an ordinary machine the imports take about this long.
IMPORT_MS_ORDINARY: Final = 500
# A faster machine keeps the manifest's waits; beyond eightfold a ground is broken rather than slow.
SCALE_MIN, SCALE_MAX = 1000, 8000
# Delay before the start after the first, second, ... death. A crash loop reaches its limit within a second.
BACKOFF_MS: Final = (0, 100, 400)
# How long the kernel may take to end what was killed: a device that does not answer can hold a process, and
# after this long it is the machine that is stuck.
KILL_DEADLINE_MS: Final = 30_000


def scale(import_ms: int) -> int:
    """The factor for waits, in thousandths, from how long the zygote needed to import."""
    return max(SCALE_MIN, min(SCALE_MAX, import_ms * 1000 // IMPORT_MS_ORDINARY))


def stretched(wait_ms: int, factor: int) -> int:
    """A wait on this ground. `factor` in thousandths."""
    return wait_ms * factor // 1000


def limits(policy: Policy, factor: int) -> Limits:
    """The restart policy on this ground. What forgives (the healthy stretch) does not stretch."""
    return Limits(
        silence_ms=stretched(policy.heartbeat_ms * policy.heartbeats_missed_max, factor),
        start_ms=stretched(policy.start_deadline_ms, factor),
        kill_ms=stretched(KILL_DEADLINE_MS, factor),
        stretch_ms=policy.healthy_stretch_ms,
        deaths_max=policy.deaths_max,
        backoff_ms=BACKOFF_MS,
    )
