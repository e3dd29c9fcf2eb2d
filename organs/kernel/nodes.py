"""Device nodes that exist for a moment: made, opened and removed in a folder nobody else sees.

So a program opens a device by its number, whatever /dev holds, and leaves no name behind.
Touches: mknod(2), and the folder it is told, which must lie in a filesystem that allows devices.
Fails: Missing when the kernel has no such device; OSError when it refuses.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from organs.kernel import mounts

_NODE: Final = "node"
# One node at a time; a filesystem needs a page for its root and little else.
_FOLDER: Final = "mode=0700,size=64k"


class Missing(OSError):
    """This kernel does not have something. `str()` names it, as the ground's `missing` list does."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EOPNOTSUPP, what)
        self.what = what

    def __str__(self) -> str:
        return f"missing: {self.what}"


class Nodes:
    """A private memory filesystem at `folder`, in this process' own mount namespace."""

    def __init__(self, folder: str) -> None:
        """Mount it. Raises KernelError."""
        mounts.mount("tmpfs", folder, "tmpfs", mounts.MS_NOSUID | mounts.MS_NOEXEC, _FOLDER)
        self._path = os.path.join(folder, _NODE)

    def open_block(self, device: int) -> int:
        """A block device read-only, by its number as in st_rdev. Raises OSError."""
        return self._open(stat.S_IFBLK, device)

    def open_character(self, device: int, what: str) -> int:
        """A character device for its ioctls, by its number; `what` it offers. Raises Missing, OSError."""
        try:
            return self._open(stat.S_IFCHR, device)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO):
                raise Missing(what) from None
            raise

    def _open(self, kind: int, device: int) -> int:
        os.mknod(self._path, kind | 0o400, device)
        try:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.unlink(self._path)
