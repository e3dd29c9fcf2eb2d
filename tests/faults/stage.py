"""What a matrix runs on: the production image, its blessed bytes, and a disk that is a little used.

Touches: the cache of the build, and the directory it is given. The disk gets one database of the gate's, made
by the gate's own code, so that a case can damage it; all else is as the build left it.
Fails: with SpineError when the image cannot be built or a filesystem's program is missing.
"""

from __future__ import annotations

import inspect
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from organs.gate.store import Store
from spine.errors import Exit, SpineError
from spine.ground import gpt
from spine.ground.disk import sparse_copy, sparse_sha256
from spine.ground.qemu import Machine
from spine.image.build import build
from spine.image.disk import GATE_UID
from spine.progress import Progress
from tests.faults.blessed import Release
from tests.faults.places import Places, Stretch, places

PERSONA, KEYS = "linda", 40
# The journal of ext4 is always the inode of this number.
JOURNAL_INODE = "<8>"
EXT4_BLOCK = 4096


@dataclass(frozen=True)
class Stage:
    """A disk to damage, where its regions are, and what counts as blessed."""

    disk: Path
    image_sha256: str
    places: Places
    release: Release

    def read(self, at: int, length: int) -> bytes:
        """Bytes of the disk as it is before it is damaged."""
        with open(self.disk, "rb") as file:
            file.seek(at)
            return file.read(length)


def built(
    directory: Path,
    *,
    replace: Mapping[str, bytes] | None = None,
    name: str = "now",
    production: bool = True,
) -> Stage:
    """Build the image, with other bytes for some files of the tree, and prepare a disk."""
    out = directory / name
    build(out, production=production, replace=replace, progress=Progress())
    return prepared(out / "spine.img", directory / f"{name}.img", name)


def prepared(image: Path, disk: Path, name: str) -> Stage:
    """A disk from an image: its persist holds a database, whose key is another each time."""
    sparse_copy(image, disk)
    partitions = gpt.read(disk)
    release = Release.of(name, disk, partitions)
    persist = f"{disk}?offset={partitions['persist'].start}"
    databases = disk.with_suffix(".stores")
    databases.mkdir(exist_ok=True)
    for old in databases.iterdir():
        old.unlink()
    store = Store.create(databases, PERSONA)
    for number in range(KEYS):
        store.begin(writes=True)
        store.put(f"key {number}".encode(), bytes([number]) * 500)
        store.commit()
    store.close()
    [made] = [path for path in databases.iterdir() if path.stat().st_size]
    _debugfs(persist, f"write {made} {made.name}", writes=True)
    for field, value in (("uid", GATE_UID), ("gid", GATE_UID), ("mode", "0100600")):
        _debugfs(persist, f"set_inode_field {made.name} {field} {value}", writes=True)
    journal, database = (_stretches(persist, inode) for inode in (JOURNAL_INODE, made.name))
    with open(disk, "rb") as file:

        def read(at: int, length: int) -> bytes:
            file.seek(at)
            return file.read(length)

        found = places(read, disk.stat().st_size, journal=journal, database=database)
    return Stage(disk, sparse_sha256(image), found, release)


def secure_options() -> Mapping[str, object]:
    """What makes the machine's firmware one with Secure Boot and the owner's keys."""
    if "enroll" not in inspect.signature(Machine.start).parameters:
        raise SpineError(
            "there is no Secure Boot here",
            "the machine cannot be given keys",
            "python -m tests.faults.matrix --firmware plain",
            Exit.HOST_NOT_READY,
        )
    from spine.image import enrolment, keys

    return {"enroll": [enrolment.variable(role, keys.boot_key(role).certificate) for role in keys.Role]}


def _stretches(persist: str, inode: str) -> tuple[Stretch, ...]:
    """Where a file's blocks are in its filesystem."""
    found: list[Stretch] = []
    for word in re.findall(r"\d+", _debugfs(persist, f"blocks {inode}")):
        at = int(word) * EXT4_BLOCK
        if found and sum(found[-1]) == at:
            found[-1] = (found[-1][0], found[-1][1] + EXT4_BLOCK)
        else:
            found.append((at, EXT4_BLOCK))
    return tuple(found)


def _debugfs(filesystem: str, request: str, *, writes: bool = False) -> str:
    command = ["debugfs", *(["-w"] if writes else []), "-R", request, filesystem]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise SpineError(
            "there is no debugfs", "e2fsprogs is missing", "apt-get install e2fsprogs", Exit.HOST_NOT_READY
        ) from error
    wrong = [line for line in done.stderr.splitlines()[1:] if line.strip()]
    if wrong:
        raise SpineError("the disk cannot be prepared", wrong[0], "see debugfs", Exit.FAILED)
    return done.stdout
