"""Help for one method, and completion: what is offered, and that a real bash offers it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine import cli, methods, paths
from spine.errors import Exit, SpineError
from spine.ground import port
from spine.verbs import completion
from tests.host import tree as trees

PATIENCE_S = 60.0


def table() -> dict[str, methods.Method]:
    """What the cache says of the tree's schemas."""
    port.schemas_file()
    found = methods.known()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ([], ["gate.delete", "gate.get", "gate.list", "gate.put", "gate.usage"]),
        (["gate.pu"], ["gate.put"]),
        (["no.such"], []),
        (["--json", "gate.pu"], ["gate.put"]),
        (["gate.put", ""], ["persona=", "key=", "value="]),
        (["gate.put", "pe"], ["persona="]),
        # One word, as zsh has it; three, as bash has it.
        (["gate.put", "persona=linda", ""], ["key=", "value="]),
        (["gate.put", "persona", "=", "linda", ""], ["key=", "value="]),
        (["gate.put", "persona=li"], []),
        (["gate.put", "persona", "="], []),
        (["gate.put", "persona", "=", "li"], []),
        (["no.such", ""], []),
        (["operator.status", ""], []),
        # Not for the person at the host.
        (["freezer.requestFocu"], []),
    ],
)
def test_what_is_offered(words: list[str], offered: list[str]) -> None:
    found = methods.completions(words, table())
    if words == []:
        assert set(offered) <= set(found)
        assert "freezer.hushed" not in found
    else:
        assert found == offered


@given(st.lists(st.sampled_from(["gate.put", "=", "persona", "persona=", "", "--json", "a=b=c"]) | st.text()))
def test_any_words_are_answered(words: list[str]) -> None:
    offered = methods.completions(words, table())
    assert all(word.startswith(words[-1] if words else "") for word in offered)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a.b": {}}', '{"a.b": []}', "\xff", '{"a.b": {"callers": 1}}']
)
def test_a_damaged_cache_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / methods.FILE).write_text(text, encoding="latin-1")
    assert methods.known(tmp_path) is None
    assert methods.known(tmp_path / "gone") is None


def test_the_cache_is_what_the_schemas_say() -> None:
    schemas = port.schemas()
    assert table() == json.loads(json.dumps(methods.document(schemas)))
    assert table().keys() == {f"{i.name}.{m}" for i in schemas.interfaces.values() for m in i.methods}


def test_help_of_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    table()
    with pytest.raises(SystemExit) as ended:
        cli.main(["call", "gate.put", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("./spine call gate.put persona=Text key=Data value=Data\n")
    for words in ("Stores the value", "hex:00ff", "never shown by the tap", "seq  UInt64", "within 10 s"):
        assert words in shown
    assert cli.main(["call", "gate.putt", "--help"]) == Exit.NO_SUCH_THING
    assert "did you mean 'gate.put'?" in capsys.readouterr().err


def test_a_method_of_others_says_whose_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    table()
    with pytest.raises(SystemExit):
        cli.main(["call", "freezer.hushed", "--help"])
    assert "not for you: only umbilical may call it" in capsys.readouterr().out


def test_without_values_the_method_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["call", "gate.put"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert "  | takes\n" in said
    assert "  fix: ./spine call gate.put persona=Text key=Data value=Data\n" in said


def test_help_is_there_before_anything_is_set_up(tmp_path: Path) -> None:
    """By the system's Python, without packages, without schemas: the verb's help, and what is missing."""
    tree = trees.make(tmp_path)
    shown = tree.spine("call", "gate.put", "--help")
    assert shown.returncode == 0
    assert "usage: ./spine call" in shown.stdout
    assert "./spine call looks them up" in shown.stderr
    assert tree.spine("completion", "--words", "gate.").stdout == ""
    assert tree.venvs() == []


def test_completion_needs_no_packages_of_ours() -> None:
    """It runs at each press of a key: neither Cap'n Proto nor ZeroMQ nor trio, and by the system's Python."""
    table()
    code = (
        "import sys; from spine import cli; cli.main(['completion', '--words', 'gate.put', 'pers']);"
        "sys.exit(sorted({'capnp', 'zmq', 'trio'} & sys.modules.keys()) != [])"
    )
    env = {**os.environ, "PYTHONPATH": f"{paths.ROOT}:{paths.ROOT}/spine-image"}
    done = subprocess.run(["/usr/bin/python3", "-P", "-c", code], env=env, capture_output=True, check=True)
    assert done.stdout == b"persona=\n"


def test_the_shell_must_be_named() -> None:
    with pytest.raises(SpineError) as refused:
        completion.run(arguments(shell=None))
    assert refused.value.exit_code == Exit.USAGE


def arguments(**given: object) -> argparse.Namespace:
    """The parsed arguments of the verb."""
    return argparse.Namespace(**{"words": None, "json": False, "shell": "bash", **given})


def offered_by_bash(*words: str) -> list[str]:
    """What the script, loaded into a real bash, offers for these words, the last of which is being typed."""
    table()
    program = str(paths.ROOT / "spine")
    script = (
        f'eval "$({program} completion bash)"\n'
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _spine\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", program, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["sta"], ["status"]),
        (["comp"], ["completion"]),
        (["call", "gate.pu"], ["gate.put"]),
        (["call", "gate.put", "k"], ["key="]),
        (["call", "gate.put", "persona", "=", "linda", "key", "=", "k", ""], ["value="]),
        (["status", "--js"], ["--json"]),
        (["tap", "--exp"], ["--export"]),
        (["call", "--time"], ["--timeout"]),
    ],
)
def test_a_real_bash_offers_it(words: list[str], offered: list[str]) -> None:
    assert offered_by_bash(*words) == offered


def test_every_verb_and_option_is_offered() -> None:
    assert set(offered_by_bash("")) == {*cli.verbs(), "help"}
    for verb in cli.verbs():
        assert set(offered_by_bash(verb, "--")) == set(completion.options_of(verb))
        assert {"--json", "--help"} <= set(completion.options_of(verb))


def test_the_tabulator_key_completes(tmp_path: Path) -> None:
    """A bash on a terminal of its own, the script loaded as its documentation says, and a tabulator typed."""
    table()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(paths.ROOT)
        os.execvpe(
            "bash",
            ["bash", "--norc", "--noprofile", "-i"],
            {**os.environ, "TERM": "dumb", "PS1": "$ ", "HISTFILE": str(tmp_path / "history")},
        )
    try:
        os.write(terminal, b'eval "$(./spine completion bash)"; echo load""ed\n')
        seen = until(terminal, b"loaded")
        os.write(terminal, b"./spine call gate.pu\t")
        seen = until(terminal, b"gate.put ")
        os.write(terminal, b"pers\t")
        seen = until(terminal, b"persona=")
        assert b"persona= " not in seen
    finally:
        os.close(terminal)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        os.waitpid(pid, 0)


def until(terminal: int, wanted: bytes) -> bytes:
    """What the terminal shows, up to and with these bytes."""
    seen = b""
    end = time.monotonic() + PATIENCE_S
    while wanted not in seen:
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 4096)
    return seen


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_a_real_zsh_takes_the_script() -> None:
    script = completion.text("zsh")
    loaded = f"autoload -U compinit && compinit -u -D\n{script}\nwhich _spine"
    done = subprocess.run(["zsh", "-f", "-c", loaded], capture_output=True, text=True, check=True)
    assert "completion --words" in done.stdout
