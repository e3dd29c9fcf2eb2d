"""Is this file what this tree makes? A disk image or an update, compared byte for byte with one built anew.

`alone` checks what a file says of itself: signatures and hashes. `compare` holds it against another file of
the same kind and names the parts that differ. Both only read. Believes no number of the file before the
signature over it was checked; compares by the places of the file that we built ourselves.
"""

import binascii
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from spine.ground import gpt
from spine.image import authenticode, slot, uki, update

Check = Callable[[bytes, bytes], None]
SLOTS = ("a", "b")
# Compared at once, so that a disk of any size needs no memory.
STEP = 1 << 20
# A slot that is read whole; a larger one is none of ours.
SLOT_BYTES_MAX = 1 << 28


@dataclass(frozen=True)
class Stretch:
    """A named stretch of a file, in bytes."""

    name: str
    start: int
    length: int


@dataclass(frozen=True)
class Alone:
    """What a file says of itself: which kind, image and version, and what is wrong with it."""

    kind: str
    image: str
    version: str
    problems: tuple[str, ...]


def kind_of(file: Path) -> str:
    """`disk`, `update`, or nothing that we know (empty)."""
    with open(file, "rb") as opened:
        head = opened.read(gpt.SECTOR + len(gpt.SIGNATURE))
    if head.startswith(update.MAGIC):
        return "update"
    return "disk" if head[gpt.SECTOR :] == gpt.SIGNATURE else ""


def alone(file: Path, check: Check, certificate: x509.Certificate) -> Alone:
    """Check a file by itself. `check(signature, message)` raises SlotError, `certificate` is db's."""
    if kind_of(file) == "update":
        return _update_alone(file, check, certificate)
    return _disk_alone(file, check, certificate)


def _update_alone(file: Path, check: Check, certificate: x509.Certificate) -> Alone:
    with open(file, "rb") as opened:
        data = opened.read(update.FILE_BYTES_MAX + 1)
    try:
        found = update.unpack(data, check)
    except update.NoUpdate as error:
        return Alone("update", "", "", (str(error),))
    return Alone("update", found.image, found.version, tuple(_programs("", found.slot, check, certificate)))


def _disk_alone(file: Path, check: Check, certificate: x509.Certificate) -> Alone:
    problems: list[str] = []
    try:
        partitions = gpt.read(file)
    except gpt.GptError as error:
        return Alone("disk", "", "", (f"partition table: {error}",))
    problems += [f"copy of the partition table: {why}" for why in _copy_problem(file)]
    image = version = ""
    first: bytes | None = None
    for letter in SLOTS:
        name = f"slot-{letter}"
        if name not in partitions or partitions[name].size > SLOT_BYTES_MAX:
            problems.append(f"{name}: there is none")
            continue
        data = _read(file, partitions[name].start, partitions[name].size)
        try:
            manifest, parts = slot.read(data, check)
        except slot.SlotError as error:
            problems.append(f"{name}: {error}")
            continue
        if first is not None and data != first:
            problems.append(f"{name}: it is not the same as slot-{SLOTS[0]}")
        first, image, version = data, str(manifest["image"]), str(manifest["version"])
        problems += _programs(f"{name}: ", data, check, certificate)
        boot = partitions.get(f"boot-{letter}")
        volume = slot.boot_image(data, manifest, parts, letter)
        if boot is None or boot.size != len(volume) or _read(file, boot.start, boot.size) != volume:
            problems.append(
                f"boot-{letter}: it is not what the slot says (on a disk that ran, tries were counted)"
            )
    return Alone("disk", image, version, tuple(problems))


def _programs(where: str, data: bytes, check: Check, certificate: x509.Certificate) -> list[str]:
    """What is wrong with the Secure Boot signatures of a slot's programs, and whose root they start."""
    problems = []
    manifest, parts = slot.read(data, check)
    for part in parts:
        if not part.name.startswith("uki-"):
            continue
        program = data[part.offset : part.offset + part.length]
        try:
            authenticode.check(program, certificate)
        except authenticode.SignatureError as error:
            problems.append(f"{where}{part.name}: Secure Boot: {error}")
            continue
        lines = [one.data for one in uki.sections(program) if one.name == ".cmdline"]
        if not lines or str(manifest["rootHash"]).encode() not in lines[0]:
            problems.append(f"{where}{part.name}: its command line names another root")
    return problems


