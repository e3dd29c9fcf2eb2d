"""Logs as SQLite writes them: cut short anywhere they are sound, a flipped bit loses no commit quietly."""

from __future__ import annotations

import random
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organs.gate import writeahead
from organs.gate.store import Corrupt, Store, file_name
from organs.gate.verdict import PAGE_BYTES
from organs.gate.writeahead import LOG_BYTES_MAX, LOG_ROOM_BYTES_MAX, Fold, Rotten, Sound

COMMITS = 12
HEADER, FRAME = 32, 24 + PAGE_BYTES


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[bytes]]:
    """The file of a store, and its log after each commit, as a crash at that moment would leave them."""
    home = tmp_path_factory.mktemp("log")
    path = home / file_name("linda")
    store = Store.create(home, "linda")
    log = path.with_name(path.name + "-wal")
    copies = []
    for number in range(COMMITS):
        store.begin(writes=True)
        store.put(b"%d" % number, random.Random(number).randbytes(50 + 700 * number))
        store.commit()
        copies.append(log.read_bytes())
    body = path.read_bytes()
    store.abandon()
    return body, copies


def recovered(home: Path, body: bytes, log: bytes) -> int:
    """How many commits the gate finds. Raises Corrupt."""
    home.mkdir()
    path = home / file_name("linda")
    path.write_bytes(body)
    path.with_name(path.name + "-wal").write_bytes(log)
    store = Store.open(home, "linda", examine=True)
    assert store is not None
    for number in range(store.keys):
        found = store.get(b"%d" % number)
        assert found is not None
        assert found[0] == random.Random(number).randbytes(50 + 700 * number)
    seq = store.seq
    store.abandon()
    shutil.rmtree(home)
    return seq


def test_whole_logs(logs: tuple[bytes, list[bytes]]) -> None:
    for number, log in enumerate(logs[1], 1):
        assert writeahead.examine(log, PAGE_BYTES) == Sound(number)


def test_cut_short_anywhere_is_sound(logs: tuple[bytes, list[bytes]]) -> None:
    """The file system lost the end of the log: the unfinished transaction and nothing else."""
    before, whole = logs[1][-2:]
    for length in {*range(len(before), len(whole), 97), *range(0, 200, 7), len(before) + 1, len(whole) - 1}:
        verdict = writeahead.examine(whole[:length], PAGE_BYTES)
        assert isinstance(verdict, Sound), length
        if length >= len(before):
            assert verdict.commits == COMMITS - 1


