"""One persona's store: a single SQLite file and the only code that speaks SQL.

The name of the file is the SHA-256 of the persona's name, so no name is ever a path. The file is born whole
under another name and renamed, so a file that lacks its head was damaged and is never taken for a new one.
A head row carries the persona, the last sequence number and the count of keys; each record carries a digest
over its persona, key, number and value. Both are checked, because SQLite checks neither.

Touches: files of one directory, from one thread, the one that opened the store.
Never: creates a file in answer to a read; repairs or removes a damaged file.
Fails: `Corrupt` when the file cannot be what was written, `Rotten` when one record cannot, `Full` when the
device has no room and nothing was written, `OverQuota` likewise for the quota. Any other error of SQLite (a
failed write or sync above all) is passed on as it is: after it nobody knows what is on the device, and the
process must end.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

from organs import faults
from organs.gate import writeahead
from organs.gate.verdict import (
    PAGE_BYTES,
    QUOTA_BYTES,
    VALUE_BYTES_MAX,
    Refuse,
    admit_growth,
    growth_bytes_max,
    page_limit,
    surely_fits,
)
from organs.gate.writeahead import FRAME_HEADER_BYTES, HEADER_BYTES, LOG_ROOM_BYTES_MAX, Fold, Salts

# "gate" in ASCII: marks the file as ours to file(1) and to ourselves.
APPLICATION_ID: Final = 0x67617465
FORMAT: Final = 1
# The file under construction. One thread makes stores, so one name is enough.
INCOMING: Final = "incoming"
# Above the quota the file may still grow by one value (a write is measured, then rolled back) and by the
# pages that balancing a tree takes while a delete runs.
HARD_WALL_PAGES: Final = (QUOTA_BYTES + 2 * VALUE_BYTES_MAX) // PAGE_BYTES + 64
# A log before it is folded, with one transaction behind it: each page of the file once, whether it was
# committed or rolled back. Nothing else is written behind one that was rolled back whole. Twice that, for
# folds that found no room.
LOG_READ_BYTES_MAX: Final = 2 * (LOG_ROOM_BYTES_MAX + HARD_WALL_PAGES * (PAGE_BYTES + FRAME_HEADER_BYTES))
# Pages given back to the device in one step; bounds the log that the step writes.
TRIM_PAGES: Final = 128
# A predecessor that was killed may hold its lock for as long as the kernel takes to end it.
LOCK_WAIT_S: Final = 5.0
# Per connection. With the connections the worker keeps open this bounds the gate's memory.
CACHE_KIB: Final = 1024

# Set in this order, each read back. Exclusive first: the log's index then lives in memory and no second
# process can share the file.
PRAGMAS: tuple[tuple[str, str, str | int], ...] = (
    ("locking_mode", "EXCLUSIVE", "exclusive"),
    ("page_size", str(PAGE_BYTES), PAGE_BYTES),
    ("auto_vacuum", "INCREMENTAL", 2),
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", 2),
    ("wal_autocheckpoint", "0", 0),
    ("journal_size_limit", str(LOG_ROOM_BYTES_MAX), LOG_ROOM_BYTES_MAX),
    ("max_page_count", str(HARD_WALL_PAGES), HARD_WALL_PAGES),
    ("temp_store", "MEMORY", 2),
    ("cell_size_check", "ON", 1),
    ("trusted_schema", "OFF", 0),
    ("cache_size", str(-CACHE_KIB), -CACHE_KIB),
)

# A file is born with these.
_BORN_WITH = frozenset({"page_size", "auto_vacuum"})
# These are properties of the file as well: a different answer from a file that exists is damage.
_OF_THE_FILE = _BORN_WITH | {"max_page_count"}

TABLES: Final = (
    "CREATE TABLE head (persona TEXT NOT NULL, seq INTEGER NOT NULL, keys INTEGER NOT NULL)",
    "CREATE TABLE record (key BLOB NOT NULL UNIQUE, seq INTEGER NOT NULL, digest BLOB NOT NULL,"
    " value BLOB NOT NULL)",
)

# A read that fails is one persona's damage, not doubt about a write.
_READ_ERRORS = frozenset(
    {
        sqlite3.SQLITE_IOERR_READ,
        sqlite3.SQLITE_IOERR_SHORT_READ,
        sqlite3.SQLITE_IOERR_CORRUPTFS,
    }
)
_PRIMARY = 0xFF
# Errors that speak against the device or what is on it, wherever they come up. Not SQLITE_ERROR or _MISUSE.
_OF_THE_DATA = frozenset(
    {
        *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL),
        *(sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB),
    }
)

_CHECKPOINTS: Final = {
    Fold.REWIND: "PRAGMA wal_checkpoint(RESTART)",
    Fold.EMPTY: "PRAGMA wal_checkpoint(TRUNCATE)",
}

# Connections that must not be closed, kept until the process ends. At most one for each store.
_ABANDONED: list[sqlite3.Connection] = []


class Corrupt(Exception):
    """What is on the device cannot be what was written there."""


class Rotten(Exception):
    """One record is not what was put. The others are, and this one can be replaced or deleted."""


class Full(Exception):
    """The device has no room; nothing of the transaction was written."""


class OverQuota(Exception):
    """The write would exceed the quota; it was rolled back, the rest of the transaction stands."""

    def __init__(self, refusal: Refuse) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Unsafe(RuntimeError):
    """SQLite did not take a setting that durability rests on. The gate must not run like this."""


@dataclass(frozen=True, slots=True)
class Head:
    """The row that is written with every transaction."""

    seq: int
    keys: int


def file_name(persona: str) -> str:
    """The name of the persona's file: the SHA-256 of the name in hex."""
    return hashlib.sha256(persona.encode()).hexdigest()


