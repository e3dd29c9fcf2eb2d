"""A file is what this tree makes, or the part that differs is named; a stranger's file is refused."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from spine.ground import gpt
from spine.image import build, keys, update, verify
from spine.image.verify import Stretch
from spine.progress import Progress

pytestmark = [pytest.mark.machine, pytest.mark.timeout(3600)]


def check(signature: bytes, message: bytes) -> None:
    keys.check(keys.public_bytes(keys.release_key()), signature, message)


def told(file: Path) -> verify.Alone:
    return verify.alone(file, check, keys.boot_key(keys.Role.DB).certificate)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A disk image as it is built, and the update made of it."""
    place = tmp_path_factory.mktemp("built")
    build.build(place, progress=Progress())
    disk, packed = place / "spine.img", place / "spine.update"
    at = gpt.read(disk)["slot-a"]
    with disk.open("rb") as opened:
        opened.seek(at.start)
        packed.write_bytes(update.pack(opened.read(at.size), check))
    yield {"disk": disk, "update": packed}
    shutil.rmtree(place)


@pytest.fixture
def copy(built: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one of them."""
    target = tmp_path / "copy"
    # cp keeps holes.
    subprocess.run(["cp", "--sparse=always", built[request.param], target], check=True)
    return target


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("kind", ["disk", "update"])
def test_what_was_built_is_whole_and_the_same(kind: str, built: dict[str, Path]) -> None:
    found = told(built[kind])
    assert (found.kind, found.image, found.problems) == (kind, "development", ())
    parts = verify.stretches(built[kind], check)
    assert set(verify.compare(built[kind], built[kind], parts).values()) == {None}
    # Every byte belongs to one part.
    at = 0
    for part in parts:
        assert part.start == at, part
        at += part.length
    assert at == built[kind].stat().st_size
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    wanted = {"root", "tree", "manifest", "uki-a", "uki-b", "boot"}
    where = ("slot-a ", "slot-b ") if kind == "disk" else ("",)
    assert {f"{one}{name}" for one in where for name in wanted} <= set(names)


# What a change there is called by the file itself. Persons and personas store what they like in the others.
SAYS = {"partition table": "partition table", "copy of the partition table": "copy of the partition table"}
SILENT = ("personas", "persist")


@pytest.mark.proves("INV-PROOF-1")
@pytest.mark.parametrize("copy", ["disk", "update"], indirect=True)
def test_a_changed_byte_is_named_by_its_part(copy: Path, built: dict[str, Path]) -> None:
    kind = verify.kind_of(copy)
    parts = verify.stretches(built[kind], check)
    for part in parts:
        # In the table: behind the protective record; elsewhere the first byte.
        at = part.start + (600 if part.name == "partition table" else 0)
        at = part.start + part.length - 500 if part.name.startswith("copy of") else at
        flip(copy, at)
        found = verify.compare(copy, built[kind], parts)
        assert {name for name, first in found.items() if first is not None} == {part.name}
        assert found[part.name] == at
        if part.name == "kind":
            assert verify.kind_of(copy) == ""
        elif part.name not in SILENT:
            problems = told(copy).problems
            assert problems, part.name
            if kind == "disk":
                assert problems[0].startswith(SAYS.get(part.name, part.name.split(" ")[0])), part.name
        flip(copy, at)
    assert told(copy).problems == ()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_an_update_is_seen(built: dict[str, Path], data: st.DataObject) -> None:
    whole = built["update"]
    at = data.draw(st.integers(len(update.MAGIC), whole.stat().st_size - 1))
    copy = whole.with_name("flipped")
    shutil.copyfile(whole, copy)
    flip(copy, at)
    assert told(copy).problems
    found = verify.compare(copy, whole, verify.stretches(whole, check))
    assert [first for first in found.values() if first is not None] == [at]


@pytest.mark.parametrize("copy", ["disk", "update"], indirect=True)
def test_a_file_that_was_cut_is_seen(copy: Path, built: dict[str, Path]) -> None:
    kind = verify.kind_of(copy)
    length = copy.stat().st_size - 4096
    with copy.open("r+b") as opened:
        opened.truncate(length)
    assert told(copy).problems
    assert verify.compare(copy, built[kind], verify.stretches(built[kind], check))["length"] == length


@pytest.mark.parametrize("kind", ["disk", "update"])
def test_another_key_is_seen(kind: str, built: dict[str, Path]) -> None:
    other = keys.public_bytes(Ed25519PrivateKey.generate())
    certificate = keys.boot_key(keys.Role.DB).certificate
    found = verify.alone(built[kind], lambda sign, text: keys.check(other, sign, text), certificate)
    assert any("signature" in why or "unsigned" in why for why in found.problems)
    stranger = keys.boot_key(keys.Role.KEK).certificate
    found = verify.alone(built[kind], check, stranger)
    assert any("Secure Boot" in why for why in found.problems)


@settings(deadline=None)
@given(st.binary(max_size=2048), st.sampled_from([b"", update.MAGIC, bytes(512) + gpt.SIGNATURE]))
def test_a_strangers_file_has_an_answer(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "strange"
    file.write_bytes(head + data)
    if verify.kind_of(file):
        assert told(file).problems


def test_parts_are_compared_over_their_whole_length(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(bytes(3 * verify.STEP + 10))
    other.write_bytes(bytes(3 * verify.STEP + 9) + b"x")
    parts = [Stretch("first", 0, verify.STEP), Stretch("rest", verify.STEP, 2 * verify.STEP + 10)]
    found = verify.compare(one, other, parts)
    assert found == {"first": None, "rest": 3 * verify.STEP + 9, "length": None}
