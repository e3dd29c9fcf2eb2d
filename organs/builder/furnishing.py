"""What a room consists of, besides its image: its filesystems, its devices, what it sees of the kernel, its
powers, its environment.

Pure: values, and the few sums that depend on a request. `organs/builder/rooms.py` does as it says.
Never: names anything of an image but the directories that something is mounted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

# Directories of the image that something is mounted on. What is missing is made in the room's own layer.
MOUNT_POINTS: Final = ("dev", "proc", "sys", "run", "tmp")

# Device nodes, by (major, minor): those that programs expect and that hold nobody's state.
NODES: Final[Mapping[str, tuple[int, int]]] = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
LINKS: Final[Mapping[str, str]] = {
    "ptmx": "pts/ptmx",
    "fd": "../proc/self/fd",
    "stdin": "fd/0",
    "stdout": "fd/1",
    "stderr": "fd/2",
}
CONSOLE: Final = "console"
DEV_FOLDERS: Final = ("pts", "shm")

# The options of the filesystems that hold no data: room for a few names each.
SMALL: Final = {"mode": "0755", "size": "64k", "nr_inodes": "128"}
# A room's terminals, as many as a person opens; the group is `tty` on every distribution.
TERMINALS: Final = {"gid": "5", "mode": "620", "ptmxmode": "666", "max": "64"}
RUN: Final = {"mode": "0755", "size": "16m", "nr_inodes": "4096"}
# An inode of a memory filesystem costs about a kilobyte that `size` does not count.
BYTES_PER_INODE: Final = 4096
INODES_MIN: Final = 1024

# What a room sees of /proc besides its own processes: what programs cannot do without. All else is covered,
# also what a later kernel will put there: clocks, counters and addresses of the machine are not the room's.
PROC_KEPT: Final = frozenset(
    {"self", "thread-self", "mounts", "net", "sys", "cpuinfo", "meminfo", "filesystems", "uptime", "version"}
    | {"sysvipc"}
)
# Of the kernel's settings: those that are about its own namespaces, and the few that libraries ask for.
PROC_SYS_KEPT: Final = frozenset({"kernel", "net", "user", "vm"})

# Capabilities, in the room's own user namespace, that its root begins with: to own files, to become another
# user of the room, to signal it, to bind a low port. None to mount, trace, make nodes or change the network.
CAPABILITIES: Final = frozenset(
    {"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE"}
)

PATH: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
# The same in every room; nothing of the spine's own environment.
ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": ":".join(PATH), "HOME": "/root", "LANG": "C.UTF-8"}
TERMINAL_TYPE: Final = "linux"

UMBILICAL: Final = "umbilical"
# Programs of a room that ask at the same moment wait here.
UMBILICAL_BACKLOG: Final = 16
RESOLV: Final = "resolv.conf"


class Made(NamedTuple):
    """A file that stands in for one of /proc."""

    name: str
    content: str


def standins(processors: int, booted_s: int) -> tuple[Made, ...]:
    """Files in the place of counters that would tell a room what runs beside it: all of them at rest."""
    lines = ["cpu  0 0 0 0 0 0 0 0 0 0"]
    lines += [f"cpu{number} 0 0 0 0 0 0 0 0 0 0" for number in range(processors)]
    lines += ["intr 0", "ctxt 0", f"btime {booted_s}", "processes 1", "procs_running 1", "procs_blocked 0"]
    return (Made("stat", "\n".join(lines) + "\n"), Made("loadavg", "0.00 0.00 0.00 1/1 1\n"))


def layer(writable_bytes: int) -> dict[str, str]:
    """The options of the memory filesystem that takes what a room writes."""
    inodes = max(INODES_MIN, writable_bytes // BYTES_PER_INODE)
    return {"mode": "0755", "size": str(writable_bytes), "nr_inodes": str(inodes)}


def scratch(writable_bytes: int) -> dict[str, str]:
    """The options of /tmp and /dev/shm: a room's own memory limit is what bounds all of them together."""
    return {**layer(writable_bytes), "mode": "1777"}


def environment(own: Sequence[str], *, terminal: bool) -> dict[str, str]:
    """The environment of a program: the room's, and what was asked for besides."""
    told = dict(entry.split("=", 1) for entry in own)
    return {**ENVIRONMENT, **({"TERM": TERMINAL_TYPE} if terminal else {}), **told}
