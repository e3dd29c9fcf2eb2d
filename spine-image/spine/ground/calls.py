"""The few system calls of the container ground that Python 3.11 does not offer.

Touches the kernel through libc; needs root. Each call raises OSError with the name of the call and what it
was for.
"""

import ctypes
import errno
import fcntl
import os
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LO_FLAGS_READ_ONLY = 1
# The loop device ends by itself with its last user: nothing is left whatever ends first.
LO_FLAGS_AUTOCLEAR = 4
# struct loop_config: fd, block size, struct loop_info64 (flags are its field at byte 52), 64 reserved bytes.
LOOP_INFO = struct.Struct("<QQQQQIIII64s64s32sQQ")
LOOP_CONFIG = struct.Struct(f"<II{LOOP_INFO.size}s64s")
LOOP_MAJOR = 7
# Another process may take the free number we were told of; as often as this in a row it does not.
LOOP_TRIES = 50

# linux/fs.h: EXT4_IOC_SHUTDOWN, and the flag that drops the journal as well.
EXT4_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_NO_LOG_FLUSH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.syscall.restype = ctypes.c_long
SYS_PIVOT_ROOT = 155  # x86-64


def unshare(flags: int) -> None:
    """New namespaces for this process (a new pid namespace: for its next child)."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    words = [word.encode() for word in (source, target, kind)]
    _check(_libc.mount(*words, flags, options.encode()), "mount", target)


def detach(target: str) -> None:
    """umount2(2) with MNT_DETACH."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), "umount", target)


def pivot_root_here() -> None:
    """Make the current directory, a mount point, the root; the old root is gone from this namespace."""
    here = ctypes.c_char_p(b".")
    _check(_libc.syscall(ctypes.c_long(SYS_PIVOT_ROOT), here, here), "pivot_root")
    detach(".")
    os.chdir("/")


def adopt_orphans() -> None:
    """Grandchildren whose parent ends become our children."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with_parent(signal_number: int) -> None:
    """The kernel sends us this signal when our parent ends, however it ends."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def loop(path: str, *, read_only: bool) -> tuple[str, int]:
    """A loop device on a file: its node and an open descriptor. It lasts while something has it open."""
    access = os.O_RDONLY if read_only else os.O_RDWR
    flags = LO_FLAGS_AUTOCLEAR | (LO_FLAGS_READ_ONLY if read_only else 0)
    name = os.fsencode(path)[:63]
    info = LOOP_INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    backing = os.open(path, access | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(LOOP_TRIES):
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            node = f"/dev/loop{number}"
            if not os.path.exists(node):
                # A container's /dev does not follow the kernel's.
                os.mknod(node, 0o60600, os.makedev(LOOP_MAJOR, number))
            fd = os.open(node, access | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, LOOP_CONFIGURE, LOOP_CONFIG.pack(backing, 0, info, b""))
                return node, fd
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:
                    raise OSError(error.errno, f"loop device: {error.strerror}", path) from error
        raise OSError(errno.EBUSY, "no loop device is free", path)
    finally:
        os.close(control)
        os.close(backing)


def shut_down_ext4(fd: int) -> None:
    """From now on nothing reaches the device of this file system, and its journal is not written."""
    try:
        fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_NO_LOG_FLUSH))
    except OSError as error:
        raise OSError(error.errno, f"EXT4_IOC_SHUTDOWN: {error.strerror}") from error


def loop_lasts(number: int) -> bool:
    """Whether this loop device is still on its file."""
    return os.path.exists(f"/sys/block/loop{number}/loop/backing_file")


def _check(result: int, call: str, what: str = "") -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", what or None)
