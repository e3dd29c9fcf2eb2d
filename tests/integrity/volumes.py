"""Real FAT volumes for the tests: made by mkfs.vfat and mtools, then damaged on purpose."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

# Small enough to be quick; large enough for each kind to be what it says.
MEBIBYTES = {16: 16, 32: 40}


def make(path: Path, kind: int, names: list[str], *, cluster_sectors: int = 1, crowd: int = 0) -> Path:
    """A FAT16 or FAT32 image with `names` in EFI/Linux, each a small file that holds its own name.

    `crowd` puts that many other files before them, so that the names lie in later clusters.
    """
    path.unlink(missing_ok=True)
    geometry = ["-F", str(kind), "-s", str(cluster_sectors)]
    blocks = str(MEBIBYTES[kind] * 1024)
    subprocess.run(
        ["mkfs.vfat", "--invariant", *geometry, "-C", str(path), blocks], check=True, capture_output=True
    )
    mtools(path, "mmd", "::EFI", "::EFI/Linux")
    source = path.with_suffix(".file")
    crowd_dir = path.with_suffix(".crowd")
    if crowd:
        crowd_dir.mkdir(exist_ok=True)
        for number in range(crowd):
            (crowd_dir / f"something-else-{number:04}.conf").write_bytes(b"x")
        mtools(path, "mcopy", *sorted(map(str, crowd_dir.iterdir())), "::EFI/Linux/")
    for name in names:
        source.write_bytes(name.encode())
        mtools(path, "mcopy", str(source), f"::EFI/Linux/{name}")
    source.unlink(missing_ok=True)
    return path


def mtools(path: Path, command: str, *arguments: str) -> str:
    """Run one mtools command on the image."""
    done = subprocess.run(
        [command, "-i", str(path), *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "MTOOLS_SKIP_CHECK": "1", "MTOOLS_NO_VFAT": "0"},
    )
    return done.stdout


def listing(path: Path) -> set[str]:
    """The names of EFI/Linux as mtools sees them."""
    return {line.rsplit("/", 1)[-1] for line in mtools(path, "mdir", "-b", "::EFI/Linux").split()}


def short_entry(data: bytes | bytearray, long_name_at: int) -> int:
    """Where the short entry of a long name lies, by the position of the name's first character."""
    at = long_name_at // 32 * 32
    while data[at + 11] == 0x0F:
        at += 32
    return at


def first_cluster(data: bytes | bytearray, entry_at: int) -> int:
    """The first cluster an entry names."""
    (low,) = struct.unpack_from("<H", data, entry_at + 26)
    (high,) = struct.unpack_from("<H", data, entry_at + 20)
    return int(high << 16 | low)


def share_chain(data: bytearray, keeps_at: int, takes_at: int) -> None:
    """Make one entry name the chain of another, as a rename that was cut short leaves it."""
    data[takes_at + 20 : takes_at + 22] = data[keeps_at + 20 : keeps_at + 22]
    data[takes_at + 26 : takes_at + 32] = data[keeps_at + 26 : keeps_at + 32]
