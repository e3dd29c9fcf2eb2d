"""What is said of the files on a boot volume, from what is there and what the slots carry. Pure.

It is outside of dm-verity: a machine that checks no signatures before it starts a program starts what
lies there. So each file and directory is held against the slots that were verified. The program of a slot is
that slot's; everything else must be what one of them carries. The counters in the programs' names change at
each boot and are no part of the comparison; free space, dates and the volume's tables are not files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from organs.integrity.rearm import PREFIX, SUFFIX, parse, plain
from organs.integrity.verify import Judged, Verdict

Path = tuple[str, ...]

# In the place of a hash: a directory has none.
DIRECTORY: Final = "directory"
# A file whose bytes cannot be followed to their end differs from every other.
BROKEN: Final = ""
PROGRAMS: Final = ("efi", "linux")
# A name may hold 255 characters of any kind; as much as this of a path is shown, in ASCII.
SHOWN_CHARACTERS_MAX: Final = 100

_FOLD: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


@dataclass(frozen=True, slots=True)
class File:
    """A file or directory: its path, one name a level, and its SHA-256, DIRECTORY or BROKEN."""

    path: Path
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What reading the volume gave. `unreadable` (the device refused) and `no_volume` (its bytes are no file
    system that can be followed) are sentences, empty when there is nothing to say."""

    files: tuple[File, ...] = ()
    no_volume: str = ""
    unreadable: str = ""


def judge(seen: Seen | None, carried: Mapping[str, Sequence[File]]) -> Judged:
    """The verdict. `carried` has the files of this volume as each verified slot has them, by the slot's
    letter; None is a volume or a slot that was not read to its end yet."""
    if seen is None:
        return Judged(Verdict.PENDING)
    if seen.unreadable:
        return Judged(Verdict.UNREADABLE, detail=seen.unreadable)
    if seen.no_volume:
        return Judged(Verdict.TAMPERED, ("volume",), f"no file system of ours: {seen.no_volume}")
    if not carried:
        return Judged(Verdict.UNSIGNED, detail="no verified slot says what it must hold")
    signed = {slot: {_plain(file.path): file for file in files} for slot, files in carried.items()}
    changed: list[str] = []
    extra: list[str] = []
    twice: list[str] = []
    raw: set[Path] = set()
    there: set[Path] = set()
    for file in seen.files:
        path = _plain(file.path)
        if (folded := _folded(file.path)) in raw:
            # The firmware takes the first of them and nobody sees the other.
            twice.append(shown(file.path))
        raw.add(folded)
        there.add(path)
        allowed = _allowed(path, signed)
        if not allowed:
            extra.append(shown(file.path))
        elif file.digest == BROKEN or file.digest not in allowed:
            changed.append(shown(file.path))
    wanted = {path: file for files in signed.values() for path, file in files.items()}
    missing = [shown(file.path) for path, file in wanted.items() if path not in there]
    kinds = {"changed": changed, "extra": extra, "twice there": twice, "missing": missing}
    if any(kinds.values()):
        parts = tuple(dict.fromkeys(part for names in kinds.values() for part in names))
        detail = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
        return Judged(Verdict.TAMPERED, parts, detail)
    return Judged(Verdict.VERIFIED)  # INV-SLOT-8


def shown(path: Path) -> str:
    """A path as it may stand in a log and in an answer, whatever its names are made of."""
    text = ascii("/".join(path))[1:-1]
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[: SHOWN_CHARACTERS_MAX - 3] + "..."


def _folded(path: Path) -> Path:
    """The path as the firmware compares it. Only ASCII is folded: all our names are."""
    return tuple(name.translate(_FOLD) for name in path)


def _plain(path: Path) -> Path:
    """The folded path; that of a program without its counter."""
    folded = _folded(path)
    if len(folded) == len(PROGRAMS) + 1 and folded[:-1] == PROGRAMS:
        counted = parse(folded[-1])
        if counted is not None:
            return (*PROGRAMS, plain(folded[-1], counted))
    return folded


def _allowed(path: Path, signed: Mapping[str, Mapping[Path, File]]) -> set[str]:
    """The hashes that what lies at `path` may have; empty when nothing may lie there."""
    if path[:-1] == PROGRAMS:
        for slot, files in signed.items():
            if path[-1] == f"{PREFIX}{slot}{SUFFIX}" and path in files:
                return {files[path].digest}
    return {files[path].digest for files in signed.values() if path in files}
