"""Says on standard error how long work is getting on.

Writes to one text stream only. On a terminal the running stage is one line drawn anew each second;
elsewhere a plain line at its start, one at its end and a heartbeat each ten seconds, so that nobody (and no
CI) takes long work for a hang. Data never goes through here. A stream that is gone is ignored: progress
never ends work.
"""

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

# A plain log gets a sign of life this often (s); CI services take silence for a hang after minutes.
HEARTBEAT_S = 10.0
# A terminal is drawn this often (s): the seconds must be seen to run.
REDRAW_S = 1.0


class Progress:
    """One printer for one run of a verb. Safe to use from several threads; one stage runs at a time."""

    def __init__(self, stream: TextIO | None = None, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._colour = self._live and not os.environ.get("NO_COLOR")
        self._beat_s = REDRAW_S if self._live else heartbeat_s
        self._lock = threading.Lock()
        self._name = ""
        self._note = ""
        self._estimate_s: float | None = None
        self._began = 0.0
        self._ended: threading.Event | None = None

    @contextlib.contextmanager
    def stage(self, name: str, estimate_s: float | None = None) -> Iterator["Progress"]:
        """Run a block as one stage; an exception marks it failed and goes on upward."""
        self.start(name, estimate_s)
        try:
            yield self
        except BaseException:
            self.failed()
            raise
        self.done()

    def start(self, name: str, estimate_s: float | None = None) -> None:
        """Begin a stage (ending the one before); `estimate_s` is how long it is thought to take."""
        self.done()
        with self._lock:
            self._name, self._note, self._estimate_s = name, "", estimate_s
            self._began = time.monotonic()
            self._ended = threading.Event()
            if self._live:
                self._draw()
            else:
                about = f" (about {_duration(estimate_s)})" if estimate_s else ""
                self._write(f"spine: {name}{about}\n")
            threading.Thread(target=self._beat, args=(self._ended,), daemon=True).start()

    def note(self, text: str) -> None:
        """What the stage is at; shown at the next redraw or heartbeat."""
        with self._lock:
            self._note = text
            if self._live and self._ended:
                self._draw()

    def done(self, text: str = "") -> None:
        """End the running stage well; nothing when none runs."""
        self._end("done", text, "32")

    def failed(self, text: str = "") -> None:
        """End the running stage badly; nothing when none runs."""
        self._end("FAILED", text, "31")

    def say(self, text: str) -> None:
        """One line of its own, between or during stages."""
        with self._lock:
            if self._live and self._ended:
                self._write("\r\x1b[K")
            self._write(f"spine: {text}\n")
            if self._live and self._ended:
                self._draw()

    def _end(self, verdict: str, text: str, colour: str) -> None:
        with self._lock:
            if self._ended is None:
                return
            self._ended.set()
            self._ended = None
            word = f"\x1b[{colour}m{verdict}\x1b[0m" if self._colour else verdict
            took = _duration(time.monotonic() - self._began)
            start = "\r\x1b[K" if self._live else ""
            self._write(f"{start}spine: {self._name} {word} {took}{': ' + text if text else ''}\n")

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(self._beat_s):
            with self._lock:
                if ended.is_set():
                    return
                if self._live:
                    self._draw()
                else:
                    self._write(f"spine: {self._running()}\n")

    def _running(self) -> str:
        elapsed = _duration(time.monotonic() - self._began)
        about = f" of about {_duration(self._estimate_s)}" if self._estimate_s else ""
        return f"{self._name} … {elapsed}{about}{'  ' + self._note if self._note else ''}"

    def _draw(self) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._write(f"\r\x1b[K{('spine: ' + self._running())[:width]}")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
