"""The event loop of PID 1: descriptors that can be read, each with the one function that reads it.

Touches: epoll and poll, by the standard library; the wake-up pipe of signals.
Never: reads a descriptor itself; runs two functions at once; starts a thread.
Fails: an exception of a callback goes up and ends PID 1, which is a panic with its name.
"""

from __future__ import annotations

import os
import select
import selectors
import signal
import time
from collections.abc import Callable, Iterable
from typing import Final

Callback = Callable[[], object]
# Signs of life come at one moment (`organs/pulse.py`), but not at once: each organ's timer is rounded to a
# millisecond, and one after the other needs a processor. After the first one the others are waited for so
# long, since it is the turn that costs, not what is read in it. A hang is found so much later at the most.
GATHER_MS: Final = 3


def now_ms() -> int:
    """CLOCK_MONOTONIC in whole milliseconds: the only clock PID 1 reckons with."""
    return time.monotonic_ns() // 1_000_000


class Loop:
    """Level-triggered: what a callback leaves unread makes it run again in the next turn."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        # Those that are in no hurry, and all others.
        self._patient: set[int] = set()
        self._pressing = select.poll()

    def add(self, fd: int, callback: Callback, *, patient: bool = False) -> None:
        """Call back whenever `fd` can be read or has ended. A patient one waits for others of its kind."""
        self._selector.register(fd, selectors.EVENT_READ, callback)
        if patient:
            self._patient.add(fd)
        else:
            self._pressing.register(fd, select.POLLIN)

    def remove(self, fd: int) -> None:
        """Never call back again for `fd`, not even in this turn."""
        self._selector.unregister(fd)
        if fd in self._patient:
            self._patient.remove(fd)
        else:
            self._pressing.unregister(fd)

    def has(self, fd: int) -> bool:
        """Whether somebody listens to `fd`."""
        return fd in self._selector.get_map()

    def turn(self, timeout_ms: int) -> None:
        """Wait for something, at most so long, then call each function that has something to read once."""
        ready = self._selector.select(max(0, timeout_ms) / 1000)
        if ready and all(key.fd in self._patient for key, _ in ready):
            self._pressing.poll(GATHER_MS)
            ready = self._selector.select(0)
        for key, _ in ready:
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
