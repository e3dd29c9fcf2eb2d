"""The smallest Debian that boots with systemd, made once by mmdebstrap and kept in the cache.

Touches: `bench/` in the cache, the network by mmdebstrap, as root. What cannot be had is an `Absent`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import peers
from tests.bench.bench import Absent

RELEASE: Final = "bookworm"
PACKAGES: Final = ("systemd-sysv", "linux-image-cloud-amd64", "initramfs-tools", "busybox-static")
DISK_MIB: Final = 640
# Where the first program of a user would be: as soon as systemd lets an ordinary service begin.
SERVICE: Final = """[Unit]
Description=the first program
[Service]
Type=oneshot
StandardOutput=tty
TTYPath=/dev/ttyS0
ExecStart=/usr/bin/busybox sh -c 'read up rest </proc/uptime; echo began $up'
[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Debian:
    """Its files: a disk to boot from, kernel and initrd, and the root packed as ours is."""

    disk: Path
    kernel: Path
    initrd: Path
    packed: Path


def debian() -> Debian:
    """Made when it is not there yet: a minute or two, and 150 MB of downloads."""
    if os.geteuid() != 0:
        raise Absent("mmdebstrap needs root to make a system that boots")
    key = hashlib.sha256(repr((RELEASE, PACKAGES, DISK_MIB, SERVICE)).encode()).hexdigest()[:16]
    program, environment = peers.program("mmdebstrap", "mmdebstrap")
    with peers.locked() as base:
        folder = base / f"debian-boot-{key}"
        if not folder.is_dir():
            fresh = base / f"fresh-{os.getpid()}"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            try:
                _make(fresh, program, environment)
                fresh.rename(folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    return Debian(folder / "disk", folder / "vmlinuz", folder / "initrd", folder / "root.squashfs")


def _make(folder: Path, program: Path, environment: dict[str, str]) -> None:
    root = folder / "root"
    words = [str(program), "--variant=minbase", f"--include={','.join(PACKAGES)}", "--format=directory"]
    peers.run([*words, RELEASE, str(root)], environment=environment)
    unit = root / "etc/systemd/system/first.service"
    unit.write_text(SERVICE)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "first.service").symlink_to("/etc/systemd/system/first.service")
    (root / "etc/fstab").write_text("")
    # The kernel and its initrd are told to QEMU, and count for themselves.
    for name, kept in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        [found] = (root / "boot").glob(kept)
        shutil.move(found, folder / name)
    peers.run(
        ["mksquashfs", str(root), str(folder / "root.squashfs"), "-quiet", "-no-progress", "-comp", "zstd"]
    )
    disk = folder / "disk"
    with open(disk, "wb") as file:
        file.truncate(DISK_MIB << 20)
    peers.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), str(disk)])
    shutil.rmtree(root)
