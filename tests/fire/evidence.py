"""What every evidence file says of itself: which files it is about, and at which commit.

The covered files are hashed as they are, so that a campaign that was interrupted goes on only on the same
files, and a reader can tell whether evidence is about the tree in front of him.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from spine import paths

SUFFIXES = (".py", ".capnp", ".toml")


def covered(names: Sequence[str]) -> str:
    """One hash over these files, and over the sources below these directories, as they are."""
    hashed = hashlib.sha256()
    for path in _files(names):
        hashed.update(f"{path.relative_to(paths.ROOT)} {path.stat().st_size}\n".encode())
        hashed.update(path.read_bytes())
    return hashed.hexdigest()


def _files(names: Sequence[str]) -> Iterator[Path]:
    for name in names:
        root = paths.ROOT / name
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.suffix in SUFFIXES and not path.name.startswith("test_"):
                yield path


def commit(names: Sequence[str]) -> str:
    """The commit, and whether the covered files are as they are there."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=paths.ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", *names)
    return git("rev-parse", "HEAD") + ("-dirty" if changed else "")


def percentile(histogram: Counter[int], share: float) -> int:
    """The least value within which this share of them lies."""
    total, seen = sum(histogram.values()), 0
    for value in sorted(histogram):
        seen += histogram[value]
        if seen >= share * total:
            return value
    return 0
