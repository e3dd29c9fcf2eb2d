"""Slots and boot volumes as files, whole and damaged: what is said of each, whichever byte it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from organs.integrity import fat, survey
from spine.ground import calls
from tests.integrity import disks, volumes

SLOT, BOOTS, PARTS = disks.made()
DRAWN = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
Rows = dict[str, dict[str, object]]


@pytest.fixture(autouse=True)
def release_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "release.pub"
    path.write_text(disks.PUBLIC.hex() + "\n")
    monkeypatch.setattr(survey, "KEY", path)
    return path


async def surveyed(paths: Mapping[str, Path], flags: Mapping[str, int] | None = None) -> Rows:
    """What a survey of these files says, and that it said it once."""
    said: list[str] = []
    with disks.opened(paths, flags) as fds:
        made = survey.Survey(fds)
        assert {row["verdict"] for row in made.rows()} <= {"pending", "unreadable"}
        async with trio.open_nursery() as nursery:
            for name in survey.NAMES:
                nursery.start_soon(made.look, name, said.append)
        rows = {str(row["name"]): row for row in made.rows()}
    assert sorted(line.split()[0] for line in said) == sorted(disks.NAMES)
    for line in said:
        assert line.split()[2].rstrip(":") == rows[line.split()[0]]["verdict"]
    return rows


def verdicts(rows: Rows) -> list[object]:
    return [rows[name]["verdict"] for name in disks.NAMES]


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    return disks.files(tmp_path)


@pytest.mark.proves("INV-SLOT-5")
async def test_a_whole_disk(paths: dict[str, Path]) -> None:
    rows = await surveyed(paths)
    assert verdicts(rows) == ["verified"] * 4
    assert rows["slot-a"]["how"] in ("direct", "dropped")
    assert rows["boot-a"]["how"] == rows["boot-b"]["how"] == "dropped"
    assert all(row["differs"] == () and row["detail"] == "" for row in rows.values())


@pytest.mark.proves("INV-SLOT-5")
@given(at=st.integers(0, disks.SIZE - 1), bit=st.integers(0, 7))
@DRAWN
def test_any_flipped_bit_of_a_slot_is_found(tmp_path: Path, at: int, bit: int) -> None:
    paths = disks.files(tmp_path)
    disks.flip(paths["slot-b"], at, bit)
    rows = trio.run(surveyed, paths)
    assert [row["verdict"] for name, row in rows.items() if name != "slot-b"] == ["verified"] * 3
    assert rows["slot-b"]["verdict"] in ("tampered", "unsigned")
    inside = [part.name for part in PARTS if part.offset <= at < part.offset + part.length]
    if rows["slot-b"]["verdict"] == "tampered" and inside and inside != ["root"]:
        assert rows["slot-b"]["differs"] == tuple(inside)


def contents() -> dict[str, list[tuple[int, int]]]:
    """The places of each file's bytes on the boot volume of slot A."""
    read = disks.reader(BOOTS["a"])
    volume, nodes = fat.tree(read)
    return {"/".join(n.path): list(fat.stretches(read, volume, n)) for n in nodes if not n.directory}


CONTENTS = contents()


