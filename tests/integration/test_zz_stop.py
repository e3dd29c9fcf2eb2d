"""The end of a spine: these tests stop what the others share, so they come last, by the name of the file."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from spine.ground import cgroups, state
from spine.ground.container import Container
from tests.integration.live import Live, spine, within


def namespaces_of(pid: int) -> set[int]:
    """The inode of each namespace that is not ours."""
    there = {name: os.stat(f"/proc/{pid}/ns/{name}").st_ino for name in ("pid", "mnt", "net", "ipc", "uts")}
    return {inode for name, inode in there.items() if inode != os.stat(f"/proc/self/ns/{name}").st_ino}


def now_ticks() -> int:
    """The time as the kernel writes down when a process began."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def namespaces_in_use(before: int) -> set[int]:
    """The inodes of all namespaces that some process is in which began before that time.

    The kernel gives the number of a namespace that ended to the next one, which may be of another spine.
    """
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            began = int((process / "stat").read_text().rpartition(")")[2].split()[19])
            if began < before:
                found.update(name.stat().st_ino for name in (process / "ns").iterdir())
        except OSError:
            continue  # it ended meanwhile
    return found


@pytest.mark.proves("INV-STATE-2")
def test_a_stop_is_orderly_and_leaves_nothing(live: Live) -> None:
    """No process, mount, cgroup, loop device or namespace; and the file system of the gate unmounted."""
    ground = live.ground
    mark = ground.console.mark()
    pid = ground.pid
    inside = namespaces_of(pid)
    cgroup = None
    if isinstance(ground, Container):
        mount = cgroups.mounted(Path("/proc/self/mountinfo").read_text())
        assert mount is not None
        cgroup = Path(mount) / ground.cgroup
        assert cgroup.is_dir()
        assert len(inside) == 5
    assert inside <= namespaces_in_use(now_ticks() + 1)
    asked = now_ticks()
    spine("stop", f"--{live.kind}")
    said = ground.console.text(mark)
    assert "spine: stage persist.unmounted" in said
    assert "spine: stage poweroff" in said
    assert state.read(state.directory(live.kind)) is None
    within("its process is gone", lambda: not os.path.exists(f"/proc/{pid}"))
    assert not ground.port_path.exists()
    assert not inside & namespaces_in_use(asked)
    loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
    assert str(state.directory(live.kind)) not in loops
    assert str(state.directory(live.kind)) not in Path("/proc/self/mounts").read_text()
    assert cgroup is None or not cgroup.exists()
