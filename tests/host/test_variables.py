"""The store of QEMU's firmware: keys go into an empty one, and into nothing else."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spine.ground import qemu
from spine.ground.variables import SWITCHES, VariablesError, enrolled
from spine.image.enrolment import GLOBAL, Variable

SIZE, HEAD = 4096, 0x48
ONE = Variable("PK", GLOBAL, b"key")


def empty() -> bytes:
    """A small empty store."""
    volume = struct.pack(
        "<16x16sQ4sIHHHBB",
        bytes.fromhex("8d2bf1ff96768b4ca9852747075b4f50"),
        SIZE,
        b"_FVH",
        0,
        HEAD,
        0,
        0,
        0,
        2,
    )
    store = struct.pack(
        "<16sIBBHI", bytes.fromhex("782cf3aa7b949a43a1802e144ec37792"), SIZE // 2 - HEAD, 0x5A, 0xFE, 0, 0
    )
    return (volume.ljust(HEAD, b"\0") + store).ljust(SIZE, b"\xff")


def stored(data: bytes) -> list[tuple[str, int, bytes, bytes]]:
    """The variables of a store: name, attributes, vendor, bytes."""
    found, at = [], HEAD + 28
    while data[at : at + 2] == b"\xaa\x55":
        _, state, _, attributes, _, _, _, name, size, vendor = struct.unpack_from("<HBBIQ16sIII16s", data, at)
        assert state == 0x3F
        text = data[at + 60 : at + 60 + name]
        found.append((text.decode("utf-16-le"), attributes, vendor, data[at + 60 + name :][:size]))
        at += 60 + name + size
        at += -at % 4
    assert set(data[at:]) == {0xFF}
    return found


@given(
    st.lists(
        st.builds(Variable, st.text("abK", min_size=1), st.just(GLOBAL), st.binary(max_size=99)), max_size=5
    )
)
def test_what_is_put_in_is_there(wanted: list[Variable]) -> None:
    made = enrolled(empty(), wanted)
    assert len(made) == SIZE
    assert stored(made) == [(one.name + "\0", 0x27, GLOBAL.bytes_le, one.data) for one in wanted]


def test_what_does_not_fit_or_is_not_empty_is_refused() -> None:
    with pytest.raises(VariablesError, match="too small"):
        enrolled(empty(), [Variable("x", GLOBAL, bytes(SIZE))])
    with pytest.raises(VariablesError, match="not empty"):
        enrolled(enrolled(empty(), [ONE]), [ONE])


@given(st.integers(0, HEAD + 27), st.integers(0, 255))
def test_a_damaged_store_is_refused_or_was_damaged_where_nobody_reads(at: int, value: int) -> None:
    damaged = bytearray(empty())
    damaged[at] = value
    try:
        made = enrolled(bytes(damaged), [ONE])
    except VariablesError:
        return
    assert made[: HEAD + 28] == bytes(damaged[: HEAD + 28]) or damaged[48] != HEAD
    assert len(made) == SIZE


@given(st.binary(max_size=300))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(VariablesError):
        enrolled(data, [ONE])


@pytest.mark.machine
def test_the_store_of_this_host_is_one() -> None:
    _, variables = qemu.firmware(secure=True)
    before = variables.read_bytes()
    after = enrolled(before, SWITCHES)
    assert len(after) == len(before)
    assert [name for name, *_ in stored_in(after)] == ["SecureBootEnable\0", "CustomMode\0"]


def stored_in(data: bytes) -> list[tuple[str, int, bytes, bytes]]:
    """The same of a store that has more behind it."""
    [size] = struct.unpack_from("<I", data, HEAD + 16)
    return stored(data[: HEAD + size])
