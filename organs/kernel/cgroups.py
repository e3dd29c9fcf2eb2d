"""Cgroups: one for each child, with its limits, so that a child can be killed whole; and those of rooms.

Touches: the cgroup v2 tree below the root of this cgroup namespace; /proc/PID/stat and wchan of what blocks.
Never: moves a process but its own; a child is born in its cgroup.
Fails: OSError naming the file. A controller that the kernel does not offer is reported, not hidden.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

ROOT: Final = "/sys/fs/cgroup"
CONTROLLERS: Final = ("memory", "pids", "cpu")
# The extended attribute of a room's cgroup that holds what is known of the room.
FACTS: Final = "user.spine"


def prepare(beside: int | None = None) -> list[str]:
    """Move PID 1 into a leaf and enable the controllers below the root; the controllers that are missing.

    A cgroup with processes of its own cannot give controllers to its children, so PID 1 moves first, and with
    it the process `beside` it, if that still lives.
    """
    os.makedirs(f"{ROOT}/bay0", exist_ok=True)
    _write(f"{ROOT}/bay0", "cgroup.procs", "0")
    if beside is not None:
        with contextlib.suppress(ProcessLookupError):
            _write(f"{ROOT}/bay0", "cgroup.procs", str(beside))
    with open(f"{ROOT}/cgroup.controllers", encoding="ascii") as file:
        offered = file.read().split()
    enabled = [name for name in CONTROLLERS if name in offered]
    for parent in ("", "/organs"):
        os.makedirs(f"{ROOT}{parent}", exist_ok=True)
        for name in enabled:
            _write(f"{ROOT}{parent}", "cgroup.subtree_control", f"+{name}")
    return [name for name in CONTROLLERS if name not in offered]


class Cgroup:
    """One child's cgroup and its limits. `fd` is what clone3 wants."""

    def __init__(self, path: str, memory_max: int, pids_max: int, cpu_weight: int) -> None:
        """Make the cgroup `path` (below the root of the tree).

        `memory_max` is in bytes; there is no swap. `cpu_weight` is 1 to 10000; the kernel's default is 100.
        """
        self.path = f"{ROOT}/{path}"
        self._limits = (
            ("memory.max", memory_max),
            ("memory.swap.max", 0),
            # One process of the group over the limit ends the whole group: half an organ is no organ.
            ("memory.oom.group", 1),
            ("pids.max", pids_max),
            ("cpu.weight", cpu_weight),
        )
        self._killed = False
        self.fd = self._make()

    def _make(self) -> int:
        os.makedirs(self.path, exist_ok=True)
        for name, value in self._limits:
            if os.path.exists(f"{self.path}/{name}"):  # else the controller is missing, and was reported
                _write(self.path, name, str(value))
        return os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def renew(self) -> None:
        """Make it fit for the next incarnation; it must be empty.

        The kernel counts the kills of a cgroup so that a fork cannot escape one, but clone3 into a cgroup
        compares with the count of the parent's: everything born into a cgroup that was killed once dies at
        once. So a killed cgroup is used up, and a new one takes its name.
        """
        if self._killed:
            os.close(self.fd)
            os.rmdir(self.path)
            self.fd = self._make()
            self._killed = False

    def take(self, pid: int) -> None:
        """Move a process into it. What memory it has by then stays counted where it was. Raises OSError."""
        _write(self.path, "cgroup.procs", str(pid))

    def kill(self) -> None:
        """SIGKILL to everything in it, at once and without a race against fork."""
        self._killed = True
        _write(self.path, "cgroup.kill", "1")

    def empty(self) -> bool:
        """Whether nothing lives in it or below it."""
        with open(f"{self.path}/cgroup.events", encoding="ascii") as file:
            return "populated 0" in file.read()


def _write(folder: str, name: str, text: str) -> None:
    # One write call for one value: the kernel takes each write as a whole command.
    fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = f"{folder}/{name}"
        raise
    finally:
        os.close(fd)


def path(name: str) -> str:
    """The directory of the cgroup `name`, below the root of the tree."""
    return f"{ROOT}/{name}"


def delegate(name: str, uid: int, gid: int) -> None:
    """Make the cgroup `name` and let this uid make and remove cgroups in it.

    Its own files stay root's: who owns the subtree can neither thaw it above itself nor lift its limits, and
    moves no process, since a process is born in its cgroup.
    """
    folder = path(name)
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/cgroup.controllers", encoding="ascii") as file:
        for controller in file.read().split():
            _write(folder, "cgroup.subtree_control", f"+{controller}")
    os.chown(folder, uid, gid)


def kill_below(name: str) -> None:
    """SIGKILL to everything in the cgroup `name` and below it; frozen or not, it dies. Raises OSError."""
    _write(path(name), "cgroup.kill", "1")


@dataclass(frozen=True, slots=True)
class Standing:
    """What the kernel says of a cgroup. `asked`: it was told to freeze; `frozen`: all in it stands still.

    An empty cgroup that was told to freeze is frozen.
    """

    populated: bool
    asked: bool
    frozen: bool


def standing(folder: int) -> Standing:
    """The state of the cgroup behind a directory descriptor. Raises OSError."""
    events, asked = (_read(folder, name) for name in ("cgroup.events", "cgroup.freeze"))
    return Standing("populated 1" in events, asked.strip() == "1", "frozen 1" in events)


def is_child(folder: int, parent: str, name: str) -> bool:
    """Whether a descriptor is of the directory `name` in `parent`. Raises OSError; not for a missing name."""
    ours = os.fstat(folder)
    try:
        found = os.stat(f"{parent}/{name}", follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def _read(folder: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder), encoding="ascii") as file:
        return file.read()


