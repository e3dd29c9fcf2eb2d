"""The recipe of a persona: the real ones are read, and each rule has a file that breaks only it.

The first line of a bad file is `# refused: line N: KEY: ` and what the refusal must say.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.persona import OnFocusLoss
from spine.errors import Exit, SpineError
from spine.persona import build, recipe
from spine.persona.recipe import Recipe, RecipeRefused

BAD = sorted((Path(__file__).parent / "bad").glob("*.toml"))
EXAMPLE = (recipe.directory("linda") / recipe.FILE).read_text()


@pytest.mark.parametrize("path", BAD, ids=[path.stem for path in BAD])
def test_each_rule_refuses(path: Path) -> None:
    text = path.read_text()
    expected = re.match(r"# refused: line (\d+): (.*)\n", text)
    assert expected
    with pytest.raises(RecipeRefused) as refused:
        recipe.decode("linda", text, "the file")
    assert refused.value.line == int(expected[1])
    assert f"the file:{expected[1]}: {expected[2]}" in str(refused.value)
    assert refused.value.exit_code == Exit.REFUSED


def test_the_personas_of_the_tree() -> None:
    assert {"linda", "courier"} <= set(recipe.names())
    linda, courier = recipe.load("linda"), recipe.load("courier")
    assert (linda.network.use, linda.network.inbound) == (False, ())
    assert (courier.network.use, courier.network.inbound) == (True, (8080,))
    assert linda.on_focus_loss is OnFocusLoss.FREEZE
    for each in map(recipe.load, recipe.names()):
        assert "umbilical" in each.programs


def test_the_example_explains_every_key() -> None:
    """Each key of the commented example stands below a comment of its own, and it has all keys there are."""
    lines = EXAMPLE.splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"[a-z-]+ = ", line)]
    explained = {lines[number].split(" = ")[0] for number in keys if lines[number - 1].startswith("#")}
    top = {name.replace("_", "-") for name in Recipe.__dataclass_fields__} - {"name"}
    in_tables = {"files", "links", "limits", "network"}
    assert explained >= top - in_tables
    assert explained >= {"pids", "writable", "use", "inbound"}
    assert all(f"[{table}]" in lines for table in in_tables)


@pytest.mark.parametrize("name", ["", "Linda", "1linda", "../linda", "linda/..", "x" * 16, "a-b"])
def test_a_name_is_a_name(name: str) -> None:
    with pytest.raises(SpineError) as refused:
        recipe.load(name)
    assert refused.value.exit_code == Exit.USAGE
    with pytest.raises(RecipeRefused):
        recipe.decode(name, EXAMPLE)


def test_a_persona_that_is_not_there() -> None:
    with pytest.raises(SpineError) as refused:
        recipe.load("nobody")
    assert refused.value.exit_code == Exit.NO_SUCH_THING


@given(st.text(max_size=200))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(RecipeRefused):
        recipe.decode("linda", text)


LINES = EXAMPLE.splitlines()


@given(st.integers(0, len(LINES) - 1), st.integers(0, len(LINES) - 1))
def test_shuffled_lines_never_end_in_another_error(one: int, other: int) -> None:
    lines = list(LINES)
    lines[one], lines[other] = lines[other], lines[one]
    with contextlib.suppress(RecipeRefused):
        recipe.decode("linda", "\n".join(lines))


@given(st.text(alphabet="/.ab\\\n\0é", max_size=12))
def test_a_path_that_passes_is_one_place(path: str) -> None:
    if recipe.path_problem(path) is None:
        assert path.startswith("/")
        assert Path(path).as_posix() == path
        assert not {".", ".."} & set(path.split("/"))


@given(
    st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4),
    st.text(alphabet="/.a", min_size=1, max_size=12),
)
def test_a_link_that_passes_stays_inside(parts: list[str], target: str) -> None:
    path = "/" + "/".join(parts)
    if recipe.link_problem(path, target) is None:
        at = [] if target.startswith("/") else parts[:-1]
        for part in target.split("/"):
            if part == "..":
                assert at
                at = at[:-1]
            elif part not in ("", "."):
                at = [*at, part]


LOCKED = '[[package]]\nname = "busybox-static"\nversion = "1:1.35.0-4+b1"\nsha256 = "' + "0" * 64 + '"\n'


def test_a_lock_is_read_back() -> None:
    wanted = recipe.load("linda")
    packages = build.decode_lock(wanted, LOCKED)
    assert build.decode_lock(wanted, build.encode_lock("linda", packages)) == packages


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1\n" + LOCKED,
        "= 1",
        "package = 1",
        "package = [1]",
        LOCKED * 2,
        LOCKED.replace("busybox-static", "bash"),
        LOCKED + LOCKED.replace("busybox-static", "bash"),
        LOCKED.replace("0" * 64, "0" * 63),
        LOCKED.replace("1:1.35.0-4+b1", "1 -o x"),
        LOCKED.replace("version", "release"),
        LOCKED + 'use = "root"\n',
    ],
)
def test_a_lock_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(SpineError) as refused:
        build.decode_lock(recipe.load("linda"), text)
    assert refused.value.exit_code == Exit.REFUSED
    assert refused.value.fix == "./spine persona build linda --relock"
