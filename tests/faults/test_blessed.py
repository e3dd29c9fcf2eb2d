"""What is blessed: the bytes of a build, whatever the counters say; and nothing else, down to one bit."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spine.ground import gpt
from spine.image import disk as image_disk
from tests.faults import small, volume
from tests.faults.blessed import Look, Release, counters, fingerprint, look


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.make(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.make(tmp_path_factory.mktemp("other"), "2")


@pytest.fixture(scope="module")
def releases(pristine: Path, other: Path) -> list[Release]:
    return [Release.of(name, disk, gpt.read(disk)) for name, disk in (("old", pristine), ("new", other))]


@pytest.fixture
def disk(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copyfile(pristine, tmp_path / "disk")


def flip(disk: Path, at: int) -> None:
    with open(disk, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def mtools(disk: Path, at: int, *words: str) -> None:
    subprocess.run([words[0], "-i", f"{disk}@@{at}", *words[1:]], check=True, capture_output=True)


def test_a_pristine_disk_is_whole_and_armed_and_another_build_is_another_release(
    pristine: Path, other: Path, releases: list[Release]
) -> None:
    for path, name in ((pristine, "old"), (other, "new")):
        seen = look(path, releases)
        assert (seen.whole, seen.armed, seen.any_slot) == (name, True, True)
        assert all(pair.program and pair.first and pair.loader for pair in seen.pairs.values())
    assert look(other, releases[:1]).whole == ""
    assert look(other, releases[:1]).pairs["a"].program is False


def test_a_renamed_program_is_the_same_volume_with_another_counter(
    disk: Path, releases: list[Release]
) -> None:
    at = releases[0].partitions["boot-b"].start
    mtools(disk, at, "mren", "::/EFI/Linux/spine-b+3-0.efi", "spine-b+2-1.efi")
    mtools(disk, at, "mattrib", "+a", "::/EFI/Linux")
    seen = look(disk, releases)
    assert seen.whole == "old"
    assert not seen.armed
    assert counters(disk, releases[0]) == {"a": (3, 0), "b": (2, 1)}


def test_any_bit_of_a_slot_counts(disk: Path, releases: list[Release]) -> None:
    for name in ("slot-a", "slot-b"):
        partition = releases[0].partitions[name]
        for at in (0, 300 * 4096 + 5, partition.size - 1):
            flip(disk, partition.start + at)
            assert look(disk, releases).pairs[name[-1]].slot == ""
            flip(disk, partition.start + at)
    assert look(disk, releases).whole == "old"


def test_any_bit_of_a_volume_counts_outside_of_directories() -> None:
    data = bytearray(VOLUME)
    found = volume.parse(data)
    whole = fingerprint(data, found)
    chance = random.Random(1)
    directories = {
        at // 512
        for start, length in [
            (found.root_at, found.root_bytes),
            *(run for file in found.files if file.directory for run in file.runs),
        ]
        for at in range(start, start + length, 512)
    }
    written = [sector for sector in range(len(data) // 512) if any(data[sector * 512 : sector * 512 + 512])]
    some = [sector for sector in written if sector not in directories]
    for sector in [0, *chance.sample(some, 10), len(data) // 512 - 1]:
        at = sector * 512 + chance.randrange(512)
        data[at] ^= 1
        with contextlib.suppress(volume.NotAVolume):
            assert fingerprint(data, volume.parse(data)) != whole
        data[at] ^= 1
    assert fingerprint(data, found) == whole


def test_a_file_that_is_added_renamed_or_gone_is_a_difference(disk: Path, releases: list[Release]) -> None:
    at = releases[0].partitions["boot-a"].start

    def seen() -> Look:
        return look(disk, releases)

    mtools(disk, at, "mmd", "::/EFI/more")
    assert seen().pairs["a"].volume == ""
    mtools(disk, at, "mrd", "::/EFI/more")
    mtools(disk, at, "mren", "::/loader/loader.conf", "loader.txt")
    assert seen().pairs["a"].volume == ""
    mtools(disk, at, "mdel", "::/EFI/BOOT/BOOTX64.EFI")
    assert (seen().pairs["a"].first, seen().pairs["a"].loader) == (None, True)
    mtools(disk, at, "mdel", "::/EFI/Linux/spine-a+3-0.efi")
    assert seen().pairs["a"].program is None
    assert counters(disk, releases[0])["a"] is None
    assert seen().pairs["b"].volume == "old"


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 40 * 4096), st.binary(min_size=1, max_size=600))
def test_no_bytes_make_the_reader_of_volumes_fail_otherwise_than_by_saying_so(at: int, noise: bytes) -> None:
    before = SCRATCH[at : at + len(noise)]
    SCRATCH[at : at + len(noise)] = noise
    try:
        with contextlib.suppress(volume.NotAVolume):
            volume.parse(SCRATCH)
    finally:
        SCRATCH[at : at + len(noise)] = before


def _volume() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        files = image_disk.volume("a", small.FIRST, small.LOADER, small.program("a", "1"), small.RESCUE)
        return image_disk.make_boot(Path(name), "a", files, small.EPOCH).read_bytes()


VOLUME = _volume()
SCRATCH = bytearray(VOLUME)
