"""The launcher, run as a person runs it, in a copy of the tree that needs no Python packages."""

import json
from pathlib import Path

import pytest

from spine import cli
from tests.host import tree as trees
from tests.host.tree import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return trees.make(tmp_path)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree whose Python packages are set up: that takes seconds, so it is done once."""
    made = trees.make(tmp_path_factory.mktemp("first"))
    done = made.spine("probe")
    assert done.returncode == 0, done.stderr
    assert "setting up the Python packages" in done.stderr
    return made


@pytest.fixture
def ready(first: Tree) -> Tree:
    """The same tree for one test."""
    return trees.remake(first)


def test_alone_it_says_the_two_commands_and_does_nothing(tree: Tree) -> None:
    done = tree.spine()
    assert done.returncode == 0
    assert "./spine boot" in done.stdout
    assert "./spine status" in done.stdout
    assert not tree.cache.exists()


def test_help_sets_nothing_up_and_needs_nothing(tree: Tree) -> None:
    verbs = [name for name in cli.verbs() if name != "probe"]
    for words in [("--help",), ("help",), ("help", "boot"), *((verb, "--help") for verb in verbs)]:
        done = tree.spine(*words)
        assert done.returncode == 0, done.stderr
        assert "usage: ./spine" in done.stdout
    assert not tree.cache.exists()


def test_an_unknown_verb_sets_nothing_up(tree: Tree) -> None:
    done = tree.spine("bot")
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == ["  why: did you mean 'boot'?", "  fix: ./spine boot --help"]
    done = tree.spine("bot", "--json")
    assert json.loads(done.stdout)["error"]["code"] == "usage"
    assert done.stderr == ""
    assert not tree.cache.exists()


@pytest.mark.parametrize("verb", ["../probe", "a b", "-x", "$(touch x)"])
def test_a_verb_is_a_name(tree: Tree, verb: str) -> None:
    assert tree.spine(verb).returncode == 2


def test_a_second_start_is_silent_and_uses_what_is_there(ready: Tree) -> None:
    before = ready.venvs()
    done = ready.spine("probe", "x")
    assert done.returncode == 0
    assert done.stderr == ""
    assert Path(done.stdout.splitlines()[0]).parent == ready.cache
    assert ready.venvs() == before


def test_arguments_pass_as_they_are(ready: Tree) -> None:
    words = ["a b", "*", "", "$HOME", "\\", "'\"", "line\nline"]
    assert ready.spine("probe", "--", *words).stdout.split("\n", 1)[1] == "|".join(words) + "\n"


def test_it_starts_by_link_and_from_anywhere(ready: Tree, tmp_path: Path) -> None:
    link = tmp_path / "other name"
    link.symlink_to(ready.root / "spine")
    assert ready.spine("probe", program=link, cwd=Path("/")).returncode == 0
    # A module lying where the person stands is not ours.
    (tmp_path / "json.py").write_text("raise SystemExit(9)", encoding="utf-8")
    assert ready.spine("probe", cwd=tmp_path).returncode == 0


def test_the_environment_of_python_is_ours(ready: Tree, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)", encoding="utf-8")
    env = ready.environment(PYTHONPATH=str(tmp_path), CDPATH=str(tmp_path))
    assert ready.spine("probe", env=env).returncode == 0


def test_a_home_that_is_not_set_is_looked_up(ready: Tree) -> None:
    env = ready.environment(XDG_CACHE_HOME=str(ready.home / ".cache"))
    del env["HOME"]
    assert ready.spine("probe", env=env).returncode == 0


def test_a_relative_cache_is_ignored(ready: Tree) -> None:
    done = ready.spine("probe", env=ready.environment(XDG_CACHE_HOME="somewhere"))
    assert done.returncode == 0
    assert done.stderr == ""
    assert not (ready.home / "somewhere").exists()


@pytest.mark.proves("INV-HOST-1")
def test_half_made_packages_are_never_used_and_go(ready: Tree) -> None:
    # What a setup that was killed leaves: a directory that looks complete and that no link names.
    [linked, name] = ready.venvs()
    (ready.cache / linked.split(" -> ")[0]).unlink()
    half = ready.cache / name
    (half / "bin" / "python").unlink()
    (half / "bin" / "python").write_text("#!/bin/sh\nexit 99\n", encoding="utf-8")
    (half / "bin" / "python").chmod(0o755)
    done = ready.spine("probe")
    assert done.returncode == 0, done.stderr
    assert "setting up" in done.stderr
    assert not half.exists()
    assert len(ready.venvs()) == 2


def test_packages_that_cannot_be_had_are_told_and_leave_nothing(ready: Tree) -> None:
    before = ready.venvs()
    ready.lock.write_text(f"--no-index\nno-such-package==1 --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    done = ready.spine("probe")
    assert done.returncode == 3
    assert [line.split(":")[0] for line in done.stderr.splitlines()[-3:]] == ["spine", "  why", "  fix"]
    assert "no-such-package" in done.stderr
    assert ready.venvs() == before, "a set for another lock is another set"


def test_two_at_once_make_one_set(tree: Tree) -> None:
    both = [tree.start("probe") for _ in range(2)]
    said = [child.communicate(timeout=120)[1] for child in both]
    assert [child.returncode for child in both] == [0, 0], said
    assert sum("setting up the Python packages" in text for text in said) == 1
    assert len(tree.venvs()) == 2


def apt(tree: Tree) -> Path:
    """Stand-ins for Debian's tools: an empty system, and an apt-get that installs what it is told."""
    there, asked = tree.home / "there", tree.home / "asked"
    there.write_text("", encoding="utf-8")
    asked.unlink(missing_ok=True)
    tree.fake("dpkg-query", f'while read -r name; do echo "$name installed"; done <"{there}"; exit 1')
    tree.fake(
        "apt-get",
        f'echo "$*" >>"{asked}"; [ "$1" = update ] && exit; [ -f "{tree.home}/broken" ] && '
        f'{{ echo "E: no such mirror" >&2; exit 100; }}; for word; do echo "$word"; done >>"{there}"',
    )
    tree.fake("id", "echo 0")
    return asked


