"""A repair that is killed at any moment: the next one ends it, and no half of a pair starts."""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integrity import disks
from tests.integrity.keeping import DONE

# So many times it must have been killed before it was done, in at most so many.
HALVES, KILLS_MAX = 12, 120
# A repair of these files takes about that long from its first line on; what is tried follows what is found.
REPAIR_S = 0.4
PATIENCE_S = 120.0
BLOCK = 4096


def keeper(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.integrity.keeping", folder, folder / "release.pub"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def line(process: subprocess.Popen[bytes]) -> str:
    """The next thing it says."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
    assert ready, "it says nothing"
    return process.stdout.readline().decode().rstrip("\n")


@pytest.mark.proves("INV-SLOT-16")
@pytest.mark.proves("INV-SLOT-17")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    data, boots, _parts = disks.made()
    paths = disks.files(tmp_path)
    (tmp_path / "release.pub").write_text(disks.PUBLIC.hex() + "\n")
    draw = random.Random(20)
    halves, kills, limit_s = 0, 0, REPAIR_S
    while halves < HALVES:
        kills += 1
        assert kills <= KILLS_MAX, "it was hardly ever killed in the middle"
        if paths["slot-b"].read_bytes() == data and paths["boot-b"].read_bytes() == boots["b"]:
            disks.flip(paths["slot-b"], draw.randrange(len(data)))
        process = keeper(tmp_path)
        try:
            while not line(process).startswith("replacing"):
                pass
            time.sleep(draw.uniform(0, limit_s))
        finally:
            process.kill()
            process.communicate()
        assert paths["slot-a"].read_bytes() == data
        volume, slot = paths["boot-b"].read_bytes(), paths["slot-b"].read_bytes()
        whole = slot == data and volume == boots["b"]
        halves += not whole
        limit_s *= 0.8 if whole else 1.1
        # What begins like a slot is one; what a firmware could start is the program of a whole slot, or
        # nothing was written yet.
        if any(volume[:BLOCK]):
            assert volume == boots["b"]
            assert slot == data or sum(x != y for x, y in zip(slot, data, strict=True)) == 1
        elif slot[:BLOCK] == data[:BLOCK]:
            assert slot == data or sum(x != y for x, y in zip(slot, data, strict=True)) == 1
    process = keeper(tmp_path)
    try:
        while (said := line(process)) != DONE:
            assert said
    finally:
        process.kill()
        process.communicate()
    assert paths["slot-b"].read_bytes() == data
    assert paths["boot-b"].read_bytes() == boots["b"]
