"""The repository's own files as the build sees them: the tree on disk, with replacements laid over it.

Reads only. Replacements let a test build an image with a seeded bug while the tree stays as it is.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from spine.image.cache import digest


class Sources:
    """Files by their path relative to the repository's root."""

    def __init__(self, root: Path, replace: Mapping[str, bytes]) -> None:
        self.root = root
        self._replace = dict(replace)

    def read(self, path: str) -> bytes:
        """The bytes of one file; FileNotFoundError when there is none."""
        return self._replace[path] if path in self._replace else (self.root / path).read_bytes()

    def files(self, *below: str) -> Iterator[str]:
        """Every file below the given directories, sorted; no caches, no hidden files, no links."""
        found = {
            str(path.relative_to(self.root))
            for directory in below
            for path in (self.root / directory).rglob("*")
            if path.is_file() and not path.is_symlink()
        }
        found |= {path for path in self._replace if path.startswith(tuple(f"{name}/" for name in below))}
        for path in sorted(found):
            parts = path.split("/")
            if "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
                yield path

    def digest(self, *paths: str) -> str:
        """One hash over the names and bytes of these files."""
        return digest(*(part for path in paths for part in (path, self.read(path))))
