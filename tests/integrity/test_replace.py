"""A pair is written anew: the same bytes afterwards, and every way in which a device refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from organs.integrity import replace, survey
from organs.integrity.replace import NotReplaced, Progress, Source, Target
from organs.integrity.verify import Verdict
from spine.ground import calls
from tests.integrity import disks

SLOT, BOOTS, PARTS = disks.made()
LENGTH = max(part.offset + part.length for part in PARTS)
BLOCK = 4096


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    """Slot B and its boot volume are full of something else."""
    found = disks.files(tmp_path)
    found["slot-b"].write_bytes(b"\xa5" * disks.SIZE)
    found["boot-b"].write_bytes(b"\x5a" * len(BOOTS["b"]))
    return found


@contextlib.contextmanager
def target(paths: dict[str, Path], letter: str = "b", flags: int = os.O_RDWR) -> Iterator[Target]:
    with disks.opened({name: paths[name] for name in (f"slot-{letter}", f"boot-{letter}")}) as fds:
        if flags == os.O_RDWR:
            yield Target(letter, fds[f"device:slot-{letter}"], fds[f"device:boot-{letter}"])
            return
        slot, boot = (os.open(paths[f"{kind}-{letter}"], flags) for kind in ("slot", "boot"))
        try:
            yield Target(letter, slot, boot)
        finally:
            os.close(slot)
            os.close(boot)


def source(data: bytes = SLOT[:LENGTH]) -> Source:
    return replace.memory(data, disks.PUBLIC)


def intact(paths: dict[str, Path], letter: str) -> bool:
    return (
        paths[f"slot-{letter}"].read_bytes() == SLOT and paths[f"boot-{letter}"].read_bytes() == BOOTS[letter]
    )


@pytest.mark.proves("INV-SLOT-15")
@pytest.mark.parametrize("letter", ["a", "b"])
def test_every_byte_is_that_of_the_source(paths: dict[str, Path], letter: str) -> None:
    with target(paths, letter) as pair:
        progress = Progress()
        checked = replace.pair(pair, source(), progress)
        assert checked.judged.verdict is Verdict.VERIFIED
        assert checked.release == source().release
        assert progress.done == progress.total > disks.SIZE
    assert intact(paths, letter)


def test_the_source_may_be_a_device(paths: dict[str, Path]) -> None:
    with target(paths) as pair, disks.opened({"slot-a": paths["slot-a"]}) as fds:
        replace.pair(pair, replace.device(fds["device:slot-a"], disks.PUBLIC), Progress())
    assert intact(paths, "b")
    assert intact(paths, "a")


def test_the_boot_volume_alone(paths: dict[str, Path]) -> None:
    before = paths["slot-b"].read_bytes()
    with target(paths) as pair:
        progress = Progress()
        replace.boot_volume("b", pair.boot, source(), progress)
        assert progress.done == progress.total
        assert paths["boot-b"].read_bytes() == BOOTS["b"]
        replace.wipe_boot_volume("boot-b", pair.boot, Progress())
    assert paths["boot-b"].read_bytes() == bytes(len(BOOTS["b"]))
    assert paths["slot-b"].read_bytes() == before


@pytest.mark.proves("INV-SLOT-10")
@given(at=st.integers(0, LENGTH - 1), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_no_changed_bit_makes_a_source(at: int, bit: int) -> None:
    data = bytearray(SLOT[:LENGTH])
    data[at] ^= 1 << bit
    with pytest.raises(NotReplaced, match="the source is"):
        source(bytes(data))


def test_a_source_that_is_cut_off_or_of_another_key_is_none() -> None:
    for length in (0, 1, BLOCK, LENGTH - 1):
        with pytest.raises(NotReplaced):
            source(SLOT[:length])
    with pytest.raises(NotReplaced):
        replace.memory(SLOT, bytes(32))
    assert source(SLOT).length == source().length


@pytest.mark.proves("INV-SLOT-10")
def test_a_source_that_rots_meanwhile_is_found(paths: dict[str, Path]) -> None:
    """It is read again while it is written: what lies on the other device is what counts."""
    rotten = False

    def read(offset: int, length: int) -> bytes:
        data = bytearray(SLOT[offset : offset + length])
        if rotten and offset <= 5000 < offset + length:
            data[5000 - offset] ^= 1
        return bytes(data)

    made = Source(read, disks.SIZE, disks.PUBLIC)
    rotten = True
    with target(paths) as pair, pytest.raises(NotReplaced, match=r"slot-b reads back as tampered: .*root"):
        replace.pair(pair, made, Progress())
    # Nothing can be started from it.
    assert paths["boot-b"].read_bytes() == bytes(len(BOOTS["b"]))


@pytest.mark.parametrize("name", ["slot-b", "boot-b"])
def test_what_does_not_fit_is_said_before_anything_is_written(paths: dict[str, Path], name: str) -> None:
    os.truncate(paths[name], 100_000)
    before = {path: path.read_bytes() for path in paths.values()}
    with target(paths) as pair, pytest.raises(NotReplaced, match=f"{name} has 100000 bytes, "):
        replace.pair(pair, source(), Progress())
    assert {path: path.read_bytes() for path in paths.values()} == before


def test_a_larger_device_is_zeros_at_its_end(paths: dict[str, Path]) -> None:
    for name in ("slot-b", "boot-b"):
        with open(paths[name], "ab") as file:
            file.write(b"\xff" * 70_001)
    with target(paths) as pair:
        replace.pair(pair, source(), Progress())
    assert paths["slot-b"].read_bytes() == SLOT + bytes(70_001)
    assert paths["boot-b"].read_bytes() == BOOTS["b"] + bytes(70_001)


class Cut(Exception):
    """The power is gone."""


Write = Callable[[int, list[memoryview], int], int]


class Device:
    """In the place of pwritev: does what a device may do at a given write."""

    def __init__(self, at: int, what: str) -> None:
        self.at, self.what, self.count = at, what, 0
        self.real: Write = os.pwritev

    def __call__(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        self.count += 1
        if self.count - 1 != self.at:
            return self.real(fd, buffers, offset)
        data = bytes(buffers[0])
        if self.what == "cut":
            raise Cut
        if self.what == "torn":
            self.real(fd, [memoryview(data[: len(data) // 2])], offset)
            raise Cut
        if self.what == "short":
            return self.real(fd, [memoryview(data[: max(1, len(data) // 3 // 512 * 512)])], offset)
        if self.what == "nothing":
            return 0
        if self.what == "error":
            raise OSError(errno.EIO, "Input/output error")
        if self.what == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        assert self.what == "lost"
        return len(data)  # acknowledged and never written


@pytest.mark.proves("INV-SLOT-15")
@pytest.mark.proves("INV-SLOT-16")
@given(
    at=st.integers(0, 56), what=st.sampled_from(["cut", "torn", "short", "nothing", "error", "full", "lost"])
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_write_comes_to(paths: dict[str, Path], at: int, what: str) -> None:
    """Either both devices are right and it says so, or it says why not; and a pair that is half written is
    none: its boot volume begins with zeros, or its slot is whole."""
    paths["slot-b"].write_bytes(b"\xa5" * disks.SIZE)
    paths["boot-b"].write_bytes(BOOTS["b"])
    device = Device(at, what)
    ended: BaseException | None = None
    with pytest.MonkeyPatch.context() as patch, target(paths) as pair:
        patch.setattr(os, "pwritev", device)
        try:
            replace.pair(pair, source(), Progress())
        except (Cut, NotReplaced) as error:
            ended = error
    begun = device.count > 1 or (device.count == 1 and what in ("short", "lost"))
    if ended is None:
        assert intact(paths, "b")
        assert device.count <= at or what in ("short", "lost")
    elif begun and at > 0:
        volume, slot = paths["boot-b"].read_bytes(), paths["slot-b"].read_bytes()
        starts = any(volume[:BLOCK])
        # Only what is acknowledged and not written can leave the old start, and that is found and said.
        assert not starts or slot == SLOT or what == "lost"
        if any(slot[:BLOCK]) and slot[:BLOCK] == SLOT[:BLOCK]:
            assert slot == SLOT or what == "lost"
    if what in ("nothing", "error", "full") and device.count > at:
        assert isinstance(ended, NotReplaced)
    # A second time, on a device that works, it comes out right whatever is there.
    with target(paths) as pair:
        replace.pair(pair, source(), Progress())
    assert intact(paths, "b")


@pytest.mark.proves("INV-SLOT-15")
@pytest.mark.parametrize("name", ["slot-b", "boot-b"])
def test_a_device_that_loses_a_write_is_found_by_reading_back(paths: dict[str, Path], name: str) -> None:
    """Each write in turn, to the device of that name, is acknowledged and never done."""
    real = os.pwritev
    for lost in range(70):
        with target(paths) as pair, pytest.MonkeyPatch.context() as patch:
            fd = pair.slot if name == "slot-b" else pair.boot
            seen = 0

            def write(
                into: int, buffers: list[memoryview], offset: int, fd: int = fd, lost: int = lost
            ) -> int:
                nonlocal seen
                if into == fd:
                    seen += 1
                    if seen - 1 == lost:
                        return len(buffers[0])
                return real(into, buffers, offset)

            patch.setattr(os, "pwritev", write)
            why = ""
            try:
                replace.pair(pair, source(), Progress())
            except NotReplaced as error:
                why = str(error)
            if seen <= lost:
                break
            # Where nothing is said it was a zero over a zero.
            assert (f"{name} " in why and "back" in why) or (not why and intact(paths, "b"))
    else:
        pytest.fail("more writes than were counted")
    assert lost >= 4


def test_a_descriptor_that_may_only_be_read_is_an_answer(paths: dict[str, Path]) -> None:
    with target(paths, flags=os.O_RDONLY) as pair:
        for act in (
            lambda: replace.pair(pair, source(), Progress()),
            lambda: replace.boot_volume("b", pair.boot, source(), Progress()),
            lambda: replace.wipe_boot_volume("boot-b", pair.boot, Progress()),
        ):
            with pytest.raises(NotReplaced, match=r"boot-b: .*Bad file descriptor"):
                act()


def test_a_file_that_may_not_be_so_long_is_an_answer(paths: dict[str, Path]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with target(paths) as pair:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 1024 * 1024, hard))
        try:
            with pytest.raises(NotReplaced, match=r"boot-b: .*File too large"):
                replace.pair(pair, source(), Progress())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.container
def test_a_device_whose_medium_is_full_is_an_answer(tmp_path: Path, paths: dict[str, Path]) -> None:
    """A loop device over a sparse file on a file system that has no room for what is written to it."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", mount], check=True)
    devices: list[int] = []
    try:
        nodes = {}
        for name, size in (("slot-b", disks.SIZE), ("boot-b", len(BOOTS["b"]))):
            with open(mount / name, "wb") as file:
                file.truncate(size)
            node, fd = calls.loop(str(mount / name), read_only=False)
            devices.append(fd)
            nodes[name] = Path(node)
        with (
            target(nodes) as pair,
            pytest.raises(NotReplaced, match=r"boot-b: .*(No space left|Input/output)"),
        ):
            replace.pair(pair, source(), Progress())
    finally:
        for fd in devices:
            os.close(fd)
        subprocess.run(["umount", "-l", mount], check=True)
    assert intact(paths, "a")


