"""Who runs beside whom: every test has a group that fits it, and what the tests say of it is what is done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from spine.errors import SpineError
from spine.verbs import test as verb
from tests.side_by_side import ALONE, BUILDERS, BUILDS, FIRST, OWN, Test, group, marked, rank, scope

ROOT = Path(__file__).resolve().parent.parent
HERE = "tests/integration/test_x.py"
# What workers are given, on a tree of three tests.
SMALL = """
import os
import pytest
from pathlib import Path

@pytest.fixture(scope="session")
def machine():
    with open("booted", "a") as file:
        file.write("once ")

@pytest.fixture
def live(request):
    return request.getfixturevalue(request.param)

@pytest.mark.parametrize("live", ["machine"], indirect=True)
@pytest.mark.parametrize("number", range(4))
def test_shared(live, number):
    Path("shared").mkdir(exist_ok=True)
    Path("shared", str(os.getpid())).touch()

@pytest.mark.machine
@pytest.mark.parametrize("number", range(4))
def test_alone(number, request):
    mark = request.node.get_closest_marker("timeout")
    assert (mark.args, mark.kwargs) == ((600,), {"func_only": True})
"""


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (Test(HERE, "test_a", True, {"machine"}, ()), "machine"),
        (Test(HERE, "test_a[machine]", True, (), {"machine"}), "machine"),
        (Test(HERE, "test_a[container]", False, {"rooms"}, {"container"}), "container"),
        (Test(HERE, "test_a", True, (), ()), ALONE),
        (Test(HERE, "test_a", True, {"images"}, ()), None),
        (Test(HERE, "test_a", False, (), {"other"}), None),
        (Test(BUILDERS[0], "test_a", True, {"image"}, ()), BUILDS),
        (Test(BUILDERS[0], "test_a", False, (), ()), BUILDS),
    ],
)
def test_each_has_its_group(test: Test, expected: str | None) -> None:
    assert group(test) == expected


@pytest.mark.parametrize("name", ["test_a", "test_a[x]", "test_a[x@y]", "test_a[[]@machine]"])
def test_a_group_can_be_read_off_the_name(name: str) -> None:
    assert scope(f"{HERE}::{name}") == HERE
    assert scope(f"{HERE}::{marked(name, 'machine')}") == "machine"
    alone = f"{HERE}::{marked(name, ALONE)}"
    assert scope(alone) == alone


def test_builds_begin_then_what_is_long_and_the_rest_comes_last() -> None:
    tests = [
        Test("tests/test_tidy.py", "test_a", False, (), ()),
        Test(HERE, "test_a", True, {"machine"}, ()),
        Test(HERE, "test_a", False, {"container"}, ()),
        Test("tests/integration/test_update.py", "test_a", True, (), ()),
        Test("tests/integration/test_pc.py", "test_a", True, {"images"}, ()),
        Test("tests/integration/test_update.py", "test_b", False, {"releases"}, ()),
        Test(BUILDERS[-1], "test_a", False, (), ()),
    ]
    order = [(test.file, group(test)) for test in sorted(tests, key=rank)]
    assert order == [
        (BUILDERS[-1], BUILDS),
        ("tests/integration/test_update.py", None),
        ("tests/integration/test_pc.py", None),
        (HERE, "container"),
        (HERE, "machine"),
        ("tests/integration/test_update.py", ALONE),
        ("tests/test_tidy.py", None),
    ]
    assert rank(tests[0]) == len(FIRST)


def test_every_file_that_has_a_place_is_there() -> None:
    named = [*BUILDERS, *(start.removeprefix(OWN) for start in FIRST if "/" in start)]
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(("more", "workers"), [((), 2), (("-n", "0"), 0)])
def test_workers_keep_to_it(tmp_path: Path, more: tuple[str, ...], workers: int) -> None:
    """The hooks of this tree, in a small one: with workers, and one by one."""
    for file in (Path("tests/conftest.py"), Path("tests/side_by_side.py")):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    (tmp_path / "tests/test_small.py").write_text(SMALL)
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    env = {"PYTHONPATH": str(tmp_path), "SPINE_GROUNDS": "machine", "PATH": "/usr/bin:/bin"}
    command = verb.command("all", more, processors=1)
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *_, last = done.stdout.splitlines()
    assert "8 passed" in last
    assert ("2 workers [8 items]" in done.stdout) is bool(workers)
    assert (tmp_path / "booted").read_text() == "once "
    assert len(list((tmp_path / "shared").iterdir())) == 1


@pytest.mark.parametrize(("processors", "expected"), [(1, 2), (2, 3), (6, 7), (64, 8)])
def test_there_is_a_worker_more_than_processors(processors: int, expected: int) -> None:
    assert verb.workers(processors) == expected


def test_what_a_person_says_comes_last() -> None:
    said = verb.command("machine", ["-n", "0", "-x", "tests/host"], processors=4)
    assert said[:5] == [sys.executable, "-m", "pytest", "-n", "5"]
    assert said[-6:] == ["-m", "machine", "-n", "0", "-x", "tests/host"]


def test_the_first_word_for_pytest_is_no_ground() -> None:
    assert verb.meant("pure", ["-x"]) == ("pure", ["-x"])
    assert verb.meant("-n", ["0"]) == ("all", ["-n", "0"])
    for place in ("tests/test_tidy.py", "tests/test_tidy.py::test_image_laws"):
        assert verb.meant(place, ["-x"]) == ("all", [place, "-x"])
    with pytest.raises(SpineError, match="no ground 'contaner'"):
        verb.meant("contaner", [])
