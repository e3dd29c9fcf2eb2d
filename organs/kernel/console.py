"""Consoles: where PID 1 can say something: the kernel log, the console device, the first screen.

Touches: /dev/kmsg, /dev/console, /dev/tty1, standard error.
Never: blocks: a console that cannot take a line loses it. A serial line with nobody reading must not hold
PID 1.
Fails: silently. There is nowhere left to report it.
"""

from __future__ import annotations

import os
from typing import Final

KERNEL_LOG: Final = "/dev/kmsg"
CONSOLE: Final = "/dev/console"
SCREEN: Final = "/dev/tty1"
# The kernel cuts records near a thousand bytes; we cut them ourselves, at whole characters.
RECORD_BYTES_MAX: Final = 900


def open_quietly(path: str) -> int | None:
    """A non-blocking descriptor for writing, or None when the place does not exist."""
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None


def say(fd: int | None, text: str) -> None:
    """Write `text` once. What does not fit is lost."""
    if fd is None:
        return
    try:
        os.write(fd, text.encode(errors="replace"))
    except OSError:
        return


def record(fd: int | None, priority: int, text: str) -> None:
    """One record for each line in the kernel log, with a syslog priority (2 critical, 6 information)."""
    for line in text.splitlines():
        short = line.encode(errors="replace")[:RECORD_BYTES_MAX].decode(errors="ignore")
        say(fd, f"<{priority}>{short}\n")