def is_file_name(name: str) -> bool:
    """Whether a directory entry is a store (and not its log or a stranger)."""
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def digest(persona: str, key: bytes, seq: int, value: bytes) -> bytes:
    """The digest that binds a value to its place: SHA-256 over length-prefixed parts."""
    hashed = hashlib.sha256()
    for part in (persona.encode(), key, seq.to_bytes(8, "little"), value):
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.digest()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 63


# What opening a file can end with that the file did not do.
_NOT_OF_THE_FILE = frozenset(
    {sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
)
# The two bytes of SQLite's header that say how to write and to read the file. One that it does not know makes
# the file read-only, which it tells when it is to write.
_VERSIONS: Final = slice(18, 20)
_VERSION_MAX: Final = 2


class _Typed:
    """Turn the errors of SQLite that have a meaning here into ours; let the others end the process.

    `opening`: nothing is written then, so whatever the file makes SQLite say is about the file.
    A class, because four generators would be a tenth of what Python does for a put.
    """

    __slots__ = ("_opening",)

    def __init__(self, *, opening: bool = False) -> None:
        self._opening = opening

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, sqlite3.Error):
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            if code & _PRIMARY == sqlite3.SQLITE_FULL:
                raise Full(str(error)) from error
            if code & _PRIMARY in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or code in _READ_ERRORS:
                raise Corrupt(str(error)) from error
            of_the_file = code & _PRIMARY not in _NOT_OF_THE_FILE and code != sqlite3.SQLITE_IOERR_NOMEM
            if self._opening and of_the_file:
                raise Corrupt(str(error)) from error
        elif isinstance(error, UnicodeDecodeError):
            # SQLite quotes the file in the text of its error, and what it quotes is no longer text.
            raise Corrupt("SQLite's complaint about the file cannot be read") from error


_TYPED: Final = _Typed()


def bad_data(error: BaseException) -> str | None:
    """What an error that ended the worker says of the data; None when it says nothing of them."""
    if isinstance(error, Corrupt | Full):
        return str(error)
    if isinstance(error, OSError):
        return str(error) if faults.of_file(error) else None
    code = getattr(error, "sqlite_errorcode", None) if isinstance(error, sqlite3.Error) else None
    if code is None or code & _PRIMARY not in _OF_THE_DATA or code == sqlite3.SQLITE_IOERR_NOMEM:
        return None
    return f"{error} ({getattr(error, 'sqlite_errorname', code)})"


@contextmanager
def _only_this_store() -> Iterator[None]:
    """A file that cannot be read is its persona's damage. Nothing was written, so no write is in doubt.

    A device that takes no writes any more is everybody's, and is passed on.
    """
    try:
        yield
    except OSError as error:
        if not faults.of_file(error) or error.errno == errno.EROFS:
            raise
        raise Corrupt(f"the file cannot be read: {error.strerror}") from error


