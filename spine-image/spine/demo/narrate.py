"""Tells the demo: plain lines, as it goes, with bold titles and green or red verdicts on a terminal.

Writes to one text stream, and keeps what it wrote for a picture. Lines of several threads do not mix. What
a program printed is shown without control sequences: a terminal obeys them.
"""

import os
import threading
from enum import Enum
from typing import Final, TextIO

# What is kept for a picture; a demo that went mad must not fill the memory.
LINES_MAX: Final = 2000
WIDTH_MAX: Final = 200


class Kind(Enum):
    """What a line is."""

    TITLE = "title"
    CLAIM = "claim"
    COMMAND = "command"
    OUTPUT = "output"
    PROGRESS = "progress"
    HELD = "held"
    WRONG = "wrong"


CODES: Final = {
    Kind.TITLE: "1",
    Kind.COMMAND: "36",
    Kind.PROGRESS: "2",
    Kind.HELD: "32",
    Kind.WRONG: "31",
}
PREFIXES: Final = {
    Kind.COMMAND: "  $ ",
    Kind.OUTPUT: "  ",
    Kind.PROGRESS: "  ",
    Kind.HELD: "  ✓ ",
    Kind.WRONG: "  ✗ ",
}


class Narrator:
    """One telling. Safe to use from several threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        colour = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._colour = colour and not os.environ.get("NO_COLOR")
        self._lock = threading.Lock()
        self.lines: list[tuple[Kind, str]] = []

    def tell(self, kind: Kind, text: str) -> None:
        """One line, or several."""
        with self._lock:
            for line in text.split("\n"):
                shown = PREFIXES.get(kind, "") + "".join(c for c in line if c.isprintable())
                # A command is ours, and shown whole, so that it can be typed.
                shown = shown if kind is Kind.COMMAND else shown[:WIDTH_MAX]
                if kind is Kind.TITLE:
                    self._put(Kind.CLAIM, "")
                self._put(kind, shown.rstrip())
            self._stream.flush()

    def _put(self, kind: Kind, shown: str) -> None:
        code = CODES.get(kind)
        self._stream.write((f"\x1b[{code}m{shown}\x1b[0m" if self._colour and code else shown) + "\n")
        if len(self.lines) < LINES_MAX:
            self.lines.append((kind, shown))
