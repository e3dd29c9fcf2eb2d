"""Where each region of a disk lies that the fault matrix damages: from the bytes of a whole, unbooted disk.

Pure but for the callable that reads. A region is a name like `boot-a/uki-kernel` and one or more stretches of
the disk, in the order of the content.
Fails: with `ValueError` or `KeyError` for a disk that is not as a build leaves it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spine.ground import gpt
from tests.faults import volume

Read = Callable[[int, int], bytes]
Stretch = tuple[int, int]

SECTOR = 512
BLOCK = 4096
PAIRS = ("a", "b")
FIRST, LOADER = "EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"
CONF, RESCUE = "loader/loader.conf", "EFI/Linux/spine-rescue.efi"
LINUX = "EFI/Linux"
# The manifest's block: magic, length of the text, signature, then the text.
MANIFEST_BYTES = 16 * 1024
MANIFEST_HEAD = struct.Struct("<16sI64s")
GPT_ENTRIES_BYTES = 128 * 128
# ext4: the superblock's place, and that of its number for the journal's inode.
EXT4_SUPERBLOCK = (1024, 1024)


@dataclass(frozen=True)
class Places:
    """The regions by name, the partitions, and the names on the boot volumes (places on the disk)."""

    regions: Mapping[str, tuple[Stretch, ...]]
    partitions: Mapping[str, gpt.Partition]
    volumes: Mapping[str, volume.Volume]

    def program(self, pair: str) -> volume.File:
        """The program on a pair's boot volume whose name counts its tries."""
        return counted(self.volumes[pair], pair)


def counted(found: volume.Volume, pair: str) -> volume.File:
    """The file `spine-PAIR+L-D.efi` of a volume. KeyError."""
    for file in found.files:
        if file.path.lower().startswith(f"{LINUX}/spine-{pair}+".lower()):
            return file
    raise KeyError(f"no program with tries on boot-{pair}")


def places(
    read: Read, size: int, *, journal: tuple[Stretch, ...] = (), database: tuple[Stretch, ...] = ()
) -> Places:
    """All regions of a disk of `size` bytes. `journal` and `database` are where those lie in `persist`."""
    partitions = gpt.parse(read(0, gpt.TABLE_BYTES))
    regions: dict[str, tuple[Stretch, ...]] = {
        "gpt/mbr": ((0, SECTOR),),
        "gpt/header": ((SECTOR, SECTOR),),
        "gpt/entries": ((2 * SECTOR, GPT_ENTRIES_BYTES),),
        "gpt/backup-header": ((size - SECTOR, SECTOR),),
        "gpt/backup-entries": ((size - SECTOR - GPT_ENTRIES_BYTES, GPT_ENTRIES_BYTES),),
    }
    volumes: dict[str, volume.Volume] = {}
    for pair in PAIRS:
        boot, slot = partitions[f"boot-{pair}"], partitions[f"slot-{pair}"]
        volumes[pair] = volume.parse(read(boot.start, boot.size))
        regions |= _named(f"boot-{pair}", boot, _boot(read, boot.start, volumes[pair], pair))
        regions |= _named(f"slot-{pair}", slot, _slot(read, slot))
        regions[f"boot-{pair}"] = ((boot.start, boot.size),)
        regions[f"slot-{pair}"] = ((slot.start, slot.size),)
    persist, personas = partitions["persist"], partitions["personas"]
    regions["personas"] = ((personas.start, personas.size),)
    regions["persist/superblock"] = ((persist.start + EXT4_SUPERBLOCK[0], EXT4_SUPERBLOCK[1]),)
    for name, found in (("journal", journal), ("database", database)):
        if found:
            regions[f"persist/{name}"] = tuple((persist.start + at, length) for at, length in found)
    return Places(regions, partitions, volumes)


