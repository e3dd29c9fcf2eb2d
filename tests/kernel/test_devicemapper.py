"""What is written to the device mapper and to loop devices, and what is read of their answers.

Any bytes end in an answer or in a refusal.
"""

from __future__ import annotations

import contextlib
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.kernel import devicemapper, loops
from organs.kernel.devicemapper import Garbled, Verity

HEADER = 312
NAMES = st.lists(st.text("room-0123456789", min_size=1, max_size=30), max_size=8)


def listing(names: list[str], flags: int = 0) -> bytes:
    """An answer as the kernel writes it: entries at multiples of eight, each with the way to the next."""
    entries = b""
    for number, name in enumerate(names, 1):
        entry = struct.pack("=QI", number, 0) + name.encode() + b"\0"
        entry += bytes(-len(entry) % 8)
        step = len(entry) if number < len(names) else 0
        entries += struct.pack("=QI", number, step) + entry[12:]
    entries = entries or bytes(16)
    size = HEADER + len(entries)
    head = struct.pack("=IIIIIIiIIIQ128s129s7x", 4, 0, 0, size, HEADER, 0, 0, flags, 0, 0, 0, b"", b"")
    return head + entries + bytes(100)


@given(NAMES)
def test_a_listing_is_read(names: list[str]) -> None:
    assert list(devicemapper.names(listing(names))) == names


@given(NAMES, st.data())
def test_a_changed_listing_is_read_or_garbled(names: list[str], data: st.DataObject) -> None:
    answer = bytearray(listing(names))
    for _ in range(data.draw(st.integers(1, 6))):
        answer[data.draw(st.integers(0, len(answer) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Garbled):
        list(devicemapper.names(bytes(answer)))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_listing_or_garbled(answer: bytes) -> None:
    with contextlib.suppress(Garbled):
        list(devicemapper.names(answer))


def test_a_listing_that_did_not_fit_is_not_half_read() -> None:
    with pytest.raises(Garbled):
        list(devicemapper.names(listing(["a"], devicemapper.BUFFER_FULL)))


@pytest.mark.proves("INV-BUILD-5")
@given(
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.text("0123456789abcdef", max_size=64),
    st.integers(1, 2**40),
    st.integers(1, 2**40),
)
def test_a_table_has_no_options(root_hash: str, salt: str, blocks: int, hash_start: int) -> None:
    verity = Verity(root_hash=root_hash, salt=salt, blocks=blocks, hash_start=hash_start)
    words = devicemapper.table(verity, os.makedev(7, 300)).split(" ")
    # Ten words and nothing behind them: an option would be counted and named there.
    assert words == [
        *("1", "7:300", "7:300", "4096", "4096", str(blocks), str(hash_start), "sha256"),
        *(root_hash, salt or "-"),
    ]
    spec = devicemapper.target(8 * blocks, "verity", " ".join(words))
    assert len(spec) % 8 == 0
    assert struct.unpack_from("=QQiI16s", spec) == (0, 8 * blocks, 0, len(spec), b"verity".ljust(16, b"\0"))


def test_a_request() -> None:
    made = devicemapper.request("room-1-2", devicemapper.READ_ONLY, b"x" * 40, 1)
    fields = struct.unpack_from("=IIIIIIiIIIQ128s129s7x", made)
    assert fields[:8] == (4, 0, 0, HEADER + 40, HEADER, 1, 0, 1)
    assert fields[11].rstrip(b"\0") == b"room-1-2"
    assert made[HEADER:] == b"x" * 40
    assert len(devicemapper.request("", room=1000)) == HEADER + 1000


@pytest.mark.parametrize("name", ["a/b", "a\0b", "x" * 128])
def test_a_bad_name_is_not_sent(name: str) -> None:
    with pytest.raises(ValueError, match="no name for a"):
        devicemapper.request(name)


def test_a_loop_device_is_always_read_only_and_goes_by_itself() -> None:
    made = loops.config(9, 4096, 8192, "room-1-1")
    assert len(made) == 304
    assert struct.unpack_from("=II", made) == (9, 0)
    assert struct.unpack_from("=QQ", made, 8 + 24) == (4096, 8192)
    assert struct.unpack_from("=I", made, 8 + 52) == (loops.READ_ONLY | loops.AUTOCLEAR | loops.DIRECT_IO,)
    for name in ("x" * 64, "a\0b"):
        with pytest.raises(ValueError, match="no name"):
            loops.config(9, 0, 4096, name)
