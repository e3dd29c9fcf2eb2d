"""Cgroups: one for each child, with its limits, so that a child can be killed whole.

Touches: the cgroup v2 tree below the root of this cgroup namespace.
Never: moves a process but its own; a child is born in its cgroup.
Fails: OSError naming the file. A controller that the kernel does not offer is reported, not hidden.
"""

from __future__ import annotations

import os
from typing import Final

ROOT: Final = "/sys/fs/cgroup"
CONTROLLERS: Final = ("memory", "pids", "cpu")


def prepare() -> list[str]:
    """Move PID 1 into a leaf and enable the controllers below the root; the controllers that are missing.

    A cgroup with processes of its own cannot give controllers to its children, so PID 1 moves first.
    """
    os.makedirs(f"{ROOT}/bay0", exist_ok=True)
    _write(f"{ROOT}/bay0", "cgroup.procs", "0")
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

    def __init__(self, path: str, memory_max: int, pids_max: int) -> None:
        """Make the cgroup `path` (below the root of the tree). `memory_max` is in bytes; there is no swap."""
        self.path = f"{ROOT}/{path}"
        self._limits = (
            ("memory.max", memory_max),
            ("memory.swap.max", 0),
            # One process of the group over the limit ends the whole group: half an organ is no organ.
            ("memory.oom.group", 1),
            ("pids.max", pids_max),
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
