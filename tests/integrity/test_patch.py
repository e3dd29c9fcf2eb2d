"""The one write: on real volumes, only the digits change, and other tools read the new name."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from organs.integrity import fat, pairs, patch, rearm
from tests.integrity import volumes


def differing(before: bytes, after: bytes) -> list[int]:
    assert len(before) == len(after)
    step = 4096
    blocks = [at for at in range(0, len(before), step) if before[at : at + step] != after[at : at + step]]
    return [i for at in blocks for i in range(at, min(at + step, len(before))) if before[i] != after[i]]


def arm(path: Path, slot: str, state: tuple[int, int] = rearm.ARMED) -> str:
    fd = os.open(path, os.O_RDWR)
    try:
        return pairs.set_counter(fd, slot, state)
    finally:
        os.close(fd)


def names(fd: int) -> tuple[fat.Entry, ...]:
    return fat.entries(lambda offset, length: os.pread(fd, length, offset))


@pytest.mark.proves("INV-SLOT-1")
@pytest.mark.parametrize("kind", [16, 32])
@pytest.mark.parametrize("counter", ["+2-1", "+1-2", "+0-3"])
def test_rearms_in_place(tmp_path: Path, kind: int, counter: str) -> None:
    path = volumes.make(
        tmp_path / "esp.img", kind, ["spine-b+2-1.efi", f"spine-a{counter}.efi", "rescue.efi"], crowd=20
    )
    before = path.read_bytes()
    listed = volumes.listing(path)
    assert arm(path, "a") == f"spine-a{counter}.efi is now spine-a+3-0.efi"
    after = path.read_bytes()
    changed = differing(before, after)
    assert 0 < len(changed) <= 2
    assert len({at // 512 for at in changed}) == 1
    assert volumes.listing(path) == listed - {f"spine-a{counter}.efi"} | {"spine-a+3-0.efi"}
    assert volumes.mtools(path, "mtype", "::EFI/Linux/spine-a+3-0.efi") == f"spine-a{counter}.efi"
    check = subprocess.run(["fsck.vfat", "-n", str(path)], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout
    assert arm(path, "a") == "the counter is as it should be"
    assert path.read_bytes() == after
    arm(path, "a", rearm.DISARMED)
    assert volumes.listing(path) == listed - {f"spine-a{counter}.efi"} | {"spine-a+0-3.efi"}


def test_after_a_real_rename(tmp_path: Path) -> None:
    """As systemd-boot does it, down to nothing left, with the leftovers of each rename in the directory."""
    path = volumes.make(tmp_path / "esp.img", 32, ["spine-a+3-0.efi", "spine-b+3-0.efi"])
    for _ in range(2):
        for old, new in (("+3-0", "+2-1"), ("+2-1", "+1-2"), ("+1-2", "+0-3")):
            volumes.mtools(path, "mren", f"::EFI/Linux/spine-a{old}.efi", f"spine-a{new}.efi")
        arm(path, "a")
        assert volumes.listing(path) == {"spine-a+3-0.efi", "spine-b+3-0.efi"}


def test_a_second_name_of_the_file_is_put_out_of_the_way(tmp_path: Path) -> None:
    path = volumes.make(tmp_path / "esp.img", 32, ["spine-a+2-1.efi", "spine-a+1-2.efi", "spine-b+3-0.efi"])
    data = bytearray(path.read_bytes())
    at = {
        e.name: volumes.short_entry(data, e.at[0])
        for e in fat.entries(lambda o, n: bytes(data[o : o + n]))
        if e.at
    }
    volumes.share_chain(data, at["spine-a+2-1.efi"], at["spine-a+1-2.efi"])
    path.write_bytes(data)
    arm(path, "a")
    assert volumes.listing(path) == {"spine-a+3-0.efi", "spine-a+0-9.efi", "spine-b+3-0.efi"}


@pytest.mark.proves("INV-SLOT-2")
def test_a_counter_across_two_sectors_is_not_touched(tmp_path: Path) -> None:
    """One write could not change it whole. The digits are moved apart by hand: no tool writes them so."""
    path = volumes.make(tmp_path / "esp.img", 32, ["spine-a+2-1.efi"])
    fd = os.open(path, os.O_RDWR)
    try:
        found = names(fd)
        changes = rearm.decide([e.name for e in found], "a")
        assert isinstance(changes, tuple)
        (change,) = changes
        entry = found[change.index]
        apart = list(entry.at)
        apart[change.counted.done_at] += patch.SECTOR_BYTES
        split = dataclasses.replace(entry, at=tuple(apart))
        before = path.read_bytes()
        entries = [split if e is entry else e for e in found]
        with pytest.raises(patch.Unpatchable):
            patch.apply(fd, entries, changes)
    finally:
        os.close(fd)
    assert path.read_bytes() == before


@pytest.mark.proves("INV-SLOT-2")
def test_bytes_that_changed_meanwhile_are_not_overwritten(tmp_path: Path) -> None:
    path = volumes.make(tmp_path / "esp.img", 16, ["spine-a+2-1.efi"])
    fd = os.open(path, os.O_RDWR)
    try:
        found = names(fd)
        changes = rearm.decide([e.name for e in found], "a")
        assert isinstance(changes, tuple)
        volumes.mtools(path, "mren", "::EFI/Linux/spine-a+2-1.efi", "spine-a+1-2.efi")
        before = path.read_bytes()
        try:
            patch.apply(fd, found, changes)
        except patch.Unpatchable:
            assert path.read_bytes() == before
        else:
            pytest.fail("a name that is gone was patched")
    finally:
        os.close(fd)


def test_a_device_that_refuses_writes_says_so(tmp_path: Path) -> None:
    path = volumes.make(tmp_path / "esp.img", 16, ["spine-a+2-1.efi"])
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            pairs.set_counter(fd, "a", rearm.ARMED)
    finally:
        os.close(fd)
