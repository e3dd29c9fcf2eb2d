"""Logs as SQLite writes them: cut short anywhere they are sound, a flipped bit loses no commit quietly."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organs.gate import writeahead
from organs.gate.store import Corrupt, Store, file_name
from organs.gate.verdict import PAGE_BYTES
from organs.gate.writeahead import Rotten, Sound

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