def _open_plain(path: Path, flags: int) -> int:
    """A descriptor of a file that can only be a file. Raises Corrupt, FileNotFoundError, OSError.

    Not for a store that is open: to close it again would drop the locks of SQLite.
    """
    with _only_this_store():
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Corrupt("it is no file")
    return fd


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _read_log(path: Path) -> bytes:
    """The log of a store that is not open here: to close a descriptor of an open one would drop its locks."""
    try:
        with _only_this_store(), open(_open_plain(_log_of(path), os.O_RDONLY), "rb") as file:
            log = file.read(LOG_READ_BYTES_MAX + 1)
    except FileNotFoundError:
        return b""
    if len(log) > LOG_READ_BYTES_MAX:
        raise Corrupt("the log is longer than any of ours")
    return log


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=LOCK_WAIT_S
    )
    # Text that rotted must compare unequal, not raise.
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    try:
        for name, value, expected in PRAGMAS:
            # Setting these would write to the file, and a read must work without room.
            if name not in _BORN_WITH:
                connection.execute(f"PRAGMA {name} = {value}").fetchall()
            found = connection.execute(f"PRAGMA {name}").fetchone()
            if found != (expected,):  # INV-GATE-1
                if name in _OF_THE_FILE:
                    raise Corrupt(f"{name} is {found!r}, not {expected!r}")
                raise Unsafe(f"gate: unable to set {name}: asked for {expected!r}, got {found!r}")
    except BaseException:
        _ABANDONED.append(connection)
        raise
    return connection


def _new_file(persona: str) -> bytes:
    """The bytes of an empty store. Built in memory: no half of it is ever on the device under its name."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for name, value, _ in PRAGMAS:
            if name in _BORN_WITH:
                connection.execute(f"PRAGMA {name} = {value}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        for table in TABLES:
            connection.execute(table)
        connection.execute("INSERT INTO head VALUES (?, 0, 0)", (persona,))
        image = bytearray(connection.serialize())
    # The two format versions in the header: 2 says that the file has a log, and opening it changes nothing.
    image[18:20] = b"\x02\x02"
    return bytes(image)


def _write_synced(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sweep(directory: Path) -> None:
    """Remove what a creation that was cut short left behind. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(directory / INCOMING)


def count(directory: Path) -> int:
    """How many personas have a store. Raises OSError."""
    return sum(is_file_name(name) for name in os.listdir(directory))


