"""The C library: every foreign function the image calls, declared once with its argument types.

Touches: libc, by ctypes. Only the other modules of `organs/kernel/` import this one.
Never: decides anything; each name here is one system call.
Fails: `check` turns a negative result into KernelError, which names the call and what it was called on.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_int, c_long, c_uint, c_ulong, c_void_p
from typing import Final

from organs.kernel.numbers import NUMBERS


class KernelError(OSError):
    """The kernel refused. `str()` names the call, what it was called on, and the kernel's reason."""

    def __init__(self, number: int, call: str, on: object = "") -> None:
        what = f"{call} {on}".rstrip()
        super().__init__(number, f"{what}: {os.strerror(number)}")
        self.call = call

    def __str__(self) -> str:
        return f"unable to {self.strerror}"


class CapHeader(ctypes.Structure):
    """struct __user_cap_header_struct of linux/capability.h."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", c_int))


class CapData(ctypes.Structure):
    """struct __user_cap_data_struct; version 3 takes two of them."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


class CloneArgs(ctypes.Structure):
    """struct clone_args of linux/sched.h, as of CLONE_ARGS_SIZE_VER2."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal"),
            *("stack", "stack_size", "tls", "set_tid", "set_tid_size", "cgroup"),
        )
    )


class FilterProgram(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", c_void_p))


# void handler(int, siginfo_t *, void *)
SignalHandler = ctypes.CFUNCTYPE(None, c_int, c_void_p, c_void_p)


class SignalAction(ctypes.Structure):
    """struct sigaction of the C library; an empty mask."""

    _fields_ = (
        ("handler", SignalHandler),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", c_uint),
        ("restorer", c_void_p),
    )


class RefusedCall(ctypes.Structure):
    """siginfo_t of asm-generic/siginfo.h, as seccomp fills it."""

    _fields_ = (
        ("signal", c_int),
        ("error", c_int),
        ("code", c_int),
        ("address", c_void_p),
        ("number", c_int),
        ("architecture", c_uint),
    )


LIBC: Final = ctypes.CDLL(None, use_errno=True)
# A PyDLL call keeps the interpreter lock. clone3 needs that: the child must own the lock it wakes up with.
LIBC_LOCKED: Final = ctypes.PyDLL(None, use_errno=True)

mount = LIBC.mount
mount.argtypes, mount.restype = (c_char_p, c_char_p, c_char_p, c_ulong, c_char_p), c_int
umount2 = LIBC.umount2
umount2.argtypes, umount2.restype = (c_char_p, c_int), c_int
unshare = LIBC.unshare
unshare.argtypes, unshare.restype = (c_int,), c_int
setns = LIBC.setns
setns.argtypes, setns.restype = (c_int, c_int), c_int
prctl = LIBC.prctl
prctl.argtypes, prctl.restype = (c_int, c_ulong, c_ulong, c_ulong, c_ulong), c_int
capset = LIBC.capset
capset.argtypes, capset.restype = (POINTER(CapHeader), POINTER(CapData)), c_int
close_range = LIBC.close_range
close_range.argtypes, close_range.restype = (c_uint, c_uint, c_int), c_int
reboot = LIBC.reboot
reboot.argtypes, reboot.restype = (c_int,), c_int
sigaction = LIBC.sigaction
sigaction.argtypes, sigaction.restype = (c_int, POINTER(SignalAction), c_void_p), c_int
raise_signal = LIBC_LOCKED["raise"]
raise_signal.argtypes, raise_signal.restype = (c_int,), c_int
# No system call, but it decides which ones malloc makes.
mallopt = LIBC.mallopt
mallopt.argtypes, mallopt.restype = (c_int, c_int), c_int
pthread_self = LIBC.pthread_self
pthread_self.argtypes, pthread_self.restype = (), c_void_p

_syscall = LIBC_LOCKED.syscall
_syscall.argtypes, _syscall.restype = (c_long, c_void_p, ctypes.c_size_t), c_long
# One number on every architecture: clone3 came after the tables were unified.
SYS_CLONE3: Final = 435


def clone3(args: CloneArgs) -> int:
    """clone3(2) with the interpreter lock held. Returns twice: 0 in the child."""
    return int(_syscall(SYS_CLONE3, ctypes.byref(args), ctypes.sizeof(args)))


_numbered = LIBC["syscall"]
_numbered.restype = c_long


def numbered(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A system call that the C library has no function for, by its name; each argument as wide as a register.

    Safe: bytes and buffers live as long as the caller's names for them, which is past the call.
    """
    registers = [
        c_long(value) if isinstance(value, int) else value if value is None else c_void_p(_address(value))
        for value in arguments
    ]
    return int(_numbered(c_long(NUMBERS[name]), *registers))


def buffer(size: int) -> ctypes.Array[ctypes.c_char]:
    """Memory for an answer of the kernel."""
    return ctypes.create_string_buffer(size)


def _address(value: bytes | ctypes.Array[ctypes.c_char]) -> int | None:
    return ctypes.cast(ctypes.c_char_p(value) if isinstance(value, bytes) else value, c_void_p).value


def check(result: int, call: str, on: object = "") -> int:
    """The result, unless it is negative: then KernelError with the kernel's reason."""
    if result < 0:
        raise KernelError(ctypes.get_errno(), call, on)
    return result
