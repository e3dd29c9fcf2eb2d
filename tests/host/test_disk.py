"""The disk that runs: a copy of the image; a rebuild renews the system and keeps the state."""

import random
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine.errors import Exit, SpineError
from spine.ground import disk, gpt
from spine.ground.gpt import GptError

MIB = 1 << 20
LAYOUT = (("boot-a", 1), ("slot-a", 2), ("slot-b", 2), ("personas", 1), ("persist", 2))


def image(path: Path, fill: bytes, layout: tuple[tuple[str, int], ...] = LAYOUT) -> Path:
    """An image as sfdisk makes it; each partition begins with a page of `fill` and its name."""
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        file.truncate((sum(size for _, size in layout) + 3) * MIB)
    script = "label: gpt\n" + "".join(f"size={size}MiB, name={name}\n" for name, size in layout)
    tool = "/usr/sbin/sfdisk"
    subprocess.run([tool, "-q", path], input=script.encode(), check=True, capture_output=True)
    for name, part in gpt.read(path).items():
        put(path, part, fill + name.encode())
    return path


def put(path: Path, part: gpt.Partition, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(part.start)
        file.write(data.ljust(4096, b"."))


def get(path: Path, name: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(gpt.read(path)[name].start)
        return file.read(4096).rstrip(b".")


def test_sfdisks_table_is_read(tmp_path: Path) -> None:
    table = gpt.read(image(tmp_path / "i", b"1 "))
    assert [(p.name, p.size) for p in table.values()] == [(name, size * MIB) for name, size in LAYOUT]
    assert min(p.start for p in table.values()) == MIB


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with open(image(tmp_path_factory.mktemp("head") / "i", b""), "rb") as file:
        return file.read(gpt.TABLE_BYTES)


@given(at=st.integers(gpt.SECTOR, gpt.TABLE_BYTES - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(head: bytes, at: int, bit: int) -> None:
    rotten = bytearray(head)
    rotten[at] ^= 1 << bit
    used = gpt.SECTOR <= at < gpt.SECTOR + gpt.HEADER.size or at >= 2 * gpt.SECTOR
    if used:
        with pytest.raises(GptError):
            gpt.parse(bytes(rotten))
    else:
        assert gpt.parse(bytes(rotten)) == gpt.parse(head)


@given(size=st.integers(0, gpt.TABLE_BYTES - 1))
def test_a_cut_table_is_refused(head: bytes, size: int) -> None:
    with pytest.raises(GptError):
        gpt.parse(head[:size])


@given(junk=st.binary(max_size=2000), start=st.integers(0, 2**64 - 1), end=st.integers(0, 2**64 - 1))
def test_foreign_tables_are_refused(head: bytes, junk: bytes, start: int, end: int) -> None:
    with pytest.raises(GptError):
        gpt.parse(junk)
    # Right checksums do not make a partition off the disk right.
    table = bytearray(head[2 * gpt.SECTOR :])
    table[32:48] = struct.pack("<QQ", start, end)
    rotten = bytearray(head[: 2 * gpt.SECTOR]) + table
    struct.pack_into("<I", rotten, gpt.SECTOR + 88, zlib.crc32(table))
    struct.pack_into("<I", rotten, gpt.SECTOR + 16, 0)
    struct.pack_into("<I", rotten, gpt.SECTOR + 16, zlib.crc32(rotten[gpt.SECTOR : gpt.SECTOR + 92]))
    first, last = struct.unpack_from("<QQ", head, gpt.SECTOR + 40)
    if first <= start <= end <= last:
        assert gpt.parse(bytes(rotten))["boot-a"].start == start * gpt.SECTOR
    else:
        with pytest.raises(GptError):
            gpt.parse(bytes(rotten))


@pytest.mark.proves("INV-HOST-2")
def test_a_rebuild_renews_the_system_and_keeps_the_state(tmp_path: Path) -> None:
    built, runs = image(tmp_path / "spine.img", b"1 "), tmp_path / "disk.img"
    assert disk.prepare(built, runs) == "new"
    assert runs.read_bytes() == built.read_bytes()
    for name in ("boot-a", "slot-a", "persist", "personas"):
        put(runs, gpt.read(runs)[name], b"used " + name.encode())
    assert disk.prepare(built, runs) == "kept"
    assert get(runs, "boot-a") == b"used boot-a"
    # The same bytes again with another time are no rebuild.
    built.touch()
    assert disk.prepare(built, runs) == "kept"
    assert get(runs, "boot-a") == b"used boot-a"
    image(built, b"2 ")
    assert disk.prepare(built, runs) == "refreshed"
    assert {name: get(runs, name) for name, _ in LAYOUT} == {
        "boot-a": b"2 boot-a",
        "slot-a": b"2 slot-a",
        "slot-b": b"2 slot-b",
        "personas": b"used personas",
        "persist": b"used persist",
    }
    assert disk.prepare(built, runs, fresh=True) == "new"
    assert runs.read_bytes() == built.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk.img", "disk.json", "spine.img"]


def test_state_moves_with_the_layout(tmp_path: Path) -> None:
    built, runs = image(tmp_path / "spine.img", b"1 "), tmp_path / "disk.img"
    disk.prepare(built, runs)
    put(runs, gpt.read(runs)["persist"], b"used")
    image(built, b"2 ", (("boot-a", 3), ("slot-a", 2), ("slot-b", 2), ("personas", 1), ("persist", 4)))
    assert disk.prepare(built, runs) == "refreshed"
    assert get(runs, "persist") == b"used"
    assert gpt.read(runs) == gpt.read(built)


def test_state_that_does_not_fit_is_never_cut(tmp_path: Path) -> None:
    built, runs = image(tmp_path / "spine.img", b"1 "), tmp_path / "disk.img"
    disk.prepare(built, runs)
    put(runs, gpt.read(runs)["persist"], b"used")
    before = runs.read_bytes()
    for layout in ((*LAYOUT[:-1], ("persist", 1)), LAYOUT[:-1]):
        image(built, b"2 ", layout)
        with pytest.raises(SpineError, match="does not fit") as raised:
            disk.prepare(built, runs)
        assert raised.value.exit_code == Exit.REFUSED
        assert "--fresh" in raised.value.fix
        assert runs.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk.img", "disk.json", "spine.img"]


def test_a_disk_that_is_none_is_not_guessed_at(tmp_path: Path) -> None:
    built, runs = image(tmp_path / "spine.img", b"1 "), tmp_path / "disk.img"
    runs.write_bytes(b"something else")
    with pytest.raises(SpineError, match="cannot be carried over"):
        disk.prepare(built, runs)
    assert runs.read_bytes() == b"something else"
    with pytest.raises(SpineError, match="no image"):
        disk.prepare(tmp_path / "none", runs)


def test_a_copy_has_the_same_bytes_and_holes(tmp_path: Path) -> None:
    chance = random.Random(1)
    source, target = tmp_path / "a", tmp_path / "b"
    with open(source, "wb") as file:
        for _ in range(20):
            file.seek(chance.randrange(32 * MIB))
            file.write(chance.randbytes(5000))
        file.truncate(40 * MIB)
    disk.sparse_copy(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks + 64
    assert disk.sparse_sha256(target) == disk.sparse_sha256(source)


def test_one_partition_is_taken_out(tmp_path: Path) -> None:
    built = image(tmp_path / "spine.img", b"1 ")
    part = gpt.read(built)["persist"]
    disk.extract(built, part, tmp_path / "persist.img")
    assert (tmp_path / "persist.img").read_bytes() == built.read_bytes()[part.start : part.start + part.size]
