"""Crashes: of the file system, of the process, of the device. No acknowledged write is ever lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from organs.gate.verdict import Put
from tests.gate import crash, load

ROOT = Path(__file__).resolve().parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root and a loop device")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
CYCLES = 200


@pytest.mark.container
@needs_root
@pytest.mark.proves("INV-GATE-2")
def test_nothing_acknowledged_is_lost_when_the_file_system_goes() -> None:
    """And the same crashes notice each gate with a seeded bug."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gate.crash", "--count", str(CYCLES), "--seed", "test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["counts"]["crashes"] == CYCLES
    assert report["counts"]["violations"] == 0
    assert report["counts"]["acknowledged"] > CYCLES
    assert report["counts"]["logsBegunAnew"] > CYCLES // 10
    assert set(report["seededBugsCaught"]) == {bug.name for bug in crash.BUGS}
    assert all(row["violations"] for row in report["seededBugsCaught"].values())


def launch(
    directory: Path, seed: str, *, steps: int = 10_000, under: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*under, sys.executable, "-m", "tests.gate.load", str(directory), seed, "4", str(steps)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.proves("INV-GATE-2")
def test_kill_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """The process is killed in the middle of its work, again and again on the same stores."""
    state: load.State = {}
    for life in range(8):
        process = launch(tmp_path, f"kill.{life}")
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(40 + 23 * life)]
        process.send_signal(signal.SIGKILL)
        # Not `communicate`, which reads past what `readline` has in its buffer, and so loses lines.
        lines += process.stdout.readlines()
        process.communicate()
        state, account, wrong = load.verify(tmp_path, state, f"kill.{life}", lines)
        assert not wrong
        assert account.acknowledged > 0


# Each call that makes something durable fails: the first time, the second, ... and once for good. SQLite
# syncs a log and a file with fdatasync, the gate syncs the rest with fsync, and pwrite64 carries the data.
# The second fdatasync is left out: it is SQLite's own sync of the directory, whose answer SQLite drops; the
# gate has synced the directory before, and that one is here.
FAULTS = [
    *(f"fdatasync:error=EIO:when={n}" for n in (1, 3, 4, 9, "4+")),
    *(f"fsync:error=EIO:when={n}" for n in (1, 2, 3, 4)),
    *(f"pwrite64:error=EIO:when={n}" for n in (1, 2, 9, 17, "25+")),
    *(f"ftruncate:error=EIO:when={n}" for n in (1, 2)),
]


@pytest.mark.container
@needs_root
@needs_strace
@pytest.mark.proves("INV-GATE-9")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_write_or_sync_ends_the_process(tmp_path: Path, fault: str) -> None:
    """And what was acknowledged before it is there after the next start."""
    call = fault.partition(":")[0]
    process = launch(
        tmp_path,
        fault,
        steps=60,
        under=("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={fault}"),
    )
    out, errors = process.communicate(timeout=120)
    lines = out.splitlines(keepends=True)
    assert process.returncode == load.DIED, errors.decode()
    # Whoever was asked when it happened was told nothing.
    account = load.Account.read(fault, lines)
    assert not account.refused
    assert (
        any(account.answered.get(c, -1) < last for c, last in account.submitted.items())
        or not account.submitted
    )
    _, _, wrong = load.verify(tmp_path, {}, fault, lines)
    assert not wrong


@needs_strace
def test_the_faults_are_felt_through_the_gate(tmp_path: Path) -> None:
    """Without a fault the same run ends well: what the tests above see is the fault, not the strace."""
    process = launch(tmp_path, "no fault", steps=20, under=("strace", "-f", "-qq", "-o", "/dev/null"))
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    _, account, wrong = load.verify(tmp_path, {}, "no fault", out.splitlines(keepends=True))
    assert not wrong
    assert account.acknowledged == 4 * 20


def traced(directory: Path, *calls: str) -> list[str]:
    trace = directory.with_suffix(".trace")
    process = launch(
        directory,
        "trace",
        steps=5,
        under=("strace", "-f", "-y", "-qq", "-o", str(trace), "-e", f"trace={','.join(calls)}"),
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    return trace.read_text().splitlines()


@needs_strace
@pytest.mark.proves("INV-GATE-7")
def test_names_are_synced(tmp_path: Path) -> None:
    """A new store: its bytes, its name, the directory. A new log: the directory before its first write."""
    directory = tmp_path / "persist"
    directory.mkdir()
    lines = traced(directory, "fsync", "fdatasync", "rename", "pwrite64")
    renames = [n for n, line in enumerate(lines) if "rename(" in line]
    assert len(renames) == len(load.PERSONAS)
    for at in renames:
        assert re.search(rf" fsync\(\d+<{directory}/incoming>\) += 0", lines[at - 1])
        for line in lines[at + 1 : at + 3]:
            assert re.search(rf" fsync\(\d+<{directory}>\) += 0", line)
        assert re.search(r" pwrite64\(\d+<.*-wal>", lines[at + 3])


@needs_strace
@pytest.mark.proves("INV-GATE-2")
def test_every_answer_follows_a_sync(tmp_path: Path) -> None:
    """In the order of system calls: between two answers of one client there is a sync of a log."""
    directory = tmp_path / "persist"
    directory.mkdir()
    synced_since: dict[str, bool] = {}
    held: set[tuple[str, bytes]] = set()
    syncing: set[str] = set()
    answers = 0
    for line in traced(directory, "fdatasync", "write"):
        # A call that another thread interrupts is two lines: the first has the file, the second the end.
        thread = line.split()[0]
        if "fdatasync(" in line and "-wal" in line and "unfinished" in line:
            syncing.add(thread)
        elif "fdatasync" in line and ("-wal" in line or ("resumed" in line and thread in syncing)):
            syncing.discard(thread)
            synced_since = dict.fromkeys(map(str, range(4)), True)
        elif '"A ' in line:
            client, step = line.split('"A ')[1].split()[:2]
            answers += 1
            asked = load.operation("trace", int(client), int(step))
            place = (asked.persona, asked.key)
            if isinstance(asked, Put):
                held.add(place)
            elif place in held:
                held.remove(place)
            else:
                continue  # a delete of nothing writes nothing, and nothing is synced for it alone
            assert synced_since.get(client), line
            synced_since[client] = False
    assert answers == 4 * 5
