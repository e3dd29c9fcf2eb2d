"""The kernel against what is recommended: every row judged, every deviation explained and shown."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine import paths
from spine.image import hardening, kernel, parameters
from spine.image.build import build
from spine.image.hardening import Facts, HardeningError, Row
from spine.progress import Progress

# The best figure that we know of in public for x86_64, of the same 259 recommendations for options.
BEST_PUBLIC = 197
CONFIG = "# Linux/x86 6.12.117 Kernel Configuration\n"
NOTHING: dict[str, dict[str, str]] = {kind: {} for kind in hardening.KINDS}


def table() -> dict[str, Any]:
    return tomllib.loads((paths.ROOT / hardening.TABLE).read_text())


@pytest.fixture(scope="module")
def config() -> str:
    """The configuration of the kernel that is built from this tree."""
    build(paths.out(), progress=Progress())
    return (paths.out() / "kernel.config").read_text()


@pytest.mark.proves("INV-IMAGE-7")
def test_the_document_is_what_the_built_kernel_says(config: str) -> None:
    text = (paths.ROOT / hardening.TABLE).read_text()
    overlay = (paths.ROOT / "spine-image/kernel.pc.config").read_text()
    assert (paths.ROOT / hardening.DOCUMENT).read_text() == hardening.document(text, config, overlay)


@pytest.mark.proves("INV-IMAGE-7")
def test_a_setting_that_is_lost_or_explained_in_vain_is_named(config: str) -> None:
    loaded = table()
    built = hardening.facts(config, parameters.words())
    found = hardening.verdicts(loaded, loaded["why"], built)
    assert sum(each.followed for each in found if each.row.kind == "kconfig") > BEST_PUBLIC
    lost = Facts({**built.options, "VMAP_STACK": "n"}, built.words, built.sysctls, built.version)
    with pytest.raises(HardeningError, match="without a reason: VMAP_STACK"):
        hardening.verdicts(loaded, loaded["why"], lost)
    vain = {**loaded["why"], "kconfig": {**loaded["why"]["kconfig"], "VMAP_STACK": "because"}}
    with pytest.raises(HardeningError, match="nothing needs: VMAP_STACK"):
        hardening.verdicts(loaded, vain, built)
    with pytest.raises(HardeningError, match="reasons there are for"):
        hardening.document((paths.ROOT / hardening.TABLE).read_text(), config, "# why\nCONFIG_VMAP_STACK=n\n")


def row(*fields: str) -> Row:
    return Row(*fields)


def judged(which: Row, config: str = "", *words: str) -> bool:
    return hardening.judge(which, hardening.facts(CONFIG + config, words)).followed


@pytest.mark.parametrize(
    ("which", "config", "words", "followed"),
    [
        (row("kconfig", "A", "y", "x"), "CONFIG_A=y\n", (), True),
        (row("kconfig", "A", "y", "x"), "# CONFIG_A is not set\n", (), False),
        (row("kconfig", "A", "n", "x"), "", (), True),
        (row("kconfig", "A", "n", "x"), "CONFIG_A=y\n", (), False),
        (row("kconfig", "A", "65536", "x"), "CONFIG_A=65536\n", (), True),
        (row("kconfig", "A", "*yama*", "x"), 'CONFIG_A="landlock,yama"\n', (), True),
        (row("kconfig", "A", "*yama*", "x"), 'CONFIG_A="landlock,yamas"\n', (), False),
        (row("kconfig", "A", "y", "x", "CONFIG_B=n"), "", (), True),
        (row("kconfig", "A", "y", "x", "CONFIG_B=n"), "CONFIG_B=y\n", (), False),
        (row("kconfig", "A", "n", "x", "needs CONFIG_B=y"), "", (), False),
        (row("kconfig", "A", "n", "x", "needs CONFIG_B=y"), "CONFIG_B=y\n", (), True),
        (row("kconfig", "A", "n", "x", "needs CONFIG_B=y"), "CONFIG_B=y\nCONFIG_A=y\n", (), False),
        (row("kconfig", "A", "y", "x", "kernel>=6.12.9"), "", (), True),
        (row("kconfig", "A", "y", "x", "kernel>=6.13"), "", (), False),
        (row("cmdline", "a", "n", "x"), "", (), True),
        (row("cmdline", "a", "n", "x"), "", ("a",), False),
        (row("cmdline", "a", "n", "x"), "", ("a=n",), True),
        (row("cmdline", "a", "present", "x"), "", ("a",), True),
        (row("cmdline", "a", "present", "x"), "", (), False),
        (row("cmdline", "a", "!off", "x"), "", ("a=on",), True),
        (row("cmdline", "a", "!off", "x"), "", ("a=off",), False),
        (row("cmdline", "a", "!off", "x"), "", (), False),
        (row("cmdline", "a", "!off", "x", "b=c,d"), "", ("b=c,d",), True),
        (row("cmdline", "a", "!off", "x", "b=c,d"), "", ("a=off", "b=c,d"), True),
        (row("cmdline", "a", "on", "x", "unset"), "", (), True),
        (row("cmdline", "a", "on", "x", "unset"), "", ("a=off",), False),
        (row("sysctl", "a.b", "1", "x"), "", ("sysctl.a.b=1",), True),
        (row("sysctl", "a.b", "1", "x"), "", ("sysctl.a.b=2",), False),
        (row("sysctl", "a.b", "1", "x", "default"), "", (), True),
        (row("sysctl", "a.b", "1", "x", "default"), "", ("sysctl.a.b=0",), False),
    ],
)
def test_one_recommendation(which: Row, config: str, words: tuple[str, ...], followed: bool) -> None:
    assert judged(which, config, *words) is followed


def test_what_is_no_row_and_no_kernel_is_refused() -> None:
    for wrong in (["A", "y"], ["A", "y", "x", "unset", "more"], ["A", "", "x"]):
        with pytest.raises(HardeningError, match="is no row"):
            hardening.rows({"kconfig": [wrong], "cmdline": [], "sysctl": []})
    with pytest.raises(HardeningError, match="twice"):
        hardening.rows({"kconfig": [["A", "y", "x"]] * 2, "cmdline": [], "sysctl": []})
    with pytest.raises(HardeningError, match="no other way"):
        judged(row("kconfig", "A", "y", "x", "somehow"))
    with pytest.raises(HardeningError, match="which kernel"):
        hardening.facts("CONFIG_A=y\n", ())


@given(st.dictionaries(st.from_regex(r"[A-Z]{1,3}", fullmatch=True), st.sampled_from("ny"), max_size=6))
def test_each_unmet_row_wants_a_reason_and_each_met_one_none(options: dict[str, str]) -> None:
    built = hardening.facts(
        CONFIG + "".join(f"CONFIG_{name}={value}\n" for name, value in options.items()), ()
    )
    wanted = {"kconfig": [[name, "y", "x"] for name in options], "cmdline": [], "sysctl": []}
    unmet = {name: "why" for name, value in options.items() if value == "n"}
    hardening.verdicts(wanted, {**NOTHING, "kconfig": unmet}, built)
    if unmet:
        with pytest.raises(HardeningError):
            hardening.verdicts(wanted, NOTHING, built)


def test_what_the_kernel_is_told_is_said_once() -> None:
    """A word that stands there twice would be two truths; and no sysctl is one that this kernel lacks."""
    names = [word.partition("=")[0] for word in parameters.words()]
    assert len(names) == len(set(names))
    assert not [name for name in parameters.SYSCTLS if name.startswith(("kernel.modules", "kernel.kexec"))]


def test_the_overlay_only_adds_but_for_what_it_explains() -> None:
    """Every line of the fragment holds for PCs too, but those that the overlay says otherwise on purpose."""
    base = kernel.wanted((paths.ROOT / kernel.FRAGMENT).read_text())
    over = kernel.wanted((paths.ROOT / "spine-image/kernel.pc.config").read_text())
    again = {name for name, value in over.items() if base.get(name) == value}
    assert not again, "lines that kernel.config has already"
    assert {name for name in over if name in base} == {f"CONFIG_{name}" for name in table()["why"]["pc"]}
