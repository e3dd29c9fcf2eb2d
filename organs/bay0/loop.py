"""The event loop of PID 1: descriptors that can be read, each with the one function that reads it.

Touches: epoll, by the standard library's selector; the wake-up pipe of signals.
Never: reads a descriptor itself; runs two functions at once; starts a thread.
Fails: an exception of a callback goes up and ends PID 1, which is a panic with its name.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable

Callback = Callable[[], object]


def now_ms() -> int:
    """CLOCK_MONOTONIC in whole milliseconds: the only clock PID 1 reckons with."""
    return time.monotonic_ns() // 1_000_000


class Loop:
    """Level-triggered: what a callback leaves unread makes it run again in the next turn."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def add(self, fd: int, callback: Callback) -> None:
        """Call back whenever `fd` can be read or has ended."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def remove(self, fd: int) -> None:
        """Never call back again for `fd`, not even in this turn."""
        self._selector.unregister(fd)

    def has(self, fd: int) -> bool:
        """Whether somebody listens to `fd`."""
        return fd in self._selector.get_map()

    def turn(self, timeout_ms: int) -> None:
        """Wait for something, at most so long, then call each function that has something to read once."""
        for key, _ in self._selector.select(max(0, timeout_ms) / 1000):
            # A callback may have removed another descriptor of this turn, even closed it.
            if self._selector.get_map().get(key.fd) is key:
                callback: Callback = key.data
                callback()


class Signals:
    """Signals as bytes in a pipe, read in the loop's own time."""

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self.fd, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in numbers:
            # PID 1 gets no signal that it has no handler for. The handler itself has nothing to do.
            signal.signal(number, lambda _number, _frame: None)

    def read(self) -> list[int]:
        """The numbers that came since the last call."""
        try:
            return list(os.read(self.fd, 4096))
        except BlockingIOError:
            return []
