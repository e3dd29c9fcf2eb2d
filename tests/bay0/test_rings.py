"""Log rings: the newest bytes are kept, and never more than two files of them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organs.bay0 import rings
from organs.bay0.rings import FILE_BYTES_MAX, Ring


def kept(folder: Path, name: str) -> bytes:
    files = [folder / f"{name}.log.1", folder / f"{name}.log"]
    assert all(f.stat().st_size <= FILE_BYTES_MAX for f in files if f.exists())
    return b"".join(f.read_bytes() for f in files if f.exists())


SIZES = st.lists(st.integers(0, 3 * FILE_BYTES_MAX), max_size=8)


@given(SIZES)
@settings(max_examples=60, deadline=None)
def test_a_ring_keeps_the_end(sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        ring, written = Ring(name, "gate", os.getgid()), b""
        for number, size in enumerate(sizes):
            data = bytes([number]) * size
            ring.write(data)
            written += data
        there = kept(Path(name), "gate")
        assert written.endswith(there)
        assert len(there) >= min(len(written), FILE_BYTES_MAX)
        assert written.endswith(ring.tail(100))


def test_a_ring_goes_on_where_an_earlier_one_ended(tmp_path: Path) -> None:
    Ring(str(tmp_path), "gate", os.getgid()).write(b"one ")
    Ring(str(tmp_path), "gate", os.getgid()).write(b"two")
    assert kept(tmp_path, "gate") == b"one two"


def test_only_the_group_may_read(tmp_path: Path) -> None:
    Ring(str(tmp_path), "gate", os.getgid())
    assert (tmp_path / "gate.log").stat().st_mode & 0o777 == 0o640


@pytest.mark.proves("INV-REAP-5")
def test_a_turn_reads_one_block_only(tmp_path: Path) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    ring = Ring(str(tmp_path), "flood", os.getgid())
    os.write(writer, b"x" * 3 * rings.READ_BYTES_MAX)
    assert ring.pump(reader)
    assert len(kept(tmp_path, "flood")) == rings.READ_BYTES_MAX
    ring.drain(reader)
    assert len(kept(tmp_path, "flood")) == 3 * rings.READ_BYTES_MAX
    assert ring.pump(reader)
    os.close(writer)
    assert not ring.pump(reader)
    os.close(reader)
