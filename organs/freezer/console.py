"""The console of a room: what it wrote lately, and a way to type.

A room writes whether somebody looks or not, so the last of it is kept and the rest is forgotten; a room never
waits for a reader.
Touches: the master side of a terminal that the builder made.
Never: interprets a byte of it.
Fails: a terminal whose other side is gone ends the pump; what was written before can still be read.
"""

from __future__ import annotations

import errno
import os
from typing import Final

import trio

# Some screens full.
KEPT_BYTES: Final = 64 * 1024
READ_BYTES: Final = 4096
# After each read: a room that floods its console costs this organ little, and still writes 2 MB a second.
PACE_S: Final = 0.002


class Console:
    """The last of what a room wrote. `written` is the place of its next byte, counted from `first`.

    `first` is the time in nanoseconds: no terminal brings a byte in each, so every place in a console comes
    after all in an earlier one of this boot, of the room before or of a freezer that was restarted. Who goes
    on from an old place finds all that there is.
    """

    def __init__(self, fd: int, first: int) -> None:
        self._fd = fd
        os.set_blocking(fd, False)
        self._kept = bytearray()
        self.written = first
        self._news = trio.Event()

    async def pump(self) -> None:
        """Take what the room writes, until its terminal has no other side."""
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            try:
                data = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                # No process has it open just now: the first one is not there yet, or the last one went.
                await trio.sleep(REOPEN_S)
                continue
            self._take(data)
            await trio.sleep(PACE_S)

    def _take(self, data: bytes) -> None:
        self._kept += data
        self.written += len(data)
        del self._kept[:-KEPT_BYTES]
        self._news.set()
        self._news = trio.Event()

    def since(self, after: int) -> tuple[bytes, int]:
        """What was written from byte `after` on and is still kept; the byte that comes next."""
        begin = self.written - len(self._kept)
        return bytes(self._kept[max(0, after - begin) :]), self.written

    async def wait(self, after: int) -> None:
        """Until there is something from byte `after` on."""
        while self.written <= after or not self._kept:
            await self._news.wait()

    def type(self, data: bytes) -> int:
        """Type; how many bytes were taken. Raises OSError."""
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0


# A terminal without another side is looked at again after this.
REOPEN_S: Final = 0.2
