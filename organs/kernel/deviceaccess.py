"""Which device nodes the processes of a cgroup may open: a program that the kernel asks at each opening.

It narrows: every program on the way to the root of the tree must say yes. It stays while the cgroup does,
whoever loaded it. An open descriptor is not asked about again; taking one back is another matter.
Touches: bpf(2), on the cgroup whose directory descriptor it is given.
Never: allows making a node, or a block device.
Fails: KernelError when the kernel refuses.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from organs.kernel import _libc

# linux/bpf.h
_PROG_LOAD, _PROG_ATTACH = 5, 8
_CGROUP_DEVICE_PROGRAM, _CGROUP_DEVICE = 15, 6
_ALLOW_MULTI: Final = 2
_ACCESS_MKNOD, _CHARACTER = 1, 2
_LICENSE: Final = b"GPL\0"
# Load a word, and, shift right, move, jump if not equal, if equal, if less, if greater, end.
_LDXW, _AND, _RSH, _MOV, _JNE, _JEQ, _JLT, _JGT, _EXIT = 0x61, 0x57, 0x77, 0xB7, 0x55, 0x15, 0xA5, 0x25, 0x95


class Devices(NamedTuple):
    """Character devices of one major number, from one minor number to another."""

    major: int
    first: int
    last: int


MINOR_MAX: Final = 2**20 - 1
# null, zero, full, random, urandom; the controlling terminal, the multiplexer, its terminals.
PLAIN: Final = (
    Devices(1, 3, 3),
    Devices(1, 5, 5),
    Devices(1, 7, 9),
    Devices(5, 0, 0),
    Devices(5, 2, 2),
    *(Devices(major, 0, MINOR_MAX) for major in range(136, 144)),
)


def program(allowed: Iterable[Devices]) -> bytes:
    """The instructions. Pure. The kernel gives access << 16 | kind, major, minor; 1 is yes."""
    lines = [
        _instruction(_LDXW, 2, 1, 0, 0),
        _instruction(_MOV | 0x08, 3, 2, 0, 0),
        _instruction(_AND, 3, 0, 0, 0xFFFF),
        _instruction(_RSH, 2, 0, 0, 16),
        _instruction(_AND, 2, 0, 0, _ACCESS_MKNOD),
        _instruction(_LDXW, 4, 1, 4, 0),
        _instruction(_LDXW, 5, 1, 8, 0),
        _instruction(_MOV, 0, 0, 0, 0),
        _instruction(_JEQ, 3, 0, 1, _CHARACTER),
        _instruction(_EXIT, 0, 0, 0, 0),
        _instruction(_JEQ, 2, 0, 1, 0),
        _instruction(_EXIT, 0, 0, 0, 0),
    ]
    for devices in allowed:
        lines += [
            _instruction(_JNE, 4, 0, 4, devices.major),
            _instruction(_JLT, 5, 0, 3, devices.first),
            _instruction(_JGT, 5, 0, 2, devices.last),
            _instruction(_MOV, 0, 0, 0, 1),
            _instruction(_EXIT, 0, 0, 0, 0),
        ]
    return b"".join([*lines, _instruction(_EXIT, 0, 0, 0, 0)])


def _instruction(code: int, into: int, of: int, offset: int, value: int) -> bytes:
    return struct.pack("<BBhi", code, of << 4 | into, offset, value)


def allow_only(cgroup: int, allowed: Iterable[Devices] = PLAIN) -> None:
    """From here on the processes of the cgroup open these devices and no other. Raises KernelError."""
    instructions = program(allowed)
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(_LICENSE, len(_LICENSE))
    # union bpf_attr: kind, count, instructions, licence, three of the log, kernel version, flags, name,
    # interface, kind of attachment.
    load = struct.pack(
        "<IIQQIIQII16sII",
        _CGROUP_DEVICE_PROGRAM,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        *(0, 0, 0, 0, 0),
        b"room_devices",
        0,
        _CGROUP_DEVICE,
    )
    # Safe: the kernel copies the program before the call returns; both buffers live until then.
    loaded = _libc.check(_libc.numbered("bpf", _PROG_LOAD, load, len(load)), "load the device program")
    try:
        attach = struct.pack("<IIII", cgroup, loaded, _CGROUP_DEVICE, _ALLOW_MULTI)
        _libc.check(_libc.numbered("bpf", _PROG_ATTACH, attach, len(attach)), "attach the device program")
    finally:
        os.close(loaded)
