"""Secure Boot, judged by OVMF: what the owner's key signed starts, and what was changed does not.

How it is judged: the firmware, or systemd-boot in its name, writes `Access Denied` on the serial line, and
in the end there is the rescue, or nothing to boot; bay0, whose first act is a line there, writes none. That
each of these machines would start otherwise is shown by the signed one, and by one that was changed with
Secure Boot off. One try is left on each, for each refused one costs a restart.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest

from spine import paths
from spine.ground import accel, gpt
from spine.ground.disk import sparse_copy
from spine.ground.qemu import Machine
from spine.image import authenticode, enrolment, keys, uki
from spine.image.disk import COUNTER
from tests.integration.boots import Boot
from tests.integration.live import Live, spine

pytestmark = pytest.mark.machine

# From power-on until the firmware has tried all it has. Tried: 10 s emulated on two idle cores.
REFUSED_S = 240.0
GIVEN_UP = "No bootable option or device was found"
RESCUE = "Alpine-Spine: rescue"
ONE_TRY = "+1-2"
# What another system on this machine may have left: the entry of a slot, by name, so that tries do not count.
PINNED = enrolment.Variable(
    "LoaderEntryDefault",
    uuid.UUID("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"),
    "spine-b.efi\0".encode("utf-16-le"),
    0x7,
)
# The partitions that a firmware and systemd-boot look into.
VOLUMES = ("boot-a", "boot-b")
FIRST, LOADERS, PROGRAMS = "EFI/BOOT", "EFI/systemd", "EFI/Linux"


@pytest.fixture
def disk(report: Mapping[str, object], tmp_path: Path) -> Path:
    """A copy of the built disk."""
    assert report["version"]
    copy = tmp_path / "disk.img"
    sparse_copy(paths.out() / "spine.img", copy)
    return copy


@pytest.fixture
def power_on(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """Start machines on given disks; end them all afterwards."""
    started: list[Machine] = []

    def start(boot: Boot, disk: Path, *more: enrolment.Variable, secure: bool = True) -> Machine:
        machine = Machine(tmp_path / boot.name.lower())
        started.append(machine)
        how, _ = accel.choose("auto")
        machine.start(disk, accel=how, enroll=(*owner(), *more) if secure else ())
        return machine

    yield start
    for machine in started:
        machine.kill()


def owner() -> list[enrolment.Variable]:
    return [enrolment.variable(role, keys.boot_key(role).certificate) for role in keys.Role]


def mtools(volume: str, *words: str) -> str:
    env = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    command = [words[0], "-i", volume, *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def change(disk: Path, folder: str, how: Callable[[bytes], bytes]) -> int:
    """Change every program of a folder, in each boot volume; how many there were."""
    count = 0
    scratch = disk.with_suffix(".efi")
    for name, partition in gpt.read(disk).items():
        if name not in VOLUMES:
            continue
        volume = f"{disk}@@{partition.start}"
        letter = name[-1]
        spent = f"spine-{letter}{ONE_TRY}.efi"
        mtools(volume, "mren", f"::{PROGRAMS}/spine-{letter}{COUNTER}.efi", spent)
        for path in mtools(volume, "mdir", "-b", f"::{folder}").split():
            mtools(volume, "mcopy", "-n", path, str(scratch))
            scratch.write_bytes(how(scratch.read_bytes()))
            mtools(volume, "mcopy", "-D", "o", "-o", str(scratch), path)
            scratch.unlink()
            count += 1
    return count


def flipped(section: str) -> Callable[[bytes], bytes]:
    """One bit of the last byte of a section."""

    def how(program: bytes) -> bytes:
        # A program without such a section (the rescue) has another one changed.
        found = next((one for one in uki.sections(program) if one.name == section), uki.sections(program)[0])
        out = bytearray(program)
        out[found.offset + len(found.data) - 1] ^= 1
        return bytes(out)

    return how


def slower_watchdog(program: bytes) -> bytes:
    """A change of the kernel's command line that harms nobody; the rescue, which has none, is cut short."""
    if program.count(b" watchdog_thresh=30 ") != 1:
        return program[:-8]
    return program.replace(b" watchdog_thresh=30 ", b" watchdog_thresh=31 ")


@pytest.mark.proves("INV-SECURE-3")
@pytest.mark.proves("INV-SECURE-4")
@pytest.mark.proves("INV-SECURE-5")
def test_what_the_owner_signed_starts_and_the_firmware_is_asked(
    disk: Path, power_on: Callable[..., Machine]
) -> None:
    machine = power_on(Boot.SECURE, disk, PINNED)
    machine.wait_ready()
    live = Live("machine", machine)
    facts = live.boot_facts()
    assert facts["verified"] is True
    assert facts["secureBoot"] == "on"
    log = live.call("operator.log", organ="bay0", bytes=4096)["text"]
    assert isinstance(log, bytes)
    assert b"firmware: LoaderEntryDefault is removed" in log
    for name in ("bay0", *live.table()):
        mounts = cast(dict[str, object], live.probe("process", name))["mounts"]
        assert "efivarfs" not in json.dumps(mounts), name


CHANGES = {
    Boot.SECURE_UNSIGNED: (PROGRAMS, authenticode.unsigned, RESCUE),
    Boot.SECURE_LINE: (PROGRAMS, slower_watchdog, RESCUE),
    Boot.SECURE_LOADER: (LOADERS, flipped(".sdmagic"), RESCUE),
    Boot.SECURE_FIRST: (FIRST, flipped(".text"), GIVEN_UP),
}


@pytest.mark.proves("INV-RESCUE-4")
@pytest.mark.proves("INV-SECURE-3")
@pytest.mark.parametrize("boot", CHANGES, ids=lambda boot: boot.name.lower())
def test_what_was_changed_does_not_start(boot: Boot, disk: Path, power_on: Callable[..., Machine]) -> None:
    folder, how, end = CHANGES[boot]
    assert change(disk, folder, how)
    machine = power_on(boot, disk)
    machine.console.wait_text(end, REFUSED_S)
    said = machine.console.text()
    # The first program passes over a loader that it may not start, and says nothing.
    assert "Access Denied" in said or boot is Boot.SECURE_LOADER
    assert "spine: stage" not in said


def test_a_machine_without_secure_boot_says_so(machine: Live) -> None:
    assert machine.boot_facts()["secureBoot"] == "off"
    assert b"SECURE BOOT OFF: who has the disk in hand" in spine("status")


def test_without_secure_boot_the_same_change_runs(disk: Path, power_on: Callable[..., Machine]) -> None:
    assert change(disk, PROGRAMS, slower_watchdog)
    machine = power_on(Boot.SECURE_OFF, disk, secure=False)
    machine.console.wait_text("spine: stage bay0", REFUSED_S)
