"""The power-cut harness: its parser against QEMU's own logs and against rot, its replay against a model."""

import json
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spine.ground import powercut
from spine.ground.powercut import DISCARD, FLUSH, FUA, MARK, Entry, Keep, LogError
from spine.ground.qmp import Qmp, QmpError

SECTOR = powercut.SECTOR
DISK_SECTORS = 16

# (kind, sector, sectors, fill): the requests of a small disk.
Request = tuple[str, int, int, int]

writes = st.tuples(
    st.sampled_from(["write", "fua", "discard"]),
    st.integers(0, DISK_SECTORS - 1),
    st.integers(1, 4),
    st.integers(1, 255),
).map(lambda r: (r[0], r[1], min(r[2], DISK_SECTORS - r[1]), r[3]))
requests = st.lists(st.one_of(writes, st.just(("flush", 0, 0, 0)), st.just(("mark", 0, 0, 0))), max_size=30)


def log_of(asked: list[Request], *, count: int | None = None, sector: int = SECTOR) -> bytes:
    """A log as QEMU would write it; `count` is what the superblock says."""
    parts = [powercut.SUPERBLOCK.pack(powercut.MAGIC, 1, len(asked) if count is None else count, sector)]
    flags = {"write": 0, "fua": FUA, "discard": DISCARD, "flush": FLUSH, "mark": MARK}
    for kind, start, size, fill in asked:
        data = bytes([fill]) * (size * sector) if kind in ("write", "fua") else b""
        header = powercut.ENTRY.pack(start, size, flags[kind], 4 if kind == "mark" else 0)
        parts += [header + (b"name" if kind == "mark" else b""), data]
    return b"".join(part + bytes(-len(part) % sector) for part in parts)


def model(asked: list[Request]) -> tuple[bytes, list[set[int]]]:
    """What must be in each sector when nothing else survived, and what may be otherwise."""
    flushed = max((at for at, request in enumerate(asked) if request[0] == "flush"), default=-1)
    sure = bytearray(DISK_SECTORS)
    may: list[set[int]] = [{0} for _ in sure]
    for at, (kind, start, size, fill) in enumerate(asked):
        if kind not in ("write", "fua", "discard"):
            continue
        value = 0 if kind == "discard" else fill
        for number in range(start, start + size):
            if at < flushed or kind == "fua":
                sure[number] = value
                may[number] = {value}
            else:
                may[number].add(value)
    return bytes(sure), may


def fills(disk: Path) -> bytes:
    """The fill byte of each sector; a sector of mixed bytes fails."""
    data = disk.read_bytes()
    found = [set(data[at : at + SECTOR]) for at in range(0, len(data), SECTOR)]
    assert all(len(one) == 1 for one in found)
    return bytes(one.pop() for one in found)


def files(directory: Path, log: bytes) -> tuple[Path, Path, Path]:
    base, path, target = directory / "base", directory / "log", directory / "target"
    base.write_bytes(bytes(DISK_SECTORS * SECTOR))
    path.write_bytes(log)
    return base, path, target


@settings(max_examples=150, deadline=None)
@given(asked=requests, cut=st.integers(0, 30), seed=st.integers(0, 9))
def test_replay_against_a_model(
    tmp_path_factory: pytest.TempPathFactory, asked: list[Request], cut: int, seed: int
) -> None:
    cut = min(cut, len(asked))
    base, log, target = files(tmp_path_factory.mktemp("replay"), log_of(asked))
    sure, may = model(asked[:cut])
    powercut.replay(base, log, cut, target)
    assert fills(target) == sure
    powercut.replay(base, log, cut, target, keep=Keep(seed))
    assert all(found in allowed for found, allowed in zip(fills(target), may, strict=True))
    powercut.replay(base, log, cut, target, keep=Keep(seed, share=1.0, torn=False))
    everything = model([*asked[:cut], ("flush", 0, 0, 0)])[0]
    forced = [row for row in asked[:cut] if row[0] == "fua"]
    assert fills(target) == everything or forced


def test_a_choice_is_made_again_by_its_seed(tmp_path: Path) -> None:
    asked: list[Request] = [("write", at, 4, at + 1) for at in range(0, DISK_SECTORS, 4)] * 4
    base, log, target = files(tmp_path, log_of(asked))
    found = []
    for seed in (1, 1, 2, 3, 4):
        powercut.replay(base, log, len(asked), target, keep=Keep(seed))
        found.append(fills(target))
    assert found[0] == found[1]
    assert len(set(found)) > 2
    assert any(len(set(one[at : at + 4])) > 1 for one in found for at in range(0, DISK_SECTORS, 4)), (
        "none torn"
    )


@settings(max_examples=200, deadline=None)
@given(asked=requests, lag=st.integers(0, 5), sector=st.sampled_from([512, 4096]))
def test_entries_after_the_counted_ones_are_found(asked: list[Request], lag: int, sector: int) -> None:
    log = log_of(asked, count=max(0, len(asked) - lag), sector=sector)
    assert len(powercut.parse(log)) == len(asked)
    # A preallocated log ends in zeros, which are no entries.
    assert len(powercut.parse(log + bytes(3 * sector))) == len(asked)


