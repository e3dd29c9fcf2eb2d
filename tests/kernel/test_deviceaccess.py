"""The device program says what its table says: run by an interpreter of eBPF, for every kind of access."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organs.kernel.deviceaccess import MINOR_MAX, PLAIN, Devices, program

BLOCK, CHARACTER = 1, 2
MKNOD, READ, WRITE = 1, 2, 4
DEVICES = st.builds(
    lambda major, minors: Devices(major, *sorted(minors)),
    st.integers(0, 4095),
    st.tuples(st.integers(0, MINOR_MAX), st.integers(0, MINOR_MAX)),
)


def run(code: bytes, access: int, kind: int, major: int, minor: int) -> int:
    """The answer of a program, as the kernel's documentation describes the machine."""
    context = struct.pack("<III", access << 16 | kind, major, minor)
    registers = [0] * 11
    at = 0
    while True:
        operation, pair, offset, value = struct.unpack_from("<BBhi", code, 8 * at)
        into, of = pair & 15, pair >> 4
        at += 1
        jump = False
        match operation:
            case 0x61:
                assert of == 1
                (registers[into],) = struct.unpack_from("<I", context, offset)
            case 0x57:
                registers[into] &= value
            case 0x77:
                registers[into] >>= value
            case 0xB7:
                registers[into] = value
            case 0xBF:
                registers[into] = registers[of]
            case 0x55:
                jump = registers[into] != value
            case 0x15:
                jump = registers[into] == value
            case 0xA5:
                jump = registers[into] < value
            case 0x25:
                jump = registers[into] > value
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(f"no such instruction: {operation:#x}")
        if jump:
            assert offset > 0, "a program only jumps forward"
            at += offset


def wanted(table: tuple[Devices, ...], access: int, kind: int, major: int, minor: int) -> int:
    listed = any(d.major == major and d.first <= minor <= d.last for d in table)
    return int(listed and kind == CHARACTER and not access & MKNOD)


@pytest.mark.proves("INV-ROOM-9")
def test_the_table_of_rooms_for_every_small_number() -> None:
    code = program(PLAIN)
    for major in (*range(16), *range(130, 150), 226, 511):
        for minor in (*range(260), MINOR_MAX):
            for kind in (BLOCK, CHARACTER):
                for access in (0, MKNOD, READ, WRITE, READ | WRITE, MKNOD | READ | WRITE):
                    found = run(code, access, kind, major, minor)
                    assert found == wanted(PLAIN, access, kind, major, minor), (access, kind, major, minor)


@given(
    st.lists(DEVICES, max_size=6).map(tuple),
    st.integers(0, 7),
    st.integers(0, 3),
    st.integers(0, 4095),
    st.integers(0, MINOR_MAX),
)
def test_any_table(table: tuple[Devices, ...], access: int, kind: int, major: int, minor: int) -> None:
    for number in (major, *(d.major for d in table)):
        for part in (minor, *(edge for d in table for edge in (d.first, d.last))):
            answer = run(program(table), access, kind, number, part)
            assert answer == wanted(table, access, kind, number, part)
