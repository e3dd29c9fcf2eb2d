"""A SQLite log: when it is folded, how far it reaches, and whether a crash cut it short or it has rotted.

A log begins with a header, whose salts are new each time the log begins anew. Frames follow, a page each,
with the salts of the header and a checksum over all before it; the last one of a commit is marked. A log that
was folded into the file begins anew in its own room: what lies behind its end is of an older log, and has
other salts. Only so is a commit a write in place, which costs the file system no write of its own.

SQLite stops at the first frame whose checksum is wrong and drops the rest without a word. After a crash that
is right: the rest was never synced. After a flipped bit it drops every commit behind it, acknowledged or not.
The two can be told apart, because a commit is synced before the next one begins: behind the first wrong frame
a crash leaves one unfinished transaction, so one commit mark at most. Two of them are rot.

That holds for a log that began anew, by two facts. Its header is synced before its first frame, and by then
all of the older log is in the file and synced: a crash leaves the one header or the other, whole, as it is 32
bytes of one sector. And a sector of the unfinished transaction may still be the older log's, so a frame whose
mark and salts lie in two sectors may only seem marked; it counts if its checksum says that it is whole.

Decides: from the bytes of a log, whether recovering from it is safe; from two lengths, whether it is folded.
Never: repairs. It does not see rot in the last transaction, which looks like a crash before its sync, nor in
the commit mark of the one before (of one frame in 64: in all of that frame), nor a log that is gone.
Fails: not at all. Every input has an answer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

# A log is folded into the file when it reaches further than this: recovery stays short and the device free.
# Half of it costs a put 7 % more, twice as much saves 3 to 7 % (0043).
LOG_BYTES_MAX: Final = 256 << 10
# The file of a log that begins anew keeps its length. One longer than this (a large value did it) gives its
# room back to the device.
LOG_ROOM_BYTES_MAX: Final = 2 * LOG_BYTES_MAX

# What a device writes as a whole, at the least.
_SECTOR: Final = 512
_HEADER: Final = struct.Struct(">8I")
_FRAME: Final = struct.Struct(">6I")
HEADER_BYTES: Final = _HEADER.size
FRAME_HEADER_BYTES: Final = _FRAME.size
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


class Fold(Enum):
    """What is to be done with a log."""

    LATER = "later"
    # Into the file; the log begins anew in the room that it has.
    REWIND = "rewind"
    # Into the file; the room goes back to the device.
    EMPTY = "empty"


def fold_due(end: int, length: Callable[[], int]) -> Fold:
    """Whether a log is folded now, by where it ends and how long its file is, which is asked only then."""
    if end <= LOG_BYTES_MAX:
        return Fold.LATER
    return Fold.REWIND if length() <= LOG_ROOM_BYTES_MAX else Fold.EMPTY


Salts = tuple[int, int]


def salts(header: bytes) -> Salts | None:
    """The salts of a log by its header, None when there is no header."""
    if len(header) < HEADER_BYTES:
        return None
    _, _, _, _, salt1, salt2, _, _ = _HEADER.unpack_from(header)
    return salt1, salt2


def end_of_commits(read: Callable[[int, int], bytes], start: int, log: Salts, page_bytes: int) -> int:
    """Where the last commit of a log ends, by its frames from `start` on: where a commit or the header ends.

    Checks no checksum: this is for a log that was just written. `read` gives a number of bytes from a place.
    """
    end = at = start
    while len(header := read(FRAME_HEADER_BYTES, at)) == FRAME_HEADER_BYTES:
        _, size, salt1, salt2, _, _ = _FRAME.unpack(header)
        if (salt1, salt2) != log:
            break
        at += FRAME_HEADER_BYTES + page_bytes
        if size:
            end = at
    return end


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
        _, size, frame1, frame2, sum1, sum2 = _FRAME.unpack_from(log, behind)
        if size == 0 or (frame1, frame2) != (salt1, salt2):
            continue
        # The size is at 4 of the frame and the salts begin at 8; frames begin at multiples of eight.
        if (behind + 8) % _SECTOR == 0:
            # Never the first, so the frame before has the sums that this one goes on from.
            *_, sums1, sums2 = _FRAME.unpack_from(log, behind - frame_bytes)
            sums = _checksum(log[behind : behind + 8], little, (sums1, sums2))
            sums = _checksum(log[behind + _FRAME.size : behind + frame_bytes], little, sums)
            if sums != (sum1, sum2):
                continue
        dropped += 1
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