@pytest.mark.container
def test_block_devices_past_the_page_cache(paths: dict[str, Path]) -> None:
    devices: dict[str, tuple[str, int]] = {}
    try:
        for name, path in paths.items():
            devices[name] = calls.loop(str(path), read_only=False)
        nodes = {name: Path(node) for name, (node, _) in devices.items()}
        with target(nodes) as pair, disks.opened({"slot-a": nodes["slot-a"]}) as fds:
            # As the organ finds them: read with O_DIRECT before.
            assert survey.look_at_slot(pair.slot, disks.PUBLIC).judged.verdict is Verdict.UNSIGNED
            checked = replace.pair(pair, replace.device(fds["device:slot-a"], disks.PUBLIC), Progress())
            assert checked.how == "direct"
    finally:
        for _, fd in devices.values():
            os.close(fd)
    assert intact(paths, "b")


@pytest.mark.proves("INV-SLOT-16")
def test_whatever_survives_a_power_cut_a_pair_that_starts_is_whole(paths: dict[str, Path]) -> None:
    """Every write and flush in order; then, for many cuts, what was flushed before and any of the rest."""
    old, old_boots, _parts = disks.made("0.9")
    log: list[tuple[str, int, bytes]] = []  # the device, or "" for a flush of the one that is named in `data`
    real_write, real_sync = os.pwritev, os.fsync
    with target(paths) as pair, pytest.MonkeyPatch.context() as patch:
        names = {pair.slot: "slot", pair.boot: "boot"}

        def write(fd: int, buffers: list[memoryview], offset: int) -> int:
            log.append((names[fd], offset, bytes(buffers[0])))
            return real_write(fd, buffers, offset)

        def sync(fd: int) -> None:
            log.append(("", 0, names[fd].encode()))
            real_sync(fd)

        patch.setattr(os, "pwritev", write)
        patch.setattr(os, "fsync", sync)
        replace.pair(pair, source(), Progress())
    assert sum(name == "" for name, _, _ in log) == 8
    draw = random.Random(36)
    kinds = set()
    cuts = [*range(len(log) + 1), *(draw.randrange(len(log)) for _ in range(20))]
    for cut in cuts:
        held = {"slot": bytearray(old), "boot": bytearray(old_boots["b"])}
        waiting: dict[str, list[tuple[int, bytes]]] = {"slot": [], "boot": []}
        for name, offset, data in log[:cut]:
            if name:
                waiting[name].append((offset, data))
                continue
            for at, flushed in waiting.pop(data.decode()):
                held[data.decode()][at : at + len(flushed)] = flushed
            waiting[data.decode()] = []
        for name, rest in waiting.items():
            for offset, data in rest:
                for at in range(0, len(data), BLOCK):
                    if draw.random() < 0.5:
                        held[name][offset + at : offset + at + BLOCK] = data[at : at + BLOCK]
        slot, volume = bytes(held["slot"]), bytes(held["boot"])
        if any(volume[:BLOCK]):
            assert (slot, volume) in ((old, old_boots["b"]), (SLOT, BOOTS["b"])), cut
            kinds.add("old" if slot == old else "new")
        else:
            kinds.add("none")
        # The root of both releases begins alike.
        if slot[:BLOCK] == SLOT[:BLOCK]:
            assert slot in (old, SLOT), cut
    assert kinds == {"old", "new", "none"}
