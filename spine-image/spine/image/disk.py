"""Lays out the disk and makes its partitions, as files, without root.

Writes only the files it is told to. Partition ids, filesystem ids, dates and order are fixed, so the same
parts give the same disk. Each slot has a boot volume of its own, which holds systemd-boot and the slot's
program, whose name carries the boot counter; persist is an empty ext4 whose root belongs to the gate alone.
"""

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from spine.errors import SpineError
from spine.image import commands

SECTOR = 512
MIB = 1 << 20

# Ids are made from names, so that they are the same in every build and need no list.
_SPINE = uuid.uuid5(uuid.NAMESPACE_DNS, "alpine-spine.invalid")


def name_id(name: str) -> str:
    """The fixed id that belongs to a name."""
    return str(uuid.uuid5(_SPINE, name))


DISK_ID = name_id("disk")
_TYPE_ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
# A second partition that systemd-boot takes programs from, whichever of the two it was started from.
_TYPE_XBOOTLDR = "bc13c2ff-59e6-4262-a352-b275fd6f7172"
_TYPE_DATA = "0fc63daf-8483-4772-8e79-3d69d8477de4"


@dataclass(frozen=True)
class Partition:
    """One partition: name (GPT), size in bytes, type and own id."""

    name: str
    size: int
    type: str

    @property
    def id(self) -> str:
        """The PARTUUID."""
        return name_id(f"partition {self.name}")


# A boot volume holds one program of 4 MiB; a release may grow to the promise about size, of which the program
# is less than half. A slot holds a release of at most 40 MB, which is that promise. Personas and persist are
# small on purpose: a development disk; they are sparse until written. The order is the firmware's: it tries
# the first volume that it can read, and the other when it cannot load a boot loader from there.
PARTITIONS = (
    # INV-RESCUE-3
    Partition("boot-a", 24 * MIB, _TYPE_ESP),
    Partition("boot-b", 24 * MIB, _TYPE_XBOOTLDR),
    Partition("slot-a", 48 * MIB, name_id("type slot")),
    Partition("slot-b", 48 * MIB, name_id("type slot")),
    Partition("personas", 64 * MIB, name_id("type personas")),
    Partition("persist", 128 * MIB, _TYPE_DATA),
)
# GPT wants a MiB in front for alignment and some sectors at the end for its copy.
FIRST = MIB
TAIL = MIB

# All tries left, none done. Both numbers stand in the name from the start, so that re-arming patches
# characters in place and never changes a name's length.
COUNTER = "+3-0"
# No menu, no editor, nothing but our own programs, nothing written but the counter. No `default`: naming one
# would switch the counting off.
LOADER_CONF = b"timeout 0\neditor no\nauto-entries no\nauto-firmware no\nrandom-seed-mode off\n"

GATE_UID = 2001


def offsets() -> dict[str, tuple[int, int]]:
    """Each partition's offset and length in bytes."""
    at, found = FIRST, {}
    for partition in PARTITIONS:
        found[partition.name] = (at, partition.size)
        at += partition.size
    return found


def size() -> int:
    """The size of the whole disk in bytes."""
    return FIRST + sum(partition.size for partition in PARTITIONS) + TAIL


def partition(name: str) -> Partition:
    """The partition of that name."""
    return next(partition for partition in PARTITIONS if partition.name == name)


