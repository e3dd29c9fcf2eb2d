"""The focus among real personas, as a person moves it: ./spine persona, focus, exec."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.envelope import Code
from spine.ground.port import PortFailure
from tests.integration.live import Live, spine, within

pytestmark = pytest.mark.container
ROOMS = ("courier", "linda")


def subtree(live: Live) -> Path:
    """The rooms' cgroup of a running container, as this host sees it."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        unified = next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2")
    with open(f"/proc/{live.ground.pid}/cgroup", encoding="utf-8") as file:
        path = next(line[3:].strip() for line in file if line.startswith("0::"))
    return Path(unified + path).parent / "rooms"


@pytest.fixture(name="rooms")
def _rooms(container: Live) -> Iterator[Path]:
    """Rooms of the two personas of this tree, each with a process that never rests."""
    for name in ROOMS:
        spine("persona", "install", name, "--container")
        spine("persona", "start", name, "--container")
        spine("exec", "--focus", name, "--container", "--", "sh", "-c", "while :; do :; done &")
    yield subtree(container)
    for name in ROOMS:
        spine("persona", "stop", name, "--container")
        spine("persona", "remove", name, "--container")
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
def test_the_focus_moves_and_outlives_the_freezer(container: Live, rooms: Path) -> None:
    assert os.stat(rooms).st_uid == 2004
    for name in (*ROOMS, *ROOMS):
        spine("focus", name, "--container")
        assert awake(rooms) == [name]
        assert container.call("freezer.rooms")["focus"] == name
    # The other stands still while this one uses what there is.
    before = used(container)
    within("some processor time", lambda: used(container)["linda"] > before["linda"] + 50_000)
    assert used(container)["courier"] == before["courier"]
    with pytest.raises(PortFailure) as refused:
        container.call("freezer.focus", persona="nobody")
    assert refused.value.failure.code is Code.NOT_FOUND
    # A new freezer finds the rooms, wakes nobody, and what runs goes on with all that was its own.
    table = container.table()["freezer"]
    container.probe("kill", "freezer", 9)
    within("the next freezer", lambda: container.restarted("freezer", table))
    assert awake(rooms) == ["linda"]
    within("linda has the focus again", lambda: container.call("freezer.rooms")["focus"] == "linda")
    assert spine("exec", "linda", "--container", "--", "umbilical", "status").startswith(b"persona linda\n")
    assert used(container)["courier"] == before["courier"]
