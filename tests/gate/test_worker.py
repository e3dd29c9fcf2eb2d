"""The worker: group commit, the bounded queue, the end of a life, and a device without room."""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bus.envelope import Code
from organs.gate import worker as gate_worker
from organs.gate.store import file_name
from organs.gate.verdict import (
    QUEUE_BYTES_MAX,
    QUEUE_OPERATIONS_MAX,
    VALUE_BYTES_MAX,
    Delete,
    Get,
    Operation,
    Put,
    Refuse,
)
from organs.gate.worker import CONNECTIONS_MAX, Deleted, Found, Outcome, Stored, Ticket, Worker
from organs.gate.writeahead import LOG_BYTES_MAX, LOG_ROOM_BYTES_MAX
from tests.gate.asking import Asker, Refused


def put(number: int, persona: str = "linda") -> Put:
    return Put(persona=persona, key=b"%d" % number, value=b"v%d" % number)


def test_what_waits_together_shares_one_commit(tmp_path: Path) -> None:
    with Asker(tmp_path) as asker:
        asker.put("linda", b"first", b"")
        before = asker.worker.commits
        outcomes = asker.together(put(n) for n in range(100))
        assert asker.worker.commits == before + 1
        assert [o.seq for o in outcomes if isinstance(o, Stored)] == list(range(2, 102))
        before = asker.worker.commits
        asker.together([put(1, "ben"), put(2, "linda"), put(3, "ben"), put(4, "linda")])
        assert asker.worker.commits == before + 2


def test_a_batch_sees_its_own_writes_in_order(tmp_path: Path) -> None:
    key = b"k"
    with Asker(tmp_path) as asker:
        outcomes = asker.together(
            [
                Put(persona="linda", key=key, value=b"1"),
                Get(persona="linda", key=key),
                Put(persona="linda", key=key, value=b"2"),
                Delete(persona="linda", key=key),
                Get(persona="linda", key=key),
                Delete(persona="linda", key=key),
            ]
        )
    assert outcomes[:2] == [Stored(1), Found(b"1", 1)]
    assert outcomes[2:4] == [Stored(2), Deleted(True)]
    assert isinstance(outcomes[4], Refuse)
    assert outcomes[5] == Deleted(False)


def test_the_number_never_goes_back(tmp_path: Path) -> None:
    last = 0
    for _ in range(3):
        with Asker(tmp_path) as asker:
            for _ in range(3):
                seq = asker.put("linda", b"k", b"v")
                assert seq > last
                last = seq
                asker.delete("linda", b"k")


def stopped_worker(directory: Path) -> Worker:
    return Worker(directory, died=lambda _: None, ballast_bytes=0)


def nobody(_: Outcome) -> None:
    raise AssertionError("no answer was expected")


@pytest.mark.parametrize(
    ("operation", "admitted"),
    [
        (Get(persona="linda", key=b"k"), QUEUE_OPERATIONS_MAX),
        (
            Put(persona="linda", key=b"k", value=bytes(VALUE_BYTES_MAX)),
            QUEUE_BYTES_MAX // VALUE_BYTES_MAX - 1,
        ),
    ],
)
def test_a_full_queue_is_busy(tmp_path: Path, operation: Operation, admitted: int) -> None:
    worker = stopped_worker(tmp_path)
    for _ in range(admitted):
        assert isinstance(worker.submit(operation, nobody), Ticket)
    refusal = worker.submit(operation, nobody)
    assert isinstance(refusal, Refuse)
    assert refusal.code is Code.BUSY


def test_what_nobody_waits_for_is_not_done(tmp_path: Path) -> None:
    worker = Worker(tmp_path, died=lambda _: None, ballast_bytes=64 << 10)
    ticket = worker.submit(put(1), nobody)
    assert isinstance(ticket, Ticket)
    worker.abandon(ticket)
    done = threading.Event()
    worker.submit(put(2), lambda _: done.set())
    worker.start()
    assert done.wait(60)
    worker.stop()
    with Asker(tmp_path) as asker:
        assert asker.list("linda") == ((b"2",), False)


