"""Mounts by descriptors: filesystems made detached, attached where a descriptor says, and the change of root.

A path is given to the kernel in two cases only: the layers of an overlay and the place where a detached mount
is attached first; both are the spine's own. What lies in an image is reached by `place`, which follows no
link and leaves no tree.
Touches: fsopen(2), fsconfig(2), fsmount(2), move_mount(2), open_tree(2), mount_setattr(2), openat2(2),
pivot_root(2), fstatfs(2).
Never: shares a superblock with another mount of the same device: that is refused, with EBUSY.
Fails: KernelError naming the step; ReadOnly where a filesystem that must be written came read-only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterable
from typing import Final

from organs.kernel import _libc

# linux/mount.h
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 0x1, 0x1
_SET_FLAG, _SET_STRING, _CREATE, _CREATE_EXCLUSIVE = 0, 1, 6, 8
RDONLY, NOSUID, NODEV, NOEXEC, NOATIME = 0x1, 0x2, 0x4, 0x8, 0x10
_IDMAP: Final = 0x0010_0000
_MOVE_FROM_EMPTY, _MOVE_TO_EMPTY = 0x4, 0x40
_TREE_CLONE, _TREE_CLOEXEC = 0x1, 0o2000000
_AT_EMPTY_PATH, _AT_SYMLINK_NOFOLLOW = 0x1000, 0x100
_MNT_DETACH: Final = 2
# struct mount_attr: set, clear, propagation, user namespace.
_ATTR: Final = struct.Struct("=QQQQ")
# linux/openat2.h: struct open_how: flags, mode, resolve.
_HOW: Final = struct.Struct("=QQQ")
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x2, 0x4, 0x8
# linux/magic.h; struct statfs begins with the type.
CGROUP2_MAGIC: Final = 0x6367_7270
_STATFS_BYTES: Final = 120


class ReadOnly(OSError):
    """A filesystem that is to be written was mounted read-only."""


def squashfs(device: int) -> int:
    """A detached mount of a block device, with a superblock of its own. Raises KernelError."""
    # The kernel wants a name. This link leads to the very device of the descriptor, whatever its name was.
    source = f"/proc/self/fd/{device}"
    flags = RDONLY | NOSUID | NODEV | NOATIME
    return make("squashfs", {"source": source}, flags, alone=("ro",), exclusive=True)


def make(
    kind: str, options: dict[str, str], flags: int, *, alone: Iterable[str] = (), exclusive: bool = False
) -> int:
    """A detached mount of a new filesystem. `alone` are options without a value. Raises KernelError.

    Its superblock belongs to the user namespace that the caller stands in. `exclusive`: one that is there
    already, because something else has mounted the same device, is not taken but refused.
    """
    context = _check(_libc.numbered("fsopen", kind.encode() + b"\0", _FSOPEN_CLOEXEC), "open", kind)
    try:
        for key, value in options.items():
            _config(context, kind, _SET_STRING, key, value)
        for key in alone:
            _config(context, kind, _SET_FLAG, key, None)
        create = _CREATE_EXCLUSIVE if exclusive else _CREATE  # INV-ROOM-2
        _check(_libc.numbered("fsconfig", context, create, None, None, 0), "create", kind)
        return _check(_libc.numbered("fsmount", context, _FSMOUNT_CLOEXEC, flags), "mount", kind)
    finally:
        os.close(context)


def _config(context: int, kind: str, command: int, key: str, value: str | None) -> None:
    encoded = None if value is None else value.encode() + b"\0"
    result = _libc.numbered("fsconfig", context, command, key.encode() + b"\0", encoded, 0)
    _check(result, f"give {kind} the option", key)


def idmap(mount: int, user_namespace: int) -> None:
    """Show the ids of a detached mount as those of a user namespace. Raises KernelError."""
    _setattr(mount, _ATTR.pack(_IDMAP, 0, 0, user_namespace), "map the ids of a mount")


def restrict(mount: int, flags: int) -> None:
    """Add flags (RDONLY, NOEXEC, ...) to one mount. Raises KernelError."""
    _setattr(mount, _ATTR.pack(flags, 0, 0, 0), "restrict a mount")


def _setattr(mount: int, attributes: bytes, what: str) -> None:
    _check(
        _libc.numbered("mount_setattr", mount, b"\0", _AT_EMPTY_PATH, attributes, len(attributes)), what, ""
    )


def attach(mount: int, target: int) -> None:
    """Attach a detached mount on what a descriptor leads to. Raises KernelError."""
    flags = _MOVE_FROM_EMPTY | _MOVE_TO_EMPTY
    _check(_libc.numbered("move_mount", mount, b"\0", target, b"\0", flags), "attach a mount", "")


def copy(folder: int, name: str = "") -> int:
    """A detached mount of something that is mounted: of a name in a folder, or of the folder itself.

    What is mounted further below does not come with it. The name is not followed. Raises KernelError.
    """
    flags = _TREE_CLONE | _TREE_CLOEXEC | 0x100 | (0 if name else _AT_EMPTY_PATH)  # 0x100: no symbolic link
    return _check(
        _libc.numbered("open_tree", folder, name.encode() + b"\0", flags), "copy the mount of", name
    )


def place(root: int, path: str, flags: int = os.O_PATH, mode: int = 0) -> int:
    """Open `path` below a directory: no symbolic link on the way or at the end. Raises KernelError."""
    how = _HOW.pack(flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH)
    return _check(  # INV-ROOM-3
        _libc.numbered("openat2", root, path.encode() + b"\0", how, len(how)), "open", path
    )


def folder(root: int, name: str, mode: int = 0o755) -> int:
    """The directory `name` in a directory, made when it is not there. Raises KernelError, OSError.

    What is there and is no directory is refused with ENOTDIR or ELOOP, never followed and never replaced.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=root)
    return place(root, name, os.O_PATH | os.O_DIRECTORY)


def writable(mount: int, kind: str) -> None:
    """Make sure that a filesystem did not come read-only. Raises ReadOnly, OSError."""
    if os.fstatvfs(mount).f_flag & os.ST_RDONLY:
        raise ReadOnly(errno.EROFS, f"{kind} was mounted read-only")


def is_folder(root: int, name: str) -> bool | None:
    """Whether a name in a directory is a directory; None for a symbolic link. Raises OSError."""
    mode = os.stat(name, dir_fd=root, follow_symlinks=False).st_mode
    return None if stat.S_ISLNK(mode) else stat.S_ISDIR(mode)


def names(folder: int) -> list[str]:
    """What is in the directory behind a descriptor. Raises OSError."""
    opened = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.listdir(opened)
    finally:
        os.close(opened)


def become_root(mount: int) -> None:
    """Make an attached mount the root of this mount namespace, and let go of all that was there before.

    Every process of the namespace whose root was the old one stands in the new one. Raises KernelError.
    """
    os.fchdir(mount)
    _check(_libc.numbered("pivot_root", b".\0", b".\0"), "change the root", "")
    _libc.check(_libc.umount2(b".", _MNT_DETACH), "let go of the old root")
    os.chdir("/")


def kind_of(fd: int) -> int:
    """The magic number of the filesystem that a descriptor leads into. Raises KernelError."""
    answer = _libc.buffer(_STATFS_BYTES)
    _check(_libc.numbered("fstatfs", fd, answer), "ask for the filesystem of", f"descriptor {fd}")
    (magic,) = struct.unpack_from("=q", answer.raw)
    return int(magic)


def _check(result: int, what: str, on: object) -> int:
    return _libc.check(result, what, on)
