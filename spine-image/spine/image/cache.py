"""Keeps what the build has made, each thing under the hash of all it was made from.

Writes below one directory (XDG cache, safe to delete at any time). An entry appears by one rename when it is
whole, so an interrupted build or a full disk leaves nothing half-made; two builds at once make each entry
once, the second waits. Entries are never changed afterwards. Old ones are dropped when new ones are made.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from spine.image import commands

# Entries of one kind that are kept: enough to go back and forth between a few versions of the tree.
KEPT = 8
# An entry used within this time may be in use by another build (s).
IN_USE_S = 6 * 3600


def digest(*parts: str | bytes) -> str:
    """The SHA-256 (hex) of a list; parts are length-prefixed, so no two lists run together."""
    sum_ = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sum_.update(len(data).to_bytes(8, "little"))
        sum_.update(data)
    return sum_.hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """One cache directory."""

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        """`say` is told what the build waits for when another one is making the same thing."""
        self.root = root
        self._say = say

    def entry(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        """The directory of entry `key`, made by `make(empty directory)` when it is not there yet."""
        final = self.root / kind / key
        if final.is_dir():
            os.utime(final)
            return final
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        self._drop_dead(kind)
        with self.locked(kind, key):
            if not final.is_dir():
                self._make(final, make)
                self._drop_old(final.parent)
        return final

    def has(self, kind: str, key: str) -> bool:
        """Whether the entry is there already."""
        return (self.root / kind / key).is_dir()

    def _make(self, final: Path, make: Callable[[Path], None]) -> None:
        part = final.with_name(f".part-{final.name}")
        remove(part)
        part.mkdir(parents=True)
        try:
            make(part)
            part.rename(final)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise commands.full_disk("the build could not be finished") from error
            raise
        finally:
            # Also after ctrl-C: half an entry only takes space.
            remove(part)

    @contextlib.contextmanager
    def locked(self, kind: str, key: str) -> Iterator[None]:
        """One build at a time; inside of `entry`, where the directory of locks is there."""
        with (self.root / "locks" / _lock_name(kind, key)).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say(f"another build is making the {kind}; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _drop_dead(self, kind: str) -> None:
        """Remove what builds that were killed have left; one that still runs holds its lock."""
        for part in (self.root / kind).glob(".part-*"):
            name = _lock_name(kind, part.name.removeprefix(".part-"))
            with (self.root / "locks" / name).open("w") as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(part)

    def _drop_old(self, kind: Path) -> None:
        seen = sorted(
            ((path.stat().st_mtime, path) for path in kind.iterdir() if not path.name.startswith(".")),
            reverse=True,
        )
        for used, path in seen[KEPT:]:
            if time.time() - used > IN_USE_S:
                remove(path)


def _lock_name(kind: str, key: str) -> str:
    return f"{kind}-{key[:16]}"


def remove(path: Path) -> None:
    """Remove a tree of ours; nothing when it is not there."""
    if path.exists():
        shutil.rmtree(path)
