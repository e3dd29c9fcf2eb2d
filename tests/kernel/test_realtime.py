"""The clock: read here, and refused to who may not set it. That it can be set is shown on the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from organs.kernel import realtime

ROOT = Path(__file__).resolve().parents[2]
# Without SYS_TIME, so that this host's clock stays as it is whatever the code under test does.
POWERLESS = """
from organs.kernel import privileges, realtime
privileges.drop(65534, 65534, set())
for act in (lambda: realtime.move(0), lambda: realtime.set_to(realtime.wall_ms())):
    try:
        act()
    except PermissionError as error:
        print(error.errno)
"""


def test_both_clocks_go_on() -> None:
    wall, boot = realtime.wall_ms(), realtime.since_boot_ms()
    assert wall > 1_700_000_000_000
    assert boot > 0
    assert realtime.since_boot_ms() >= boot
    assert realtime.since_boot_us() >= boot * 1000


@pytest.mark.container
def test_without_its_capability_nobody_sets_it() -> None:
    if os.getuid():
        pytest.skip("needs root to drop it")
    done = subprocess.run(
        [sys.executable, "-c", POWERLESS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1"]
