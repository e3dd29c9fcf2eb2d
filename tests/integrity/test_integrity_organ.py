"""The organ: bay0's word arms the counter, `slots` tells what is there."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest
import trio

from organs.integrity import organ, survey
from tests.integrity import disks, volumes

ABSENT = [
    {
        "name": name,
        "verdict": "unreadable",
        "detail": f"there is no device {name} here",
        "differs": (),
        "how": "",
    }
    for name in disks.NAMES
]
BOOT = {"boot": {"slot": "a", "rootHash": "ab" * 32, "verified": True}}


# Far above what reading some MiB takes on a machine that is merely slow.
PATIENCE_S = 120.0


def rows(found: Mapping[str, object]) -> list[dict[str, object]]:
    """What is said of the slots and the boot volumes."""
    checked = found["checked"]
    assert isinstance(checked, list)
    return checked


class Bench:
    """A spine that tells words and hands the handlers over."""

    def __init__(self, fds: Mapping[str, int], words: list[str]) -> None:
        self.fds = fds
        self._words = words
        self._heard = trio.Event()
        self.answers: list[dict[str, object]] = []

    async def told(self) -> AsyncIterator[str]:
        for word in self._words:
            yield word
        self._heard.set()
        await trio.sleep_forever()

    async def serve(self, handlers: Mapping[str, organ.Handler]) -> None:
        await self._heard.wait()
        with trio.fail_after(PATIENCE_S):
            found = await handlers["slots"](None, {})
            while any(row["verdict"] == "pending" for row in rows(found)):
                await trio.sleep(0.01)
                found = await handlers["slots"](None, {})
        self.answers.append(found)
        raise Served


class Served(Exception):
    """The answer is there."""


@pytest.fixture(autouse=True)
def organs_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "organs.json"
    path.write_text(json.dumps(BOOT))
    monkeypatch.setattr(organ, "ORGANS", path)
    key = tmp_path / "release.pub"
    key.write_text(disks.PUBLIC.hex() + "\n")
    monkeypatch.setattr(survey, "KEY", key)
    return path


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = volumes.make(
        tmp_path / "boot.img", 32, ["spine-a+2-1.efi", "spine-b+0-3.efi", "rescue.efi"], crowd=3
    )
    fd = os.open(path, os.O_RDWR)
    yield path, fd
    os.close(fd)


async def answer(fds: Mapping[str, int], words: list[str]) -> dict[str, object]:
    bench = Bench(fds, words)
    try:
        await organ.main(bench)
    except BaseExceptionGroup as group:
        if group.subgroup(Served) is None:
            raise
    except Served:
        pass
    (only,) = bench.answers
    return only


@pytest.mark.proves("INV-SLOT-1")
async def test_healthy_arms_the_slot_that_runs(
    volume: tuple[Path, int], capfd: pytest.CaptureFixture[str]
) -> None:
    path, fd = volume
    found = await answer({"device:boot-a": fd}, ["healthy"])
    assert [row["verdict"] for row in rows(found)] == [
        "unreadable",
        "unreadable",
        "unsigned",
        "unreadable",
    ]
    del found["checked"]
    assert found == {
        "active": "a",
        "rootHash": "ab" * 32,
        "verified": True,
        "entries": [
            {"name": "spine-a.efi", "left": 3, "done": 0},
            {"name": "spine-b.efi", "left": 0, "done": 3},
        ],
    }
    assert {"spine-a+3-0.efi", "spine-b+0-3.efi"} <= volumes.listing(path)
    assert "spine-a+2-1.efi is now spine-a+3-0.efi" in capfd.readouterr().err


@pytest.mark.proves("INV-SLOT-1")
async def test_only_the_volume_of_the_slot_that_runs_is_written(
    volume: tuple[Path, int], tmp_path: Path
) -> None:
    path, fd = volume
    other = tmp_path / "other.img"
    other.write_bytes(path.read_bytes())
    with open(other, "r+b") as file:
        # Even a name of the running slot there is not its counter.
        found = await answer({"device:boot-a": fd, "device:boot-b": file.fileno()}, ["healthy"])
    entries = found["entries"]
    assert isinstance(entries, list)
    assert [row["left"] for row in entries if row["name"] == "spine-a.efi"] == [3, 2]
    assert volumes.listing(other) == {"spine-a+2-1.efi", "spine-b+0-3.efi", "rescue.efi"} | {
        name for name in volumes.listing(other) if name.startswith("something")
    }


@pytest.mark.proves("INV-SLOT-1")
async def test_without_the_word_nothing_is_written(volume: tuple[Path, int]) -> None:
    path, fd = volume
    before = path.read_bytes()
    for words in ([], ["sick"]):
        await answer({"device:boot-a": fd}, words)
        assert path.read_bytes() == before


async def test_a_ground_without_slots(organs_json: Path, capfd: pytest.CaptureFixture[str]) -> None:
    organs_json.write_text(json.dumps({"boot": {"slot": None, "rootHash": None, "verified": False}}))
    assert await answer({}, ["healthy"]) == {
        "active": "",
        "rootHash": "",
        "verified": False,
        "entries": [],
        "checked": ABSENT,
    }
    assert sorted(capfd.readouterr().err.splitlines()) == [
        "integrity: boot-a is unreadable: there is no device boot-a here",
        "integrity: boot-b is unreadable: there is no device boot-b here",
        "integrity: healthy; no slot with a boot volume runs here, so no counter to arm",
        "integrity: slot-a is unreadable: there is no device slot-a here",
        "integrity: slot-b is unreadable: there is no device slot-b here",
    ]


async def test_volumes_without_a_slot_that_runs(volume: tuple[Path, int], organs_json: Path) -> None:
    path, fd = volume
    before = path.read_bytes()
    organs_json.write_text(json.dumps({"boot": {"slot": None, "rootHash": None, "verified": False}}))
    await answer({"device:boot-a": fd}, ["healthy"])
    assert path.read_bytes() == before


async def test_a_rotten_volume_is_said_and_survived(
    volume: tuple[Path, int], capfd: pytest.CaptureFixture[str]
) -> None:
    path, fd = volume
    os.pwrite(fd, bytes(512), 0)
    before = path.read_bytes()
    found = await answer({"device:boot-a": fd}, ["healthy"])
    assert found["entries"] == []
    assert rows(found)[2]["verdict"] == "tampered"
    assert rows(found)[2]["detail"] == "no file system of ours: no boot sector signature"
    assert "unable to arm" in capfd.readouterr().err
    assert path.read_bytes() == before


async def test_a_whole_disk_is_verified_and_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with disks.opened(disks.files(tmp_path)) as fds:
        found = await answer(fds, ["healthy"])
    assert {str(row["name"]): row["verdict"] for row in rows(found)} == dict.fromkeys(disks.NAMES, "verified")
    said = capfd.readouterr().err
    for name in disks.NAMES:
        assert said.count(f"integrity: {name} is verified (read ") == 1
