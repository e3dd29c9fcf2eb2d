"""The screen: what a person in front of the machine sees. One page, for a fixed 80 by 25 terminal.

Pure: facts in, text out.
Never: longer or wider than the terminal; shows what an organ wrote (it could contain anything).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Final

from organs.bay0.ground import Ground
from organs.bay0.state import ChildFacts, Release
from organs.kernel import firmware

COLUMNS: Final = 79
ROWS: Final = 24
# Home, clear, cursor off: the page replaces what was there.
CLEAR: Final = "\x1b[H\x1b[2J\x1b[?25l"
END: Final = "\r\n"


def page(
    release: Release, ground: Ground, healthy: bool, zygote: ChildFacts, organs: Mapping[str, ChildFacts]
) -> str:
    """The page of a running system."""
    bad = [name for name, facts in organs.items() if facts.closed]
    lines = [
        f"{release.name} {release.version} ({release.image})",
        "",
        f"  slot     {ground.slot or '-'}",
        f"  root     {ground.root_hash or 'not verified by this kernel'}",
        f"  boot     {'healthy' if healthy else 'not yet healthy'}",
        *(f"  data     BAD: {name} is closed, writes nothing" for name in bad),
        *([f"  secure   {_secure(ground.secure_boot)}"] if ground.secure_boot is not None else []),
        "",
        "  organ            state     generation  deaths",
    ]
    for name, facts in {"zygote": zygote, **organs}.items():
        lines.append(f"  {name:<15}  {facts.state:<8}  {facts.generation:>10}  {facts.deaths:>6}")
    return _fit(lines)


def changed(before: str, after: str) -> str:
    """What makes one page of another that is on the screen: the lines that differ.

    A whole page costs the kernel a million instructions for each few lines, and while the system starts there
    are thirty of them.
    """
    was, will = before.removeprefix(CLEAR).split(END), after.removeprefix(CLEAR).split(END)
    return "".join(
        f"\x1b[{row}H{line}\x1b[K"
        for row, (old, line) in enumerate(zip_longest(was, will, fillvalue=""), 1)
        if old != line
    )


def _secure(said: str) -> str:
    """What Secure Boot being on or not means to who stands in front of the machine."""
    if said == firmware.ON:
        return "boot is on"
    return f"boot is {said}: who has the disk in hand can replace the kernel"


def panic_page(name: str, reason: str) -> str:
    """The last page: why the system ended."""
    return _fit([f"{name} has stopped.", "", *(f"  {line}" for line in reason.splitlines())])


def _fit(lines: list[str]) -> str:
    """Cut to the terminal; anything that is not a printable character becomes a dot."""
    shown = lines if len(lines) <= ROWS else [*lines[: ROWS - 1], f"  ... {len(lines) - ROWS + 1} more lines"]
    clean = ("".join(c if c.isprintable() else "." for c in line)[:COLUMNS] for line in shown)
    return CLEAR + "".join(f"{line}{END}" for line in clean)
