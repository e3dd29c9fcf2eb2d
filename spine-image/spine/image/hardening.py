"""Compares the kernel that was built with what is recommended, and writes docs/hardening.md.

The recommendations and the reasons for not following one are rows of spine-image/hardening.toml; the facts
are the built .config, the command line and its sysctls. `python -m spine.image.hardening [CONFIG]` writes the
document (CONFIG: out/kernel.config). Pure but for that. Fails with HardeningError for a row that means
nothing, a recommendation that is neither followed nor explained, and a reason that nothing needs any more.
"""

import re
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from spine import paths
from spine.image import kernel, parameters

TABLE: Final = "spine-image/hardening.toml"
DOCUMENT: Final = "docs/hardening.md"
KINDS: Final = ("kconfig", "cmdline", "sysctl")
TITLES: Final = {"kconfig": "Options of the kernel", "cmdline": "Command line", "sysctl": "sysctl"}
OFF: Final = "n"
# Begins a condition without which the value counts for nothing.
NEEDS: Final = "needs "
# Where the kernel says of itself which one it is.
_VERSION: Final = re.compile(r"^# Linux/\w+ (\d+)\.(\d+)\.(\d+) Kernel Configuration$", re.MULTILINE)


class HardeningError(ValueError):
    """The table and the kernel do not agree; the text names the row."""


@dataclass(frozen=True)
class Row:
    """One recommendation. `other` is another way in which it may be met, or empty."""

    kind: str
    name: str
    wanted: str
    source: str
    other: str = ""


@dataclass(frozen=True)
class Facts:
    """What was built: options without their prefix, words of the command line, sysctls, the version."""

    options: Mapping[str, str]
    words: Mapping[str, str]
    sysctls: Mapping[str, str]
    version: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """A recommendation with how it is: followed by the value, by another way (`how`), or not."""

    row: Row
    value: str
    followed: bool
    how: str = ""


def facts(config: str, words: Sequence[str]) -> Facts:
    """The facts of a .config and the words of a command line. HardeningError."""
    version = _VERSION.search(config)
    if version is None:
        raise HardeningError("the .config does not say which kernel it is for")
    options = {
        name: value.strip('"') for name, value in re.findall(r"^CONFIG_(\w+)=(.*)$", config, re.MULTILINE)
    }
    pairs = {name: value for name, _, value in (word.partition("=") for word in words)}
    sysctls = {
        name.removeprefix("sysctl."): value for name, value in pairs.items() if name.startswith("sysctl.")
    }
    return Facts(options, pairs, sysctls, tuple(map(int, version.groups())))


def rows(table: Mapping[str, Sequence[Sequence[str]]]) -> list[Row]:
    """The rows of the table. HardeningError for one that is none."""
    found = []
    for kind in KINDS:
        for row in table[kind]:
            if not 3 <= len(row) <= 4 or not all(isinstance(field, str) and field for field in row):
                raise HardeningError(f"{kind}: {row} is no row")
            found.append(Row(kind, *row))
    if twice := [row for row, count in Counter(found).items() if count > 1]:
        raise HardeningError(f"{twice[0].kind}: {twice[0].name} stands there twice")
    return found


def judge(row: Row, built: Facts) -> Verdict:
    """How one recommendation is. HardeningError for another way that is none."""
    value = _value(row, built)
    needed = row.other.removeprefix(NEEDS)
    if value is not None and _is(row.wanted, value):
        return Verdict(row, value, needed == row.other or _option(needed, built))
    how = "" if needed != row.other else _other(row, value, built)
    return Verdict(row, value if value is not None else "not said", bool(how), how)


def _value(row: Row, built: Facts) -> str | None:
    if row.kind == "kconfig":
        return built.options.get(row.name, OFF)
    found = (built.words if row.kind == "cmdline" else built.sysctls).get(row.name)
    if row.kind == "cmdline" and row.wanted == OFF:
        return OFF if found is None else found or "present"
    if row.kind == "cmdline" and row.wanted == "present":
        return None if found is None else "present"
    return found


def _is(wanted: str, value: str) -> bool:
    if wanted.startswith("*") and wanted.endswith("*"):
        return wanted.strip("*") in value.split(",")
    if wanted.startswith("!"):
        return value != wanted[1:]
    return value == wanted


def _other(row: Row, value: str | None, built: Facts) -> str:
    """The words for the other way in which a row is met; empty when it is not."""
    if row.other.startswith("CONFIG_"):
        return f"`{row.other}`" if _option(row.other, built) else ""
    since = row.other.removeprefix("kernel>=")
    if since != row.other:
        old = built.version < tuple(map(int, since.split(".")))
        return "" if old else f"without a choice since {since}"
    if row.other in ("unset", "default"):
        said = "the kernel's own default" if row.other == "default" else "so where it is not said"
        return said if value is None else ""
    if "=" in row.other:
        name, _, wanted = row.other.partition("=")
        return f"`{row.other}`" if built.words.get(name) == wanted else ""
    if row.other:
        raise HardeningError(f"{row.kind}: {row.name}: {row.other!r} is no other way")
    return ""