@given(st.randoms(use_true_random=False), st.sampled_from([b"\0", b"\xff", b"old"]))
@settings(deadline=None, max_examples=60)
def test_sectors_of_the_last_commit_in_any_state(
    logs: tuple[bytes, list[bytes]], dice: random.Random, filler: bytes
) -> None:
    """A power cut in the middle of the last write: any of its sectors may be missing. Never an alarm."""
    before, whole = logs[1][-2:]
    torn = bytearray(whole)
    for at in range(len(before) // 512 * 512, len(whole), 512):
        if dice.random() < 0.5:
            start, end = max(at, len(before)), min(at + 512, len(whole))
            torn[start:end] = (filler * 512)[: end - start]
    verdict = writeahead.examine(bytes(torn), PAGE_BYTES)
    assert isinstance(verdict, Sound)
    assert verdict.commits >= COMMITS - 1


def test_frames_of_a_transaction_that_was_rolled_back_are_no_alarm(
    logs: tuple[bytes, list[bytes]],
) -> None:
    """They stay behind the commits that follow, with the salts of the log, but without a commit mark."""
    whole = logs[1][-1]
    stale = bytearray(whole[HEADER : HEADER + FRAME])
    stale[4:8] = bytes(4)
    torn = bytearray(whole + bytes(stale) * 3)
    torn[len(logs[1][-2]) + 30] ^= 1
    assert writeahead.examine(bytes(torn), PAGE_BYTES) == Sound(COMMITS - 1)


@pytest.mark.proves("INV-GATE-10")
def test_a_flipped_bit_loses_no_commit_quietly(logs: tuple[bytes, list[bytes]], tmp_path: Path) -> None:
    """Anywhere in the log: all commits are there, or the store says that it is damaged. Two places are the
    exception that cannot be helped, because they look as a crash does: the last transaction, and the commit
    mark of the one before."""
    body, copies = logs
    whole = copies[-1]
    dice = random.Random(3)
    counts = {"harmless": 0, "last": 0, "said": 0}
    for number in range(300):
        at = dice.randrange(len(whole))
        rotten = bytearray(whole)
        rotten[at] ^= 1 << dice.randrange(8)
        try:
            seq = recovered(tmp_path / str(number), body, bytes(rotten))
        except Corrupt:
            counts["said"] += 1
            continue
        if seq == COMMITS:
            counts["harmless"] += 1
        else:
            mark = len(copies[-2]) - FRAME
            assert at >= len(copies[-2]) or mark <= at < mark + 24, f"byte {at}"
            counts["last"] += 1
    assert counts["said"] > 200, counts


def test_sqlite_alone_loses_them_quietly(logs: tuple[bytes, list[bytes]], tmp_path: Path) -> None:
    """Why this exists: the same rot, without the examination, is an open store with half of its records."""
    body, copies = logs
    rotten = bytearray(copies[-1])
    rotten[len(copies[3]) + 100] ^= 1
    path = tmp_path / "plain"
    path.write_bytes(body)
    (tmp_path / "plain-wal").write_bytes(rotten)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT count(*) FROM record").fetchone() == (4,)
    connection.close()
    assert isinstance(writeahead.examine(bytes(rotten), PAGE_BYTES), Rotten)


@given(st.binary(max_size=3 * FRAME))
@settings(deadline=None)
def test_arbitrary_bytes_have_an_answer(log: bytes) -> None:
    assert isinstance(writeahead.examine(log, PAGE_BYTES), Sound | Rotten)


# Logs that began anew.

SECTOR = 512


@dataclass(frozen=True)
class Step:
    """A store after a commit: its file and its log, and how many commits of the log there are."""

    body: bytes
    log: bytes
    commits: int
    seq: int


STEPS = 9
# The first log is longer than the second gets, and the second's last transaction reaches over frames whose
# mark and salts lie in two sectors.
FIRST = 60
SPLIT = [k for k in range(300) if (HEADER + k * FRAME + 8) % SECTOR == 0]


@pytest.fixture(scope="module")
def anew(tmp_path_factory: pytest.TempPathFactory) -> list[Step]:
    """A store whose log has begun anew: the last step of the first log, then those of the second."""
    home = tmp_path_factory.mktemp("anew")
    path = home / file_name("linda")
    store = Store.create(home, "linda")
    log = path.with_name(path.name + "-wal")

    def put(key: bytes, value: bytes) -> None:
        store.begin(writes=True)
        store.put(key, value)
        store.commit()

    put(b"0", b"first")
    store.fold()
    # Of two frames each: the marks lie where the second log's may be split.
    for number in range(FIRST):
        put(b"0", b"%d" % number)
    steps = [Step(path.read_bytes(), log.read_bytes(), FIRST, store.seq)]
    store.fold(Fold.REWIND)
    assert log.read_bytes() == steps[0].log, "folding alone does not touch the log"
    for number in range(STEPS):
        put(b"%d" % (number + 1), random.Random(number).randbytes(50 if number < STEPS - 1 else 200_000))
        steps.append(Step(path.read_bytes(), log.read_bytes(), number + 1, store.seq))
    store.abandon()
    assert len({len(step.log) for step in steps}) == 1, "the log is written in place"
    return steps


def marked(log: bytes, frame: int) -> bool:
    return log[HEADER + frame * FRAME + 4 :][:4] != bytes(4)


def found(home: Path, step: Step, log: bytes) -> int:
    """The number of the last write after the gate has recovered from this log. Raises Corrupt."""
    home.mkdir()
    path = home / file_name("linda")
    path.write_bytes(step.body)
    path.with_name(path.name + "-wal").write_bytes(log)
    store = Store.open(home, "linda", examine=True)
    assert store is not None
    seq = store.seq
    for number in range(1, store.keys):
        held = store.get(b"%d" % number)
        assert held is not None
        assert held[0] == random.Random(number - 1).randbytes(50 if number < STEPS else 200_000)
    store.abandon()
    shutil.rmtree(home)
    return seq


def test_whole_logs_that_began_anew(anew: list[Step], tmp_path: Path) -> None:
    for number, step in enumerate(anew):
        assert writeahead.examine(step.log, PAGE_BYTES) == Sound(step.commits)
        assert found(tmp_path / str(number), step, step.log) == step.seq


def test_a_header_without_its_frames(anew: list[Step], tmp_path: Path) -> None:
    """SQLite syncs it before the first frame: a crash leaves the new header and the old log behind it."""
    before, after = anew[:2]
    log = after.log[:HEADER] + before.log[HEADER:]
    assert writeahead.examine(log, PAGE_BYTES) == Sound(0)
    # All of the old log is in the file by then.
    assert found(tmp_path / "home", after, log) == before.seq


@given(st.integers(1, STEPS), st.integers(0), st.sampled_from([0.02, 0.5, 0.98]))
@settings(deadline=None, max_examples=200)
def test_sectors_of_any_commit_in_any_state(anew: list[Step], which: int, seed: int, share: float) -> None:
    """A power cut in the middle of a write in place: any sector may be the older log's. Never an alarm."""
    dice = random.Random(seed)
    before, after = anew[which - 1 : which + 1]
    # The header is on the device before anything else.
    torn = bytearray(after.log[:HEADER] + before.log[HEADER:])
    for at in range(0, len(torn), SECTOR):
        if dice.random() < share:
            torn[at : at + SECTOR] = after.log[at : at + SECTOR]
    verdict = writeahead.examine(bytes(torn), PAGE_BYTES)
    assert isinstance(verdict, Sound)
    assert verdict.commits >= after.commits - 1


def test_an_old_mark_in_a_frame_of_two_sectors_is_no_alarm(anew: list[Step], tmp_path: Path) -> None:
    """The older log's mark before the salts of the new: the sector between was not written."""
    before, after = anew[-2:]
    splits = [k for k in SPLIT if marked(before.log, k) and not marked(after.log, k)]
    assert splits, "the fixture has such a frame"
    for k in splits:
        border = HEADER + k * FRAME + 8
        torn = bytearray(after.log)
        torn[border - SECTOR : border] = before.log[border - SECTOR : border]
        verdict = writeahead.examine(bytes(torn), PAGE_BYTES)
        assert verdict == Sound(after.commits - 1)
        assert found(tmp_path / str(k), after, bytes(torn)) == before.seq


@pytest.mark.proves("INV-GATE-10")
def test_a_flipped_bit_in_a_log_that_began_anew(anew: list[Step], tmp_path: Path) -> None:
    """As in a first log: no commit is lost quietly, but for the last transaction and the mark before it. What
    is left of the older log matters to nobody."""
    step, before = anew[-2], anew[-3]
    end = writeahead.end_of_commits(
        lambda size, at: step.log[at : at + size], HEADER, salts_of(step.log), PAGE_BYTES
    )
    last = writeahead.end_of_commits(
        lambda size, at: before.log[at : at + size], HEADER, salts_of(before.log), PAGE_BYTES
    )
    dice = random.Random(4)
    counts = {"harmless": 0, "last": 0, "said": 0}
    for number in range(300):
        at = dice.randrange(min(len(step.log), end + 20 * FRAME))
        rotten = bytearray(step.log)
        rotten[at] ^= 1 << dice.randrange(8)
        try:
            seq = found(tmp_path / str(number), step, bytes(rotten))
        except Corrupt:
            assert at < end, f"byte {at} is of the older log"
            counts["said"] += 1
            continue
        if seq == step.seq:
            counts["harmless"] += 1
        else:
            mark = last - FRAME
            assert at >= last or mark <= at < mark + 24, f"byte {at}"
            counts["last"] += 1
    assert min(counts.values()) > 5, counts


def salts_of(log: bytes) -> writeahead.Salts:
    salts = writeahead.salts(log)
    assert salts is not None
    return salts


@pytest.mark.proves("INV-GATE-10")
def test_nothing_is_written_in_front_of_an_unfinished_transaction(anew: list[Step], tmp_path: Path) -> None:
    """A crash left one behind the commits, whole but for its first page. The next commits must not stand
    before its mark, or another crash would look like rot."""
    before, after = anew[-2:]
    torn = bytearray(after.log)
    start = writeahead.end_of_commits(
        lambda size, at: before.log[at : at + size], HEADER, salts_of(before.log), PAGE_BYTES
    )
    torn[start + 100] ^= 1
    path = tmp_path / file_name("linda")
    log = path.with_name(path.name + "-wal")
    path.write_bytes(after.body)
    log.write_bytes(torn)
    store = Store.open(tmp_path, "linda", examine=True)
    assert store is not None
    assert store.seq == before.seq
    whole = []
    for number in range(2):
        store.begin(writes=True)
        store.put(b"0", b"again %d" % number)
        store.commit()
        whole.append(log.read_bytes())
    store.abandon()
    assert len(whole[0]) < len(whole[1]) < len(torn), "it begins anew, in a file without the old one's rest"
    cut = bytearray(whole[1])
    cut[len(whole[0]) + 100] ^= 1
    assert writeahead.examine(bytes(cut), PAGE_BYTES) == Sound(1)


def test_where_a_log_ends(anew: list[Step]) -> None:
    """From the header, or from any commit before: the end of the last commit, not of what is behind it."""
    for first, step in enumerate(anew[1:], 1):
        ends = [
            writeahead.end_of_commits(
                lambda size, at, log=earlier.log: log[at : at + size],  # type: ignore[misc] # a loop's closure
                HEADER,
                salts_of(earlier.log),
                PAGE_BYTES,
            )
            for earlier in anew[1 : first + 1]
        ]
        for start in (HEADER, *ends):
            end = writeahead.end_of_commits(
                lambda size, at, log=step.log: log[at : at + size],  # type: ignore[misc] # a loop's closure
                start,
                salts_of(step.log),
                PAGE_BYTES,
            )
            assert end == ends[-1]
        assert marked(step.log, (ends[-1] - HEADER) // FRAME - 1)
    assert writeahead.salts(b"") is None


@pytest.mark.parametrize(
    ("end", "length", "due"),
    [
        (HEADER, None, Fold.LATER),
        (LOG_BYTES_MAX, None, Fold.LATER),
        (LOG_BYTES_MAX + 1, LOG_BYTES_MAX + 1, Fold.REWIND),
        (LOG_BYTES_MAX + 1, LOG_ROOM_BYTES_MAX, Fold.REWIND),
        (LOG_BYTES_MAX + 1, LOG_ROOM_BYTES_MAX + 1, Fold.EMPTY),
    ],
)
def test_when_a_log_is_folded(end: int, length: int | None, due: Fold) -> None:
    """The length is asked only of a log that is folded."""
    asked = [] if length is None else [length]
    assert writeahead.fold_due(end, asked.pop) is due
    assert not asked