class Subtree:
    """The cgroups of rooms, below a directory that this process owns, and what changes in them.

    `fileno` becomes readable when the kernel has something to say about one of them; then call `changed`.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._waiting = select.epoll()
        self._events: dict[str, int] = {}
        for name in self.names():
            self._watch(name)

    def close(self) -> None:
        """Let go of all descriptors; the cgroups stay as they are."""
        self._waiting.close()
        for fd in self._events.values():
            os.close(fd)
        self._events.clear()

    def fileno(self) -> int:
        """A descriptor to wait for."""
        return self._waiting.fileno()

    def names(self) -> list[str]:
        """The rooms that have a cgroup, sorted."""
        with os.scandir(self.root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def make(self, name: str) -> None:
        """A new cgroup, told to freeze before anything is in it. Raises OSError.

        One that could not be removed under this name is in the way, and is watched again.
        """
        try:
            os.mkdir(f"{self.root}/{name}", 0o755)
        except FileExistsError:
            if name not in self._events:
                self._watch(name)
            raise
        _write(f"{self.root}/{name}", "cgroup.freeze", "1")
        self._watch(name)

    def _watch(self, name: str) -> None:
        fd = os.open(f"{self.root}/{name}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        # A change is an exceptional condition, not input; and the kernel reports both edges of each.
        self._waiting.register(fd, select.EPOLLPRI)
        self._events[name] = fd

    def changed(self) -> list[str]:
        """The rooms whose state may have changed since they were last read. Never waits."""
        ready = {fd for fd, _ in self._waiting.poll(0)}
        return [name for name, fd in self._events.items() if fd in ready]

    def read(self, name: str) -> Standing:
        """The state of a room's cgroup now. Raises OSError."""
        events = os.pread(self._events[name], 256, 0)
        with open(f"{self.root}/{name}/cgroup.freeze", encoding="ascii") as file:
            asked = file.read().strip() == "1"
        return Standing(b"populated 1" in events, asked, b"frozen 1" in events)

    def freeze(self, name: str) -> None:
        """Ask for the freeze. Raises OSError."""
        _write(f"{self.root}/{name}", "cgroup.freeze", "1")

    def thaw(self, name: str) -> None:
        """Ask for the thaw. Raises OSError."""
        _write(f"{self.root}/{name}", "cgroup.freeze", "0")

    def kill(self, name: str) -> None:
        """SIGKILL to everything in it; a frozen process dies without executing. Raises OSError."""
        _write(f"{self.root}/{name}", "cgroup.kill", "1")

    def remove(self, name: str) -> None:
        """Remove the cgroup, which must be empty, with what is below it. Raises OSError."""
        if (fd := self._events.pop(name, None)) is not None:
            self._waiting.unregister(fd)
            os.close(fd)
        for folder, _, _ in os.walk(f"{self.root}/{name}", topdown=False):
            os.rmdir(folder)

    def limit(self, name: str, memory_bytes: int, processes: int) -> None:
        """What all of the room together may take, where the kernel offers it. Raises OSError."""
        for file, value in (("memory.max", memory_bytes), ("memory.swap.max", 0), ("pids.max", processes)):
            if os.path.exists(f"{self.root}/{name}/{file}"):  # else the ground says that it is missing
                _write(f"{self.root}/{name}", file, str(value))

    def number(self, name: str) -> int:
        """The kernel's number of the cgroup, which no other had since the boot. Raises OSError."""
        return os.stat(f"{self.root}/{name}").st_ino

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[int]:
        """A descriptor of the cgroup's directory, for whoever makes a process in it. Raises OSError."""
        fd = os.open(f"{self.root}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def set_facts(self, name: str, text: bytes) -> None:
        """Note something at the cgroup, for as long as it exists. Raises OSError."""
        os.setxattr(f"{self.root}/{name}", FACTS, text)

    def facts(self, name: str) -> bytes:
        """What was noted. Raises OSError, with ENODATA when nothing was."""
        return os.getxattr(f"{self.root}/{name}", FACTS)

    def note(self) -> None:
        """Note that the rooms of this boot were begun with. Raises OSError."""
        os.setxattr(self.root, FACTS, b"begun")

    def noted(self) -> bool:
        """Whether that was noted. Raises OSError."""
        return FACTS in os.listxattr(self.root)

    def cpu_usec(self, name: str) -> int:
        """The processor time of everything that ever ran in it, in microseconds. Raises OSError."""
        with open(f"{self.root}/{name}/cpu.stat", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("usage_usec"))

    def blocker(self, name: str) -> tuple[int, str] | None:
        """A process of the room that the kernel cannot stop now: (pid, what it waits for).

        The kernel tells the wait channel only to who may trace the process; others are told its state.
        """
        for folder, _, _ in os.walk(f"{self.root}/{name}"):
            try:
                with open(f"{folder}/cgroup.procs", encoding="ascii") as file:
                    pids = [int(line) for line in file]
            except OSError:
                continue
            for pid in pids:
                if (why := _waits(pid)) is not None:
                    return pid, why
        return None


# What a room's process does that neither freezes nor dies: sleeping uninterruptibly, traced by another.
_UNSTOPPABLE: Final = {"D": "uninterruptible sleep", "t": "traced"}


def _waits(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
        if state not in _UNSTOPPABLE:
            return None
        with open(f"/proc/{pid}/wchan", encoding="ascii", errors="replace") as file:
            channel = file.read()
    except OSError:
        return None  # it has gone meanwhile
    return channel if channel not in ("", "0") else _UNSTOPPABLE[state]
