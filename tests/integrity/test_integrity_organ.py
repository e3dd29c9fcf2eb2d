"""The organ: after bay0's word both pairs end as they should be, whatever was damaged."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from organs.integrity import organ, replace, survey, volume
from organs.integrity.pairs import Pairs
from organs.integrity.replace import NotReplaced
from organs.integrity.verify import Judged, Verdict
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


# What ends in one of these goes on by itself no more.
SETTLED = ("blessed", "update", "irreplaceable", "lost", "leaving", "none", "waiting")


class Bench:
    """A spine that tells words, hears what is asked, and hands the handlers over once all is settled."""

    # Not the first of its boot, which begins after a pause.
    generation = 2

    def __init__(self, fds: Mapping[str, int], words: list[str]) -> None:
        self.fds = fds
        self._words = words
        self._heard = trio.Event()
        self.answers: list[dict[str, object]] = []
        self.asked: list[str] = []

    async def told(self) -> AsyncIterator[str]:
        for word in self._words:
            yield word
        self._heard.set()
        await trio.sleep_forever()

    def ask(self, word: str) -> None:
        self.asked.append(word)

    async def serve(self, handlers: Mapping[str, organ.Handler]) -> None:
        await self._heard.wait()
        with trio.fail_after(PATIENCE_S):
            found = await handlers["slots"](None, {})
            while found["standing"] not in SETTLED or any(row["verdict"] == "pending" for row in rows(found)):
                await trio.sleep(0.01)
                found = await handlers["slots"](None, {})
            # What stands is said by then.
            await trio.testing.wait_all_tasks_blocked()
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


async def answer(
    fds: Mapping[str, int], words: list[str], asked: list[str] | None = None
) -> dict[str, object]:
    bench = Bench(fds, words)
    try:
        await organ.main(bench)
    except BaseExceptionGroup as group:
        if group.subgroup(Served) is None:
            raise
    except Served:
        pass
    (only,) = bench.answers
    if asked is None:
        assert bench.asked == []
    else:
        asked += bench.asked
    return only


async def kept(paths: Mapping[str, Path], words: tuple[str, ...] = ("healthy",)) -> dict[str, object]:
    """What an organ says in the end that finds these files."""
    with disks.opened(paths) as fds:
        return await answer(fds, list(words))


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    return disks.files(tmp_path)


def boot(organs_json: Path, slot: str | None, *, healthy: bool = False) -> None:
    """What bay0 wrote down."""
    facts = {"slot": slot, "rootHash": None, "verified": slot is not None, "healthy": healthy}
    organs_json.write_text(json.dumps({"boot": facts}))


def equal(paths: Mapping[str, Path], version: str = "1") -> bool:
    """Both slots are of that release, bit for bit, and both boot volumes have all their files and tries."""
    data, boots, _parts = disks.made(version)
    return all(
        paths[f"slot-{x}"].read_bytes() == data and files(paths, x) == expected(boots, x) for x in "ab"
    )


def files(paths: Mapping[str, Path], letter: str) -> object:
    """The files of a boot volume with their hashes, as another reader of FAT would list them."""
    with open(paths[f"boot-{letter}"], "rb") as file:
        listed = survey.look_at_boot(file.fileno())
    assert listed.seen is not None
    return listed.seen.files or listed.seen.no_volume


def expected(boots: Mapping[str, bytes], letter: str) -> object:
    file = os.memfd_create("volume")
    try:
        os.write(file, boots[letter])
        listed = survey.look_at_boot(file)
    finally:
        os.close(file)
    assert listed.seen is not None
    return listed.seen.files


def rename(paths: Mapping[str, Path], letter: str, counter: str, before: str = "+3-0") -> None:
    volumes.mtools(
        paths[f"boot-{letter}"],
        "mren",
        f"::EFI/Linux/spine-{letter}{before}.efi",
        f"spine-{letter}{counter}.efi",
    )


@pytest.mark.proves("INV-SLOT-1")
async def test_healthy_arms_the_slot_that_runs_and_the_other(
    paths: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    rename(paths, "a", "+2-1")
    rename(paths, "b", "+0-3")
    found = await kept(paths)
    assert [row["verdict"] for row in rows(found)] == ["verified"] * 4
    del found["checked"]
    assert found == {
        "active": "a",
        "rootHash": "ab" * 32,
        "verified": True,
        "entries": [
            {"name": "spine-a.efi", "left": 3, "done": 0},
            {"name": "spine-b.efi", "left": 3, "done": 0},
        ],
        "standing": "blessed",
        "blessed": True,
        "lost": False,
        "update": "none",
        "replacing": "",
        "writtenBytes": 0,
        "totalBytes": 0,
        "report": "spine-b+0-3.efi is now spine-b+3-0.efi",
    }
    assert equal(paths)
    said = capfd.readouterr().err
    assert said.index("spine-a+2-1.efi is now spine-a+3-0.efi") < said.index("spine-b+0-3.efi is now")


@pytest.mark.proves("INV-SLOT-1")
@pytest.mark.parametrize("words", [(), ("sick",)])
async def test_without_the_word_nothing_is_written(paths: dict[str, Path], words: tuple[str, ...]) -> None:
    rename(paths, "a", "+2-1")
    disks.flip(paths["slot-b"], 5000)
    before = {path: path.read_bytes() for path in paths.values()}
    found = await kept(paths, words)
    assert found["standing"] == "waiting"
    assert not found["blessed"]
    assert {path: path.read_bytes() for path in paths.values()} == before


async def test_who_starts_after_the_word_finds_it_written_down(
    paths: dict[str, Path], organs_json: Path
) -> None:
    boot(organs_json, "a", healthy=True)
    disks.flip(paths["slot-b"], 5000)
    assert (await kept(paths, ()))["blessed"]
    assert equal(paths)


async def test_a_ground_without_slots(organs_json: Path, capfd: pytest.CaptureFixture[str]) -> None:
    boot(organs_json, None)
    found = await answer({}, ["healthy"])
    assert found["checked"] == ABSENT
    assert (found["active"], found["rootHash"], found["verified"], found["entries"]) == ("", "", False, [])
    assert found["standing"] == "none"
    assert sorted(capfd.readouterr().err.splitlines()) == [
        "integrity: boot-a is unreadable: there is no device boot-a here",
        "integrity: boot-b is unreadable: there is no device boot-b here",
        "integrity: healthy; there are no slots here",
        "integrity: slot-a is unreadable: there is no device slot-a here",
        "integrity: slot-b is unreadable: there is no device slot-b here",
    ]


@pytest.mark.parametrize("gone", ["slot-b", "boot-b", "boot-a"])
async def test_what_is_not_there_cannot_be_written_and_the_rest_is_kept(
    paths: dict[str, Path], gone: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rename(paths, "a", "+2-1")
    del paths[gone]
    found = await kept(paths)
    assert found["standing"] == "irreplaceable"
    assert not found["lost"]
    if gone != "boot-a":
        assert "spine-a+3-0.efi" in volumes.listing(paths["boot-a"])
    assert "integrity: irreplaceable" in capfd.readouterr().err


async def test_a_whole_disk_is_verified_and_said_once_and_not_written(
    paths: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in paths.values()}
    found = await kept(paths)
    assert found["blessed"]
    said = capfd.readouterr().err
    for name in disks.NAMES:
        assert said.count(f"integrity: {name} is verified (read ") == 1
    assert said.count("integrity: blessed") == 1
    assert {path: path.stat().st_mtime_ns for path in paths.values()} == before


def zero(name: str) -> Callable[[dict[str, Path]], None]:
    def damage(paths: dict[str, Path]) -> None:
        paths[name].write_bytes(bytes(paths[name].stat().st_size))

    return damage


def garble(name: str, at: int) -> Callable[[dict[str, Path]], None]:
    return lambda paths: disks.flip(paths[name], at)


def delete(letter: str, file: str) -> Callable[[dict[str, Path]], None]:
    def damage(paths: dict[str, Path]) -> None:
        volumes.mtools(paths[f"boot-{letter}"], "mdel", f"::{file}")

    return damage


def other_release(*names: str) -> Callable[[dict[str, Path]], None]:
    """An older release lies there."""

    def damage(paths: dict[str, Path]) -> None:
        data, boots, _parts = disks.made("0.9")
        for name in names:
            paths[name].write_bytes(boots[name[-1]] if name.startswith("boot") else data)

    return damage


DAMAGE: dict[str, tuple[Callable[[dict[str, Path]], None], ...]] = {
    "a bit of slot b": (garble("slot-b", 5000),),
    "the superblock of slot b": (garble("slot-b", 0),),
    "a zero at the end of slot b": (garble("slot-b", disks.SIZE - 1),),
    "slot b is zeros": (zero("slot-b"),),
    "slot b and its boot volume are zeros": (zero("slot-b"), zero("boot-b")),
    "boot b is zeros": (zero("boot-b"),),
    "boot a is zeros": (zero("boot-a"),),
    "both boot volumes are zeros": (zero("boot-a"), zero("boot-b")),
    "the loaders' settings are gone": (delete("a", "loader/loader.conf"), delete("b", "loader/loader.conf")),
    "a bit of the loader": (garble("boot-b", disks.made()[1]["b"].index(disks.LOADER) + 77),),
    "no boot sector": (garble("boot-a", 510),),
    "own program is gone": (delete("a", "EFI/Linux/spine-a+3-0.efi"),),
    "own counter is gone": (lambda paths: rename(paths, "a", ""),),
    "the other's counter is gone": (lambda paths: rename(paths, "b", ""),),
    "the other has an older program": (other_release("boot-b"),),
    "the other is an older release": (other_release("boot-b", "slot-b"),),
    "all but own slot": (zero("boot-a"), zero("slot-b"), zero("boot-b")),
}


@pytest.mark.proves("INV-SLOT-12")
@pytest.mark.proves("INV-SLOT-14")
@pytest.mark.parametrize("running", ["a", None])
@pytest.mark.parametrize("damage", DAMAGE)
async def test_whatever_was_damaged_both_pairs_are_the_same_again(
    paths: dict[str, Path], organs_json: Path, damage: str, running: str | None
) -> None:
    boot(organs_json, running)
    for act in DAMAGE[damage]:
        act(paths)
    before = paths["slot-a"].stat().st_mtime_ns
    found = await kept(paths)
    assert found["blessed"], found
    assert equal(paths)
    assert paths["slot-a"].stat().st_mtime_ns == before
    assert "repl" in str(found["report"]) or "is now" in str(found["report"])


@pytest.mark.proves("INV-SLOT-13")
@pytest.mark.parametrize("state", ["good", "wiped", "uncounted"])
async def test_a_bad_slot_that_runs_is_left_for_the_other(
    paths: dict[str, Path], state: str, capfd: pytest.CaptureFixture[str]
) -> None:
    disks.flip(paths["slot-a"], 5000)
    if state == "wiped":
        zero("boot-a")(paths)
    if state == "uncounted":
        rename(paths, "a", "")
    before = {name: paths[name].read_bytes() for name in ("slot-a", "slot-b", "boot-b")}
    asked: list[str] = []
    with disks.opened(paths) as fds:
        found = await answer(fds, ["healthy"], asked)
    assert asked == ["reboot"]
    assert found["standing"] == "leaving"
    assert {name: paths[name].read_bytes() for name in before} == before
    if state == "good":
        assert "spine-a+0-3.efi" in volumes.listing(paths["boot-a"])
    else:
        assert not any(paths["boot-a"].read_bytes())
    assert "asking for a restart into slot-b" in capfd.readouterr().err


@pytest.mark.proves("INV-SLOT-13")
async def test_the_other_is_made_fit_before_it_is_gone_to(paths: dict[str, Path]) -> None:
    disks.flip(paths["slot-a"], 5000)
    zero("boot-b")(paths)
    asked: list[str] = []
    with disks.opened(paths) as fds:
        await answer(fds, ["healthy"], asked)
    assert asked == ["reboot"]
    assert files(paths, "b") == expected(disks.made()[1], "b")


@pytest.mark.proves("INV-SLOT-13")
@pytest.mark.parametrize("running", ["a", "b", None])
async def test_when_all_is_lost_nothing_is_written(
    paths: dict[str, Path], organs_json: Path, running: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    boot(organs_json, running)
    rename(paths, "a", "+2-1")
    rename(paths, "b", "+1-2")
    for name in ("slot-a", "slot-b"):
        disks.flip(paths[name], 5000)
    before = {path: path.read_bytes() for path in paths.values()}
    found = await kept(paths)
    assert found["lost"]
    assert {path: path.read_bytes() for path in paths.values()} == before
    assert "integrity: lost: " in capfd.readouterr().err


@pytest.mark.parametrize("name", ["slot-b", "boot-b"])
async def test_a_device_that_may_not_be_written_is_an_answer(
    paths: dict[str, Path], name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rename(paths, "a", "+2-1")
    disks.flip(paths[name], 5000)
    if name == "boot-b":
        zero("boot-b")(paths)
    with disks.opened(paths, {name: os.O_RDONLY}) as fds:
        found = await answer(fds, ["healthy"])
    assert found["standing"] == "irreplaceable"
    assert f"b: {name}: [Errno 9] Bad file descriptor" in str(found["report"])
    # The slot that runs has its tries nevertheless, and it was not tried for ever.
    assert "spine-a+3-0.efi" in volumes.listing(paths["boot-a"])
    assert capfd.readouterr().err.count("integrity: unable to replace") == 2


async def test_an_update_waits_then_is_what_all_is_held_against(
    paths: dict[str, Path], organs_json: Path
) -> None:
    data, boots, _parts = disks.made("2")
    said: list[str] = []
    with disks.opened(paths) as fds:
        made = Pairs(survey.Survey(fds), "a", said.append, lambda: pytest.fail("no restart was wanted"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            made.healthy()
            with trio.fail_after(PATIENCE_S):
                while made.answer()["standing"] != "blessed":
                    await trio.sleep(0.01)
                assert made.running_version() == "1"
                source = replace.memory(data, made.key)
                assert await made.install(source) == "b"
                while made.answer()["standing"] != "update":
                    await trio.sleep(0.01)
            assert made.answer()["update"] == "pending"
            assert "slot-b and boot-b hold version 2 now" in said
            nursery.cancel_scope.cancel()
    assert paths["slot-b"].read_bytes() == data
    assert paths["boot-b"].read_bytes() == boots["b"]
    assert paths["slot-a"].read_bytes() == disks.made()[0]
    # It was started, and is healthy: the older one is written over.
    boot(organs_json, "b")
    rename(paths, "b", "+2-1")
    assert (await kept(paths))["blessed"]
    assert equal(paths, "2")


async def test_an_update_that_used_up_its_tries_is_written_over(
    paths: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    data, boots, _parts = disks.made("2")
    paths["slot-b"].write_bytes(data)
    paths["boot-b"].write_bytes(boots["b"])
    rename(paths, "b", "+0-3")
    assert (await kept(paths))["blessed"]
    assert equal(paths)
    assert "the update in slot-b used up its tries" in capfd.readouterr().err


async def test_an_update_is_refused_where_it_would_take_something_away(paths: dict[str, Path]) -> None:
    disks.flip(paths["slot-a"], 5000)
    left: list[str] = []
    with disks.opened(paths) as fds:
        made = Pairs(survey.Survey(fds), "a", lambda _: None, lambda: left.append("reboot"))
        source = replace.memory(disks.made("2")[0], disks.PUBLIC)
        with pytest.raises(NotReplaced, match="not confirmed healthy"):
            await made.install(source)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            made.healthy()
            with trio.fail_after(PATIENCE_S):
                while not left:
                    await trio.sleep(0.01)
            with pytest.raises(NotReplaced, match="about to restart"):
                await made.install(source)
            nursery.cancel_scope.cancel()
    assert paths["slot-b"].read_bytes() == disks.made()[0]


def loses_a_write(monkeypatch: pytest.MonkeyPatch, paths: Mapping[str, Path]) -> None:
    """The device of slot B acknowledges what is written to its second MiB less a block, and forgets it."""
    real = os.pwritev
    place = paths["slot-b"].stat().st_ino

    def write(fd: int, buffers: list[memoryview], offset: int) -> int:
        if os.fstat(fd).st_ino == place and offset == 4096 and any(buffers[0]):
            return len(buffers[0])
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", write)


async def test_a_device_that_forgets_is_not_called_replaced(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disks.flip(paths["slot-b"], 5000)
    loses_a_write(monkeypatch, paths)
    found = await kept(paths)
    assert found["standing"] == "irreplaceable"
    assert "slot-b reads back as" in str(found["report"])
    assert not any(paths["boot-b"].read_bytes())


@pytest.mark.parametrize(
    "bug", ["no read-back", "a slot that is trusted unhashed", "a counter that is dropped"]
)
async def test_a_seeded_bug_is_seen_by_who_looks_from_outside(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch, bug: str
) -> None:
    """What the organ would call blessed with the bug is not what `equal` finds on the disk."""
    if bug == "no read-back":
        disks.flip(paths["slot-b"], 5000)
        loses_a_write(monkeypatch, paths)
        with disks.opened({"slot-a": paths["slot-a"]}) as fds:
            whole = survey.look_at_slot(fds["device:slot-a"], disks.PUBLIC)
        monkeypatch.setattr(replace, "look_at_slot", lambda _fd, _key: whole)
    elif bug == "a slot that is trusted unhashed":
        disks.flip(paths["slot-b"], 5000)
        monkeypatch.setattr(survey, "judge", lambda _found: Judged(Verdict.VERIFIED))
    else:
        rename(paths, "b", "")
        monkeypatch.setattr(volume, "_plain", lambda path: tuple(x.lower().replace("+3-0", "") for x in path))
        monkeypatch.setattr(volume, "tries", lambda _seen, _letter: 3)
    assert (await kept(paths))["blessed"]
    assert not equal(paths)


@pytest.mark.parametrize(("generation", "pause_s"), [(1, organ.PAUSE_S), (2, 0.0), (7, 0.0)])
def test_the_first_of_a_boot_reads_nothing_until_a_persona_had_its_turn(
    generation: int, pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[float] = []

    async def run(_pairs: Pairs) -> None:
        began.append(trio.current_time())
        raise Served

    async def main() -> None:
        bench = Bench({}, [])
        bench.generation = generation
        await organ.main(bench)

    monkeypatch.setattr(Pairs, "run", run)
    monkeypatch.setattr(Bench, "serve", lambda *_: trio.sleep_forever())
    with pytest.raises(BaseExceptionGroup) as raised:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert raised.value.subgroup(Served) is not None
    # The clock began at nought.
    assert began == [pytest.approx(pause_s)]