@pytest.mark.proves("INV-SLOT-8")
@pytest.mark.parametrize("name", CONTENTS)
@given(data=st.data())
@DRAWN
def test_any_flipped_bit_of_a_file_of_a_boot_volume_is_found_and_named(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    at, length = data.draw(st.sampled_from(CONTENTS[name]))
    paths = disks.files(tmp_path)
    disks.flip(paths["boot-a"], at + data.draw(st.integers(0, length - 1)), data.draw(st.integers(0, 7)))
    rows = trio.run(surveyed, paths)
    assert verdicts(rows) == ["verified", "verified", "tampered", "verified"]
    assert rows["boot-a"]["differs"] == (name,)
    assert rows["boot-a"]["detail"] == f"changed: {name}"


def outside() -> list[tuple[int, int]]:
    """The stretches of the boot volume of slot A that are neither a file's nor a directory's."""
    read = disks.reader(BOOTS["a"])
    volume, nodes = fat.tree(read)
    taken = [span for spans in CONTENTS.values() for span in spans]
    taken += fat.directories(read, volume, nodes)
    found, end = [], 0
    for at, length in sorted(taken):
        found.append((end, at - end))
        end = at + length
    found.append((end, len(BOOTS["a"]) - end))
    return [(at, length) for at, length in found if length > 0]


@pytest.mark.proves("INV-SLOT-8")
@given(data=st.data())
@DRAWN
def test_any_flipped_bit_that_is_no_files_is_found(tmp_path: Path, data: st.DataObject) -> None:
    at, length = data.draw(st.sampled_from(outside()))
    paths = disks.files(tmp_path)
    disks.flip(paths["boot-a"], at + data.draw(st.integers(0, length - 1)), data.draw(st.integers(0, 7)))
    rows = trio.run(surveyed, paths)
    assert verdicts(rows) == ["verified", "verified", "tampered", "verified"]


@pytest.mark.proves("INV-SLOT-8")
async def test_an_attribute_that_ours_have_not_is_found(paths: dict[str, Path]) -> None:
    volumes.mtools(paths["boot-a"], "mattrib", "+h", "::loader/loader.conf")
    rows = await surveyed(paths)
    assert rows["boot-a"]["detail"] == "changed: loader/loader.conf"
    volumes.mtools(paths["boot-b"], "mattrib", "+a", "::loader")
    rows = await surveyed(paths)
    assert rows["boot-b"]["verdict"] == "verified"


# Where tables and directories lie: before the first file's bytes.
TABLES_END = min(at for spans in CONTENTS.values() for at, _ in spans)


@given(flips=st.lists(st.tuples(st.integers(0, TABLES_END - 1), st.integers(0, 7)), min_size=1, max_size=4))
@DRAWN
def test_rotten_tables_end_in_a_verdict(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    paths = disks.files(tmp_path)
    for at, bit in flips:
        disks.flip(paths["boot-a"], at, bit)
    rows = trio.run(surveyed, paths)
    assert verdicts(rows)[:2] == ["verified", "verified"]
    assert rows["boot-b"]["verdict"] == "verified"
    assert rows["boot-a"]["verdict"] in ("verified", "tampered")


@pytest.mark.proves("INV-SLOT-8")
async def test_files_that_come_and_go(paths: dict[str, Path], tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.write_bytes(b"evil")
    volumes.mtools(paths["boot-a"], "mcopy", str(more), "::EFI/Linux/zz+3-0.efi")
    volumes.mtools(paths["boot-a"], "mdel", "::loader/loader.conf")
    volumes.mtools(paths["boot-a"], "mren", "::EFI/Linux/spine-a+3-0.efi", "spine-a+2-1.efi")
    rows = await surveyed(paths)
    assert rows["boot-a"]["verdict"] == "tampered"
    assert rows["boot-a"]["detail"] == "extra: EFI/Linux/zz+3-0.efi; missing: loader/loader.conf"
    assert rows["boot-a"]["differs"] == ("EFI/Linux/zz+3-0.efi", "loader/loader.conf")


async def test_two_releases_and_a_slot_that_rotted(paths: dict[str, Path]) -> None:
    paths["slot-a"].write_bytes(disks.made("2")[0])
    rows = await surveyed(paths)
    # The program of slot A on its boot volume is still that of release 1.
    assert verdicts(rows) == ["verified", "verified", "tampered", "verified"]
    assert rows["boot-a"]["detail"] == "changed: EFI/Linux/spine-a+3-0.efi"
    disks.flip(paths["slot-a"], PARTS[0].offset + 500)
    rows = await surveyed(paths)
    assert verdicts(rows) == ["tampered", "verified", "verified", "verified"]
    assert rows["slot-a"]["differs"] == ("root",)


@pytest.mark.proves("INV-SLOT-9")
@pytest.mark.parametrize("name", disks.NAMES)
@pytest.mark.parametrize("mode", [os.O_WRONLY, os.O_PATH])  # the second does not even tell its size
async def test_what_cannot_be_read_holds_up_nothing_else(
    paths: dict[str, Path], mode: int, name: str
) -> None:
    rows = await surveyed(paths, {name: mode})
    assert rows.pop(name)["verdict"] == "unreadable"
    assert {row["verdict"] for row in rows.values()} == {"verified"}
    rest = {other: path for other, path in paths.items() if other != name}
    rows = await surveyed(rest)
    assert rows.pop(name) == {
        "name": name,
        "verdict": "unreadable",
        "detail": f"there is no device {name} here",
        "differs": (),
        "how": "",
    }
    assert {row["verdict"] for row in rows.values()} == {"verified"}


@pytest.mark.container
@pytest.mark.proves("INV-SLOT-9")
@pytest.mark.parametrize("name", disks.NAMES)
async def test_a_device_with_blocks_that_cannot_be_read(paths: dict[str, Path], name: str) -> None:
    """A loop device whose file was cut off behind it answers as a disk with bad sectors does."""
    devices: dict[str, tuple[str, int]] = {}
    try:
        for each, path in paths.items():
            devices[each] = calls.loop(str(path), read_only=False)
        os.truncate(paths[name], 120_000)
        rows = await surveyed({each: Path(node) for each, (node, _) in devices.items()})
    finally:
        for _, fd in devices.values():
            os.close(fd)
    failed = rows.pop(name)
    assert failed["verdict"] == "unreadable"
    assert re.match(r"\[Errno 5\] Input/output error at byte \d+$", str(failed["detail"]))
    assert {row["verdict"] for row in rows.values()} == {"verified"}


async def test_a_device_that_ends_too_early(paths: dict[str, Path]) -> None:
    os.truncate(paths["slot-a"], 100_000)
    os.truncate(paths["boot-a"], 120_000)
    rows = await surveyed(paths)
    assert rows["slot-a"]["verdict"] in ("unsigned", "unreadable")
    assert rows["slot-b"]["verdict"] == "verified"
    assert rows["boot-a"]["verdict"] == "tampered"


@pytest.mark.parametrize("text", [None, "", "00", "no hex"])
async def test_without_a_release_key_nothing_is_verified(
    paths: dict[str, Path], release_key: Path, text: str | None
) -> None:
    release_key.unlink()
    if text is not None:
        release_key.write_text(text)
    rows = await surveyed(paths)
    assert verdicts(rows) == ["unsigned"] * 4
    assert "no release key" in str(rows["slot-a"]["detail"])


async def test_a_device_is_read_by_a_thread_that_gives_way_and_the_organ_does_not() -> None:
    assert await survey._aside(lambda: os.sched_getscheduler(0)) == os.SCHED_IDLE
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