def _copy_problem(file: Path) -> list[str]:
    """What is wrong with the copy of the table at the end of a disk."""
    size = file.stat().st_size
    header = _read(file, size - gpt.SECTOR, gpt.HEADER.size)
    if len(header) < gpt.HEADER.size or not header.startswith(gpt.SIGNATURE):
        return ["there is none"]
    fields = gpt.HEADER.unpack(header)
    if binascii.crc32(header[:16] + bytes(4) + header[20:]) != fields[3]:
        return ["its checksum is wrong"]
    table_at, count, entry_bytes, table_crc = fields[10:14]
    if count > gpt.ENTRIES_MAX or entry_bytes != gpt.ENTRY_BYTES:
        return ["it is of another form"]
    table = _read(file, min(table_at * gpt.SECTOR, size), count * entry_bytes)
    if binascii.crc32(table) != table_crc:
        return ["the checksum of its entries is wrong"]
    if table != _read(file, 2 * gpt.SECTOR, count * entry_bytes):
        return ["it is not the same as the table"]
    return []


def stretches(ours: Path, check: Check) -> list[Stretch]:
    """The parts of a file that we built, in order and without gaps; no number of a stranger comes in."""
    size = ours.stat().st_size
    if kind_of(ours) == "update":
        head = update.HEAD_BYTES
        marks = [Stretch("kind", 0, len(update.MAGIC)), Stretch("manifest, the copy", len(update.MAGIC), 0)]
        marks += _in_slot("", head, _read(ours, head, size - head), check)
    else:
        marks = [Stretch("partition table", 0, 0)]
        partitions = sorted(gpt.read(ours).values(), key=lambda one: one.start)
        for one in partitions:
            if one.name.startswith("slot-"):
                marks += _in_slot(f"{one.name} ", one.start, _read(ours, one.start, one.size), check)
            else:
                marks.append(Stretch(one.name, one.start, one.size))
        marks.append(Stretch("copy of the partition table", partitions[-1].start + partitions[-1].size, 0))
    ends = [mark.start for mark in marks[1:]] + [size]
    return [Stretch(mark.name, mark.start, end - mark.start) for mark, end in zip(marks, ends, strict=True)]


def _in_slot(where: str, start: int, data: bytes, check: Check) -> list[Stretch]:
    _, parts = slot.read(data, check)
    marks = [Stretch(f"{where}{part.name}", start + part.offset, part.length) for part in parts]
    at = start + slot.manifest_offset(data[:96])
    marks.append(Stretch(f"{where}manifest", at, slot.MANIFEST_SIZE))
    return sorted(marks, key=lambda mark: mark.start)


def compare(file: Path, ours: Path, parts: list[Stretch]) -> dict[str, int | None]:
    """For each part of ours, the first byte of the file at which it differs, or None; a length of its own."""
    found: dict[str, int | None] = {}
    with open(file, "rb") as left, open(ours, "rb") as right:
        for part in parts:
            found[part.name] = _first_difference(left.fileno(), right.fileno(), part)
    here, there = file.stat().st_size, ours.stat().st_size
    found["length"] = None if here == there else min(here, there)
    return found


def _first_difference(left: int, right: int, part: Stretch) -> int | None:
    for at in range(part.start, part.start + part.length, STEP):
        count = min(STEP, part.start + part.length - at)
        one, other = os.pread(left, count, at), os.pread(right, count, at)
        if one != other:  # INV-PROOF-1
            same = next(
                (index for index, (x, y) in enumerate(zip(one, other, strict=False)) if x != y),
                min(len(one), len(other)),
            )
            return at + same
    return None


def _read(file: Path, at: int, count: int) -> bytes:
    with open(file, "rb") as opened:
        opened.seek(max(at, 0))
        return opened.read(count)
