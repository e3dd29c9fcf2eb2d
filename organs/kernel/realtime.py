"""The clock of the machine: read with the clock that nobody sets, and set.

Touches: CLOCK_REALTIME. No namespace holds it: who sets it sets the host's as well, so only PID 1 of the
machine ground does.
Never: decides to what. The clock of the hardware is not written, so the next boot begins from that again.
Fails: OSError where the kernel refuses (EPERM without SYS_TIME).
"""

from __future__ import annotations

import time


def wall_ms() -> int:
    """Milliseconds since 1970."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) // 1_000_000


def since_boot_us() -> int:
    """CLOCK_BOOTTIME in microseconds: goes on while the machine sleeps, and is never set."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def since_boot_ms() -> int:
    """The same in milliseconds."""
    return since_boot_us() // 1000


def set_to(wall_ms: int) -> None:
    """Set the clock. Raises OSError."""
    time.clock_settime_ns(time.CLOCK_REALTIME, wall_ms * 1_000_000)  # INV-TIME-1


def move(by_ms: int) -> None:
    """Move the clock from where it is at this moment. Raises OSError."""
    now_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
    time.clock_settime_ns(time.CLOCK_REALTIME, now_ns + by_ms * 1_000_000)
