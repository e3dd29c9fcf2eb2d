"""Page frames: what two processes of one mount share is seen, so that seeing nothing means something."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rooms import controls, frames

HERE = Path(__file__).parent


@contextlib.contextmanager
def running(program: Path, folder: Path, mark: str) -> Iterator[int]:
    """A victim in an ipc and net namespace of its own, so that any number can run; its process id."""
    words = ["unshare", "--ipc", "--net", str(program), "victim", mark, str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line == "ready\n":
                    break
            yield process.pid
        finally:
            process.kill()


@pytest.mark.container
def test_two_processes_of_one_file_share_frames_and_of_two_copies_none(tmp_path: Path) -> None:
    program = controls.compiled(HERE / "attack.c", tmp_path / "attack")
    copy = tmp_path / "copy"
    copy.write_bytes(program.read_bytes())
    copy.chmod(0o755)
    with running(program, tmp_path, "first") as first, running(program, tmp_path, "second") as second:
        shared = frames.of(first) & frames.of(second)
        assert len(shared) > 20, "the pages of their program"
        with running(copy, tmp_path, "third") as third:
            assert frames.of(first)
            assert not frames.of(first) & frames.of(third)


@pytest.mark.container
def test_the_page_of_zeros_is_no_page_of_anybodys() -> None:
    with mmap.mmap(-1, frames.PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        assert page[0] == 0, "only read, so it is not ours yet"
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        with open("/proc/self/pagemap", "rb", buffering=0) as pages:
            [zeros] = frames.present(os.pread(pages.fileno(), 8, address // frames.PAGE * 8))
        assert zeros not in frames.of(os.getpid())
        page[0] = 1
        with open("/proc/self/pagemap", "rb", buffering=0) as pages:
            [own] = frames.present(os.pread(pages.fileno(), 8, address // frames.PAGE * 8))
        assert own in frames.of(os.getpid())


MAPS = """\
00400000-00401000 r--p 00000000 fe:00 1234                       /bin/with a space
7ffd0000-7ffd2000 rw-p 00000000 00:00 0                          [stack]
7ffe0000-7ffe1000 r-xp 00000000 00:00 0                          [vdso]
7fff0000-7fff2000 rw-p 00000000 00:00 0
"""


def test_the_kernels_own_mappings_are_left_out() -> None:
    assert list(frames.mappings(MAPS)) == [
        (0x400000, 0x401000, "/bin/with a space"),
        (0x7FFD0000, 0x7FFD2000, "[stack]"),
        (0x7FFF0000, 0x7FFF2000, ""),
    ]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_only_what_is_in_memory_counts(words: list[int]) -> None:
    packed = b"".join(frames.WORD.pack(word) for word in words)
    assert frames.present(packed) == {word % 2**55 for word in words if word >= 2**63}
