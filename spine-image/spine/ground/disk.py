"""The disk that a ground runs on: a copy of the built image that keeps its state across rebuilds.

Booting writes to the disk (boot counters, /persist), so the built image itself is never run. After a
rebuild the copy is made anew from the image and the kept partitions are carried over, beside the old file
and then renamed over it: a crash or a full disk leaves the old one as it was. Holes stay holes.
"""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from spine.errors import Exit, SpineError
from spine.ground import gpt

# QEMU's name for the disk that the guest sees.
DISK_NODE = "disk"
# What a person put there; the rest comes from the image.
KEPT = ("personas", "persist")
# Copied at once by the kernel; a bound so that ctrl-C is heard.
COPY_BYTES = 64 * 1024 * 1024


def prepare(image: Path, disk: Path, *, fresh: bool = False) -> str:
    """Make `disk` the copy to run; says in a word what was done: "kept", "new" or "refreshed".

    Must not be called while the disk is in use. SpineError: the image is missing or broken (3), what is kept
    does not fit into the new layout (5).
    """
    if not image.is_file():
        raise SpineError(
            "there is no image to boot", f"{image} is not there", "./spine build", Exit.HOST_NOT_READY
        )
    note = disk.with_suffix(".json")
    known = _known(note)
    seen = stamp(image)
    exists = disk.is_file() and not fresh
    if exists and known.items() >= seen.items():
        return "kept"
    digest = sparse_sha256(image)
    done = "kept"
    if not exists or known.get("sha256") != digest:
        done = "refreshed" if exists else "new"
        new = disk.with_suffix(".new")
        with _discarded_on_failure(new):
            sparse_copy(image, new)
            if exists:
                _carry_over(disk, new)  # INV-HOST-2
            _sync(new)
            new.rename(disk)
    draft = note.with_suffix(".json.new")
    draft.write_text(json.dumps({**seen, "sha256": digest}) + "\n", encoding="utf-8")
    draft.rename(note)
    return done


def stamp(image: Path) -> dict[str, object]:
    """What tells a built image from the one before it."""
    seen = image.stat()
    return {"size": seen.st_size, "mtime": seen.st_mtime_ns, "path": str(image)}


def extract(disk: Path, partition: gpt.Partition, target: Path) -> None:
    """Copy one partition of an image to a file of its own, whole or not at all."""
    new = target.with_suffix(target.suffix + ".new")
    with _discarded_on_failure(new), open(disk, "rb") as source, open(new, "wb") as file:
        file.truncate(partition.size)
        _copy_data(source.fileno(), partition.start, partition.size, file.fileno(), 0)
        new.rename(target)


def sparse_copy(source: Path, target: Path) -> None:
    """Copy a file, leaving its holes."""
    with open(source, "rb") as old, open(target, "wb") as new:
        size = os.fstat(old.fileno()).st_size
        new.truncate(size)
        _copy_data(old.fileno(), 0, size, new.fileno(), 0)


def sparse_sha256(path: Path) -> str:
    """SHA-256 of what a file holds and where its holes are."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(f"{size}".encode())
        for start, end in _data(file.fileno(), 0, size):
            digest.update(f" {start}-{end} ".encode())
            while start < end:
                block = os.pread(file.fileno(), min(1 << 20, end - start), start)
                digest.update(block)
                start += len(block)
    return digest.hexdigest()


def _carry_over(old: Path, new: Path) -> None:
    try:
        before, after = gpt.read(old), gpt.read(new)
    except gpt.GptError as error:
        raise SpineError(
            "the disk's state cannot be carried over to the new image",
            f"{old}: {error}",
            "./spine boot --fresh   (starts with empty state)",
            Exit.REFUSED,
        ) from error
    with open(old, "rb") as source, open(new, "r+b") as target:
        for name in KEPT:
            if name not in before:
                continue
            if name not in after or after[name].size < before[name].size:
                raise SpineError(
                    f"the state in the partition {name!r} does not fit into the new image",
                    f"it has {before[name].size} bytes, the new one has fewer or is not there",
                    "./spine boot --fresh   (starts with empty state)",
                    Exit.REFUSED,
                )
            _punch(target.fileno(), after[name].start, after[name].size)
            _copy_data(
                source.fileno(), before[name].start, before[name].size, target.fileno(), after[name].start
            )


def _copy_data(source: int, at: int, length: int, target: int, to: int) -> None:
    for start, end in _data(source, at, at + length):
        while start < end:
            count = os.copy_file_range(source, target, min(COPY_BYTES, end - start), start, to + start - at)
            if count == 0:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            start += count


def _data(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    """The stretches of [start, end) that are not holes."""
    found = []
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        if start < stop:
            found.append((start, stop))
        start = stop
    return found


def _punch(fd: int, start: int, size: int) -> None:
    """Zero a stretch that the image may have filled."""
    for begin, end in _data(fd, start, start + size):
        while begin < end:
            count = min(1 << 20, end - begin)
            os.pwrite(fd, bytes(count), begin)
            begin += count


def _known(note: Path) -> dict[str, object]:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _discarded_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise
