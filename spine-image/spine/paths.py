"""Where the host side keeps what it makes, by the XDG base directory rules.

Reads the environment and the password database; makes directories only where a function says so. Caches may
be deleted at any time; state is the disk and the logs of the running spine; data holds the keys. Sockets
need a short path (the kernel allows 108 bytes), so they may lie elsewhere than the state they belong to.
"""

import hashlib
import os
import pwd
import stat
from pathlib import Path

from spine.errors import Exit, SpineError

NAME = "alpine-spine"

# The root of the source tree this code lies in.
ROOT = Path(__file__).resolve().parents[2]

# sun_path of a unix socket is 108 bytes with the closing NUL.
SOCKET_PATH_MAX = 107


def out(profile: str = "qemu") -> Path:
    """Where `build` leaves the image of a profile; not made here. The ordinary one lies in out/ itself."""
    return ROOT / "out" if profile == "qemu" else ROOT / "out" / profile


def cache() -> Path:
    """What can be made again: kernel, downloads, compiled schemas."""
    return _base("XDG_CACHE_HOME", ".cache") / NAME


def state() -> Path:
    """The disks, logs and pids of what runs or ran."""
    return _base("XDG_STATE_HOME", ".local/state") / NAME


def data() -> Path:
    """The keys."""
    return _base("XDG_DATA_HOME", ".local/share") / NAME


def private(directory: Path) -> Path:
    """Make `directory` (0700) with its parents; SpineError when it cannot be made or is another user's."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        seen = directory.stat()
    except OSError as error:
        raise SpineError(
            f"the directory {directory} cannot be made",
            error.strerror or str(error),
            "set HOME, XDG_CACHE_HOME, XDG_STATE_HOME or XDG_DATA_HOME to a place you may write to",
            Exit.HOST_NOT_READY,
        ) from error
    if seen.st_uid != os.geteuid():
        raise SpineError(
            f"the directory {directory} is not yours",
            f"it belongs to uid {seen.st_uid}, you are uid {os.geteuid()}",
            f"sudo chown {os.geteuid()} '{directory}'",
            Exit.HOST_NOT_READY,
        )
    return directory


def sockets(wanted: Path, longest_name: int = 16) -> Path:
    """A private directory (made, 0700) for the sockets of `wanted` whose paths fit into a socket address.

    `wanted` itself when its path is short enough, else a directory named by its hash under XDG_RUNTIME_DIR
    or /tmp. SpineError when that one is not ours alone: somebody may have made it first.
    """
    limit = SOCKET_PATH_MAX - 1 - longest_name
    if len(os.fsencode(wanted)) <= limit:
        return private(wanted)
    name = f"spine-{os.geteuid()}-{hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]}"
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    base = Path("/tmp")
    if runtime.is_absolute() and runtime.is_dir() and len(os.fsencode(runtime / name)) <= limit:
        base = runtime
    short = private(base / name)
    seen = short.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_mode & 0o077:
        raise SpineError(
            f"the socket directory {short} is not private",
            "it is a link or others may enter it, so somebody else may have made it",
            f"rm -rf '{short}'",
            Exit.HOST_NOT_READY,
        )
    return short


def _base(variable: str, below_home: str) -> Path:
    # A relative path in an XDG variable is to be ignored (XDG base directory rules).
    given = Path(os.environ.get(variable, ""))
    return given if given.is_absolute() else _home() / below_home


def _home() -> Path:
    given = Path(os.environ.get("HOME", ""))
    if given.is_absolute():
        return given
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError as error:
        raise SpineError(
            "there is no home directory",
            f"HOME is not set and uid {os.geteuid()} is not in the password database",
            "HOME=/a/directory/of/yours ./spine ...",
            Exit.HOST_NOT_READY,
        ) from error
