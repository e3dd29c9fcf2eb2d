"""Every damage of every case on a small disk: it changes something, in its own region, and by its seed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import small
from tests.faults.cases import Case, Damage, Fault, every
from tests.faults.edits import NoEffect, edits
from tests.faults.places import Places, places

READ_AT = Callable[[int, int], bytes]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The small disk's bytes."""
    return small.make(tmp_path_factory.mktemp("disk")).read_bytes()


@pytest.fixture(scope="module")
def read(data: bytes) -> READ_AT:
    return lambda at, length: data[at : at + length]


@pytest.fixture(scope="module")
def found(read: READ_AT, data: bytes) -> Places:
    return places(read, len(data), journal=((8192, 4096),), database=((16384, 4096), (32768, 8192)))


def test_the_regions_hold_what_they_are_called(read: READ_AT, found: Places) -> None:
    def content(region: str) -> bytes:
        return b"".join(read(at, length) for at, length in found.regions[region])

    for pair in "ab":
        assert content(f"boot-{pair}/first") == small.FIRST
        assert content(f"boot-{pair}/loader") == small.LOADER
        assert content(f"boot-{pair}/rescue") == small.RESCUE
        assert content(f"boot-{pair}/uki-cmdline") == small.LINE
        assert content(f"boot-{pair}/uki-kernel").startswith(f"kernel {pair} 1".encode())
        assert content(f"boot-{pair}/uki-header") == small.program(pair, "1")[:4096]
        assert content(f"boot-{pair}/fat-1") == content(f"boot-{pair}/fat-2")
        assert content(f"slot-{pair}/tables") == small.root()[-9000:]
        assert content(f"slot-{pair}/superblock")[:4] == b"hsqs"
        assert content(f"slot-{pair}/uki-a") == small.program("a", "1")
        assert content(f"slot-{pair}/manifest-text").startswith(b'{"')
        assert not any(content(f"slot-{pair}/zeros"))
        assert set(content(f"slot-{pair}/tree-top") + content(f"slot-{pair}/tree-leaf")) == {ord("T")}
    assert content("gpt/header")[:8] == content("gpt/backup-header")[:8] == b"EFI PART"
    assert content("gpt/entries") == content("gpt/backup-entries")
    signature = content("slot-a/manifest-signature")
    head = read(found.regions["slot-a/manifest-signature"][0][0] - 20, 20)
    small.KEY.public_key().verify(signature, head + content("slot-a/manifest-text"))


@pytest.mark.parametrize("case", every(), ids=lambda case: str(case.name))
def test_a_case_changes_bytes_of_its_regions_and_is_what_its_seed_says(
    case: Case, found: Places, read: READ_AT
) -> None:
    made = edits(case, found, read, "1")
    assert made == edits(case, found, read, "1")
    assert made
    places_of_names = {"boot-a", "boot-b"}
    for edit in made:
        assert read(edit.at, len(edit.data)) != edit.data
        inside = any(
            at <= edit.at and edit.at + len(edit.data) <= at + length
            for fault in case.faults
            for region in (
                fault.region,
                # A name and a size stand in the directory, not in the file.
                *(places_of_names if fault.damage in (Damage.MISSING, Damage.SHORT) else ()),
            )
            for at, length in found.regions[region]
        )
        assert inside


def changed(data: bytes, found: Places, read: READ_AT, case: Case, target: Path) -> Path:
    out = bytearray(data)
    for edit in edits(case, found, read, "1"):
        out[edit.at : edit.at + len(edit.data)] = edit.data
    boot = found.partitions["boot-a"]
    target.write_bytes(out[boot.start : boot.start + boot.size])
    return target


def names(volume: Path) -> str:
    command = ["mdir", "-/", "-b", "-i", str(volume), "::"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_mtools_sees_the_missing_the_short_and_the_spent(
    data: bytes, found: Places, read: READ_AT, tmp_path: Path
) -> None:
    def case(region: str, damage: Damage) -> Path:
        return changed(data, found, read, Case((Fault(region, damage),)), tmp_path / "volume")

    whole = tmp_path / "whole"
    boot = found.partitions["boot-a"]
    whole.write_bytes(data[boot.start : boot.start + boot.size])
    assert "spine-a+0-3.efi" in names(case("boot-a", Damage.SPENT))
    for region, path in (
        ("boot-a/uki-header", "EFI/Linux/spine-a+3-0.efi"),
        ("boot-a/first", "EFI/BOOT/BOOTX64.EFI"),
        ("boot-a/loader", "EFI/systemd/systemd-bootx64.efi"),
        ("boot-a/loader-conf", "loader/loader.conf"),
        ("boot-a/rescue", "EFI/Linux/spine-rescue.efi"),
    ):
        left = set(names(whole).splitlines()) - set(names(case(region, Damage.MISSING)).splitlines())
        assert left == {f"::/{path}"}
    short = case("boot-a/loader", Damage.SHORT)
    done = subprocess.run(
        ["mtype", "-i", str(short), "::/EFI/systemd/systemd-bootx64.efi"], capture_output=True
    )
    assert done.stdout == small.LOADER[: len(small.LOADER) // 2]


def test_a_damage_that_cannot_be_one_is_refused(found: Places, read: READ_AT) -> None:
    for damage in (Damage.ZERO, Damage.SECTOR, Damage.TAIL):
        with pytest.raises(NoEffect):
            edits(Case((Fault("slot-a/zeros", damage),)), found, read, "1")
    with pytest.raises(KeyError):
        edits(Case((Fault("slot-c", Damage.BIT),)), found, read, "1")
