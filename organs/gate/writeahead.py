"""Whether a SQLite log was cut short by a crash, which is well, or has rotted, which is not.

SQLite stops at the first frame whose checksum is wrong and drops the rest without a word. After a crash that
is right: the rest was never synced. After a flipped bit it drops every commit behind it, acknowledged or not.
The two can be told apart, because a commit is synced before the next one begins: behind the first wrong frame
a crash leaves one unfinished transaction, so one commit mark at most. Two of them are rot.

Decides: from the bytes of a log, whether recovering from it is safe.
Never: repairs. It does not see rot in the last transaction, which looks like a crash before its sync, nor in
the commit mark of the one before, nor a log that is gone.
Fails: not at all. Every input has an answer.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

_HEADER: Final = struct.Struct(">8I")
_FRAME: Final = struct.Struct(">6I")
# The lowest bit of the magic number tells the byte order in which checksums were computed.
_MAGIC: Final = 0x377F0682
_WORD: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Sound:
    """Recovery gives back this many commits, all that can have been acknowledged."""

    commits: int


@dataclass(frozen=True, slots=True)
class Rotten:
    """Recovery would silently drop commits that were synced."""

    reason: str


def examine(log: bytes, page_bytes: int) -> Sound | Rotten:
    """What recovering from this log would do, for a file with pages of `page_bytes`."""
    frame_bytes = _FRAME.size + page_bytes
    if len(log) < _HEADER.size or not any(log):
        return Sound(0)
    magic, _, page, _, salt1, salt2, sum1, sum2 = _HEADER.unpack_from(log)
    little = magic & 1 == 0
    sums = _checksum(log[:24], little, (0, 0))
    if magic & ~1 != _MAGIC or page != page_bytes or sums != (sum1, sum2):
        # The header is synced before the first frame, so one that is wrong was right once.
        if len(log) >= _HEADER.size + frame_bytes:
            return Rotten("the header of the log")
        return Sound(0)
    commits = 0
    at = _HEADER.size
    while at + frame_bytes <= len(log):
        _, size, frame1, frame2, sum1, sum2 = _FRAME.unpack_from(log, at)
        sums = _checksum(log[at : at + 8], little, sums)
        sums = _checksum(log[at + _FRAME.size : at + frame_bytes], little, sums)
        if (frame1, frame2) != (salt1, salt2) or sums != (sum1, sum2):
            break
        commits += size != 0
        at += frame_bytes
    dropped = 0
    for behind in range(at, len(log) - frame_bytes + 1, frame_bytes):
        _, size, frame1, frame2, _, _ = _FRAME.unpack_from(log, behind)
        dropped += size != 0 and (frame1, frame2) == (salt1, salt2)
    if dropped > 1:  # INV-GATE-10
        return Rotten(f"the log, after {commits} commits and before {dropped - 1} or more that were synced")
    return Sound(commits)


def _checksum(data: bytes, little: bool, sums: tuple[int, int]) -> tuple[int, int]:
    """SQLite's running checksum over pairs of 32-bit words."""
    first, second = sums
    for one, two in struct.iter_unpack("<II" if little else ">II", data):
        first = first + one + second & _WORD
        second = second + two + first & _WORD
    return first, second
