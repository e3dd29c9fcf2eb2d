"""Bad data are not a bad slot: whatever lies on persist or the personas' partition, the system gets healthy.

Each case damages an image that a running gate had written, in one of the ways that media and file systems
have, and boots the real thing on it. It must end ready and healthy, with a gate that serves or one that is
closed, and without a single death that counts against the slot. A seeded bug shows that the harness would see
the others.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from bus.envelope import Code
from organs import layout
from organs.gate.store import file_name
from spine import paths
from spine.errors import SpineError
from spine.ground import calls, gpt, state
from spine.ground.container import Container
from spine.ground.port import PortFailure
from spine.ground.qemu import Machine
from spine.image.build import build
from spine.progress import Progress
from tests.integration.boots import Boot
from tests.integration.live import Live, spine, within
from tests.integration.test_machine import PowerOn, copy_of, counters

SUPERBLOCK, SUPERBLOCK_BYTES = 1024, 1024
INODE_BYTES, ROOT_INODE, JOURNAL_INODE = 256, 2, 8
ZYGOTE = "organs/bay0/zygote.py"
# What a caller may be told of bad data: what is wrong, that the gate died over it, or that it took too long.
TYPED = {Code.CORRUPT, Code.PEER_DIED, Code.DEADLINE, Code.FULL}
Damage = Callable[["Image"], None]


class Image:
    """An ext4 image, to be damaged where e2fsprogs says that something is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._dice = random.Random(7)
        self.block_bytes = int(self._field("Block size"))

    def _field(self, name: str) -> str:
        found = re.search(rf"^{name}: +(\S+)", self._say("dumpe2fs", "-h"), re.MULTILINE)
        assert found, name
        return found[1]

    def _say(self, *words: str) -> str:
        done = subprocess.run([*words, str(self.path)], capture_output=True, text=True, check=True)
        return done.stdout

    def at(self, what: str) -> int:
        """Where a bitmap or the table of inodes of the first group begins."""
        found = re.search(rf"{what} at (\d+)", self._say("dumpe2fs"))
        assert found, what
        return int(found[1]) * self.block_bytes

    def inode(self, number: int) -> int:
        """Where an inode of the first group is."""
        return self.at("Inode table") + (number - 1) * INODE_BYTES

    def first_block(self, file: str) -> int:
        """Where the first block of a file or a directory is."""
        return int(self._say("debugfs", "-R", f"blocks {file}").split()[0]) * self.block_bytes

    def number(self, file: str) -> int:
        """The number of a file's inode."""
        found = re.search(r"Inode: (\d+)", self._say("debugfs", "-R", f"stat {file}"))
        assert found, file
        return int(found[1])

    def write(self, at: int, data: bytes) -> None:
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(data)

    def noise(self, at: int, length: int | None = None) -> None:
        self.write(at, self._dice.randbytes(length or self.block_bytes))

    def flip(self, at: int) -> None:
        with open(self.path, "rb") as file:
            file.seek(at)
            byte = file.read(1)[0]
        self.write(at, bytes([byte ^ 1]))

    def mounted(self, script: str) -> None:
        """Run a script beside the mounted file system, in a namespace of its own."""
        whole = f'mount -o loop "$0" /mnt; {script}; umount /mnt'
        words = ["unshare", "-m", "sh", "-ec", whole, str(self.path)]
        subprocess.run(words, check=True, capture_output=True)


def zeroes(image: Image) -> None:
    image.write(0, bytes(image.path.stat().st_size))