def table() -> str:
    """The partition table as sfdisk reads it."""
    rows = ["label: gpt", f"label-id: {DISK_ID}", "unit: sectors"]
    for row in PARTITIONS:
        start, length = (number // SECTOR for number in offsets()[row.name])
        rows.append(f"start={start}, size={length}, type={row.type}, uuid={row.id}, name={row.name}")
    return "\n".join(rows) + "\n"


def entry_name(slot: str) -> str:
    """The file name of a slot's program on its boot volume, all tries left."""
    return f"spine-{slot}{COUNTER}.efi"


# What a firmware looks for, and what that starts.
FIRST_PATH = "EFI/BOOT/BOOTX64.EFI"
LOADER_PATH = "EFI/systemd/systemd-bootx64.efi"
PROGRAMS = "EFI/Linux"
# Without a counter: a rescue that could be used up would be none.
RESCUE_PATH = f"{PROGRAMS}/spine-rescue.efi"


def program_path(slot: str) -> str:
    """Where a slot's program is on its boot volume."""
    return f"{PROGRAMS}/{entry_name(slot)}"


def volume(slot: str, first: bytes, loader: bytes, uki: bytes, rescue: bytes) -> dict[str, bytes]:
    """All files of a slot's boot volume, by their paths: everything that a firmware can start from it."""
    return {
        FIRST_PATH: first,
        LOADER_PATH: loader,
        "loader/loader.conf": LOADER_CONF,
        program_path(slot): uki,
        RESCUE_PATH: rescue,
    }


def make_boot(directory: Path, slot: str, files: Mapping[str, bytes], epoch: int) -> Path:
    """Make the boot volume of a slot with these files; the path of the image."""
    name = f"boot-{slot}"
    image = directory / name
    _sparse(image, partition(name).size)
    env = {"SOURCE_DATE_EPOCH": str(epoch), "MTOOLS_SKIP_CHECK": "1", "MTOOLSRC": os.devnull}
    # A volume id of our own: FAT's usual one is made from the time of day.
    number = uuid.UUID(name_id(f"{name} volume")).hex[:8]
    what = f"the boot volume {name} cannot be made"
    command: list[str | Path] = ["mkfs.vfat", "--invariant", "-F", "16", "-n", name.upper(), "-i", number]
    commands.run([*command, image], env=env, what=what)
    directories = {str(above) for path in files for above in PurePosixPath(path).parents} - {"."}
    commands.run(["mmd", "-i", image, *(f"::{path}" for path in sorted(directories))], env=env, what=what)
    for path, data in files.items():
        source = directory / "boot-file"
        source.write_bytes(data)
        os.utime(source, (epoch, epoch))
        commands.run(["mcopy", "-m", "-i", image, source, f"::{path}"], env=env, what=what)
        source.unlink()
    return image


# Written out, so that the host's mke2fs.conf changes nothing. No fast_commit: the gate's crash tests know
# the ordinary journal.
_EXT4_FEATURES = (
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)


def make_persist(directory: Path, epoch: int) -> Path:
    """Make the empty ext4 image of persist, its root directory the gate's alone; the path of the image."""
    image = directory / "persist"
    _sparse(image, partition("persist").size)
    env = {"E2FSPROGS_FAKE_TIME": str(epoch), "MKE2FS_CONFIG": os.devnull, "MKE2FS_DETERMINISTIC": "1"}
    options = f"root_owner={GATE_UID}:{GATE_UID},hash_seed={name_id('persist hash')},lazy_itable_init=0"
    what = "the filesystem of persist cannot be made"
    commands.run(
        [
            *("mkfs.ext4", "-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-J", "size=8"),
            *("-O", _EXT4_FEATURES, "-N", "8192", "-E", options, "-U", name_id("persist"), "-L", "persist"),
            image,
        ],
        env=env,
        what=what,
    )
    commands.run(
        ["debugfs", "-w", "-R", "set_inode_field <2> mode 040700", image],
        env=env,
        what=what,
    )
    return image


def write_disk(path: Path, parts: Mapping[str, bytes | Path]) -> None:
    """Write the disk's image: the table, and each partition's content at its place; the rest stays a hole.

    SpineError when a content is larger than its partition.
    """
    _sparse(path, size())
    commands.run(
        ["sfdisk", "--quiet", path], stdin=table().encode(), what="the partition table cannot be made"
    )
    with path.open("r+b") as disk:
        for name, content in parts.items():
            at, room = offsets()[name]
            data = content if isinstance(content, bytes) else content.read_bytes()
            if len(data) > room:
                raise SpineError(
                    f"the partition {name} is too small",
                    f"its content has {len(data)} bytes, it has {room}",
                    "make the root smaller (./spine build says where each megabyte goes)",
                )
            _write_sparse(disk.fileno(), at, data)


def _sparse(path: Path, length: int) -> None:
    with path.open("wb") as file:
        file.truncate(length)


def _write_sparse(descriptor: int, at: int, data: bytes) -> None:
    view, step, hole = memoryview(data), MIB, bytes(MIB)
    for start in range(0, len(data), step):
        piece = view[start : start + step]
        if piece != hole[: len(piece)]:
            os.pwrite(descriptor, piece, at + start)
