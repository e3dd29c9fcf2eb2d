"""What reaches the disk while two rooms write as they like: their records, in persist, and nothing else.

The disk is put behind QEMU's write log, which sees every write of the guest, whoever in it made it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from spine import paths
from spine.ground import accel, gpt, powercut, state
from spine.ground.disk import sparse_copy
from spine.ground.qemu import Machine
from tests.integration.boots import Boot
from tests.integration.live import Live, within
from tests.rooms import inside, writes
from tests.rooms.inside import ALPHA, ATTACK, BETA, NOISE, Rooms, request

pytestmark = pytest.mark.machine

PUTS = 40
# What integrity does by itself or when a person asks, and logs: it re-arms the counter of the boot after a
# while, and stores the images that are installed.
ACTS_OF_INTEGRITY = {"boot-a", "boot-b", "personas"}


def puts(seed: int) -> bytes:
    """Requests to store records of every size up to 64 KiB, one after another."""
    return b"".join(
        request(
            id=number, verb="put", key=b"%d" % (number % 7), value=bytes([number]) * (number * number * 40)
        )
        for number in range(1, PUTS + 1)
        if number != seed
    )


def storm(rooms: Rooms, name: str, seed: int) -> None:
    """Write wherever a room can: records, its own files until they are full, everything it may not."""
    rooms.focus(name)
    rooms.exec(name, NOISE, "talk", "/run/umbilical", "10", stdin=puts(seed), code=None)
    rooms.exec(name, ATTACK, "much-disk", str(1 << 30), code=1)
    lines = "\n".join(
        f"file-write {path}" for path in ("/dev/vda", "/proc/sys/kernel/core_pattern", "/usr/bin/x")
    )
    rooms.exec(name, ATTACK, "each", stdin=lines.encode() + b"\n")


def test_every_write_falls_in_persist_or_in_an_act_of_integrity(
    report: Mapping[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report["version"]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    disk, log = tmp_path / "disk.img", tmp_path / "writes.log"
    sparse_copy(paths.out() / "spine.img", disk)
    log.touch()
    machine = Machine(state.directory("machine"))
    assert Boot.WRITES
    how, _ = accel.choose("auto")
    with contextlib.ExitStack() as stack:
        stack.callback(machine.kill)
        machine.start(disk, accel=how, blockdevs=powercut.blockdevs(disk, log))
        machine.wait_ready()
        live = Live("machine", machine)
        rooms = stack.enter_context(inside.two_rooms("machine", tmp_path))
        # Healthy is too early: integrity sets the counter back when it has looked at both slots besides.
        within("blessed", lambda: live.call("integrity.slots")["blessed"])
        begun = len(powercut.read(log))
        for round_ in range(3):
            for name in (ALPHA, BETA):
                storm(rooms, name, round_)
        ended = len(powercut.read(log))
        entries = powercut.read(log)
        table = gpt.read(disk)
        stormed = writes.places(entries[begun:ended], table)
        assert stormed["persist"] > PUTS
        assert stormed.keys() == {"persist"}
        assert writes.places(entries[:begun], table).keys() <= {"persist", *ACTS_OF_INTEGRITY}
