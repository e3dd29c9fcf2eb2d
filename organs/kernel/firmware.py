"""The firmware's variables: is Secure Boot on, and nothing left there that overrules our boot loader.

Touches: efivarfs, mounted where no path leads and gone with the descriptor, so that no organ and no room ever
sees it; ioctl(2) on the files that are removed.
Never: writes a variable; removes any but those of `STALE`.
Fails: never: what cannot be asked is UNKNOWN, and what cannot be removed is told.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from organs.kernel import rootfs

ON, OFF, UNKNOWN = "on", "off", "unknown"

# UEFI's own variable: four bytes of attributes, then one that is 0 or 1.
SECURE_BOOT: Final = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# The firmware makes it anew at each start; one that was stored was made by somebody else.
_STORED: Final = 0x1
# Variables of systemd-boot that a program may have left: the first two name an entry, and then tries are not
# counted; the others overrule loader.conf, and can make it wait at its menu for ever.
_LOADER: Final = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
STALE: Final[Mapping[str, str]] = {
    f"LoaderEntryDefault-{_LOADER}": "it would switch the counting of tries off",
    f"LoaderEntryOneShot-{_LOADER}": "it would start an entry without counting",
    f"LoaderConfigTimeout-{_LOADER}": "it can hold a boot up for ever",
    f"LoaderConfigTimeoutOneShot-{_LOADER}": "it can hold a boot up for ever",
}

# linux/fs.h. The kernel reads and writes an int here, whatever the number of the call says of its size.
_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x8008_6601, 0x4008_6602, 0x10
_INT: Final = struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the firmware says, and what was found and removed, each with a reason for the log."""

    secure_boot: str
    notes: tuple[str, ...] = ()


def visit() -> Seen:
    """Ask the firmware and clean up; nothing of it stays mounted."""
    try:
        mount = rootfs.make("efivarfs", {}, rootfs.NOSUID | rootfs.NODEV | rootfs.NOEXEC)
    except OSError:
        return Seen(UNKNOWN)  # a kernel without efivarfs, or a firmware that it cannot call
    try:
        return look(mount)
    finally:
        os.close(mount)  # INV-SECURE-5


def look(folder: int) -> Seen:
    """The same on a directory of variables."""
    notes = []
    for name, why in STALE.items():
        short = name.partition("-")[0]
        try:
            if _remove(folder, name):
                notes.append(f"{short} is removed: {why}")
        except OSError as error:
            notes.append(f"{short} cannot be removed ({error.strerror}): {why}")
    return Seen(_secure_boot(folder), tuple(notes))


def verdict(data: bytes) -> str:
    """What the variable's bytes say. Pure."""
    if len(data) != 5 or data[0] & _STORED:
        return UNKNOWN
    return {0: OFF, 1: ON}.get(data[4], UNKNOWN)


def _secure_boot(folder: int) -> str:
    try:
        fd = os.open(SECURE_BOOT, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return OFF  # a firmware that knows nothing of it
    except OSError:
        return UNKNOWN
    try:
        return verdict(os.read(fd, 16))
    except OSError:
        return UNKNOWN
    finally:
        os.close(fd)


def _remove(folder: int, name: str) -> bool:
    """Remove a variable; whether there was one. Raises OSError."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return False
    try:
        # The kernel guards variables that it does not know against `rm -r`.
        [flags] = _INT.unpack(fcntl.ioctl(fd, _GET_FLAGS, bytes(_INT.size)))
        if flags & _IMMUTABLE:
            fcntl.ioctl(fd, _SET_FLAGS, _INT.pack(flags & ~_IMMUTABLE))
    finally:
        os.close(fd)
    os.unlink(name, dir_fd=folder)  # INV-SECURE-4
    return True