def _option(text: str, built: Facts) -> bool:
    """Whether `CONFIG_NAME=value` is so."""
    name, _, wanted = text.removeprefix("CONFIG_").partition("=")
    return built.options.get(name, OFF) == wanted


def verdicts(
    table: Mapping[str, Sequence[Sequence[str]]], why: Mapping[str, Mapping[str, str]], built: Facts
) -> list[Verdict]:
    """All verdicts. HardeningError when a reason is missing or stale."""
    found = [judge(row, built) for row in rows(table)]
    for kind in KINDS:
        unmet = {each.row.name for each in found if each.row.kind == kind and not each.followed}
        given = set(why[kind])
        # INV-IMAGE-7
        if missing := sorted(unmet - given):
            raise HardeningError(f"{kind}: not followed and without a reason: {', '.join(missing)}")
        if stale := sorted(given - unmet):
            raise HardeningError(f"{kind}: a reason that nothing needs: {', '.join(stale)}")
    return found


def changed(table: Mapping[str, Sequence[Sequence[str]]], overlay: str, built: Facts) -> dict[str, str]:
    """The recommended options that an overlay of the fragment takes back, with its values."""
    lines = {name.removeprefix("CONFIG_"): value for name, value in kernel.wanted(overlay).items()}
    over = Facts({**built.options, **lines}, built.words, built.sysctls, built.version)
    return {
        row.name: lines[row.name]
        for row in rows(table)
        if row.kind == "kconfig"
        and row.name in lines
        and judge(row, built).followed
        and not judge(row, over).followed
    }


def document(text: str, config: str, overlay: str) -> str:
    """The document, of the table's text, the built .config and the overlay for PCs. HardeningError."""
    loaded = tomllib.loads(text)
    why = loaded["why"]
    built = facts(config, parameters.words())
    found = verdicts(loaded, why, built)
    taken_back = changed(loaded, overlay, built)
    if taken_back.keys() != why["pc"].keys():
        raise HardeningError(
            f"pc: taken back are {sorted(taken_back)}, reasons there are for {sorted(why['pc'])}"
        )
    version = ".".join(map(str, built.version))
    lines = [
        "# What hardens the kernel",
        "",
        f"Made by `python -m spine.image.hardening` from the built configuration of Linux {version}, the",
        f"command line and `{TABLE}`; a test compares. Why it was decided so:",
        "`docs/decisions/0029-kernel-hardening.md`.",
        "",
        "| | recommended | followed | otherwise, with a reason |",
        "|---|---:|---:|---:|",
    ]
    for kind in KINDS:
        mine = [each for each in found if each.row.kind == kind]
        met = sum(each.followed for each in mine)
        lines.append(f"| {TITLES[kind]} | {len(mine)} | {met} | {len(mine) - met} |")
    lines += ["", "## What we do otherwise", ""]
    for kind in KINDS:
        lines += [f"### {TITLES[kind]}", "", "| setting | recommended | by | here | why |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {_setting(each.row)} | {_shown(each.row.wanted)} | {each.row.source} | {_shown(each.value)} "
            f"| {why[kind][each.row.name]} |"
            for each in found
            if each.row.kind == kind and not each.followed
        ]
        lines.append("")
    lines += [
        "### For real PCs",
        "",
        f"`{kernel.OVERLAYS['pc']}` takes back what the virtual machine has:",
        "",
        "| setting | there | why |",
        "|---|---|---|",
        *(f"| `{name}` | {_shown(value)} | {why['pc'][name]} |" for name, value in taken_back.items()),
        "",
        "## What we follow",
        "",
    ]
    for kind in KINDS:
        lines += [f"### {TITLES[kind]}", "", "| setting | value | by | met by |", "|---|---|---|---|"]
        lines += [
            f"| {_setting(each.row)} | {_shown(each.row.wanted)} | {each.row.source} "
            f"| {each.how or 'itself'} |"
            for each in found
            if each.row.kind == kind and each.followed
        ]
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _setting(row: Row) -> str:
    return f"`{row.name}`"


def _shown(value: str) -> str:
    """A value for people."""
    if value.startswith("!"):
        return f"not {value[1:]}"
    if value.startswith("*"):
        return f"with {value.strip('*')}"
    return {OFF: "off", "y": "on"}.get(value, value)


def main(words: Sequence[str]) -> int:
    """Write the document."""
    config = paths.out() / "kernel.config" if not words else paths.ROOT / words[0]
    read = (paths.ROOT / TABLE).read_text(encoding="utf-8")
    overlay = (paths.ROOT / kernel.OVERLAYS["pc"]).read_text(encoding="utf-8")
    text = document(read, config.read_text(encoding="utf-8"), overlay)
    (paths.ROOT / DOCUMENT).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
