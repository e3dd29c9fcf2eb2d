"""What a slot carries for its boot volumes: the same as those that were made with it, or a refusal."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organs.integrity import carried, examine, fat
from organs.integrity.volume import DIRECTORY, REST
from spine.image import disk
from tests.integrity import disks

SLOT, BOOTS, PARTS = disks.made()
LETTERS = tuple(BOOTS)
PART = {part.name: part for part in PARTS}
OWN = [examine.Part(part.name, part.offset, part.length, part.sha256) for part in PARTS]


def opened(data: bytes | bytearray = SLOT, key: bytes = disks.PUBLIC) -> carried.Carried:
    return carried.Carried(disks.reader(data), disks.SIZE, key)


@pytest.mark.parametrize("letter", LETTERS)
def test_it_is_what_lies_on_the_volumes(letter: str) -> None:
    found = opened()
    contents = {
        path: sha256(data).hexdigest()
        for path, data in {
            "EFI/BOOT/BOOTX64.EFI": disks.FIRST,
            "EFI/systemd/systemd-bootx64.efi": disks.LOADER,
            "loader/loader.conf": disk.LOADER_CONF,
            "EFI/Linux/spine-rescue.efi": disks.RESCUE,
            f"EFI/Linux/spine-{letter}+3-0.efi": disks.programs("1")[letter],
        }.items()
    }
    *listed, rest = found.files(letter)
    assert rest.path == REST
    assert {"/".join(file.path): file.digest for file in listed} == {
        **dict.fromkeys(("EFI", "loader", "EFI/BOOT", "EFI/Linux", "EFI/systemd"), DIRECTORY),
        **contents,
    }
    assert found.release().files[letter] == found.files(letter)
    assert b"".join(found.pieces(letter)) == BOOTS[letter]
    assert found.layouts[letter].sha256 == sha256(BOOTS[letter]).hexdigest()


def test_what_stands_for_all_bytes_and_how_many_there_are() -> None:
    found, next_one = opened(), opened(disks.made("2")[0])
    assert found.version == "1"
    assert found.digest != next_one.digest
    assert found.length == max(part.offset + part.length for part in PARTS)
    assert not any(SLOT[found.length :])


@pytest.mark.proves("INV-SLOT-6")
@given(at=st.integers(0, PART["boot"].length - 1), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=50)
def test_a_changed_bit_of_boot_is_not_believed(at: int, bit: int) -> None:
    data = bytearray(SLOT)
    data[PART["boot"].offset + at] ^= 1 << bit
    with pytest.raises(examine.Unsigned, match="boot is not the one"):
        opened(data)


def test_another_key_is_refused() -> None:
    with pytest.raises(examine.Unsigned):
        opened(key=bytes(32))


def test_a_file_across_a_program_and_something_else_is_refused() -> None:
    """Programs are believed whole; the bytes of one are in no other file."""
    layout = opened().layouts["a"]
    program = next(run for run in layout.runs if run.part == "uki-a")
    boot = SLOT[PART["boot"].offset :][: PART["boot"].length]
    image = carried._Image(layout, boot)
    inside = program.at + 2 * 4096
    with pytest.raises(examine.Unsigned, match=f"byte {inside} of the volume"):
        image.read(inside, 10)
    # The ends of the programs are in `boot`, with the rest of their blocks.
    assert image.read(0, 512) == BOOTS["a"][:512]
    assert image.read(layout.length - 5, 10) == BOOTS["a"][-5:]
    assert image.read(layout.length, 10) == b""


rows = st.lists(
    st.lists(
        st.integers(-5, 40_000_000) | st.sampled_from(["boot", "uki-a", "nobody"]) | st.none(), max_size=5
    )
    | st.tuples(
        st.integers(0, 40_000_000),
        st.integers(-1, 300_000),
        st.sampled_from(["boot", "uki-a", "nobody"]),
        st.integers(-1, 300_000),
    ).map(list),
    max_size=5,
)
boot = st.none() | st.fixed_dictionaries(
    {
        "runs": rows | st.none(),
        "length": st.integers(-1, 2**40) | st.none(),
        "sha256": st.sampled_from(["", "0" * 64]) | st.none(),
    }
)
documents = st.fixed_dictionaries(
    {
        "format": st.sampled_from([2, 2, 2, 1, "2", None]),
        "version": st.none() | st.integers() | st.text(max_size=80),
        "boot": st.none() | st.integers() | st.dictionaries(st.sampled_from("abc"), boot),
    }
)


@given(documents | st.dictionaries(st.text(max_size=8), st.none()))
def test_whatever_it_says_of_the_volumes_it_ends_in_layouts_or_a_refusal(document: object) -> None:
    try:
        version, found = carried.layouts(json.dumps(document).encode(), OWN)
    except examine.Unsigned:
        return
    assert isinstance(version, str)
    assert set(found) == set(LETTERS)
    for layout in found.values():
        for run in layout.runs:
            assert 0 <= run.at <= run.at + run.length <= layout.length <= carried.VOLUME_BYTES_MAX
            assert 0 <= run.offset <= run.offset + run.length <= PART[run.part].length


@given(runs=rows)
@settings(deadline=None)
def test_a_volume_of_any_runs_ends(runs: object) -> None:
    """The image that comes out of them is a volume like any other: walked, or refused."""
    described = {"runs": runs, "length": 2**25, "sha256": "0" * 64}
    document = {"format": 2, "version": "1", "boot": {"a": described, "b": described}}
    try:
        _version, found = carried.layouts(json.dumps(document).encode(), OWN)
        fat.tree(carried._Image(found["b"], bytes(PART["boot"].length)).read)
    except (examine.Unsigned, fat.BadVolume):
        return
    pytest.fail("a volume without a boot sector was walked")
