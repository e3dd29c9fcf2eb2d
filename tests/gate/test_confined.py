"""The gate with its filter on: nothing is refused that it needs, and a refusal would lose nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.container


def run(how: str) -> subprocess.CompletedProcess[str]:
    # In a mount namespace of its own: see tests/gate/crash.py.
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.gate.confined"]
    return subprocess.run([*command, how], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.proves("INV-PRIV-2")
@pytest.mark.parametrize("how", ["well", "failing", "full"])
def test_the_filter_lets_the_gate_do_its_work(how: str) -> None:
    done = run(how)
    assert done.returncode == 0, done.stderr


# Calls without which a store cannot be made, written, synced, folded or swept.
NEEDED = ["fdatasync", "fsync", "pwrite64", "ftruncate", "rename", "unlink", "fallocate"]


@pytest.mark.proves("INV-GATE-2")
@pytest.mark.parametrize("call", NEEDED)
def test_a_refused_call_ends_the_gate_and_loses_nothing(call: str) -> None:
    done = run(f"without:{call}")
    assert done.returncode == 0, done.stderr
    assert f"refused by seccomp: {call} (" in done.stderr
