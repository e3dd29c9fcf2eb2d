"""What one image has that another has not: files, stanzas, command line, sockets, kernel.

`look` reads a directory as `build` leaves it, and unpacks the root into a scratch directory; `compare` is
pure. Meant for what a development image adds to a production one, so nothing is left out as too small: a
file that is in both and differs is named too.
"""

import json
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from spine.image import commands, root, uki

# Words of the command line that name this very root: its hash, its salt, its sizes.
_HASH, _NUMBER = re.compile(r"\b[0-9a-f]{64}\b"), re.compile(r"(?<=[ ,])\d+(?= |$)")
Object = dict[str, object]


@dataclass(frozen=True)
class File:
    """A file of the root: its mode, its size, and the hash of its bytes (of a link: of where it leads)."""

    mode: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Image:
    """What an image is made of. `stanzas` are the manifest's, each as JSON; `sockets` are CALLEE.CALLER."""

    files: Mapping[str, File]
    stanzas: Mapping[str, str]
    words: tuple[str, ...]
    sockets: frozenset[str]
    kernel: str


def look(out: Path, scratch: Path) -> Image:
    """What is in the image that was built into `out`. SpineError, OSError."""
    tree = scratch / "root"
    commands.run(
        ["unsquashfs", "-quiet", "-no-progress", "-no-xattrs", "-dest", tree, out / "root.squashfs"],
        what=f"{out / 'root.squashfs'} cannot be unpacked",
    )
    files = {f"/{path.relative_to(tree)}": _file(path) for path in tree.rglob("*") if _counts(path)}
    manifest = tomllib.loads((tree / root.SPINE / "manifest.toml").read_text(encoding="utf-8"))
    pairs = json.loads((tree / root.SPINE / "switchboard.json").read_bytes())
    sections = {one.name: one.data for one in uki.sections((out / "spine.efi").read_bytes())}
    return Image(
        files=files,
        stanzas=dict(_stanzas(manifest)),
        words=tuple(words(sections[".cmdline"].decode())),
        sockets=frozenset(
            f"{'.'.join(pair)}{'' if kind == 'pairs' else f' ({kind})'}"
            for kind, found in pairs.items()
            for pair in found
        ),
        kernel=sha256(sections[".linux"]).hexdigest(),
    )


def words(line: str) -> list[str]:
    """The words of a command line; what is quoted is one. Hashes and sizes of the root are left out. Pure."""
    found = re.findall(r'(?:[^\s"]|"[^"]*")+', line)
    return [_NUMBER.sub("N", _HASH.sub("HASH", word)) for word in found]


def compare(ours: Image, other: Image) -> Object:
    """What `ours` has that `other` has not, and the other way round. Pure."""
    both = sorted(ours.files.keys() & other.files.keys())
    return {
        "files": {
            "added": _sized(ours, other),
            "removed": _sized(other, ours),
            "changed": [
                {"path": path, "size": ours.files[path].size, "otherSize": other.files[path].size}
                for path in both
                if ours.files[path] != other.files[path]
            ],
        },
        "stanzas": {
            "added": sorted(ours.stanzas.keys() - other.stanzas.keys()),
            "removed": sorted(other.stanzas.keys() - ours.stanzas.keys()),
            "changed": sorted(
                name
                for name in ours.stanzas.keys() & other.stanzas.keys()
                if ours.stanzas[name] != other.stanzas[name]
            ),
        },
        "commandLine": {
            "added": [word for word in ours.words if word not in other.words],
            "removed": [word for word in other.words if word not in ours.words],
        },
        "sockets": {
            "added": sorted(ours.sockets - other.sockets),
            "removed": sorted(other.sockets - ours.sockets),
        },
        "kernel": "same" if ours.kernel == other.kernel else "different",
    }


def page(found: Mapping[str, object], ours: str, other: str) -> str:
    """The comparison as a person reads it. Pure."""
    lines = [f"what {ours} has and {other} has not:", ""]
    for title, part in found.items():
        if isinstance(part, dict):
            lines.append(title)
            for how, mark in (("added", "+"), ("removed", "-"), ("changed", "~")):
                lines += [f"  {mark} {_row(row)}" for row in part.get(how, [])]
            if not any(part.values()):
                lines.append("  the same")
        else:
            lines.append(f"{title}\n  the {'same' if part == 'same' else 'kernels differ'}")
    return "\n".join(lines) + "\n"


def _row(row: object) -> str:
    if not isinstance(row, dict):
        return str(row)
    before = f" ({row['otherSize']} there)" if "otherSize" in row else ""
    return f"{row['path']}   {row['size']} bytes{before}"


def _sized(one: Image, without: Image) -> list[Object]:
    missing = sorted(one.files.keys() - without.files.keys())
    return [{"path": path, "size": one.files[path].size} for path in missing]


def _stanzas(manifest: Mapping[str, object]) -> list[tuple[str, str]]:
    found = []
    for name, part in manifest.items():
        rows = part.items() if name == "organs" and isinstance(part, dict) else [("", part)]
        found += [(f"{name}.{key}" if key else name, json.dumps(row, sort_keys=True)) for key, row in rows]
    return found


def _counts(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()


def _file(path: Path) -> File:
    seen = path.lstat()
    data = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
    return File(stat.S_IMODE(seen.st_mode), len(data), sha256(data).hexdigest())
