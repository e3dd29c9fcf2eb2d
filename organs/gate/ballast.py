"""Space kept back, so that what frees space never needs space it cannot get.

A delete on a full device still writes: its log, and the pages the log is folded into. The ballast is a file
of reserved blocks that is given up for the time of such a write and taken again after it. While it is not in
place only deletes are served, so no put can eat the reserve.

Touches: one file of the store's directory.
Never: holds data.
Fails: a device without room is an answer (False); any other refusal of the kernel is an OSError.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

NAME: Final = "ballast"
# Covers the log of one full batch of puts that is not folded yet, plus the log of one delete and of one trim.
BYTES: Final = 4 << 20


class Ballast:
    """The reserve of one directory. Not in place until `take` says so."""

    def __init__(self, directory: Path, size: int = BYTES) -> None:
        self._path = directory / NAME
        self._size = size
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.in_place = False

    def take(self) -> bool:
        """Reserve the blocks; whether the device had them. Raises OSError."""
        if not self.in_place:
            try:
                os.posix_fallocate(self._fd, 0, self._size)
                os.fsync(self._fd)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                self.give()
                return False
            self.in_place = True
        return True

    def give(self) -> None:
        """Give the blocks to whoever writes next. Raises OSError."""
        self.in_place = False
        os.ftruncate(self._fd, 0)
        # Freed blocks become usable when the file system has committed that they are free.
        os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the file; the blocks stay reserved."""
        os.close(self._fd)
