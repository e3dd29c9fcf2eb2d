"""What a slot carries for its boot volumes: the same as those that were made with it, or a refusal."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organs.integrity import carried, examine, fat
from organs.integrity.esp import DIRECTORY
from spine.image import disk
from tests.integrity import disks

SLOT, BOOTS, PARTS = disks.made()
LETTERS = tuple(BOOTS)
PART = {part.name: part for part in PARTS}
OWN = [examine.Part(part.name, part.offset, part.length, part.sha256) for part in PARTS]


@pytest.mark.parametrize("letter", LETTERS)
def test_it_is_what_lies_on_the_volumes(letter: str) -> None:
    volumes = carried.files(disks.reader(SLOT), disks.SIZE, disks.PUBLIC, LETTERS)
    assert tuple(volumes) == LETTERS
    contents = {
        "EFI/BOOT/BOOTX64.EFI": disks.LOADER,
        "loader/loader.conf": disk.LOADER_CONF,
        f"EFI/Linux/spine-{letter}+3-0.efi": disks.programs("1")[letter],
    }
    assert {"/".join(file.path): file.digest for file in volumes[letter]} == {
        **dict.fromkeys(("EFI", "loader", "EFI/BOOT", "EFI/Linux"), DIRECTORY),
        **{path: sha256(data).hexdigest() for path, data in contents.items()},
    }


def test_a_volume_that_the_manifest_does_not_name_is_refused() -> None:
    with pytest.raises(examine.Unsigned, match="does not say what the boot volume c holds"):
        carried.files(disks.reader(SLOT), disks.SIZE, disks.PUBLIC, ("c",))


@pytest.mark.proves("INV-SLOT-6")
@given(at=st.integers(0, PART["boot"].length - 1), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=50)
def test_a_changed_bit_of_boot_is_not_believed(at: int, bit: int) -> None:
    data = bytearray(SLOT)
    data[PART["boot"].offset + at] ^= 1 << bit
    with pytest.raises(examine.Unsigned, match="boot is not the one"):
        carried.files(disks.reader(data), disks.SIZE, disks.PUBLIC, LETTERS)


def test_another_key_is_refused() -> None:
    with pytest.raises(examine.Unsigned):
        carried.files(disks.reader(SLOT), disks.SIZE, bytes(32), LETTERS)


def test_a_file_across_a_program_and_something_else_is_refused() -> None:
    """Programs are believed whole; the bytes of one are in no other file."""
    length, runs = carried.runs(_text(), OWN, "a")
    program = next(run for run in runs if run.part == "uki-a")
    boot = SLOT[PART["boot"].offset :][: PART["boot"].length]
    image = carried._Image(length, runs, boot)
    inside = program.at + 2 * 4096
    with pytest.raises(examine.Unsigned, match=f"byte {inside} of the boot volume"):
        image.read(inside, 10)
    # The ends of the programs are in `boot`, with the rest of their blocks.
    assert image.read(0, 512) == BOOTS["a"][:512]
    assert image.read(length - 5, 10) == BOOTS["a"][-5:]
    assert image.read(length, 10) == b""


def _text() -> bytes:
    return examine.manifest(disks.reader(SLOT), disks.SIZE, disks.PUBLIC).text


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
documents = st.fixed_dictionaries(
    {
        "boot": st.none()
        | st.integers()
        | st.dictionaries(
            st.sampled_from("ab"),
            st.none()
            | st.fixed_dictionaries({"runs": rows | st.none(), "length": st.integers(-1, 2**40) | st.none()}),
        )
    }
)


@given(documents)
def test_whatever_it_says_of_the_volumes_it_ends_in_runs_or_a_refusal(document: object) -> None:
    try:
        length, found = carried.runs(json.dumps(document).encode(), OWN, "a")
    except examine.Unsigned:
        return
    for run in found:
        assert 0 <= run.at <= run.at + run.length <= length <= carried.VOLUME_BYTES_MAX
        assert 0 <= run.offset <= run.offset + run.length <= PART[run.part].length


@given(runs=rows)
@settings(deadline=None)
def test_a_volume_of_any_runs_ends(runs: object) -> None:
    """The image that comes out of them is a volume like any other: walked, or refused."""
    try:
        length, found = carried.runs(
            json.dumps({"boot": {"b": {"runs": runs, "length": 2**25}}}).encode(), OWN, "b"
        )
        fat.tree(carried._Image(length, found, bytes(PART["boot"].length)).read)
    except (examine.Unsigned, fat.BadVolume):
        return
    pytest.fail("a volume without a boot sector was walked")