class Store:
    """One open store. Every method that reads or writes records is called between `begin` and `commit`."""

    def __init__(self, connection: sqlite3.Connection, path: Path, persona: str, quota_bytes: int) -> None:
        self._connection = connection
        self._log = _log_of(path)
        self._persona = persona
        self._quota_bytes = quota_bytes
        # Of the log, from the first write on.
        self._log_fd: int | None = None
        self._log_salts: Salts | None = None
        self._log_end = HEADER_BYTES
        self._head = Head(0, 0)
        self._head_written = Head(0, 0)
        # Not less than what the store occupies; None when nobody knows.
        self._used_at_most: int | None = None

    @classmethod
    def open(
        cls, directory: Path, persona: str, *, examine: bool, quota_bytes: int = QUOTA_BYTES
    ) -> Store | None:
        """The persona's store, or None when it has none. `examine` reads the whole file first.

        Raises Corrupt, Unsafe.
        """
        path = directory / file_name(persona)
        try:
            fd = _open_plain(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file, _only_this_store():
            size, versions = os.fstat(fd).st_size, file.read(PAGE_BYTES)[_VERSIONS]
        # SQLite takes a file shorter than a page for a new database and would make it one.
        if size < PAGE_BYTES:
            raise Corrupt(f"the file has {size} bytes")
        if max(versions, default=0) > _VERSION_MAX:
            raise Corrupt("the header of the file")
        # Before SQLite sees it: opening a store is recovering from its log.
        if examine and isinstance(
            verdict := writeahead.examine(_read_log(path), PAGE_BYTES), writeahead.Rotten
        ):
            raise Corrupt(verdict.reason)
        with _Typed(opening=True):
            store = cls(_connect(path), path, persona, quota_bytes)
            try:
                store._check(examine)
            except Corrupt:
                store.abandon()
                raise
            except sqlite3.DatabaseError:
                store.abandon()
                raise
            return store

    @classmethod
    def create(cls, directory: Path, persona: str, *, quota_bytes: int = QUOTA_BYTES) -> Store:
        """A new, empty store; its name is durable when this returns. Raises Full, OSError, Unsafe."""
        sweep(directory)
        try:
            _write_synced(directory / INCOMING, _new_file(persona))
            os.rename(directory / INCOMING, directory / file_name(persona))
            sync_directory(directory)  # INV-GATE-7
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            sweep(directory)
            raise Full(str(error)) from error
        store = cls.open(directory, persona, examine=False, quota_bytes=quota_bytes)
        if store is None:
            raise Unsafe("gate: unable to find the store that was just made")
        return store

    def _check(self, examine: bool) -> None:
        for pragma, expected in (("application_id", APPLICATION_ID), ("user_version", FORMAT)):
            (found,) = self._connection.execute(f"PRAGMA {pragma}").fetchone()
            if found != expected:
                raise Corrupt(f"{pragma} is {found}, not {expected}")
        # Once this holds, no statement of this file can fail for what the tables are.
        tables = self._connection.execute("SELECT sql FROM sqlite_schema WHERE type = 'table'").fetchall()
        if tables != [(table,) for table in TABLES]:  # INV-GATE-6
            raise Corrupt("the tables are not the gate's")
        rows = self._connection.execute("SELECT persona, seq, keys FROM head").fetchall()
        if len(rows) != 1 or rows[0][0] != self._persona:
            raise Corrupt("the head is missing or another persona's")
        _, seq, keys = rows[0]
        if not _is_count(seq) or not _is_count(keys):
            raise Corrupt("the head counts in something else than numbers")
        self._head = self._head_written = Head(seq, keys)
        if examine:
            report = self._connection.execute("PRAGMA integrity_check(1)").fetchall()
            if report != [("ok",)]:
                raise Corrupt(str(report[0][0]))
            (keys,) = self._connection.execute("SELECT count(*) FROM record").fetchone()
            if keys != self._head.keys:
                raise Corrupt(f"{keys} records where the head counts {self._head.keys}")

    # Transactions.

    def begin(self, *, writes: bool) -> None:
        """Open a transaction. Raises Corrupt, Full, OSError."""
        if writes and self._log_fd is None:
            self._begin_log()
        with _TYPED:
            self._connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")

    def _begin_log(self) -> None:
        """Before the first write of a connection."""
        # SQLite syncs the directory too, when it first syncs a new log, but does not look at the answer.
        sync_directory(self._log.parent)  # INV-GATE-7
        # A crash may have left an unfinished transaction behind the commits in the log, with a mark of its
        # own. Nothing is written in front of it.
        self.fold()
        self._log_fd = os.open(self._log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)

    def commit(self) -> None:
        """Make the transaction durable: when this returns it is on the device. Raises Full, Corrupt."""
        with _TYPED:
            if self._head is not self._head_written:
                self._connection.execute(
                    "UPDATE head SET seq = ?, keys = ?", (self._head.seq, self._head.keys)
                )
            self._connection.execute("COMMIT")
        self._head_written = self._head

    def rollback(self) -> None:
        """Forget the transaction. After Full or Corrupt SQLite may have done so itself."""
        self._head = self._head_written
        # What it was measured at may have been less than there is again now.
        self._used_at_most = None
        with _TYPED:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    # Records.

    def put(self, key: bytes, value: bytes) -> int:
        """Store a value; its sequence number. Raises OverQuota (this put alone is undone), Full, Corrupt."""
        growth = growth_bytes_max(len(key), len(value))
        with _TYPED:
            used = self._used_at_most
            if used is None or not surely_fits(used, growth, self._quota_bytes):
                used = self.used_bytes()
            if surely_fits(used, growth, self._quota_bytes):  # INV-GATE-4
                self._write(key, value)
                self._used_at_most = used + growth
            else:
                self._write_measured(key, value, used)
        return self._head.seq

    def _write_measured(self, key: bytes, value: bytes, before: int) -> None:
        execute, head = self._connection.execute, self._head
        execute("SAVEPOINT one")
        self._write(key, value)
        after = self.used_bytes()
        if isinstance(verdict := admit_growth(before, after, self._quota_bytes), Refuse):
            execute("ROLLBACK TO one")
            self._head, after = head, before
        execute("RELEASE one")
        self._used_at_most = after
        if isinstance(verdict, Refuse):
            raise OverQuota(verdict)

    def _write(self, key: bytes, value: bytes) -> None:
        execute, seq, keys = self._connection.execute, self._head.seq + 1, self._head.keys
        bound = digest(self._persona, key, seq, value)
        changed = execute(
            "UPDATE record SET seq = ?, digest = ?, value = ? WHERE key = ?", (seq, bound, value, key)
        ).rowcount
        if not changed:
            execute("INSERT INTO record VALUES (?, ?, ?, ?)", (key, seq, bound, value))
            keys += 1
        self._head = Head(seq, keys)

    def get(self, key: bytes) -> tuple[bytes, int] | None:
        """The value and its sequence number, or None. Raises Rotten, Corrupt."""
        with _TYPED:
            row = self._connection.execute(
                "SELECT value, seq, digest FROM record WHERE key = ?", (key,)
            ).fetchone()
        if row is None:
            return None
        value, seq, bound = row
        if not isinstance(value, bytes) or not _is_count(seq):
            raise Rotten("the record is not what was put")
        if bound != digest(self._persona, key, seq, value):  # INV-GATE-8
            raise Rotten("the record is not what was put")
        return value, seq

    def delete(self, key: bytes) -> bool:
        """Remove a key; whether it was there. Raises Full, Corrupt."""
        with _TYPED:
            removed = self._connection.execute("DELETE FROM record WHERE key = ?", (key,)).rowcount == 1
        if removed:
            self._head = Head(self._head.seq + 1, self._head.keys - 1)
            # Less, but for the pages that balancing a tree may take.
            self._used_at_most = None
        return removed

    def list(self, after: bytes, limit: int) -> tuple[list[bytes], bool]:
        """Keys greater than `after` in byte order, at most a page; whether there are more. Raises Corrupt."""
        wanted = page_limit(limit)
        with _TYPED:
            rows = self._connection.execute(
                "SELECT key FROM record WHERE key > ? ORDER BY key LIMIT ?", (after, wanted + 1)
            ).fetchall()
        keys = [key for (key,) in rows]
        if not all(isinstance(key, bytes) for key in keys):
            raise Corrupt("a key is not bytes")
        return keys[:wanted], len(rows) > wanted

    def used_bytes(self) -> int:
        """What the store occupies: its pages less the free ones. Raises Corrupt."""
        with _TYPED:
            (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
            (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        return int(pages - free) * PAGE_BYTES

    @property
    def keys(self) -> int:
        """How many keys the store holds."""
        return self._head.keys

    @property
    def seq(self) -> int:
        """The number of the last write."""
        return self._head.seq

    @property
    def quota_bytes(self) -> int:
        """What the persona may occupy."""
        return self._quota_bytes

    # Housekeeping, between transactions.

    def fold_due(self) -> Fold:
        """Whether the log is to be folded, after a commit. Raises OSError."""
        if (fd := self._log_fd) is None:
            return Fold.LATER
        if self._log_salts is None:
            self._log_salts = writeahead.salts(os.pread(fd, HEADER_BYTES, 0))
        if self._log_salts is not None:
            self._log_end = writeahead.end_of_commits(
                partial(os.pread, fd), self._log_end, self._log_salts, PAGE_BYTES
            )
        # Not with every commit: whoever asks for a file's times makes the kernel note exact ones at the next
        # write, which is then a write to the journal as well (40 us, since Linux 6.13).
        return writeahead.fold_due(self._log_end, lambda: os.fstat(fd).st_size)

    def fold(self, how: Fold = Fold.EMPTY) -> None:
        """Write the log into the file and begin it anew. Raises Full (the log keeps everything), Corrupt."""
        with _TYPED:
            # By hand, as SQLite forgets a sync that failed when it does this by itself.
            busy, _, _ = self._connection.execute(_CHECKPOINTS[how]).fetchone()
        if busy:
            raise Unsafe("gate: unable to fold the log: another connection reads it")
        self._log_salts, self._log_end = None, HEADER_BYTES

    def trim(self) -> int:
        """Give up to TRIM_PAGES free pages back to the device; how many are left. Raises Full, Corrupt."""
        with _TYPED:
            # A script, because `execute` ends after the first of the empty rows, and so after one page.
            self._connection.executescript(f"PRAGMA incremental_vacuum({TRIM_PAGES})")
        self.fold()
        return self.free_pages()

    def free_pages(self) -> int:
        """Pages of the file that hold nothing. Raises Corrupt."""
        with _TYPED:
            return int(self._connection.execute("PRAGMA freelist_count").fetchone()[0])

    def abandon(self) -> None:
        """Never touch the file again, not even to close it: closing would fold its log into it."""
        _ABANDONED.append(self._connection)
        self._let_go_of_log()

    def close(self) -> None:
        """Fold the log and close. Raises what `fold` raises, and closes all the same."""
        try:
            self.fold()
        finally:
            self._let_go_of_log()
            self._connection.close()

    def _let_go_of_log(self) -> None:
        # SQLite's locks are on the file, so closing this drops none.
        if self._log_fd is not None:
            os.close(self._log_fd)
            self._log_fd = None