def test_many_personas_share_few_connections(tmp_path: Path) -> None:
    personas = [f"p{n}" for n in range(2 * CONNECTIONS_MAX)]
    with Asker(tmp_path) as asker:
        for turn in range(2):
            for persona in personas:
                asker.put(persona, b"%d" % turn, persona.encode())
        open_files = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if exists(fd)]
        assert sum(name.startswith(str(tmp_path)) for name in open_files) <= 3 * CONNECTIONS_MAX + 1
        for persona in personas:
            assert asker.get(persona, b"1") == persona.encode()


def exists(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def test_there_is_a_limit_to_personas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("organs.gate.verdict.STORES_MAX", 2)
    with Asker(tmp_path) as asker:
        asker.put("a", b"k", b"v")
        asker.put("b", b"k", b"v")
        with pytest.raises(Refused, match="used 2 of 2 stores"):
            asker.put("c", b"k", b"v")
        asker.put("b", b"k", b"w")


def test_a_stop_leaves_whole_files_and_no_log(tmp_path: Path) -> None:
    with Asker(tmp_path) as asker:
        for n in range(50):
            asker.together([put(n)])
    assert set(os.listdir(tmp_path)) == {"ballast", file_name("linda")}


def test_when_nobody_asks_the_log_is_folded_and_then_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded = threading.Event()
    tidy = Worker._tidy

    def watched(self: Worker) -> None:
        tidy(self)
        assert not self._untidy, "or it would wake up again"
        folded.set()

    monkeypatch.setattr(Worker, "_tidy", watched)
    monkeypatch.setattr(gate_worker, "IDLE_S", 0.01)
    with Asker(tmp_path) as asker:
        asker.put("linda", b"k", b"v")
        assert folded.wait(60)
        log = tmp_path / (file_name("linda") + "-wal")
        assert log.stat().st_size == 0


def test_the_log_stays_short(tmp_path: Path) -> None:
    with Asker(tmp_path) as asker:
        log = tmp_path / (file_name("linda") + "-wal")
        for n in range(60):
            asker.put("linda", b"k", random.Random(n).randbytes(50_000))
            assert log.stat().st_size <= LOG_BYTES_MAX + 100_000
        asker.put("linda", b"k", bytes(VALUE_BYTES_MAX))
        # SQLite writes over what is replaced, so this one's log is as long. Each is folded before the next.
        asker.put("linda", b"k", b"v")
        asker.put("linda", b"k", b"w")
        assert log.stat().st_size <= LOG_BYTES_MAX


def test_a_call_is_heard_in_the_moment_when_the_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker sleeps with a timer that ends as often before a call as behind it."""
    monkeypatch.setattr(gate_worker, "IDLE_S", 0.0003)
    dice = random.Random(2)
    pause = threading.Event()
    with Asker(tmp_path) as asker:
        for n in range(300):
            assert asker.put("linda", b"k", b"%d" % n) == n + 1
            pause.wait(dice.random() * 0.0006)


def test_room_that_is_not_needed_goes_back_to_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_worker, "IDLE_S", 0.01)
    path = tmp_path / file_name("linda")
    with Asker(tmp_path) as asker:
        for n in range(8):
            asker.put("linda", b"%d" % n, bytes(VALUE_BYTES_MAX))
        for n in range(8):
            asker.delete("linda", b"%d" % n)
        waited = threading.Event()
        while path.stat().st_size > 2 << 20:
            assert not waited.wait(0.01)
    assert path.stat().st_size <= 2 << 20


def test_the_worker_says_what_it_died_of_and_answers_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("organs.gate.store.sync_directory", broken)
    causes: list[BaseException] = []
    dead = threading.Event()

    def died(cause: BaseException) -> None:
        causes.append(cause)
        dead.set()

    worker = Worker(tmp_path, died=died, ballast_bytes=64 << 10)
    worker.submit(put(1), nobody)
    worker.start()
    assert dead.wait(60)
    assert isinstance(causes[0], OSError)
    worker.stop()


# A device without room.

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(params=["ext4", "tmpfs"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of a few megabytes."""
    where = tmp_path / "persist"
    where.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(where)]
    else:
        image = tmp_path / "image"
        with open(image, "wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
        command = ["mount", "-o", "loop", str(image), str(where)]
    subprocess.run(command, check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def fill(asker: Asker, size: int) -> int:
    """Put until the device is full; how many went in."""
    stored = 0
    while True:
        (outcome,) = asker.together(
            [Put(persona="linda", key=b"%d-%d" % (size, stored), value=random.Random(stored).randbytes(size))]
        )
        if isinstance(outcome, Refuse):
            assert outcome.code is Code.FULL
            return stored
        stored += 1


def occupy(directory: Path) -> None:
    """A stranger takes every block that is free, to the last."""
    with open(directory / "stranger", "wb", buffering=0) as stranger:
        for size in (65_536, 512):
            with suppress(OSError):
                while stranger.write(bytes(size)) == size:
                    pass


@pytest.mark.container
@needs_root
@pytest.mark.proves("INV-GATE-3")
@pytest.mark.parametrize("size", [3_000, 100_000, 900_000])
def test_on_a_full_device_deletes_work_and_make_room(small: Path, size: int) -> None:
    with Asker(small, ballast_bytes=1 << 20) as asker:
        asker.put("ben", b"k", b"v")
        stored = fill(asker, size)
        # To the last byte: what a large value left over, small ones take.
        small_ones = fill(asker, 100)
        assert stored > 0
        for n in range(small_ones):
            assert asker.get("linda", b"100-%d" % n) == random.Random(n).randbytes(100)
        # Nothing can be put, everything can be read and deleted, and a delete makes room for a put.
        with pytest.raises(Refused) as refused:
            asker.put("ben", b"large", bytes(VALUE_BYTES_MAX))
        assert refused.value.code is Code.FULL
        assert asker.get("ben", b"k") == b"v"
        for n in range(stored):
            assert asker.delete("linda", b"%d-%d" % (size, n)), n
        asker.put("linda", b"again", random.Random(1).randbytes(size))
        assert asker.get("linda", b"again") == random.Random(1).randbytes(size)
        for n in range(small_ones):
            assert asker.delete("linda", b"100-%d" % n), n
        assert asker.usage("linda").keys == 1
        asker.put("carla", b"k", b"a new persona finds room as well")
    with Asker(small, ballast_bytes=1 << 20) as asker:
        assert asker.get("linda", b"again") == random.Random(1).randbytes(size)


@pytest.mark.container
@needs_root
@pytest.mark.proves("INV-GATE-3")
def test_deletes_work_when_others_took_every_block(small: Path) -> None:
    """The worst case: not a single free block beside the reserve, and none of the gate's own making."""
    with Asker(small, ballast_bytes=1 << 20) as asker:
        for n in range(20):
            asker.put("linda", b"%d" % n, random.Random(n).randbytes(60_000))
        occupy(small)
        # The log goes on in the room that it has, and is folded at the reserve's cost, which it gives back.
        more = fill(asker, 60_000)
        assert more * 60_000 < LOG_ROOM_BYTES_MAX
        for n in range(more):
            assert asker.get("linda", b"60000-%d" % n) == random.Random(n).randbytes(60_000)
        for n in range(10):
            assert asker.delete("linda", b"%d" % n)
        asker.put("linda", b"more", bytes(60_000))
        for n in range(10, 20):
            assert asker.get("linda", b"%d" % n) == random.Random(n).randbytes(60_000)


@pytest.mark.container
@needs_root
def test_a_device_that_is_full_from_the_start(small: Path) -> None:
    """Not even the reserve can be taken: reads work, puts are refused, and room that appears is used."""
    with Asker(small, ballast_bytes=1 << 20) as asker:
        asker.put("linda", b"k", b"v")
    (small / "ballast").unlink()
    occupy(small)
    with Asker(small, ballast_bytes=1 << 20) as asker:
        assert asker.get("linda", b"k") == b"v"
        with pytest.raises(Refused) as refused:
            asker.put("linda", b"l", b"v")
        assert refused.value.code is Code.FULL
        with pytest.raises(Refused) as refused:
            asker.put("ben", b"l", b"v")
        assert refused.value.code is Code.FULL
        (small / "stranger").unlink()
        asker.put("linda", b"l", b"v")
        asker.put("ben", b"l", b"v")
