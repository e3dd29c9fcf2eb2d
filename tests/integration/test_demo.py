"""`./spine demo` as it stands in the README: it holds, and it fails where a promise is broken.

Each demo has a state directory of its own, and leaves nothing there or elsewhere.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from spine import paths
from spine.ground import state
from tests.integration.boots import Boot
from tests.integration.live import spine

GATE_STORE = "organs/gate/store.py"
# Three boots of an emulated machine on a host that does other things as well.
MACHINE_S = 1800
# Demos that a gate without its flush gets before it must have been caught.
TRIES = 8


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This demo's own XDG_STATE_HOME."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def demo(*words: str) -> Mapping[str, object]:
    document = json.loads(spine("demo", "--json", *words, limit_s=MACHINE_S))
    assert document["held"] is True
    assert all(command["held"] for step in document["steps"] for command in step["commands"])
    figures = document["figures"]
    assert figures["readBack"] == figures["acknowledged"] > 0
    assert figures["unfocusedUsec"] == 0
    assert isinstance(document, dict)
    return document


def left(home: Path) -> list[str]:
    """What a demo has left behind: files, loop devices."""
    files = [str(path) for path in home.rglob("*") if path.is_file() and path.name != "lock"]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if str(home) in backing.read_text(encoding="utf-8"):
                files.append(str(backing))
        except OSError:
            continue  # it ended while we looked
    return files


@pytest.mark.container
def test_it_holds_in_a_container(home: Path) -> None:
    document = demo("--container")
    steps = document["steps"]
    assert isinstance(steps, list)
    assert len(steps) == 6
    assert left(home) == []


@pytest.mark.machine
@pytest.mark.timeout(MACHINE_S)
def test_it_holds_on_the_machine(home: Path, report: Mapping[str, object]) -> None:
    assert report["version"]
    assert {Boot.DEMO, Boot.DEMO_AFTER_CUT, Boot.DEMO_FLIPPED} <= set(Boot)
    document = demo()
    steps = document["steps"]
    assert isinstance(steps, list)
    assert len(steps) == 7
    assert left(home) == []


@pytest.mark.container
@pytest.mark.timeout(MACHINE_S)
def test_it_fails_with_a_gate_that_skips_its_flush(tmp_path: Path, home: Path) -> None:
    tree = tmp_path / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=paths.ROOT,
        capture_output=True,
        check=True,
    ).stdout
    tree.mkdir()
    subprocess.run(
        [
            "cp",
            "--parents",
            *(name for name in listed.decode().split("\0") if (paths.ROOT / name).is_file()),
            tree,
        ],
        cwd=paths.ROOT,
        check=True,
    )
    store = (tree / GATE_STORE).read_text(encoding="utf-8")
    seeded = store.replace('("synchronous", "FULL", 2)', '("synchronous", "OFF", 0)')
    assert seeded != store
    (tree / GATE_STORE).write_text(seeded, encoding="utf-8")
    # A write that nobody asked to be flushed may reach the device all the same: the kernel begins to write
    # within five seconds. Tried: the bug shows in three runs of four on a busy host, in most on an idle one.
    for _ in range(TRIES):
        done = subprocess.run(
            [tree / "spine", "demo", "--container", "--json"], capture_output=True, check=False, timeout=900
        )
        document = json.loads(done.stdout)
        if done.returncode:
            break
    assert done.returncode == 1, f"not caught in {TRIES} demos"
    assert document["error"]["code"] == "not-held"
    assert [step["title"] for step in document["steps"]] == ["Boot", "Put", "Power cut"]
    *before, last = document["steps"][-1]["commands"]
    assert all(command["held"] for command in before)
    assert last["command"] == "./spine exec linda -- umbilical get greeting"
    assert not last["held"]
    assert not [path for path in left(home) if "/sys/block" in path]


@pytest.mark.container
def test_one_that_is_ended_stops_what_it_booted(home: Path) -> None:
    with subprocess.Popen(
        [paths.ROOT / "spine", "demo", "--container"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as ended:
        assert ended.stdout is not None
        for line in ended.stdout:
            if line.startswith(b"Power cut"):
                ended.terminate()
                break
        ended.stdout.read()
        assert ended.wait(120) == 128 + signal.SIGTERM
    where = home / paths.NAME / "demo" / paths.NAME / "container"
    assert where.is_dir()
    assert state.read(where) is None
    assert not [path for path in left(home) if "/sys/block" in path]