def cut_short(image: Image) -> None:
    os.truncate(image.path, image.path.stat().st_size // 2)


def descriptors_of_groups(image: Image) -> None:
    image.write(image.block_bytes * (2 if image.block_bytes == SUPERBLOCK else 1), bytes(image.block_bytes))


LINDA = file_name("linda")
# How, and what the sentence of a closed gate says; an empty one where the damage shows later or not at all.
WHOLE: dict[str, tuple[Damage, str]] = {
    "superblock zeroed": (lambda i: i.write(SUPERBLOCK, bytes(SUPERBLOCK_BYTES)), "Invalid argument"),
    "superblock, one bit": (lambda i: i.flip(SUPERBLOCK + 4), "Bad message"),
    "superblock noise": (lambda i: i.noise(SUPERBLOCK, SUPERBLOCK_BYTES), "Invalid argument"),
    "all zeroes": (zeroes, "Invalid argument"),
    "all noise": (lambda i: i.noise(0, i.path.stat().st_size), "Invalid argument"),
    "cut short": (cut_short, "Invalid argument"),
    "descriptors of groups": (descriptors_of_groups, "needs cleaning"),
    "journal": (lambda i: i.noise(i.first_block(f"<{JOURNAL_INODE}>")), "Invalid argument"),
    "inode of the journal": (lambda i: i.flip(i.inode(JOURNAL_INODE) + 0x28), "Bad message"),
    "inode of the directory": (lambda i: i.flip(i.inode(ROOT_INODE) + 4), "Bad message"),
    "directory": (lambda i: i.noise(i.first_block(f"<{ROOT_INODE}>")), "Bad message"),
    "map of blocks": (lambda i: i.noise(i.at("Block bitmap")), ""),
    "map of inodes": (lambda i: i.noise(i.at("Inode bitmap")), ""),
    "reserve is a directory": (
        lambda i: i.mounted("rm /mnt/ballast; mkdir /mnt/ballast"),
        "Is a directory: '/persist/ballast'",
    ),
}


@pytest.fixture(scope="module")
def out() -> Path:
    """What is built of this tree."""
    build(paths.out(), root_only=True, progress=Progress())
    return paths.out()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Container]:
    """A container of the test's own."""
    made = Container(tmp_path / "ground")
    yield made
    made.kill()


def booted(ground: Container, out: Path, persist: Path) -> Live:
    root, _empty = ground.provision(out, fresh=True)
    ground.start(root, persist, pairs=ground.pairs(out, fresh=True))
    ground.wait_ready()
    return Live("container", ground)