@settings(max_examples=300, deadline=None)
@given(asked=requests, at=st.integers(0, 40_000), lag=st.integers(0, 30))
def test_a_log_cut_short_is_a_prefix_or_refused(asked: list[Request], at: int, lag: int) -> None:
    counted = max(0, len(asked) - lag)
    log = log_of(asked, count=counted)
    whole = powercut.parse(log)
    try:
        found = powercut.parse(log[:at])
    except LogError:
        assert at < len(log)
    else:
        assert found == whole[: len(found)]
        assert len(found) >= counted or at == 0


@settings(max_examples=300, deadline=None)
@given(asked=requests, at=st.integers(0), junk=st.binary(min_size=1, max_size=64))
def test_rot_is_never_a_crash(asked: list[Request], at: int, junk: bytes) -> None:
    log = bytearray(log_of(asked))
    at %= len(log)
    log[at : at + len(junk)] = junk
    try:
        found = powercut.parse(bytes(log))
    except LogError:
        return
    assert all(isinstance(entry, Entry) and entry.data <= len(log) for entry in found)


@given(junk=st.binary(min_size=1, max_size=4096))
def test_garbage_is_refused(junk: bytes) -> None:
    with pytest.raises(LogError):
        powercut.parse(junk)


def test_an_empty_log_has_no_entries() -> None:
    assert powercut.parse(b"") == []


def test_a_write_outside_of_the_disk_is_refused(tmp_path: Path) -> None:
    base, log, target = files(tmp_path, log_of([("write", DISK_SECTORS, 1, 1)]))
    with pytest.raises(LogError, match="the disk"):
        powercut.replay(base, log, 1, target)
    assert not target.exists()
    with pytest.raises(LogError, match="entries"):
        powercut.replay(base, log, 2, target)


@pytest.mark.proves("INV-HOST-4")
def test_a_ground_is_left_as_the_cut_leaves_it(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(DISK_SECTORS * SECTOR))
    assert not powercut.logged(tmp_path)
    powercut.begin(disk, tmp_path)
    assert powercut.logged(tmp_path)
    asked: list[Request] = [("write", 0, 2, 1), ("flush", 0, 0, 0), ("write", 1, 3, 2), ("fua", 8, 1, 3)]
    (tmp_path / powercut.LOG_FILE).write_bytes(log_of(asked))
    # What QEMU wrote through to the file, flushed or not, does not count.
    disk.write_bytes(b"\xff" * (DISK_SECTORS * SECTOR))
    assert powercut.finish(disk, tmp_path) == powercut.Lost(writes=3, lost=1, lost_bytes=3 * SECTOR)
    assert fills(disk) == bytes([1, 1, 0, 0, 0, 0, 0, 0, 3]) + bytes(DISK_SECTORS - 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.img"]


def test_a_log_that_cannot_be_read_leaves_the_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"x" * SECTOR)
    powercut.begin(disk, tmp_path)
    (tmp_path / powercut.LOG_FILE).write_bytes(log_of([("write", 0, 2, 1)]))
    with pytest.raises(LogError):
        powercut.finish(disk, tmp_path)
    assert disk.read_bytes() == b"x" * SECTOR
    assert not (tmp_path / "disk.cut").exists()
    powercut.forget(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.img"]


@contextmanager
def qemu(disk: Path, log: Path, directory: Path) -> Iterator[Qmp]:
    """A QEMU without a guest, whose own monitor writes to the disk."""
    command = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"]
    command += [
        "-chardev",
        f"socket,id=qmp,path={directory / 'qmp'},server=on,wait=off",
        "-mon",
        "chardev=qmp,mode=control",
    ]
    for node in powercut.blockdevs(disk, log):
        command += ["-blockdev", json.dumps(node)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as child:
        try:
            while True:
                assert child.poll() is None
                try:
                    session = Qmp(directory / "qmp")
                    break
                except QmpError:
                    continue
            with session:
                yield session
        finally:
            child.kill()


@pytest.mark.machine
def test_what_qemu_writes_is_read(tmp_path: Path) -> None:
    base, log, target = files(tmp_path, b"")
    disk = tmp_path / "disk"
    disk.write_bytes(base.read_bytes())
    with qemu(disk, log, tmp_path) as session:

        def io(line: str) -> None:
            session.execute("human-monitor-command", {"command-line": f'qemu-io disk "{line}"'})

        io("write -P 1 0 2k")
        io("flush")
        io("write -P 2 0 512")
        io("write -P 3 4096 1k")
        io("discard 1024 512")
        asked = ["write", "flush", "write", "write", "discard"]
        entries = powercut.read(log)
        assert len(entries) == len(asked)
        assert [entry.flags for entry in entries] == [0, FLUSH, 0, 0, DISCARD]
        (counted,) = struct.unpack_from("<Q", log.read_bytes(), 16)
        assert counted < len(asked), (
            "the superblock of this QEMU does not lag: the walk past it was not tried"
        )
        io("flush")
        io("write -z 512 512")
        # Killed here, with the last write neither flushed nor counted.
    # The file has it all the same: killing QEMU is no power cut.
    assert fills(disk)[:9] == bytes([2, 0, 0, 1, 0, 0, 0, 0, 3])
    powercut.replay(base, log, 5, target)
    assert fills(target)[:10] == bytes([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    powercut.replay(base, log, 7, target)
    assert fills(target)[:10] == bytes([2, 1, 0, 1, 0, 0, 0, 0, 3, 3])
    entries = powercut.read(log)
    assert len(entries) == 7
    assert powercut.durable(entries, 7) == [True, True, True, True, True, False, False]
