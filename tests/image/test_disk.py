"""The disk's parts are whole by the tools that check such things, and the same each time."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from spine.errors import SpineError
from spine.image import disk
from spine.image.cache import file_digest

EPOCH = 1767225600
UKIS = {"a": b"MZ-a" * 300_000, "b": b"MZ-b" * 300_000}


def tool(*words: str | Path) -> str:
    env = {**os.environ, "PATH": "/usr/sbin:/sbin:" + os.environ["PATH"], "LC_ALL": "C"}
    return subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout


def test_partitions_do_not_overlap_and_the_table_says_so(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    disk.write_disk(image, {"boot-a": b"first", "persist": b"last"})
    assert image.stat().st_size == disk.size()
    assert image.stat().st_blocks * 512 < 2**20, "the image must be sparse"
    dump = tool("sfdisk", "--dump", image)
    rows = re.findall(r"start=\s*(\d+), size=\s*(\d+), type=\S+, uuid=(\S+), name=\"([^\"]+)\"", dump)
    assert [row[3] for row in rows] == [
        "boot-a",
        "boot-b",
        "slot-a",
        "slot-b",
        "personas",
        "persist",
    ]
    end = 0
    for start, length, uuid, name in rows:
        assert (int(start) * 512, int(length) * 512) == disk.offsets()[name]
        assert uuid.lower() == disk.partition(name).id
        assert int(start) >= end
        assert int(start) % 2048 == 0
        end = int(start) + int(length)
    tool("sfdisk", "--verify", image)
    with image.open("rb") as file:
        for name, content in (("boot-a", b"first"), ("persist", b"last")):
            file.seek(disk.offsets()[name][0])
            assert file.read(len(content)) == content


def test_slots_are_of_one_size_and_hold_the_promise() -> None:
    assert disk.partition("slot-a").size == disk.partition("slot-b").size >= 40_000_000


def test_content_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpineError, match="boot-b is too small"):
        disk.write_disk(tmp_path / "disk", {"boot-b": bytes(disk.partition("boot-b").size + 1)})


@pytest.mark.parametrize("slot", UKIS)
def test_a_boot_volume_is_whole_and_its_own_program_carries_the_counter(tmp_path: Path, slot: str) -> None:
    files = disk.volume(slot, b"MZ-first", b"MZ-loader", UKIS[slot], b"MZ-rescue")
    image = disk.make_boot(tmp_path, slot, files, EPOCH)
    tool("fsck.fat", "-n", image)
    listing = tool("mdir", "-b", "-/", "-i", image, "::")
    assert {line for line in listing.splitlines() if not line.endswith("/")} == {
        "::/EFI/BOOT/BOOTX64.EFI",
        "::/EFI/systemd/systemd-bootx64.efi",
        f"::/EFI/Linux/spine-{slot}+3-0.efi",
        "::/EFI/Linux/spine-rescue.efi",
        "::/loader/loader.conf",
    }
    # The counter is patched in place: it must lie in the first piece (13 characters) of the long name.
    assert disk.entry_name(slot).index("+3-0") + 4 <= 13
    data = image.read_bytes()
    assert {letter: data.count(uki) for letter, uki in UKIS.items()} == {
        letter: int(letter == slot) for letter in UKIS
    }


def test_the_firmware_finds_both_volumes(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    disk.write_disk(image, {})
    types = dict(re.findall(r"type=(\S+), uuid=\S+ name=\"(boot-.)\"", tool("sfdisk", "--dump", image)))
    # What the UEFI and the Boot Loader Specification call an ESP and an extended boot loader partition.
    assert {name: kind.lower() for kind, name in types.items()} == {
        "boot-a": "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
        "boot-b": "bc13c2ff-59e6-4262-a352-b275fd6f7172",
    }


def test_persist_belongs_to_the_gate_alone(tmp_path: Path) -> None:
    image = disk.make_persist(tmp_path, EPOCH)
    tool("e2fsck", "-f", "-n", image)
    root = tool("debugfs", "-R", "stat <2>", image)
    assert re.search(r"Mode:\s+0700", root)
    assert re.search(r"User:\s+2001\s+Group:\s+2001", root)
    features = tool("dumpe2fs", "-h", image)
    assert "metadata_csum" in features
    assert "has_journal" in features
    assert "fast_commit" not in features


def test_the_same_parts_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("one", "another-directory"):
        place = tmp_path / name
        place.mkdir()
        parts = {
            f"boot-{slot}": disk.make_boot(place, slot, disk.volume(slot, b"MZ", b"MZ", uki, b"MZ-r"), EPOCH)
            for slot, uki in UKIS.items()
        }
        persist = disk.make_persist(place, EPOCH)
        disk.write_disk(place / "disk", {**parts, "slot-a": b"slot", "persist": persist})
        made.append(file_digest(place / "disk"))
    assert made[0] == made[1]
