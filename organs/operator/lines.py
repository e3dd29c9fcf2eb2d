"""Splitting the operator port's byte stream into frames.

Pure: bytes go in, whole lines come out. A frame is one line of base64, so a half-sent frame ends at the next
newline and a new client is in step after its first one. A line over the limit is dropped up to its end and
reported once; nothing that a peer sends can make the buffer grow past the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

# A message of 1 MiB + 64 KiB is 1.42 MiB of base64; the rest is room for the header.
LINE_BYTES_MAX = 2 * 1024 * 1024


class Oversized(Enum):
    """Stands in the output for a line that was dropped."""

    LINE = "line too long"


@dataclass(slots=True)
class Splitter:
    """Cuts a stream at newlines. One per client."""

    limit: int = LINE_BYTES_MAX
    buffered: bytearray = field(default_factory=bytearray)
    skipping: bool = False

    def feed(self, data: bytes) -> list[bytes | Oversized]:
        """The lines completed by `data`, without their newlines, empty ones left out."""
        lines: list[bytes | Oversized] = []
        *complete, rest = data.split(b"\n")
        for part in complete:
            self._extend(part, lines)
            if not self.skipping and self.buffered:
                lines.append(bytes(self.buffered))
            self.buffered.clear()
            self.skipping = False
        self._extend(rest, lines)
        return lines

    def _extend(self, part: bytes, lines: list[bytes | Oversized]) -> None:
        if self.skipping:
            return
        if len(self.buffered) + len(part) > self.limit:  # INV-PORT-1
            self.buffered.clear()
            self.skipping = True
            lines.append(Oversized.LINE)
            return
        self.buffered += part
