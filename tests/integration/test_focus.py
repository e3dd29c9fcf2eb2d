"""The freezer as it runs: its own user, its own filter, the cgroups that bay0 gave it.

The rooms are made from outside, as nobody makes them yet: cgroups of the freezer's in the container's
subtree, with processes that never rest. A restarted freezer finds them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.envelope import Code
from organs.manifest import load
from spine.ground.port import PortFailure
from tests.integration.live import Live, within

pytestmark = pytest.mark.container
ROOMS = ("courier", "linda")
FREEZER = load(str(Path(__file__).resolve().parents[2] / "organs/manifest.toml")).organs["freezer"]


def subtree(live: Live) -> Path:
    """The rooms' cgroup of a running container, as this host sees it."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        unified = next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2")
    with open(f"/proc/{live.ground.pid}/cgroup", encoding="utf-8") as file:
        path = next(line[3:].strip() for line in file if line.startswith("0::"))
    return Path(unified + path).parent / "rooms"


def spinning(cgroup: Path) -> int:
    """A process that never rests, in the cgroup."""
    pid = os.fork()
    if pid == 0:
        try:
            (cgroup / "cgroup.procs").write_text("0")
            while True:
                pass
        finally:
            os._exit(1)
    return pid


@pytest.fixture(name="rooms")
def _rooms(container: Live) -> Iterator[Path]:
    root = subtree(container)
    assert root.stat().st_uid == FREEZER.uid
    pids = []
    for name in ROOMS:
        (root / name).mkdir()
        for path in (root / name, *(root / name).iterdir()):
            os.chown(path, FREEZER.uid, FREEZER.gid)
        (root / name / "cgroup.freeze").write_text("1")
        pids += [spinning(root / name) for _ in range(3)]
    within(
        "processes in the rooms",
        lambda: all(len((root / name / "cgroup.procs").read_text().split()) == 3 for name in ROOMS),
    )
    yield root
    for name in ROOMS:
        with contextlib.suppress(FileNotFoundError):
            (root / name / "cgroup.kill").write_text("1")
    for pid in pids:
        os.waitpid(pid, 0)
    within("the rooms gone", lambda: not any((root / name).exists() for name in ROOMS))
    assert container.call("freezer.rooms") == {"rooms": [], "focus": ""}


def awake(root: Path) -> list[str]:
    """The rooms that the kernel does not call frozen."""
    return [name for name in ROOMS if "frozen 0" in (root / name / "cgroup.events").read_text()]


def used(live: Live) -> dict[str, int]:
    """The processor time of each room, as the freezer says."""
    rooms = live.call("freezer.rooms")["rooms"]
    assert isinstance(rooms, list)
    return {room["name"]: room["cpuUsec"] for room in rooms}


@pytest.mark.proves("INV-FOCUS-4")
def test_the_running_freezer_moves_the_focus(container: Live, rooms: Path) -> None:
    before_kill = container.table()["freezer"]
    container.probe("kill", "freezer", 9)
    within("the next freezer", lambda: container.restarted("freezer", before_kill))
    assert container.call("freezer.rooms")["focus"] == ""
    assert awake(rooms) == []
    for name in (*ROOMS, *ROOMS):
        container.call("freezer.focus", persona=name)
        assert awake(rooms) == [name]
        assert container.call("freezer.rooms")["focus"] == name
    # The other stands still while this one uses what there is.
    before = used(container)
    within("some processor time", lambda: used(container)["linda"] > before["linda"] + 50_000)
    assert used(container)["courier"] == before["courier"]
    with pytest.raises(PortFailure) as refused:
        container.call("freezer.focus", persona="nobody")
    assert refused.value.failure.code is Code.NOT_FOUND