def test_missing_packages_are_installed_once(ready: Tree) -> None:
    tree, asked = ready, apt(ready)
    done = tree.spine("probe")
    assert done.returncode == 0, done.stderr
    assert "installing Debian packages: python3 python3-venv" in done.stderr
    [line] = asked.read_text(encoding="utf-8").splitlines()
    assert line.startswith("install -y --no-install-recommends ")
    assert line.endswith(" python3 python3-venv")
    assert tree.spine("probe").stderr == ""
    assert len(asked.read_text(encoding="utf-8").splitlines()) == 1


def test_a_failed_install_fetches_the_lists_and_tries_once_more(ready: Tree) -> None:
    tree, asked = ready, apt(ready)
    (tree.home / "broken").touch()
    done = tree.spine("probe", "--json")
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "packages"
    assert "E: no such mirror" in error["why"]
    assert error["fix"] == "apt-get install --no-install-recommends python3 python3-venv"
    assert [line.split()[0] for line in asked.read_text(encoding="utf-8").splitlines()] == [
        "install",
        "update",
        "install",
    ]
    (tree.home / "broken").unlink()
    assert tree.spine("probe").returncode == 0


def test_without_root_and_terminal_nothing_is_asked(ready: Tree) -> None:
    tree, asked = ready, apt(ready)
    tree.fake("id", "echo 1000")
    tree.fake("sudo", "exit 99")
    done = tree.spine("probe")
    assert done.returncode == 3
    assert "fix: sudo apt-get install --no-install-recommends python3 python3-venv" in done.stderr
    assert not asked.exists()
    tree.fake("sudo", 'exec "$@"')
    assert tree.spine("probe", env=tree.environment(SPINE_YES="1")).returncode == 0
    assert asked.exists()
