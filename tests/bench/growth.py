"""How a persona's store behaves as it grows: durable puts, reads and room on the disk, over its keys.

Ours is the gate's store: a digest with each value, and a head row in each transaction. SQLite's is one
table with the same values. Both are filled in large transactions, which is not counted. A persona's quota
ends the growth before a million keys, so there is no row of that.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from organs.gate.store import Store
from tests.bench.bench import Bench
from tests.bench.figures import Measured, Rounds
from tests.bench.table import OURS, Row

ABOUT = "a persona's store with a thousand keys and with as many as its quota takes, values of 20 bytes"
SQLITE: Final = "SQLite, WAL, FULL"
VALUE: Final = bytes(range(20))
BATCH: Final = 2000
"""Of the filling: its log stays as small as the gate keeps it."""
COUNTS: Final = (1_000, 10_000, 100_000)
MEASURES: Final = {
    "put": ("a durable put of a key that is there", "us"),
    "get": ("reading a key", "us"),
    "bytes": ("room on the disk", "MB"),
}


def rows(quick: bool) -> Sequence[Row]:
    """The rows."""
    del quick
    return tuple(
        Row(
            f"{name}-{keys}",
            f"{what}, {keys} keys in the store",
            unit,
            (SQLITE,),
            plot=f"{what.split(',')[0].capitalize()} over keys",
            at=float(keys),
        )
        for name, (what, unit) in MEASURES.items()
        for keys in COUNTS
    )


class Keeper(Protocol):
    """A store of either kind."""

    def fill(self, first: int, last: int) -> None:
        """Put these keys in one transaction."""

    def put(self, key: bytes) -> None:
        """Put a value, durable when this returns."""

    def get(self, key: bytes) -> None:
        """Read a value."""

    def close(self) -> None:
        """Everything is in the file then."""


class Gates:
    """The gate's."""

    def __init__(self, folder: Path) -> None:
        self._store = Store.create(folder, "bench")

    def fill(self, first: int, last: int) -> None:
        """Put these keys in one transaction."""
        self._store.begin(writes=True)
        for number in range(first, last):
            self._store.put(_key(number), VALUE)
        self._store.commit()
        self._store.fold()

    def put(self, key: bytes) -> None:
        """Put a value, durable when this returns."""
        self._store.begin(writes=True)
        self._store.put(key, VALUE)
        self._store.commit()

    def get(self, key: bytes) -> None:
        """Read a value."""
        self._store.begin(writes=False)
        found = self._store.get(key)
        self._store.commit()
        assert found is not None

    def close(self) -> None:
        """Everything is in the file then."""
        self._store.close()


class Plain:
    """SQLite by itself."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL").fetchall()
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("CREATE TABLE kv (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def fill(self, first: int, last: int) -> None:
        """Put these keys in one transaction."""
        self._connection.execute("BEGIN")
        self._connection.executemany(
            "INSERT OR REPLACE INTO kv VALUES (?, ?)",
            ((_key(number), VALUE) for number in range(first, last)),
        )
        self._connection.execute("COMMIT")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def put(self, key: bytes) -> None:
        """Put a value, durable when this returns."""
        self._connection.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, VALUE))

    def get(self, key: bytes) -> None:
        """Read a value."""
        assert self._connection.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()

    def close(self) -> None:
        """Everything is in the file then."""
        self._connection.close()


def _key(number: int) -> bytes:
    return b"key-%012d" % number


KINDS: Final[Mapping[str, Callable[[Path], Keeper]]] = {OURS: Gates, SQLITE: Plain}


def measure(bench: Bench, wanted: frozenset[str]) -> Iterator[tuple[str, Mapping[str, Measured]]]:
    """Measure."""
    most = max((int(name.split("-")[1]) for name in wanted), default=0)
    folders = {name: bench.folder("growth") for name in KINDS}
    filled = 0
    with contextlib.ExitStack() as stack:
        keepers = {name: make(folders[name]) for name, make in KINDS.items()}
        for keeper in keepers.values():
            stack.callback(keeper.close)
        for keys in (count for count in COUNTS if count <= most):
            for keeper in keepers.values():
                for first in range(filled, keys, BATCH):
                    keeper.fill(first, min(first + BATCH, keys))
            filled = keys
            yield from _at(bench, keepers, keys, wanted, folders)


def _at(
    bench: Bench,
    keepers: Mapping[str, Keeper],
    keys: int,
    wanted: frozenset[str],
    folders: Mapping[str, Path],
) -> Iterator[tuple[str, Mapping[str, Measured]]]:
    """What is measured with so many keys."""
    if f"bytes-{keys}" in wanted:
        sizes = {
            name: sum(
                path.stat().st_size for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm"))
            )
            for name, folder in folders.items()
        }
        yield f"bytes-{keys}", {name: Rounds(((size / 1e6,),)) for name, size in sizes.items()}
    dice = random.Random(f"{bench.seed} {keys}")

    def rounds_of(act: Callable[[bytes], None], times: int) -> Callable[[], Sequence[float]]:
        def one() -> Sequence[float]:
            took = []
            for _ in range(times):
                key = _key(dice.randrange(keys))
                began = time.perf_counter()
                act(key)
                took.append(1e6 * (time.perf_counter() - began))
            return took

        return one

    rounds = bench.count(5, 2)
    for name, times in (("put", bench.count(200, 50)), ("get", bench.count(1000, 300))):
        if f"{name}-{keys}" in wanted:
            acts = {who: getattr(keeper, name) for who, keeper in keepers.items()}
            yield (
                f"{name}-{keys}",
                bench.alternate({who: rounds_of(act, times) for who, act in acts.items()}, rounds),
            )