@pytest.fixture(scope="module")
def stored(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system as a gate leaves it that has kept something of two personas."""
    ground = Container(tmp_path_factory.mktemp("stored") / "ground")
    try:
        root, persist = ground.provision(out, fresh=True)
        ground.start(root, persist, pairs=ground.pairs(out, fresh=True))
        ground.wait_ready()
        live = Live("container", ground)
        for persona in ("linda", "ben"):
            live.call("gate.put", persona=persona, key=b"key", value=persona.encode() * 1000)
        assert ground.stop()
        return persist
    finally:
        ground.kill()


@pytest.fixture
def image(stored: Path, tmp_path: Path) -> Image:
    """A copy to damage."""
    return Image(Path(shutil.copy(stored, tmp_path / "persist.img")))


def code(live: Live, method: str, **params: object) -> Code | None:
    """What a call of the gate ends in; None when it is served."""
    return answer(live, f"gate.{method}", **params)


def answer(live: Live, name: str, /, **params: object) -> Code | None:
    """What a call ends in; None when it is served."""
    try:
        live.call(name, **params)
    except PortFailure as failure:
        return failure.failure.code
    return None


def wait_healthy(live: Live) -> None:
    def healthy() -> bool:
        try:
            return live.boot_facts()["healthy"] is True
        except SpineError:
            return False

    within("healthy", healthy)


def nothing_counts_against_the_slot(live: Live) -> None:
    assert {name: row["deaths"] for name, row in live.table().items() if row["deaths"]} == {}
    assert live.boot_facts()["healthy"] is True
    assert "panic" not in live.ground.console.text()


def closed(live: Live) -> str:
    """Why no data are served, as every part of the system tells it; empty when they are."""
    why = live.call("gate.data")["closed"]
    assert isinstance(why, str)
    assert live.table()["gate"]["closed"] is bool(why)
    return why


def is_closed(live: Live) -> bool:
    try:
        return live.table()["gate"]["closed"] is True and bool(closed(live))
    except SpineError:
        return False


def use(live: Live) -> set[Code | None]:
    """Ask for everything, of both personas and a new one; what the answers are."""
    found: set[Code | None] = set()
    for persona in ("linda", "ben", "carla"):
        for method, params in (
            ("get", {"key": b"key"}),
            ("put", {"key": b"other", "value": os.urandom(200_000)}),
            ("list", {"after": b"", "limit": 0}),
            ("delete", {"key": b"other"}),
            ("usage", {}),
        ):
            found.add(code(live, method, persona=persona, **params))
    return found


@pytest.mark.container
@pytest.mark.proves("INV-STATE-3")
@pytest.mark.proves("INV-STATE-4")
@pytest.mark.parametrize("how", WHOLE)
def test_a_damaged_file_system_closes_the_gate_and_costs_no_try(
    ground: Container, out: Path, image: Image, how: str
) -> None:
    damage, says = WHOLE[how]
    damage(image)
    before = image.path.read_bytes()
    live = booted(ground, out, image.path)
    if says:
        wait_healthy(live)
        assert says in closed(live)
        assert use(live) == {Code.CORRUPT}
    else:
        # Found when it is needed: then, after a few endings, it is closed as well.
        for _ in range(10):
            assert use(live) <= {*TYPED, Code.NOT_FOUND, None}
            if is_closed(live):
                break
        within("closed", lambda: is_closed(live))
        assert use(live) == {Code.CORRUPT}
        wait_healthy(live)
    nothing_counts_against_the_slot(live)
    assert ground.stop()
    if how.startswith(("superblock", "all ", "cut ")):
        # Where ext4 knows its superblock, it notes the error there.
        assert image.path.read_bytes() == before, "what could not be mounted is left as it is"


@pytest.mark.container
@pytest.mark.proves("INV-GATE-6")
@pytest.mark.parametrize("part", ["first page", "inode"])
def test_a_damaged_store_is_its_personas_alone(ground: Container, out: Path, image: Image, part: str) -> None:
    if part == "inode":
        image.flip(image.inode(image.number(f"/{LINDA}")) + 4)
    else:
        image.noise(image.first_block(f"/{LINDA}"), 4096)
    live = booted(ground, out, image.path)
    for _ in range(3):
        assert code(live, "get", persona="linda", key=b"key") is Code.CORRUPT
        assert live.call("gate.get", persona="ben", key=b"key")["value"] == b"ben" * 1000
    data = live.call("gate.data")
    assert data["closed"] == ""
    assert [row["store"] for row in data["damaged"]] == ["linda"]  # type: ignore[attr-defined]  # rows
    if part == "first page":
        live.call("gate.put", persona="ben", key=b"more", value=b"v")
    wait_healthy(live)
    nothing_counts_against_the_slot(live)


@pytest.mark.container
def test_a_full_file_system_is_served(ground: Container, out: Path, image: Image) -> None:
    image.mounted("cat /dev/zero > /mnt/stranger || true")
    live = booted(ground, out, image.path)
    assert code(live, "put", persona="linda", key=b"large", value=bytes(900_000)) is Code.FULL
    assert live.call("gate.get", persona="linda", key=b"key")["value"] == b"linda" * 1000
    assert live.call("gate.delete", persona="linda", key=b"key") == {"existed": True}
    wait_healthy(live)
    assert closed(live) == ""
    nothing_counts_against_the_slot(live)


def stop_the_device(live: Live) -> None:
    """Every call on the file system fails from here on, as when its device is pulled."""
    gate = int(str(live.table()["gate"]["pid"]))
    (root,) = [
        f"/proc/{pid}/root"
        for pid in Path(f"/proc/{live.ground.pid}/task/{live.ground.pid}/children").read_text().split()
        if f"NSpid:\t{pid}\t{gate}\n" in Path(f"/proc/{pid}/status").read_text()
    ]
    persist = os.open(root + layout.PERSIST, os.O_RDONLY | os.O_DIRECTORY)
    try:
        calls.shut_down_ext4(persist)
    finally:
        os.close(persist)


@pytest.mark.container
@pytest.mark.proves("INV-STATE-3")
@pytest.mark.proves("INV-STATE-4")
def test_a_device_that_fails_is_tried_again_and_then_left_alone(
    ground: Container, out: Path, image: Image
) -> None:
    live = booted(ground, out, image.path)
    for generation in (1, 2, 3, 4):
        live.call("gate.put", persona="linda", key=b"one", value=b"%d" % generation)
        before = live.table()["gate"]
        assert before["generation"] == generation
        assert closed(live) == ""
        stop_the_device(live)
        assert code(live, "put", persona="linda", key=b"two", value=b"2") in (Code.PEER_DIED, Code.CORRUPT)
        within("the next gate", partial(live.restarted, "gate", before))
        if generation < 4:
            # It was the device's word against nobody's: what it took is there.
            got = live.call("gate.get", persona="linda", key=b"one")
            assert got["value"] == b"%d" % generation
    assert closed(live).startswith("unable to go on with /persist: ")
    assert use(live) == {Code.CORRUPT}
    wait_healthy(live)
    nothing_counts_against_the_slot(live)
    # The next boot tries again.
    assert ground.stop()
    live = booted(ground, out, image.path)
    assert live.call("gate.get", persona="linda", key=b"one")["value"] == b"4"
    assert closed(live) == ""


@pytest.mark.container
@pytest.mark.proves("INV-STATE-6")
@pytest.mark.parametrize("what", ["noise", "zeroes", "noise behind", "ones"])
def test_the_partition_of_the_personas_ends_nobody(
    ground: Container, out: Path, stored: Path, tmp_path: Path, what: str
) -> None:
    root, _empty = ground.provision(out, fresh=True)
    size = 8 << 20
    noise = random.Random(3).randbytes(size)
    pairs = {}
    for name in ("boot-a", "boot-b"):
        pairs[name] = tmp_path / name
        pairs[name].write_bytes(noise)
    made = {
        "noise": noise,
        "zeroes": bytes(size),
        "noise behind": bytes(4096) + noise,
        "ones": b"\xff" * size,
    }
    ground.personas.write_bytes(made[what][:size])
    persist = Path(shutil.copy(stored, tmp_path / "persist.img"))
    ground.start(root, persist, pairs=pairs)
    ground.wait_ready()
    live = Live("container", ground)
    for method in ("integrity.personas", "integrity.slots", "freezer.rooms"):
        assert answer(live, method) in (None, Code.CORRUPT)
    with pytest.raises(PortFailure) as refused:
        live.call("freezer.start", persona="linda")
    assert refused.value.failure.code in (Code.CORRUPT, Code.NOT_FOUND)
    wait_healthy(live)
    generations = {name: row["generation"] for name, row in live.table().items()}
    assert set(generations.values()) == {1}
    nothing_counts_against_the_slot(live)


@pytest.mark.container
def test_a_gate_that_dies_of_a_bad_mount_is_seen(ground: Container, tmp_path: Path, image: Image) -> None:
    """The seeded bug: the ending says nothing of the data. Then it is a panic, in every slot."""
    text = (paths.ROOT / ZYGOTE).read_text()
    seeded = text.replace("os._exit(layout.EXIT_DATA)", "os._exit(101)")
    assert seeded != text
    build(tmp_path / "out", root_only=True, replace={ZYGOTE: seeded.encode()}, progress=Progress())
    zeroes(image)
    with pytest.raises(SpineError):
        booted(ground, tmp_path / "out", image.path)
    assert ground.exit_code == layout.EXIT_PANIC
    assert "gate died 4 times" in ground.console.text()


@pytest.mark.container
def test_a_person_is_told_and_gets_out(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert out.is_dir()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    container = ("--container",)
    persist = state.directory("container") / "persist.img"
    boot = ("boot", "--detach", *container)
    try:
        spine(*boot)
        spine("call", *container, "gate.put", "persona=linda", "key=k", "value=kept")
        spine("stop", *container)
        Image(persist).write(SUPERBLOCK, bytes(SUPERBLOCK_BYTES))
        spine(*boot)
        status = json.loads(spine("status", "--json", *container))
        why = "unable to mount ext4 at /persist: Invalid argument"
        assert status["data"] == {"closed": why, "damaged": {}}
        assert status["organs"]["gate"]["closed"] is True
        page = spine("status", *container).decode()
        assert f"data      BAD: {why}\n" in page
        assert "./spine boot --fresh-data" in page
        error = json.loads(spine("call", "--json", *container, "gate.get", "persona=linda", "key=k", code=1))
        assert why in error["error"]["why"]
        # There is no file system to stop, and nobody is killed for it.
        spine("powercut", *container, code=5)
        # It runs, so nothing is made anew under it.
        spine(*boot, "--fresh-data", code=5)
        spine("stop", *container)
        spine(*boot, "--fresh-data")
        assert json.loads(spine("status", "--json", *container))["data"] == {"closed": None, "damaged": {}}
        spine("call", *container, "gate.get", "persona=linda", "key=k", code=4)
        spine("call", *container, "gate.put", "persona=linda", "key=k", "value=new")
    finally:
        if state.read(state.directory("container")):
            spine("stop", *container)


@pytest.mark.machine
@pytest.mark.proves("INV-STATE-3")
def test_a_machine_whose_data_are_gone_is_healthy_and_keeps_its_tries(
    report: Mapping[str, object], tmp_path: Path, power_on: PowerOn
) -> None:
    assert report["version"]
    disk = copy_of(paths.out() / "spine.img", tmp_path)
    persist = gpt.read(disk)["persist"]
    with open(disk, "r+b") as file:
        file.seek(persist.start)
        file.write(bytes(persist.size))
    live = power_on(Boot.DATA, disk)
    assert isinstance(live.ground, Machine)
    slot = str(live.boot_facts()["slot"])
    wait_healthy(live)
    within("the counter is armed again", lambda: counters(disk)[slot] == (3, 0))
    assert "unable to mount ext4 at /persist: Invalid argument" in closed(live)
    assert use(live) == {Code.CORRUPT}
    nothing_counts_against_the_slot(live)
