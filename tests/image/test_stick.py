"""The stick: what is refused, a table that fits any size, and a device that holds what was written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine import cli
from spine.errors import Exit, SpineError
from spine.ground import gpt
from spine.image import disk, stick

MIB = 1 << 20
GOOD = stick.Device(
    path=Path("/dev/sdz"),
    size=8 * 10**9,
    sector=512,
    whole=True,
    removable=True,
    read_only=False,
    in_use="",
)
IMAGE_BYTES = 290 * 10**6


def test_a_stick_is_written_to_and_what_is_none_is_not() -> None:
    assert stick.refusals(GOOD, IMAGE_BYTES, built_in=False) == []
    wrong: list[tuple[dict[str, object], str]] = [
        ({"whole": False}, "partition"),
        ({"removable": False}, "not removable"),
        ({"read_only": True}, "write-protected"),
        ({"in_use": "it is mounted at /home"}, "mounted at /home"),
        ({"sector": 4096}, "4096 bytes"),
        ({"size": IMAGE_BYTES - 512}, "has 290 MB"),
    ]
    for change, why in wrong:
        [said] = stick.refusals(replace(GOOD, **change), IMAGE_BYTES, built_in=False)  # type: ignore[arg-type]
        assert why in said
    everything: dict[str, object] = {name: value for change, _ in wrong for name, value in change.items()}
    assert len(stick.refusals(replace(GOOD, **everything), IMAGE_BYTES, built_in=False)) == len(wrong)  # type: ignore[arg-type]


def test_only_removable_can_be_waived() -> None:
    assert stick.refusals(replace(GOOD, removable=False), IMAGE_BYTES, built_in=True) == []
    assert stick.refusals(replace(GOOD, in_use="x", removable=False), IMAGE_BYTES, built_in=True) == ["x"]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The start of an empty disk of ours."""
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    disk.write_disk(path, {})
    return path.read_bytes()[: gpt.TABLE_BYTES]


