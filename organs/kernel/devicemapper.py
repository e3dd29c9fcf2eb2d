"""Device mapper: a block device whose every block is compared with a hash tree when it is read.

Each is read-only and goes away by itself when its last holder lets go. A block that differs is an error of
the read, for whoever reads; it is never the end of the machine, for what is checked here belongs to personas.
Touches: /dev/mapper/control by its number, and the devices it makes by theirs.
Never: takes a table from anybody; the one kind of table there is is written here.
Fails: KernelError naming the step; Missing where the kernel has no device mapper.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from organs.kernel._libc import KernelError
from organs.kernel.nodes import Nodes

# linux/dm-ioctl.h. struct dm_ioctl: version (3), data size, data start, targets, open count, flags, event,
# padding, device, name, uuid, padding.
_HEADER: Final = struct.Struct("=IIIIIIiIIIQ128s129s7x")
_VERSION: Final = (4, 0, 0)
# struct dm_target_spec: start, sectors, status, next, kind.
_TARGET: Final = struct.Struct("=QQiI16s")
# struct dm_name_list: device, offset of the next one; the name follows.
_NAMED: Final = struct.Struct("=QI")
_LIST, _CREATE, _REMOVE, _SUSPEND, _LOAD = 2, 3, 4, 6, 9
READ_ONLY, BUFFER_FULL, DEFERRED_REMOVE = 1 << 0, 1 << 8, 1 << 17
NAME_BYTES_MAX: Final = 127
# linux/miscdevice.h
CONTROL: Final = os.makedev(10, 236)
# The names of all devices at once: hundreds fit, and there are tens.
LIST_BYTES: Final = 64 * 1024
SECTOR: Final = 512
BLOCK: Final = 4096


class Garbled(ValueError):
    """Not an answer of the device mapper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verity:
    """A hash tree, without a header of its own, on the device whose first `blocks` blocks it is of.

    `hash_start` is the number of the tree's first block. Root hash and salt are in hexadecimal.
    """

    root_hash: str
    salt: str
    blocks: int
    hash_start: int


def table(verity: Verity, device: int) -> str:
    """The parameters of the target. Pure. Without options: a wrong block is an error of the read."""
    where = f"{os.major(device)}:{os.minor(device)}"
    return (  # INV-BUILD-5
        f"1 {where} {where} {BLOCK} {BLOCK} {verity.blocks} {verity.hash_start} sha256"
        f" {verity.root_hash} {verity.salt or '-'}"
    )


def request(name: str, flags: int = 0, payload: bytes = b"", targets: int = 0, room: int = 0) -> bytearray:
    """The argument of a call, with `room` bytes for the answer. Pure. ValueError for a bad name."""
    encoded = name.encode()
    if len(encoded) > NAME_BYTES_MAX or b"\0" in encoded or b"/" in encoded:
        raise ValueError(f"{name!r} is no name for a device")
    size = _HEADER.size + max(len(payload), room)
    header = _HEADER.pack(*_VERSION, size, _HEADER.size, targets, 0, flags, 0, 0, 0, encoded, b"")
    return bytearray(header + payload + bytes(size - _HEADER.size - len(payload)))


def target(sectors: int, kind: str, parameters: str) -> bytes:
    """One target over the whole device. Pure."""
    text = parameters.encode() + b"\0"
    padding = bytes(-(_TARGET.size + len(text)) % 8)
    spec = _TARGET.pack(0, sectors, 0, _TARGET.size + len(text) + len(padding), kind.encode())
    return spec + text + padding


def names(answer: bytes) -> Iterator[str]:
    """The names in the answer to a listing. Pure. Raises Garbled."""
    if len(answer) < _HEADER.size:
        raise Garbled("the header is cut off")
    _, _, _, size, offset, _, _, flags, *_ = _HEADER.unpack_from(answer)
    if flags & BUFFER_FULL or not _HEADER.size <= offset <= size <= len(answer):
        raise Garbled("the list does not fit")
    while size - offset >= _NAMED.size:
        device, step = _NAMED.unpack_from(answer, offset)
        if device == 0:
            return  # an empty list is one entry without a device
        end = answer.find(b"\0", offset + _NAMED.size, size)
        if end < 0:
            raise Garbled("a name without an end")
        yield answer[offset + _NAMED.size : end].decode(errors="replace")
        if step == 0:
            return
        if step < _NAMED.size:
            raise Garbled("a list that goes round")
        offset += step
    raise Garbled("an entry is cut off")


class DeviceMapper:
    """The kernel's device mapper."""

    def __init__(self, nodes: Nodes) -> None:
        """Raises Missing, OSError."""
        self._nodes = nodes
        os.close(self._open())

    def _open(self) -> int:
        return self._nodes.open_character(CONTROL, "device-mapper")

    def make_verity(self, name: str, below: int, verity: Verity) -> int:
        """A checked device over the block device `below`; its descriptor. Raises KernelError, OSError.

        Nothing else keeps it: it is gone when the last descriptor, and what is mounted of it, is.
        """
        device = os.fstat(below).st_rdev
        made = self._call(_CREATE, "create", name, READ_ONLY)
        number = _HEADER.unpack_from(made)[10]
        try:
            sectors = verity.blocks * (BLOCK // SECTOR)
            payload = target(sectors, "verity", table(verity, device))
            self._call(_LOAD, "load the table of", name, READ_ONLY, payload, 1)
            self._call(_SUSPEND, "resume", name)
            fd = self._nodes.open_block(number)
        except OSError:
            self._call(_REMOVE, "remove", name)
            raise
        try:
            self.forget(name)
        except OSError:
            os.close(fd)
            raise
        return fd

    def names(self) -> list[str]:
        """The names of all devices. Raises KernelError."""
        return list(names(bytes(self._call(_LIST, "list", "", room=LIST_BYTES))))

    def forget(self, name: str) -> None:
        """Remove a device now, or as soon as nobody holds it. Raises KernelError."""
        self._call(_REMOVE, "remove", name, DEFERRED_REMOVE)  # INV-BUILD-4

    def _call(
        self,
        command: int,
        what: str,
        name: str,
        flags: int = 0,
        payload: bytes = b"",
        targets: int = 0,
        room: int = 0,
    ) -> bytearray:
        argument = request(name, flags, payload, targets, room)
        # _IOWR(0xFD, command, struct dm_ioctl)
        number = 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | command
        # Opened for each call: between calls this process holds nothing that makes devices.
        control = self._open()
        try:
            fcntl.ioctl(control, number, argument, True)
        except OSError as error:
            raise KernelError(error.errno or 0, f"{what} the device", name) from None
        finally:
            os.close(control)
        return argument
