"""The files of a persona before they are packed: what goes where, and what is refused.

Pure, in memory: packages and the persona's own files are added one by one, and nothing is written until all
of it is known, so no path in a package can lead a write out of the tree, and what lies at a path does not
depend on what this host has there.

What is refused: a path that is not one place in the image, an entry below a symbolic link, a device, a
socket, a pipe, a symbolic link that leads out of the image, two packages with different things at one path.
What is changed: owner and date (everything is root's, of one date), setuid, setgid and sticky bits (taken
away; nothing in a room could use them). What is left out of packages: manuals, all that lies where the
spine mounts its own.
"""

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from spine.errors import Exit, SpineError
from spine.persona.recipe import SPINES_OWN, link_problem, path_problem

# Unpacked; it is held in memory while it is put together.
TREE_BYTES_MAX: Final = 1024**3
ENTRIES_MAX: Final = 100_000
# Of no use in a room. The licences (usr/share/doc/*/copyright) stay.
LEFT_OUT: Final = (
    "/usr/share/man/",
    "/usr/share/info/",
    "/usr/share/lintian/",
    "/usr/share/initramfs-tools/",
)
DOC: Final = "/usr/share/doc/"


@dataclass(frozen=True, slots=True)
class Folder:
    """A directory; its owner may always enter it and write to it."""

    mode: int


@dataclass(frozen=True, slots=True)
class Regular:
    """A file."""

    mode: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


Entry = Folder | Regular | Link


class TreeRefused(SpineError):
    """Something may not go into an image. `origin` is the package or the recipe."""

    def __init__(self, origin: str, path: str, rule: str) -> None:
        super().__init__(
            f"{origin}: {path!r} {rule}",
            "an image holds nothing but directories, plain files and links within it",
            "take it out of the recipe   (docs/personas.md)",
            Exit.REFUSED,
        )
        self.path = path
        self.rule = rule


class Tree:
    """An image's files. Paths begin with / and are those of the room."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._from: dict[str, str] = {}
        self._bytes = 0

    def add(self, origin: str, path: str, entry: Entry, *, instead: bool = False) -> None:
        """Put one entry at `path`. `instead`: it may take the place of a file or link. TreeRefused."""
        if problem := path_problem(path):
            raise TreeRefused(origin, path, problem)
        if isinstance(entry, Link) and (problem := link_problem(path, entry.target)):
            raise TreeRefused(origin, path, problem)  # INV-PERSONA-21
        self._parents(origin, path)
        old = self.entries.get(path)
        if isinstance(old, Folder) != isinstance(entry, Folder) and old is not None:
            raise TreeRefused(origin, path, f"is something else in {self._from[path]}")
        if old is not None and not isinstance(entry, Folder) and not instead and old != entry:
            raise TreeRefused(origin, path, f"is different in {self._from[path]}")
        self._put(origin, path, entry)

    def add_package(self, origin: str, tar: bytes) -> None:
        """Put in what a package holds, from the tar archive in it. TreeRefused."""
        try:
            with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as opened:
                for member in opened:
                    self._member(origin, opened, member)
        except tarfile.TarError as error:
            raise TreeRefused(origin, "/", f"cannot be read: {error}") from error

    def resolve(self, path: str) -> str | None:
        """Where `path` leads through the image's links; None when nothing is there."""
        left, at = path.split("/")[1:], ""
        # As many links as the kernel follows.
        for _ in range(40 + len(left)):
            if not left:
                return at
            part = left.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                at = at.rpartition("/")[0]
                continue
            entry = self.entries.get(f"{at}/{part}")
            if isinstance(entry, Link):
                left = entry.target.split("/") + left
                at = "" if entry.target.startswith("/") else at
            elif entry is None:
                return None
            else:
                at = f"{at}/{part}"
        return None

    def write(self, directory: Path) -> None:
        """Lay it out below `directory`, which is not there yet."""
        directory.mkdir()
        directory.chmod(0o755)
        for path, entry in sorted(self.entries.items()):
            place = directory / path[1:]
            match entry:
                case Folder(mode):
                    place.mkdir()
                    place.chmod(mode)
                case Regular(mode, data):
                    place.write_bytes(data)
                    place.chmod(mode)
                case Link(target):
                    place.symlink_to(target)

    def spine_directories(self) -> None:
        """The places over which the spine mounts its own, and those that a shell expects."""
        for path in SPINES_OWN:
            self.entries[path] = Folder(0o755)
        for path, mode in (("/etc", 0o755), ("/root", 0o700)):
            if not isinstance(self.entries.setdefault(path, Folder(mode)), Folder):
                raise TreeRefused(self._from[path], path, "must be a directory")

    def _parents(self, origin: str, path: str) -> None:
        at = ""
        for part in path.split("/")[1:-1]:
            at = f"{at}/{part}"
            above = self.entries.get(at)
            if above is None:
                self._put(origin, at, Folder(0o755))
            elif not isinstance(above, Folder):
                raise TreeRefused(origin, path, f"lies below {at}, which is no directory")  # INV-PERSONA-21

    def _put(self, origin: str, path: str, entry: Entry) -> None:
        old = self.entries.get(path)
        self._bytes += _size(entry) - _size(old)
        if self._bytes > TREE_BYTES_MAX or len(self.entries) >= ENTRIES_MAX:
            raise TreeRefused(
                origin, path, f"is one too many: at most {TREE_BYTES_MAX >> 20} MiB, {ENTRIES_MAX} files"
            )
        self.entries[path] = entry
        self._from[path] = origin

    def _member(self, origin: str, opened: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = _absolute(member.name)
        if path == "/" or _left_out(path):
            return
        # setuid, setgid and sticky go; the owner may always read.
        mode = member.mode & 0o777 | 0o400  # INV-PERSONA-20
        if member.isdir():
            self.add(origin, path, Folder(mode | 0o700))
        elif member.isreg():
            if member.size > TREE_BYTES_MAX:
                raise TreeRefused(origin, path, f"is larger than {TREE_BYTES_MAX >> 20} MiB")
            content = opened.extractfile(member)
            assert content is not None
            self.add(origin, path, Regular(mode, content.read()))
        elif member.issym():
            self.add(origin, path, Link(member.linkname))
        elif member.islnk():
            other = self.entries.get(_absolute(member.linkname))
            if not isinstance(other, Regular):
                raise TreeRefused(origin, path, "is a second name of a file that is not there")
            self.add(origin, path, other)
        else:
            raise TreeRefused(origin, path, "is neither a directory nor a file nor a link")  # INV-PERSONA-20


def _absolute(name: str) -> str:
    """The path of a member of a package: `./usr/bin/x` is /usr/bin/x; anything else stays for the rules."""
    return "/" + name.removeprefix("./").removesuffix("/") if name not in (".", "./") else "/"


def _left_out(path: str) -> bool:
    if any(path == own or path.startswith(f"{own}/") for own in SPINES_OWN):
        return ".." not in path.split("/")
    below = f"{path}/"
    if below.startswith(LEFT_OUT):
        return True
    return below.startswith(DOC) and not (path.endswith("/copyright") or path.count("/") <= 4)


def _size(entry: Entry | None) -> int:
    return len(entry.data) if isinstance(entry, Regular) else 0
