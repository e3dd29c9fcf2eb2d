"""The frame around the verbs: options, errors, exit codes, what a person and what a script sees."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from spine import cli
from spine.errors import Exit, SpineError
from tests.host import tree as trees


@pytest.fixture(autouse=True)
def _hook(monkeypatch: pytest.MonkeyPatch) -> None:
    # main() sets the hook of the process it believes to own.
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.mark.parametrize("name", cli.verbs())
def test_each_verb_keeps_the_convention(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb = importlib.import_module(f"spine.verbs.{name}")
    assert 0 < len(verb.HELP) <= 80
    assert cli.verbs()[name] == verb.HELP
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: ./spine {name}" in shown
    assert "--json" in shown


@pytest.mark.parametrize("name", cli.verbs())
def test_a_wrong_option_is_three_lines_or_an_object(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--no-such-option"]) == Exit.USAGE
    seen = capsys.readouterr()
    assert [line[:6] for line in seen.err.splitlines()] == ["spine:", "  why:", "  fix:"]
    assert seen.out == ""
    assert cli.main([name, "--no-such-option", "--json"]) == Exit.USAGE
    seen = capsys.readouterr()
    assert json.loads(seen.out)["error"].keys() == {"code", "what", "why", "fix"}
    assert seen.err == ""


def test_what_only_a_machine_has_is_refused_for_a_container(capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--log-writes"], ["--no-restart"], ["--profile", "pc"]):
        assert cli.main(["boot", "--container", *option]) == Exit.USAGE
        assert "are for the machine" in capsys.readouterr().err


def test_the_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == Exit.OK
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.verbs())


def test_an_error_stays_three_lines_whatever_it_holds() -> None:
    error = SpineError("what\nwhat", "why\r\n  why", "fix\x0bfix", shown=["a line of a log"])
    assert error.lines().splitlines() == [
        "  | a line of a log",
        "spine: what what",
        "  why: why why",
        "  fix: fix fix",
    ]
    assert error.document()["error"]["shown"] == ["a line of a log"]


def run(directory: Path, body: str, *words: str, debug: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a verb of this body in a process of its own, as `python -m spine` does."""
    package = directory / "a tree" / "spine-image" / "spine"
    if not package.exists():
        trees.make(directory)
    text = f'HELP = "x"\ndef add_arguments(parser): pass\ndef run(args):\n    {body}\n'
    (package / "verbs" / "probe.py").write_text(text, encoding="utf-8")
    env = {"PYTHONPATH": str(package.parent), "HOME": str(directory), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-P", "-m", "spine", "probe", *words],
        env={**env, "SPINE_DEBUG": "1"} if debug else env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_defect_shows_no_traceback_but_keeps_it(tmp_path: Path) -> None:
    done = run(tmp_path, "raise KeyError('oops')")
    assert done.returncode == Exit.FAILED
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("spine: a defect in spine: KeyError: 'oops'\n")
    assert "KeyError" in (tmp_path / ".local/state/alpine-spine/last-traceback.txt").read_text(
        encoding="utf-8"
    )


def test_a_defect_is_json_for_a_script(tmp_path: Path) -> None:
    done = run(tmp_path, "raise KeyError('oops')", "--json")
    assert done.returncode == Exit.FAILED
    assert json.loads(done.stdout)["error"]["what"].endswith("KeyError: 'oops'")
    assert done.stderr == ""


@pytest.mark.parametrize("body", ["raise KeyError('oops')", "open('/no/such/file')"])
def test_a_traceback_is_there_for_who_asks(tmp_path: Path, body: str) -> None:
    assert "Traceback" in run(tmp_path, body, debug=True).stderr


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    done = run(tmp_path, "import os; os.write(os.open('/dev/full', os.O_WRONLY), b'x')")
    assert done.returncode == Exit.FAILED
    assert done.stderr.startswith("spine: the disk is full\n")


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    body = "import sys\n    for _ in range(100000): print('x' * 100)"
    command = run(tmp_path, body).args
    env = {"PYTHONPATH": str(tmp_path / "a tree" / "spine-image"), "HOME": str(tmp_path)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(10)
        child.stdout.close()
        said = child.stderr.read()
        assert child.wait(30) == cli.EXIT_BROKEN_PIPE
    assert said == b""
