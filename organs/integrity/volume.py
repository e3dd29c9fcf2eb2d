"""What is said of a boot volume, from what is there and what a slot carries for it. Pure.

The boot volumes are outside of dm-verity: a machine that checks no signatures before it starts a program
starts what lies there. So each file and directory is held against what a verified slot carries for that
volume. The counters in the programs' names change at each boot and are no part of the comparison, but that
there is one is: the boot loader takes a program without a counter for good, for ever. Where in a directory a
name stands, and its dates, change with the counters. All other bytes, tables and free space as well, are
compared as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from organs.integrity.rearm import Counted, parse, plain
from organs.integrity.verify import Judged, Verdict

Path = tuple[str, ...]

# In the place of a hash: a directory has none.
DIRECTORY: Final = "directory"
# A file whose bytes cannot be followed to their end differs from every other.
BROKEN: Final = ""
# In the place of a path: all bytes of the volume outside of its directories.
REST: Final[Path] = ()
PROGRAMS: Final = ("efi", "linux")
# A name may hold 255 characters of any kind; as much as this of a path is shown, in ASCII.
SHOWN_CHARACTERS_MAX: Final = 100

_FOLD: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


@dataclass(frozen=True, slots=True)
class File:
    """A file or directory: its path, one name a level, and its SHA-256, DIRECTORY or BROKEN. Or REST."""

    path: Path
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What reading a boot volume gave. `unreadable` (the device refused) and `no_volume` (its bytes are no
    file system that can be followed) are sentences, empty when there is nothing to say; `empty`: it begins
    with zeros, so that nothing can be started from it."""

    files: tuple[File, ...] = ()
    no_volume: str = ""
    unreadable: str = ""
    empty: bool = False


def judge(seen: Seen | None, carried: Sequence[File] | None) -> Judged:
    """The verdict. `carried` is what a verified slot carries for this volume; None where there is no such
    slot. None in the place of what was seen is a volume, or a slot, that was not read to its end yet."""
    if seen is None:
        return Judged(Verdict.PENDING)
    if seen.unreadable:
        return Judged(Verdict.UNREADABLE, detail=seen.unreadable)
    if seen.no_volume:
        return Judged(Verdict.TAMPERED, ("volume",), f"no file system of ours: {seen.no_volume}")
    if carried is None:
        return Judged(Verdict.UNSIGNED, detail="no verified slot says what it must hold")
    signed = {_plain(file.path): file for file in carried}
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
        if path not in signed:
            extra.append(shown(file.path))
        elif file.digest == BROKEN or file.digest != signed[path].digest:
            changed.append(shown(file.path))
    missing = [shown(file.path) for path, file in signed.items() if path not in there]
    if extra or twice or missing or changed != [shown(REST)]:
        # What changed of a file or directory changes bytes outside of them as well; the name says more.
        changed = [name for name in changed if name != shown(REST)]
    kinds = {"changed": changed, "extra": extra, "twice there": twice, "missing": missing}
    if any(kinds.values()):
        parts = tuple(dict.fromkeys(part for names in kinds.values() for part in names))
        detail = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
        return Judged(Verdict.TAMPERED, parts, detail)
    return Judged(Verdict.VERIFIED)  # INV-SLOT-8


def rest(pieces: Iterable[bytes], directories: Sequence[tuple[int, int]]) -> File:
    """What stands for all bytes outside of the directories; zeros at the end count for nothing.

    `pieces` are the volume's bytes from its first one on, `directories` offsets and lengths.
    """
    total, end, zeros = sha256(), 0, 0
    for piece in pieces:
        data, at = bytearray(piece), end
        end += len(data)
        for start, length in directories:
            low, high = max(at, start), min(end, start + length)
            if low < high:
                data[low - at : high - at] = bytes(high - low)
        if data.count(0) == len(data):
            zeros += len(data)
        else:
            total.update(bytes(zeros))
            total.update(data)
            zeros = 0
    return File(REST, total.hexdigest())


def marked(digest: str, odd: int) -> str:
    """The hash of a file or directory whose entry has attributes that ours have not."""
    return f"{digest} {odd:02x}" if odd and digest != BROKEN else digest


def counted(seen: Seen) -> tuple[tuple[str, Counted], ...]:
    """The programs whose boots are counted, by their names without the counter."""
    found = []
    for file in seen.files:
        if _folded(file.path[:-1]) == PROGRAMS and (counter := parse(file.path[-1])) is not None:
            found.append((plain(file.path[-1], counter), counter))
    return tuple(found)


def tries(seen: Seen, letter: str) -> int | None:
    """What the slot's program has left; of several names the best one. None: no name of it counts."""
    return max((counter.left for _, counter in counted(seen) if counter.slot == letter), default=None)


def shown(path: Path) -> str:
    """A path as it may stand in a log and in an answer, whatever its names are made of."""
    text = ascii("/".join(path))[1:-1] if path != REST else "bytes outside of files and directories"
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[: SHOWN_CHARACTERS_MAX - 3] + "..."


def _folded(path: Path) -> Path:
    """The path as the firmware compares it. Only ASCII is folded: all our names are."""
    return tuple(name.translate(_FOLD) for name in path)


def _plain(path: Path) -> Path:
    """The folded path; that of a program with a counter without it, and set apart from one that has none."""
    folded = _folded(path)
    if len(folded) == len(PROGRAMS) + 1 and folded[:-1] == PROGRAMS:
        counter = parse(folded[-1])
        if counter is not None:
            # INV-SLOT-14; as a path, something in a directory that is not one of ours.
            return (*PROGRAMS, plain(folded[-1], counter), "+")
    return folded
