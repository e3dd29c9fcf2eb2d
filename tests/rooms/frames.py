"""The physical page frames that processes have mapped, as the kernel's page map tells root.

Two processes whose sets of frames do not meet share no page: no file's cache, no shared memory. Left out are
the frames that hold nothing of anybody's: the page of zeros, and what the kernel itself maps into every
process (vdso, vvar). The kernel says which page is the one of zeros.
Touches: /proc/PID/maps, /proc/PID/pagemap, /proc/kpageflags, to read. Needs root (CAP_SYS_ADMIN).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

PAGE = 4096
WORD = struct.Struct("<Q")
PRESENT = 1 << 63
FRAME = (1 << 55) - 1
ZERO_PAGE = 1 << 24
KERNELS_OWN = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")


def mappings(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and name of each mapping of a `maps` file, without the kernel's own."""
    for line in text.splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        if not name or name[0] not in KERNELS_OWN:
            first, _, last = span.partition("-")
            yield int(first, 16), int(last, 16), name[0] if name else ""


def present(words: bytes) -> set[int]:
    """The frames of the pages that are in memory, from a stretch of a `pagemap` file."""
    return {word & FRAME for (word,) in WORD.iter_unpack(words) if word & PRESENT}


def of(pid: int) -> set[int]:
    """The frames that the process has mapped. OSError when it is gone or we may not look."""
    found: set[int] = set()
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pages:
        for first, last, _ in mappings(Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")):
            pages.seek(first // PAGE * WORD.size)
            found |= present(pages.read((last - first) // PAGE * WORD.size))
    assert found != {0}, "the kernel hides the numbers of frames from us"
    with open("/proc/kpageflags", "rb", buffering=0) as flags:
        return {frame for frame in found if not _flags(flags.fileno(), frame) & ZERO_PAGE}


def _flags(fd: int, frame: int) -> int:
    (word,) = WORD.unpack(os.pread(fd, WORD.size, frame * WORD.size))
    return int(word)
