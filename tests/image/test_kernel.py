"""Every line of kernel.config is checked against what the kernel's own configuration became."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine import paths
from spine.errors import SpineError
from spine.image import kernel

FRAGMENT = paths.ROOT / "spine-image/kernel.config"
OPTIONS = st.dictionaries(
    st.from_regex(r"CONFIG_[A-Z0-9_]{1,8}", fullmatch=True),
    st.sampled_from(["y", "n", "-1", "64", '"x"']),
    max_size=8,
)


def text(options: dict[str, str]) -> str:
    return "".join(f"# why\n{option}={value}\n" for option, value in options.items())


@pytest.mark.proves("INV-IMAGE-2")
@given(OPTIONS, st.data())
def test_a_line_that_did_not_take_is_named(options: dict[str, str], draw: st.DataObject) -> None:
    fragment = text(options)
    assert kernel.wanted(fragment) == options
    config = "".join(
        f"# {option} is not set\n" if value == "n" else f"{option}={value}\n"
        for option, value in options.items()
    )
    assert kernel.not_taken(fragment, config) == []
    if options:
        lost = draw.draw(st.sampled_from(sorted(options)))
        other = "y" if options[lost] == "n" else "n"
        changed = "".join(
            f"{option}={value}\n" for option, value in {**options, lost: other}.items() if value != "n"
        )
        assert kernel.not_taken(fragment, changed) == [f"{lost}={options[lost]} (is {other})"]


@pytest.mark.parametrize(
    "wrong", ["CONFIG_X", "CONFIG_X=m", "X=y", "CONFIG_X=y\nCONFIG_X=n", "CONFIG_X=y # why"]
)
def test_a_wrong_line_is_refused_with_its_number(wrong: str) -> None:
    with pytest.raises(SpineError, match=r"kernel.config line [12]"):
        kernel.wanted(wrong)


@given(OPTIONS, OPTIONS)
def test_an_overlay_has_the_last_word(base: dict[str, str], over: dict[str, str]) -> None:
    texts = {kernel.FRAGMENT: text(base), kernel.OVERLAYS["pc"]: text(over)}
    assert kernel.wanted(kernel.merged("pc", texts.__getitem__)) == base | over
    assert kernel.wanted(kernel.merged("qemu", texts.__getitem__)) == base


def test_structures_are_shuffled_by_a_seed_that_follows_from_the_inputs(tmp_path: Path) -> None:
    script = tmp_path / kernel.SEED_SCRIPT
    script.parent.mkdir()
    for _ in range(2):
        script.write_text("#!/bin/sh\nSEED=$(od -A n -t x8 -N 32 /dev/urandom)\necho $SEED\n")
        kernel._fix_seed(tmp_path, "one key")
        assert re.fullmatch(r"#!/bin/sh\nSEED=[0-9a-f]{64}\necho \$SEED\n", script.read_text())
    first = script.read_text()
    kernel._fix_seed(tmp_path, "another key")
    assert script.read_text() != first
    script.write_text("#!/bin/sh\nod /dev/urandom\n")
    with pytest.raises(SpineError, match="seed cannot be fixed"):
        kernel._fix_seed(tmp_path, "one key")


def test_comments_do_not_make_another_kernel() -> None:
    fragment = FRAGMENT.read_text()
    bare = "\n".join(line for line in fragment.splitlines() if not line.startswith("#"))
    assert kernel.key("0" * 64, fragment, 1) == kernel.key("0" * 64, bare, 1)
    assert kernel.key("0" * 64, fragment, 1) != kernel.key("1" * 64, fragment, 1)
    assert kernel.key("0" * 64, fragment, 1) != kernel.key("0" * 64, fragment + "CONFIG_ZZZ=n\n", 1)


@pytest.mark.parametrize("file", [kernel.FRAGMENT, *filter(None, kernel.OVERLAYS.values())])
def test_every_option_stands_under_a_reason(file: str) -> None:
    """Each group of lines begins with a comment, so that no option is there without one."""
    group_has_reason = False
    for line in (paths.ROOT / file).read_text().splitlines():
        if line.startswith("#"):
            group_has_reason = True
        elif not line.strip():
            group_has_reason = False
        else:
            assert group_has_reason, line
