"""Sections are appended to a PE program; whatever else the bytes are, the answer is a ValueError."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine.image import uki
from tests.image.programs import HEADERS, OPTIONAL, stub


@given(
    st.lists(st.tuples(st.sampled_from([".a", ".cmdline"]), st.binary(min_size=1, max_size=9000)), max_size=5)
)
def test_what_goes_in_comes_out(added: list[tuple[str, bytes]]) -> None:
    program = uki.append(stub(), added)
    found = uki.sections(program)
    assert [(section.name, section.data) for section in found[1:]] == added
    end = 0
    for section in found:
        assert section.address % 4096 == 0
        assert section.offset % 512 == 0
        assert section.address >= end
        end = section.address + max(len(section.data), 1)
    [image_size] = struct.unpack_from("<I", program, 0x80 + 24 + 56)
    assert image_size % 4096 == 0
    assert image_size >= end - 1
    # What was there stays, but for the three numbers of the headers.
    assert program[HEADERS : len(stub())] == stub()[HEADERS:]


def test_no_room_is_said() -> None:
    tight = stub(headers=0x80 + 24 + OPTIONAL + 40)
    with pytest.raises(ValueError, match="room for 0 more"):
        uki.append(tight, [(".linux", b"")])


def test_the_symbol_table_goes_so_that_no_gap_is_left() -> None:
    added = [(".linux", b"kernel")]
    assert uki.append(stub(symbols=b"symbols"), added) == uki.append(stub(), added)
    with pytest.raises(ValueError, match="no symbol table"):
        uki.append(stub() + b"what is this", added)


@given(st.binary(max_size=600))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="PE"):
        uki.append(data, [(".linux", b"x")])


@given(st.integers(0, HEADERS - 1), st.integers(0, 255))
def test_a_damaged_stub_is_refused_or_still_whole(at: int, value: int) -> None:
    damaged = bytearray(stub())
    damaged[at] = value
    try:
        found = uki.sections(bytes(damaged))
    except (ValueError, UnicodeDecodeError):
        return
    assert all(section.offset + len(section.data) <= len(damaged) for section in found)
    with contextlib.suppress(ValueError):
        uki.append(bytes(damaged), [(".linux", b"x")])


def line(*, production: bool) -> str:
    return uki.command_line("b", "1b2c", 3000, "ab" * 32, "cd" * 32, production=production)


def test_the_tree_begins_behind_the_data_in_one_partition() -> None:
    table = line(production=True).split('"')[1]
    words = table.split(",")[4].split()
    assert words[:3] == ["0", str(3000 * 8), "verity"]
    assert words[4] == words[5] == "PARTUUID=1b2c"
    assert words[8:10] == ["3000", "3000"]
    assert words[-2:] == ["1", "panic_on_corruption"]


def test_production_names_no_console_and_never_waits_for_ever() -> None:
    words = line(production=True).split()
    assert not [word for word in words if word.startswith("console=")]
    assert "quiet" in words
    assert "rootwait=10" in words
    assert "panic=-1" in words
    assert "console=ttyS0" in line(production=False).split()


def test_settings_are_set_before_the_first_program() -> None:
    words = line(production=True).split()
    assert "sysctl.kernel.yama.ptrace_scope=3" in words
    assert {"gpt", "page_alloc.shuffle=1", "mitigations=auto,nosmt"} <= set(words)
    assert len(line(production=False)) < uki.COMMAND_LINE_MAX * 3 / 4


def test_what_may_come_late_is_waited_for_before_the_root() -> None:
    assert "waitfor" not in line(production=True)
    waiting = uki.command_line("b", "1b2c", 3000, "ab" * 32, "", production=True, wait_for="5e5e")
    assert "dm-mod.waitfor=PARTUUID=5e5e" in waiting.split()


def test_a_line_the_kernel_would_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than the kernel takes"):
        uki.command_line("a", "p" * 600, 1, "ab" * 32, "", production=True)
