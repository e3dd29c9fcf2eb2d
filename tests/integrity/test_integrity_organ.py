"""The organ: bay0's word arms the counter, `slots` tells what is there."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest
import trio

from bus.envelope import Code, Failure
from organs.integrity import organ
from tests.integrity import volumes

BOOT = {"boot": {"slot": "a", "rootHash": "ab" * 32, "verified": True}}


class Bench:
    """A spine that tells words and hands the handlers over."""

    def __init__(self, fds: Mapping[str, int], words: list[str]) -> None:
        self.fds = fds
        self._words = words
        self._heard = trio.Event()
        self.answers: list[dict[str, object] | Failure] = []

    async def told(self) -> AsyncIterator[str]:
        for word in self._words:
            yield word
        self._heard.set()
        await trio.sleep_forever()

    async def serve(self, handlers: Mapping[str, organ.Handler]) -> None:
        await self._heard.wait()
        try:
            self.answers.append(await handlers["slots"](None, {}))
        except Failure as failure:
            self.answers.append(failure)
        raise Served


class Served(Exception):
    """The answer is there."""


@pytest.fixture(autouse=True)
def organs_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "organs.json"
    path.write_text(json.dumps(BOOT))
    monkeypatch.setattr(organ, "ORGANS", path)
    return path


@pytest.fixture
def esp(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = volumes.make(
        tmp_path / "esp.img", 32, ["spine-a+2-1.efi", "spine-b+0-3.efi", "rescue.efi"], crowd=3
    )
    fd = os.open(path, os.O_RDWR)
    yield path, fd
    os.close(fd)


async def answer(fds: Mapping[str, int], words: list[str]) -> dict[str, object] | Failure:
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
    esp: tuple[Path, int], capfd: pytest.CaptureFixture[str]
) -> None:
    path, fd = esp
    assert await answer({"device:esp": fd}, ["healthy"]) == {
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
async def test_without_the_word_nothing_is_written(esp: tuple[Path, int]) -> None:
    path, fd = esp
    before = path.read_bytes()
    for words in ([], ["sick"]):
        await answer({"device:esp": fd}, words)
        assert path.read_bytes() == before


async def test_a_ground_without_an_esp(organs_json: Path, capfd: pytest.CaptureFixture[str]) -> None:
    organs_json.write_text(json.dumps({"boot": {"slot": None, "rootHash": None, "verified": False}}))
    assert await answer({}, ["healthy"]) == {"active": "", "rootHash": "", "verified": False, "entries": []}
    assert capfd.readouterr().err.count("\n") == 1


async def test_an_esp_without_slots(esp: tuple[Path, int], organs_json: Path) -> None:
    path, fd = esp
    before = path.read_bytes()
    organs_json.write_text(json.dumps({"boot": {"slot": None, "rootHash": None, "verified": False}}))
    await answer({"device:esp": fd}, ["healthy"])
    assert path.read_bytes() == before


async def test_a_rotten_esp_is_said_and_survived(
    esp: tuple[Path, int], capfd: pytest.CaptureFixture[str]
) -> None:
    path, fd = esp
    os.pwrite(fd, bytes(512), 0)
    before = path.read_bytes()
    failure = await answer({"device:esp": fd}, ["healthy"])
    assert isinstance(failure, Failure)
    assert failure.code is Code.CORRUPT
    assert "unable to arm" in capfd.readouterr().err
    assert path.read_bytes() == before
