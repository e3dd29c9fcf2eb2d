"""Pseudo terminals: a pair of one instance of devpts, and taking one as the controlling terminal.

Touches: ioctls of terminals. Never: opens a terminal by a name. Fails: OSError when the kernel refuses.
"""

from __future__ import annotations

import fcntl
import os
from typing import Final

# asm-generic/ioctls.h
_TIOCSCTTY: Final = 0x540E
_TIOCSPTLCK: Final = 0x4004_5431
_TIOCGPTPEER: Final = 0x5441


def open_pair(devpts: int) -> tuple[int, int]:
    """Master and slave of a new terminal of the devpts behind a directory descriptor. Raises OSError.

    The first pair of a new instance is terminal 0.
    """
    master = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=devpts)
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, bytes(4))
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        os.close(master)
        raise
    return master, slave


def control(terminal: int) -> None:
    """Make it the controlling terminal of this session, which must have none. Raises OSError."""
    fcntl.ioctl(terminal, _TIOCSCTTY, 0)