def _named(
    prefix: str, partition: gpt.Partition, found: Mapping[str, tuple[Stretch, ...]]
) -> dict[str, tuple[Stretch, ...]]:
    return {
        f"{prefix}/{name}": tuple((partition.start + at, length) for at, length in stretches)
        for name, stretches in found.items()
    }


def _boot(read: Read, start: int, found: volume.Volume, pair: str) -> dict[str, tuple[Stretch, ...]]:
    program = counted(found, pair)
    regions: dict[str, tuple[Stretch, ...]] = {
        "boot-sector": ((0, SECTOR),),
        "fat-1": ((found.table_at, found.table_bytes),),
        "fat-2": ((found.table_at + found.table_bytes, found.table_bytes),),
        "root-directory": ((found.root_at, found.root_bytes),),
        "linux-directory": found.file(LINUX).runs,
        "first": found.file(FIRST).runs,
        "loader": found.file(LOADER).runs,
        "loader-conf": found.file(CONF).runs,
    }
    sections = _sections(b"".join(read(start + at, length) for at, length in program.runs))
    regions["uki-header"] = _within(program.runs, 0, BLOCK)
    regions["uki-cmdline"] = _within(program.runs, *sections[".cmdline"])
    regions["uki-kernel"] = _within(program.runs, *sections[".linux"])
    regions["rescue"] = found.file(RESCUE).runs
    return regions


def _within(runs: tuple[Stretch, ...], at: int, length: int) -> tuple[Stretch, ...]:
    """The part of a file from `at` on, as places."""
    found = []
    for start, room in runs:
        if at < room and length:
            count = min(room - at, length)
            found.append((start + at, count))
            at, length = 0, length - count
        else:
            at -= room if at >= room else 0
    return tuple(found)


def _sections(program: bytes) -> dict[str, Stretch]:
    """Name, place and length of a PE program's sections."""
    [header] = struct.unpack_from("<I", program, 60)
    [count] = struct.unpack_from("<H", program, header + 6)
    [optional] = struct.unpack_from("<H", program, header + 20)
    found = {}
    for number in range(count):
        row = header + 24 + optional + 40 * number
        name = program[row : row + 8].rstrip(b"\0").decode("ascii")
        virtual, _address, length, at = struct.unpack_from("<IIII", program, row + 8)
        found[name] = (at, min(virtual, length))
    return found


def _slot(read: Read, partition: gpt.Partition) -> dict[str, tuple[Stretch, ...]]:
    head = read(partition.start, 96)
    if head[:4] != b"hsqs":
        raise ValueError("no SquashFS at the start of a slot")
    [used] = struct.unpack_from("<Q", head, 40)
    [inodes] = struct.unpack_from("<Q", head, 64)
    root = used + -used % BLOCK
    tree, level = 0, root // BLOCK
    levels = []
    while level > 1:
        level = -(-level // 128)
        levels.append(level * BLOCK)
        tree += level * BLOCK
    at = root + tree
    block = read(partition.start + at, MANIFEST_BYTES)
    _magic, length, _signature = MANIFEST_HEAD.unpack_from(block)
    manifest = json.loads(block[MANIFEST_HEAD.size : MANIFEST_HEAD.size + length])
    parts = {name: (row[0], row[1]) for name, row in manifest["parts"].items()}
    end = max(start + size for start, size in parts.values())
    end += -end % BLOCK
    return {
        "superblock": ((0, 96),),
        # The tables are read when it is mounted; of the data, a boot reads some.
        "tables": ((inodes, used - inodes),),
        "data": ((BLOCK, inodes - BLOCK),),
        "tree-top": ((root, BLOCK),),
        "tree-leaf": ((root + tree - levels[0], levels[0]),),
        "manifest-text": ((at + MANIFEST_HEAD.size, length),),
        "manifest-signature": ((at + 20, 64),),
        **{name: (parts[name],) for name in ("uki-a", "uki-b", "boot")},
        "zeros": ((end, partition.size - end),),
    }
