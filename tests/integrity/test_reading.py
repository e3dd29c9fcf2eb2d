"""Reading past the page cache: the bytes that any read gives, and the device's where memory differs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organs.integrity.reading import BUFFER, DIRECT, DROPPED, Raw
from spine.ground import calls

# Not a multiple of anything, and more than one buffer.
SIZE = 2 * BUFFER + 777
BYTES = random.Random(1).randbytes(SIZE)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reading") / "file"
    path.write_bytes(BYTES)
    return path


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("direct", [True, False])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_piece_is_as_any_read_gives_it(file: Path, direct: bool, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, SIZE + 5000))
    length = data.draw(st.integers(0, 5000) | st.integers(0, SIZE + 5000))
    with opened(file) as fd:
        raw = Raw(fd, direct=direct)
        assert raw.size == SIZE
        assert raw.read(offset, length) == BYTES[offset : offset + length]
        assert direct or raw.how == DROPPED


def test_a_writers_descriptor_keeps_its_flags(file: Path) -> None:
    """The patch of the boot counter writes through it, from memory that is not aligned."""
    with opened(file, os.O_RDWR | os.O_NONBLOCK) as fd:
        before = fcntl.fcntl(fd, fcntl.F_GETFL)
        Raw(fd, direct=False).read(0, 100)
        assert fcntl.fcntl(fd, fcntl.F_GETFL) == before


def test_a_file_in_memory_is_read_either_way() -> None:
    """Where there is no device below, a kernel may refuse O_DIRECT; the bytes are the same."""
    fd = os.memfd_create("file")
    try:
        os.write(fd, BYTES[:100_000])
        raw = Raw(fd, direct=True)
        assert raw.read(99_000, 2000) == BYTES[99_000:100_000]
        assert raw.how in (DIRECT, DROPPED)
    finally:
        os.close(fd)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_PATH])
@pytest.mark.parametrize("direct", [True, False])
def test_a_refused_read_is_an_error(tmp_path: Path, flags: int, direct: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(BYTES[:8192])
    with opened(path, flags) as fd, pytest.raises(OSError, match="Bad file descriptor"):
        Raw(fd, direct=direct).read(0, 100)


@pytest.mark.container
@pytest.mark.proves("INV-SLOT-7")
@pytest.mark.parametrize(("direct", "how"), [(True, DIRECT), (False, DROPPED)])
def test_what_the_kernel_remembers_is_not_believed(tmp_path: Path, direct: bool, how: str) -> None:
    """A loop device remembers its pages; its file changes behind it, as a disk rots."""
    path = tmp_path / "disk"
    path.write_bytes(BYTES[: 256 * 1024])
    node, fd = calls.loop(str(path), read_only=True)
    plain = os.open(node, os.O_RDONLY)
    try:
        os.posix_fadvise(plain, 0, 0, os.POSIX_FADV_RANDOM)
        before = os.pread(plain, 256 * 1024, 0)
        with open(path, "r+b") as file:
            file.seek(100_000)
            file.write(b"rotten")
        # That the memory is there to be taken for the truth is what makes this a test.
        assert os.pread(plain, 256 * 1024, 0) == before
        raw = Raw(fd, direct=direct)
        assert raw.how == how
        assert raw.read(100_000, 6) == b"rotten"
        assert raw.read(0, 256 * 1024) == path.read_bytes()
    finally:
        os.close(plain)
        os.close(fd)
