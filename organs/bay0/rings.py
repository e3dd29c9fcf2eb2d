"""Log rings: what a child says on standard error, kept in memory, never more than two files of it.

Touches: /run/spine/log/NAME.log and NAME.log.1, and the reading ends of the children's pipes.
Never: reads more than one block a turn, so that a child that floods its log blocks itself and nobody else;
interprets what it keeps.
Fails: a full memory filesystem loses log bytes, and counts them.
"""

from __future__ import annotations

import os
from typing import Final

# Two files of this size for each child: some thousand lines, and all logs together stay below 1 MiB.
FILE_BYTES_MAX: Final = 64 * 1024
# One turn of the loop reads this much of one child, which is what a pipe holds in one page.
READ_BYTES_MAX: Final = 4096
# What a dead child left in its pipe: the kernel's pipes hold 64 KiB.
DRAIN_READS_MAX: Final = 17


class Ring:
    """The last bytes that were written: at least 64 KiB of them once there were so many, at most 128 KiB."""

    def __init__(self, folder: str, name: str, group: int) -> None:
        """Open the ring `name`; `group` may read it."""
        self._path = os.path.join(folder, f"{name}.log")
        self._group = group
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size
        self.lost_bytes = 0

    def _open(self) -> int:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.fchown(fd, 0, self._group)
        os.fchmod(fd, 0o640)
        return fd

    def write(self, data: bytes) -> None:
        """Keep these bytes and forget the oldest where that needs room."""
        while data:
            if self._size == FILE_BYTES_MAX:
                self._turn_over()
            part, data = data[: FILE_BYTES_MAX - self._size], data[FILE_BYTES_MAX - self._size :]
            try:
                written = os.write(self._fd, part)
            except OSError:
                written = 0
            self._size += written
            if written < len(part):
                self.lost_bytes += len(part) - written + len(data)
                return

    def _turn_over(self) -> None:
        os.close(self._fd)
        os.replace(self._path, self._path + ".1")
        self._fd = self._open()
        self._size = 0

    def tail(self, size: int) -> bytes:
        """The last `size` bytes of the newer file."""
        with open(self._path, "rb") as file:
            file.seek(max(0, self._size - size))
            return file.read(size)

    def pump(self, fd: int) -> bool:
        """Move one block from a non-blocking pipe into the ring. False when the pipe has ended."""
        try:
            data = os.read(fd, READ_BYTES_MAX)  # INV-REAP-5
        except BlockingIOError:
            return True
        self.write(data)
        return bool(data)

    def drain(self, fd: int) -> None:
        """Move what a dead child left in its pipe."""
        for _ in range(DRAIN_READS_MAX):
            try:
                data = os.read(fd, READ_BYTES_MAX)
            except BlockingIOError:
                return
            if not data:
                return
            self.write(data)
