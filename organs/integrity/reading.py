"""Bytes of a block device as the device has them, not as the kernel remembers them.

A page that was read once may be answered from memory when the device has rotted since, so a read goes past
the page cache: with O_DIRECT into aligned memory, or, where the descriptor is shared with a writer that
is not aligned or the file refuses O_DIRECT, by asking the kernel to forget the pages first. `how` says
which.

Touches: the descriptor it is given: its O_DIRECT flag, and its file offset to find the size. Holds BUFFER
bytes.
Never: writes.
Fails: OSError from the device, which says at which byte.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import Final

# No device that we know wants more than 4096; the page cache forgets whole pages only.
ALIGN: Final = 4096
# A step of `organs/integrity/examine.py`, and the ends that alignment adds.
BUFFER: Final = 1024 * 1024 + 2 * ALIGN

DIRECT: Final = "direct"
DROPPED: Final = "dropped"


class Raw:
    """One device. `how` is DIRECT or DROPPED. Not for two threads at once."""

    def __init__(self, fd: int, *, direct: bool) -> None:
        self._fd = fd
        self._buffer = memoryview(mmap.mmap(-1, BUFFER, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self.how = DIRECT if direct and self._direct(True) else DROPPED
        if self.how == DROPPED:
            # Else the kernel reads ahead, and what it read ahead is a memory again when we come to it.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, offset: int, length: int) -> bytes:
        """These bytes; fewer where the device ends. Raises OSError."""
        pieces = []
        while length > 0:
            part = min(length, BUFFER - 2 * ALIGN)
            pieces.append(self._piece(offset, part))
            if len(pieces[-1]) < part:
                break
            offset, length = offset + part, length - part
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, offset: int, length: int) -> bytes:
        start = offset - offset % ALIGN
        want = offset + length + -(offset + length) % ALIGN - start
        try:
            done = self._fill(start, want)
        except OSError as error:
            # Some file systems take the flag and refuse the read.
            if error.errno != errno.EINVAL or self.how != DIRECT:
                raise
            self._direct(False)
            self.how = DROPPED
            done = self._fill(start, want)
        skip = offset - start
        return bytes(self._buffer[skip : max(skip, min(done, skip + length))])

    def _fill(self, start: int, want: int) -> int:
        """Read into the buffer until it has `want` bytes or the device ends; how many it has."""
        if self.how == DROPPED:
            os.posix_fadvise(self._fd, start, want, os.POSIX_FADV_DONTNEED)  # INV-SLOT-7
        done = 0
        while done < want:
            try:
                got = os.preadv(self._fd, [self._buffer[done:want]], start + done)
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror} at byte {start + done}") from None
            done += got
            # A direct read that is not whole blocks has met the end, and could not go on from there.
            if got == 0 or done % ALIGN:
                break
        if self.how == DROPPED:
            # What was read once for its hash is in nobody's way.
            os.posix_fadvise(self._fd, start, want, os.POSIX_FADV_DONTNEED)
        return done

    def _direct(self, on: bool) -> bool:
        """Set or clear O_DIRECT; False when the file refuses it."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True  # INV-SLOT-7
