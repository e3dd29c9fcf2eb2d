"""What development adds to the image, said exactly; and a comparison that leaves nothing out."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine.image import build, difference
from spine.image.difference import File, Image
from spine.progress import Progress

ONE = Image({"/a": File(0o644, 3, "x")}, {"spine": "{}"}, ("quiet",), frozenset({"gate.umbilical"}), "k")
PACKAGES = "/usr/lib/python3/dist-packages/organs"
# Everything that development may add; a new path is a decision, and then it is named here.
ADDED = (
    f"{PACKAGES}/operator/",
    *(f"{PACKAGES}/{name}.py" for name in ("bay0/probes", "kernel/inspection")),
    *(f"{PACKAGES}/{name}." for name in ("bay0/__pycache__/probes", "kernel/__pycache__/inspection")),
)


@pytest.mark.machine
@pytest.mark.timeout(3600)
def test_development_adds_the_operator_the_probes_a_console_and_nothing_else(tmp_path: Path) -> None:
    looks = []
    for name in ("development", "production"):
        out = tmp_path / name / "out"
        build.build(out, production=name == "production", progress=Progress())
        looks.append(difference.look(out, out.parent))
    found = difference.compare(*looks)
    files = cast(dict[str, list[dict[str, object]]], found["files"])
    paths = [str(row["path"]) for row in files["added"]]
    assert [path for path in paths if not path.startswith(ADDED)] == []
    for wanted in ("operator/organ.py", "bay0/probes.py", "kernel/inspection.py"):
        assert f"{PACKAGES}/{wanted}" in paths
    assert files["removed"] == []
    assert [row["path"] for row in files["changed"]] == [
        f"/usr/lib/spine/{name}"
        for name in ("compiled/zygote", "manifest.toml", "release.json", "switchboard.json")
    ]
    assert found["stanzas"] == {"added": ["organs.operator"], "removed": [], "changed": []}
    assert found["commandLine"] == {"added": ["console=tty0", "console=ttyS0"], "removed": []}
    sockets = cast(dict[str, list[str]], found["sockets"])
    assert sockets["removed"] == []
    assert sockets["added"]
    assert all(name.split(" ")[0].endswith(".operator") for name in sockets["added"])
    assert found["kernel"] == "same"
    shown = difference.page(found, "development", "production")
    assert f"  + {PACKAGES}/operator/organ.py   " in shown
    assert "  + organs.operator\n" in shown


def test_images_that_are_the_same_have_no_difference() -> None:
    found = difference.compare(ONE, ONE)
    assert not any(any(part.values()) for part in found.values() if isinstance(part, dict))
    assert difference.page(found, "one", "other").count("the same") == 5


@pytest.mark.parametrize(
    ("other", "part", "how"),
    [
        (replace(ONE, files={}), "files", "added"),
        (replace(ONE, files={**ONE.files, "/b": File(0o644, 1, "y")}), "files", "removed"),
        (replace(ONE, files={"/a": File(0o755, 3, "x")}), "files", "changed"),
        (replace(ONE, files={"/a": File(0o644, 3, "y")}), "files", "changed"),
        (replace(ONE, stanzas={}), "stanzas", "added"),
        (replace(ONE, stanzas={"spine": "1"}), "stanzas", "changed"),
        (replace(ONE, words=()), "commandLine", "added"),
        (replace(ONE, words=("quiet", "single")), "commandLine", "removed"),
        (replace(ONE, sockets=frozenset()), "sockets", "added"),
    ],
)
def test_each_difference_is_named(other: Image, part: str, how: str) -> None:
    found = cast(dict[str, dict[str, list[object]]], difference.compare(ONE, other))
    assert len(found[part][how]) == 1
    assert sum(len(rows) for one in found.values() if isinstance(one, dict) for rows in one.values()) == 1
    assert difference.compare(ONE, replace(ONE, kernel="other"))["kernel"] == "different"


def test_the_roots_own_numbers_are_no_difference() -> None:
    lines = [
        f'quiet panic=-1 dm-mod.create="spine,,,ro,0 {8 * blocks} verity 1 {blocks} sha256 {sum_ * 32} x"'
        for blocks, sum_ in ((2700, "ab"), (31, "cd"))
    ]
    assert difference.words(lines[0]) == difference.words(lines[1])
    assert difference.words(lines[0])[:2] == ["quiet", "panic=-1"]


@given(st.text(max_size=200))
def test_any_line_has_words(line: str) -> None:
    assert all(difference.words(line))
