"""Whose fault an error is: the data's, which every slot would find as they are, or the slot's.

Decides: from the number of an error that the kernel gave for a mount, or for a file on what was mounted.
Never: guesses. What is not in a table is the slot's fault: it counts as a death, and too many of those choose
another slot, which is right for everything that another slot could do better.
Fails: not at all. Every number has an answer.

The price of each entry: a slot that is at fault itself and fails with this number is believed to be well.
"""

from __future__ import annotations

import errno
from typing import Final

# The device or what is on it: it failed, its checksums are wrong, it takes no more writes, it has no room, it
# ends early, it is gone.
MEDIUM: Final = frozenset(
    {errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    | {errno.EOVERFLOW, errno.ENODATA, errno.ENXIO, errno.ESTALE}
)
# What ext4 answers besides when it does not know what it reads: EINVAL without a magic number, a journal or
# the length that it names; ENOMEM where a device is too short for a superblock or its tables are absurd;
# EOPNOTSUPP and EPROTONOSUPPORT for features. EACCES: the medium takes no writes from the start.
NOT_A_FILE_SYSTEM: Final = frozenset(
    {errno.EINVAL, errno.ENOMEM, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.E2BIG, errno.EACCES}
)
# Names that are there and are not what they were made as: a directory for a file, a link, somebody else's.
# Not EPERM, which the filter of system calls answers as well.
STRANGE_FILES: Final = frozenset(
    {errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ESPIPE, errno.ENODEV, errno.EACCES}
    | {errno.ENOTEMPTY, errno.EEXIST, errno.EOPNOTSUPP}
)


def of_mount(error: OSError) -> bool:
    """Whether a mount that was refused, or the first steps in it, speak against what is on the device."""
    return error.errno in MEDIUM | NOT_A_FILE_SYSTEM


def of_file(error: OSError) -> bool:
    """Whether a call on a file of ours that was refused speaks against what is on the device."""
    return error.errno in MEDIUM | STRANGE_FILES
