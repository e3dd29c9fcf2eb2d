"""Reports: how PID 1 says what it does: stage lines, its log, its last words.

Touches: the kernel log, the console, the screen; in a container standard error instead; its own log ring.
Never: blocks, and never says anything while all is well.
Fails: silently; a report that nobody can take is lost.
"""

from __future__ import annotations

import os
import time
from typing import Final

from organs import layout
from organs.bay0 import screen
from organs.bay0.rings import Ring
from organs.kernel import console, processes

CRITICAL, INFORMATION = 2, 6
STDERR: Final = 2


class Report:
    """Where PID 1's words go. Until `stand_on` is called, to standard error only."""

    def __init__(self) -> None:
        self._console: int | None = STDERR
        self._kernel_log: int | None = None
        self._screen: int | None = None
        self._page = ""
        self._ring: Ring | None = None
        self._start_ms = 0

    def stand_on(self, *, machine: bool) -> None:
        """Choose the places once the ground is known; in a container time counts from our own start."""
        if machine:
            self._kernel_log = console.open_quietly(console.KERNEL_LOG)
            self._console = console.open_quietly(console.CONSOLE)
            self._screen = console.open_quietly(console.SCREEN)
        else:
            self._start_ms = processes.started_ms()

    def keep(self, ring: Ring) -> None:
        """Keep what is said in this ring as well."""
        self._ring = ring

    def stage(self, name: str) -> None:
        """A step of the boot is done."""
        now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 - self._start_ms
        line = f"spine: stage {name} {now_ms}\n"
        console.say(self._console, line)
        self._note(line)

    def say(self, text: str) -> None:
        """One line for the log."""
        if self._kernel_log is not None:
            console.record(self._kernel_log, INFORMATION, f"spine: {text}")
        else:
            console.say(self._console, f"spine: {text}\n")
        self._note(f"spine: {text}\n")

    def show(self, page: str, *, whole: bool = True) -> None:
        """Put a page on the screen; not `whole`: only what differs from the page before it."""
        text = page if whole or not self._page else screen.changed(self._page, page)
        self._page = page
        console.say(self._screen, text)

    def last_words(self, reason: str) -> None:
        """Why the system ends now, everywhere at once: this text is what a person will find."""
        text = "".join(f"spine: panic: {line}\n" for line in reason.splitlines())
        console.record(self._kernel_log, CRITICAL, text)
        console.say(self._console, text)
        self.show(screen.panic_page(layout.NAME, reason))
        self._note(text)
        try:
            with open(layout.PANIC, "w", encoding="utf-8", errors="replace") as file:
                file.write(reason + "\n")
        except OSError:
            return  # too early: there is no /run yet

    def _note(self, line: str) -> None:
        if self._ring is not None:
            self._ring.write(line.encode(errors="replace"))


def end_in_panic(report: Report, reason: str) -> None:
    """Say why, then end PID 1: the kernel panics and restarts, and the boot counter does the rest."""
    report.last_words(reason)
    os._exit(layout.EXIT_PANIC)
