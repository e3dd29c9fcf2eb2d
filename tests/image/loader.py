"""Which entry systemd-boot starts, from the files of the boot volumes: its rules, written down once more.

systemd-boot 252, src/boot/efi/boot.c, boot_entry_compare: what has a counter and no try left goes last; then
the sort key (IMAGE_ID, else ID), ascending; then the version, the newest first; then the file name, the last
first. Whether the one that we ship does so is what tests/integration/test_loader.py tries.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from spine.image import disk, uki

COUNTER = re.compile(r"\+(\d+)(?:-(\d+))?(?=\.efi$)")


def entries(volumes: Iterable[Mapping[str, bytes]]) -> list[str]:
    """The names of all entries, in the order in which they are preferred."""
    found = [
        (path.removeprefix(f"{disk.PROGRAMS}/"), release(program))
        for files in volumes
        for path, program in files.items()
        if path.startswith(f"{disk.PROGRAMS}/")
    ]
    return [name for name, _ in sorted(found, key=functools.cmp_to_key(_compare))]


def release(program: bytes) -> dict[str, str]:
    """What the program says of itself."""
    [text] = [section.data for section in uki.sections(program) if section.name == ".osrel"]
    rows = (line.split("=", 1) for line in text.decode().splitlines())
    return {key: value.strip('"') for key, value in rows}


def tries_left(name: str) -> int | None:
    """The tries in a name; None: it is not counted."""
    counter = COUNTER.search(name)
    return int(counter[1]) if counter else None


def _compare(one: tuple[str, Mapping[str, str]], other: tuple[str, Mapping[str, str]]) -> int:
    pairs = [(tries_left(name) == 0, about) for name, about in (one, other)]
    (spent, about), (other_spent, other_about) = pairs
    if spent != other_spent:
        return 1 if spent else -1
    if about["ID"] != other_about["ID"]:
        return 1 if about["ID"] > other_about["ID"] else -1
    versions = [tuple(map(int, row["VERSION_ID"].split("."))) for row in (about, other_about)]
    if versions[0] != versions[1]:
        return -1 if versions[0] > versions[1] else 1
    # The counter is no part of an entry's id.
    ids = [COUNTER.sub("", name) for name, _ in (one, other)]
    return (ids[0] < ids[1]) - (ids[0] > ids[1])
