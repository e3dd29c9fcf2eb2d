"""The control group of a container ground: one group of its own in the version 2 hierarchy.

Touches the cgroup2 mount and /proc/self/mountinfo. Everything in the group can be ended at once and the
group removed, which is what is left to do after a container that was not stopped. SpineError (3) when there
is no version 2 hierarchy or it may not be written.
"""

import contextlib
import os
import select
import time
from pathlib import Path

from spine.errors import Exit, SpineError

# What bay0 limits its organs with; version 1 may hold some of them.
CONTROLLERS = ("cpu", "memory", "pids")


def mounted(mountinfo: str) -> str | None:
    """Where the version 2 hierarchy is mounted, from the text of /proc/self/mountinfo. Pure."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            return before.split()[4].encode().decode("unicode_escape")
    return None


def make(name: str) -> Path:
    """A new empty group. SpineError (3)."""
    root = mounted(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    if root is None:
        raise SpineError(
            "there is no version 2 cgroup hierarchy",
            "no cgroup2 is mounted",
            "mount -t cgroup2 none /sys/fs/cgroup   (or use the machine: ./spine boot)",
            Exit.HOST_NOT_READY,
        )
    group = Path(root) / name
    try:
        group.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise SpineError(
            "a cgroup cannot be made",
            f"{group}: {error.strerror}",
            "run ./spine where cgroups may be written, or use the machine: ./spine boot",
            Exit.HOST_NOT_READY,
        ) from error
    return group


def lacking(group: Path) -> list[str]:
    """The controllers that a group cannot use."""
    there = (group / "cgroup.controllers").read_text(encoding="ascii").split()
    return [name for name in CONTROLLERS if name not in there]


def remove(group: Path, deadline_s: float) -> bool:
    """End everything in a group and the groups below it, and remove them; False when the deadline passed."""
    if not group.is_dir():
        return True
    end = time.monotonic() + deadline_s
    with contextlib.suppress(OSError):
        (group / "cgroup.kill").write_text("1", encoding="ascii")
    with open(group / "cgroup.events", encoding="ascii") as events:
        changes = select.poll()
        changes.register(events, select.POLLPRI)
        while "populated 1" in (events.seek(0), events.read())[1]:
            left = end - time.monotonic()
            if left <= 0:
                return False
            changes.poll(left * 1000)
    for path, _, _ in os.walk(group, topdown=False):
        os.rmdir(path)
    return True
