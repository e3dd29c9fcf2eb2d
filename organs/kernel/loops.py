"""Loop devices: a region of a file or of a device as a block device of its own.

Each is read-only and goes away by itself when its last holder lets go, also when every holder was killed.
Touches: /dev/loop-control and the loop devices by their numbers, /sys/block to read those.
Never: shares a loop device, or the page cache of what lies below it where that can be read directly.
Fails: KernelError or OSError when the kernel refuses; Missing when it has no loop devices.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Final

from organs.kernel._libc import KernelError
from organs.kernel.nodes import Nodes

# linux/loop.h
_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_GET_STATUS64: Final = 0x4C05
READ_ONLY, AUTOCLEAR, DIRECT_IO = 1, 4, 16
NAME_BYTES_MAX: Final = 63
# struct loop_info64: device, inode, rdevice, offset, size limit, number, three of encryption, flags, then the
# file's name, two fields of encryption, two of initialisation.
_INFO: Final = struct.Struct("=QQQQQIIII64s64s32sQQ")
# struct loop_config: descriptor, block size (0: the kernel's choice), the info, eight reserved.
_CONFIG: Final = struct.Struct(f"=II{_INFO.size}s64x")
# linux/miscdevice.h, linux/major.h
MAJOR: Final = 7
CONTROL: Final = os.makedev(10, 237)
# Another program may take the free device before we do. More than this many losses is no race.
TRIES_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Status:
    """What the kernel says of a loop device. Offset and size limit are in bytes."""

    offset: int
    size_limit: int
    flags: int
    name: str


def attach(nodes: Nodes, backing: int, offset: int, length: int, name: str) -> int:
    """A loop device over `length` bytes from `offset` of the descriptor `backing`; the descriptor of it.

    `name` is kept by the kernel for whoever asks what this is. Raises KernelError, OSError, Missing.
    """
    control = nodes.open_character(CONTROL, "loop")
    try:
        for _ in range(TRIES_MAX):
            number = fcntl.ioctl(control, _GET_FREE)
            device = nodes.open_block(_device(number))
            try:
                fcntl.ioctl(device, _CONFIGURE, config(backing, offset, length, name))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise KernelError(error.errno or 0, "configure", f"loop{number}") from None
            else:
                return device
    finally:
        os.close(control)
    raise KernelError(errno.EBUSY, "configure", "any loop device")


def status(device: int) -> Status:
    """What a loop device is made of. Raises OSError."""
    raw = fcntl.ioctl(device, _GET_STATUS64, bytes(_INFO.size))
    _, _, _, offset, size_limit, _, _, _, flags, name, *_ = _INFO.unpack(raw)
    return Status(offset, size_limit, flags, name.rstrip(b"\0").decode(errors="replace"))


def config(backing: int, offset: int, length: int, name: str) -> bytes:
    """The kernel's description of the device. Pure. ValueError for a name that does not fit."""
    encoded = name.encode()
    if len(encoded) > NAME_BYTES_MAX or b"\0" in encoded:
        raise ValueError(f"{name!r} is no name for a loop device")
    flags = READ_ONLY | AUTOCLEAR | DIRECT_IO  # INV-BUILD-3
    info = _INFO.pack(0, 0, 0, offset, length, 0, 0, 0, flags, encoded, b"", b"", 0, 0)
    return _CONFIG.pack(backing, 0, info)


def _device(number: int) -> int:
    with open(f"/sys/block/loop{number}/dev", encoding="ascii") as file:
        major, minor = file.read().split(":")
    return os.makedev(int(major), int(minor))