@given(st.integers(disk.size() // gpt.SECTOR, 1 << 42))
def test_the_table_fits_every_size(head: bytes, sectors: int) -> None:
    front, copy = stick.relocated(head, sectors)
    assert gpt.parse(front) == gpt.parse(head)
    fields = gpt.HEADER.unpack_from(front, gpt.SECTOR)
    assert (fields[5], fields[6], fields[8]) == (1, sectors - 1, sectors - 1 - stick.COPY_SECTORS)
    assert front[: gpt.SECTOR - 66] == head[: gpt.SECTOR - 66]
    entries, header = copy[: -gpt.SECTOR], copy[-gpt.SECTOR :]
    assert entries == head[2 * gpt.SECTOR :]
    other = gpt.HEADER.unpack_from(header)
    assert (other[5], other[6], other[8]) == (sectors - 1, 1, fields[8])
    assert other[10] == sectors - stick.COPY_SECTORS


@given(st.integers(0, gpt.TABLE_BYTES - 1), st.integers(1, 255))
def test_a_damaged_table_is_refused_or_says_the_same(head: bytes, at: int, flip: int) -> None:
    damaged = bytearray(head)
    damaged[at] ^= flip
    try:
        front, _copy = stick.relocated(bytes(damaged), 1 << 24)
    except gpt.GptError:
        return
    assert gpt.parse(front) == gpt.parse(head)


@given(st.binary(max_size=2000), st.integers(0, 1 << 33))
def test_foreign_bytes_are_refused(data: bytes, sectors: int) -> None:
    with pytest.raises(gpt.GptError):
        stick.relocated(data, sectors)


def test_a_disk_that_ends_before_its_partitions_is_refused(head: bytes) -> None:
    with pytest.raises(gpt.GptError, match="does not fit"):
        stick.relocated(head, disk.size() // gpt.SECTOR - 2048)


def test_sfdisk_believes_both_tables(head: bytes, tmp_path: Path) -> None:
    path, sectors = tmp_path / "disk", (disk.size() + 77 * MIB) // gpt.SECTOR
    front, copy = stick.relocated(head, sectors)
    with path.open("wb") as file:
        file.truncate(sectors * gpt.SECTOR)
        os.pwrite(file.fileno(), front, 0)
        os.pwrite(file.fileno(), copy, sectors * gpt.SECTOR - len(copy))
    program = shutil.which("sfdisk", path="/usr/sbin:/sbin:/usr/bin")
    assert program is not None
    done = subprocess.run([program, "--verify", path], capture_output=True, text=True, check=True)
    assert "No errors detected" in done.stdout
    # The first one gone: the copy alone says the same.
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), bytes(gpt.SECTOR), gpt.SECTOR)
    dump = subprocess.run([program, "--json", path], capture_output=True, text=True, check=True)
    rows = json.loads(dump.stdout)["partitiontable"]["partitions"]
    assert [row["name"] for row in rows] == [row.name for row in disk.PARTITIONS]


@pytest.mark.parametrize("path", ["/dev/null", "/nowhere", "/etc/passwd"])
def test_what_is_no_disk_is_refused(path: str) -> None:
    with pytest.raises(SpineError) as refused:
        stick.look(Path(path))
    assert refused.value.exit_code == Exit.NO_SUCH_THING


# ---- on a device


@contextlib.contextmanager
def loop(file: Path) -> Iterator[Path]:
    """A loop device on a file: a disk of this kernel, in use by nobody, not removable."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    made = subprocess.run(["losetup", "--find", "--show", file], capture_output=True, text=True, check=True)
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk image with something in each partition."""
    path = tmp_path / "image"
    disk.write_disk(path, {row.name: row.name.encode() * 3000 for row in disk.PARTITIONS})
    return path


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A stick that is larger than the image and full of something else."""
    path = tmp_path / "stick"
    with path.open("wb") as file:
        for _ in range(disk.size() // MIB + 9):
            file.write(b"\xa5" * MIB)
    return path


def test_a_stick_holds_what_was_written(image: Path, used: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with loop(used) as device:
        words = ["usb", str(device), "--image", str(image), "--built-in", "--json"]
        assert cli.main([*words, "--dry-run"]) == Exit.OK
        said = json.loads(capsys.readouterr().out)
        assert (said["written"], said["deviceBytes"]) == (False, used.stat().st_size)
        assert used.read_bytes()[: 4 * MIB] == b"\xa5" * 4 * MIB
        assert cli.main(words) == Exit.REFUSED
        assert "--yes" in json.loads(capsys.readouterr().out)["error"]["fix"]
        assert cli.main([*words, "--yes"]) == Exit.OK
        assert json.loads(capsys.readouterr().out)["written"] is True
    wanted, found = image.read_bytes(), used.read_bytes()
    front, copy = stick.relocated(wanted[: gpt.TABLE_BYTES], len(found) // gpt.SECTOR)
    assert found[: len(front)] == front
    assert found[len(front) : len(wanted)] == wanted[len(front) :]
    assert found[-len(copy) :] == copy


def test_a_device_in_use_is_refused(image: Path, used: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with loop(used) as device:
        words = ["usb", str(device), "--image", str(image), "--yes"]
        assert cli.main(words) == Exit.REFUSED
        assert "not removable" in capsys.readouterr().err
        held = os.open(device, os.O_RDONLY | os.O_EXCL)
        try:
            assert cli.main([*words, "--built-in"]) == Exit.REFUSED
            assert "something uses it" in capsys.readouterr().err
        finally:
            os.close(held)
    assert used.read_bytes()[: 4 * MIB] == b"\xa5" * 4 * MIB


def test_a_stick_that_forgets_is_found_out(image: Path, used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = stick._put
    lost = disk.offsets()["persist"][0] // stick.PIECE * stick.PIECE

    def forgetful(target: int, data: bytes, at: int) -> None:
        put(target, bytes(len(data)) if at == lost else data, at)

    monkeypatch.setattr(stick, "_put", forgetful)
    with loop(used) as device:
        found = replace(stick.look(device), removable=True)
        with pytest.raises(SpineError, match="does not keep"):
            stick.write(image, found, lambda _text: None)
