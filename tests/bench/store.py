"""How many puts a second are durable, beside SQLite by itself in its safest mode on the same file system.

Ours is the gate's worker: its queue, its checks, a digest with each value, many writers' puts in one
transaction. Theirs is a connection for each writer, `journal_mode=WAL`, `synchronous=FULL`, one statement a
transaction. Writers are threads that wait for each put before the next one. A put counts once it is durable.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from organs.gate.verdict import Put, Refuse
from organs.gate.worker import Outcome, Stored, Worker
from tests.bench.bench import Absent, Bench
from tests.bench.figures import Goal, Measured, Rounds
from tests.bench.table import OURS, Row

ABOUT = "durable puts of 200 bytes for one and many writers, and whether every writer gets its share"
SQLITE, ONE = "SQLite, WAL, FULL", "ours, one writer"
WRITERS: Final = (1, 8, 32)
VALUE: Final = bytes(range(200))
KEYS: Final = 50
"""Of each writer: the stores stay as small as a persona's usually are."""
LOCK_WAIT_S: Final = 60.0


def rows(quick: bool) -> Sequence[Row]:
    """The rows."""
    del quick
    return (
        *(
            Row(
                f"puts-{writers}",
                f"durable puts per second, {writers} writer{'s' if writers > 1 else ''}",
                "puts/s",
                (SQLITE, *((ONE,) if writers > 1 else ())),
                {SQLITE: Goal(at_least=0.8), **({ONE: Goal(at_least=3)} if writers == 8 else {})},
                plot="Durable puts per second over writers",
                at=float(writers),
            )
            for writers in WRITERS
        ),
        *(
            Row(
                f"fairness-{writers}",
                f"puts of the slowest of {writers} writers, of the average",
                "%",
                (SQLITE,),
            )
            for writers in WRITERS
            if writers > 1
        ),
    )


def measure(bench: Bench, wanted: frozenset[str]) -> Iterator[tuple[str, Mapping[str, Measured]]]:
    """Measure."""
    span_s, rounds, warm = (0.3, 2, 1) if bench.quick else (1.0, 9, 1)
    shares: dict[str, list[float]] = {}

    def puts(name: str, load: Load, writers: int) -> Callable[[], Sequence[float]]:
        def one() -> Sequence[float]:
            counts = load(bench.folder("store"), writers, span_s)
            shares.setdefault(name, []).append(100 * min(counts) * writers / sum(counts))
            return (sum(counts) / span_s,)

        return one

    for writers in WRITERS:
        if not {f"puts-{writers}", f"fairness-{writers}"} & wanted:
            continue
        shares.clear()
        contenders = {OURS: puts(OURS, ours, writers), SQLITE: puts(SQLITE, theirs, writers)}
        if writers > 1:
            contenders[ONE] = puts(ONE, ours, 1)
        found = bench.alternate(contenders, rounds, warm)
        if f"puts-{writers}" in wanted:
            yield f"puts-{writers}", found
        if f"fairness-{writers}" in wanted:
            yield (
                f"fairness-{writers}",
                {
                    name: Rounds(tuple((share,) for share in shares[name][warm:]))
                    if isinstance(found[name], Rounds)
                    else found[name]
                    for name in (OURS, SQLITE)
                },
            )


Load = Callable[[Path, int, float], list[int]]


def ours(directory: Path, writers: int, span_s: float) -> list[int]:
    """The puts of each writer of the gate."""
    died: list[BaseException] = []
    worker = Worker(directory, died=died.append, ballast_bytes=64 << 10)
    worker.start()

    def writer(number: int, go_on: Callable[[], bool]) -> int:
        done = 0
        # The bare lock, which is what SQLite's writers wait on as well: an Event makes one for each wait.
        answered = threading.Lock()
        answered.acquire()
        outcomes: list[Outcome] = []

        def answer(outcome: Outcome) -> None:
            outcomes.append(outcome)
            answered.release()

        while go_on():
            put = Put(persona="bench", key=b"%d-%d" % (number, done % KEYS), value=VALUE)
            refused = worker.submit(put, answer)
            if isinstance(refused, Refuse) or not answered.acquire(timeout=LOCK_WAIT_S) or died:
                raise Absent(f"the gate refused a put: {refused}, {died}")
            if not isinstance(outcomes.pop(), Stored):
                raise Absent("the gate did not store a put")
            done += 1
        return done

    try:
        return _together(writer, writers, span_s)
    finally:
        worker.stop()


def theirs(directory: Path, writers: int, span_s: float) -> list[int]:
    """The puts of each writer of SQLite."""
    path = directory / "bare.db"

    def connected() -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, timeout=LOCK_WAIT_S)
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    with contextlib.closing(connected()) as connection:
        connection.execute("CREATE TABLE kv (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def writer(number: int, go_on: Callable[[], bool]) -> int:
        done = 0
        with contextlib.closing(connected()) as connection:
            while go_on():
                key = b"%d-%d" % (number, done % KEYS)
                connection.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, VALUE))
                done += 1
        return done

    return _together(writer, writers, span_s)


def _together(writer: Callable[[int, Callable[[], bool]], int], writers: int, span_s: float) -> list[int]:
    """Start all writers at one moment and stop them at another; the puts of each. Absent when one failed."""
    gate = threading.Barrier(writers + 1)
    end = [0.0]
    counts = [0] * writers
    failed: list[Exception] = []

    def run(number: int) -> None:
        gate.wait()
        try:
            counts[number] = writer(number, lambda: time.monotonic() < end[0])
        except (Absent, sqlite3.Error) as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    end[0] = time.monotonic() + span_s
    gate.wait()
    for thread in threads:
        thread.join()
    if failed or not sum(counts):
        raise Absent(str(failed[0]) if failed else "not one put was done")
    return counts
