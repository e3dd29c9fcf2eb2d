"""The firmware's variables, on a directory that holds what one would."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.kernel import firmware

OURS = "LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
OTHERS = "LoaderEntryDefault-00000000-0a4c-41cf-b6c7-440b29bb8c4f"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x06\0\0\0\x01", firmware.ON),
        (b"\x06\0\0\0\x00", firmware.OFF),
        (b"\x06\0\0\0\x02", firmware.UNKNOWN),
        (b"\x07\0\0\0\x01", firmware.UNKNOWN),  # stored: no firmware made it
        (b"\x06\0\0\0", firmware.UNKNOWN),
        (b"\x06\0\0\0\x01\x01", firmware.UNKNOWN),
        (b"", firmware.UNKNOWN),
    ],
)
def test_what_the_variable_says(data: bytes, said: str, tmp_path: Path, folder: int) -> None:
    assert firmware.verdict(data) == said
    (tmp_path / firmware.SECURE_BOOT).write_bytes(data)
    assert firmware.look(folder) == firmware.Seen(said)


@given(st.binary(max_size=12))
def test_on_is_said_of_one_form_only(data: bytes) -> None:
    on = len(data) == 5 and data[4] == 1 and not data[0] & 1
    assert (firmware.verdict(data) == firmware.ON) == on


def test_a_firmware_without_the_variable_has_it_off(folder: int) -> None:
    assert firmware.look(folder).secure_boot == firmware.OFF


def test_a_variable_that_is_no_file_is_unknown(tmp_path: Path, folder: int) -> None:
    (tmp_path / firmware.SECURE_BOOT).mkdir()
    assert firmware.look(folder).secure_boot == firmware.UNKNOWN


@pytest.mark.proves("INV-SECURE-4")
@pytest.mark.parametrize("name", firmware.STALE)
def test_what_overrules_the_boot_loader_goes_and_nothing_else(name: str, tmp_path: Path, folder: int) -> None:
    for each in (name, OTHERS, "BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c"):
        (tmp_path / each).write_bytes(b"\x07\0\0\0x")
    [note] = firmware.look(folder).notes
    assert note.startswith(f"{name.partition('-')[0]} is removed: ")
    assert name not in {path.name for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 2
    assert firmware.look(folder).notes == ()


def test_a_guarded_one_goes_too(tmp_path: Path, folder: int) -> None:
    file = tmp_path / OURS
    file.write_bytes(b"\x07\0\0\0x")
    if subprocess.run(["chattr", "+i", file], capture_output=True, check=False).returncode:
        pytest.skip("this file system or user cannot guard a file (chattr +i)")
    try:
        assert len(firmware.look(folder).notes) == 1
        assert not file.exists()
    finally:
        if file.exists():
            subprocess.run(["chattr", "-i", file], check=True)


def test_what_cannot_be_removed_is_told(tmp_path: Path, folder: int) -> None:
    (tmp_path / OURS).mkdir()
    [note] = firmware.look(folder).notes
    assert note.startswith("LoaderEntryDefault cannot be removed (")
