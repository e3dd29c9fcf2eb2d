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
from pathlib import Path
from typing import Final

from organs import faults
from organs.gate import writeahead
from organs.gate.verdict import (
    PAGE_BYTES,
    QUEUE_BYTES_MAX,
    QUOTA_BYTES,
    VALUE_BYTES_MAX,
    Refuse,
    admit_growth,
    page_limit,
)

# "gate" in ASCII: marks the file as ours to file(1) and to ourselves.
APPLICATION_ID: Final = 0x67617465
FORMAT: Final = 1
# The file under construction. One thread makes stores, so one name is enough.
INCOMING: Final = "incoming"
# The log is folded into the file when it is longer than this: recovery stays short and the device free.
LOG_BYTES_MAX: Final = 256 << 10
# A log before it is folded, with one full batch behind it; twice that, for what a rollback left.
LOG_READ_BYTES_MAX: Final = 2 * (LOG_BYTES_MAX + 2 * QUEUE_BYTES_MAX)
# Above the quota the file may still grow by one value (a write is measured, then rolled back) and by the
# pages that balancing a tree takes while a delete runs.
HARD_WALL_PAGES: Final = (QUOTA_BYTES + 2 * VALUE_BYTES_MAX) // PAGE_BYTES + 64
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
    ("journal_size_limit", str(LOG_BYTES_MAX), LOG_BYTES_MAX),
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


@contextmanager
def _typed(*, opening: bool = False) -> Iterator[None]:
    """Turn the errors of SQLite that have a meaning here into ours; let the others end the process.

    `opening`: nothing is written then, so whatever the file makes SQLite say is about the file.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if code & _PRIMARY == sqlite3.SQLITE_FULL:
            raise Full(str(error)) from error
        if code & _PRIMARY in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or code in _READ_ERRORS:
            raise Corrupt(str(error)) from error
        if opening and code & _PRIMARY not in _NOT_OF_THE_FILE and code != sqlite3.SQLITE_IOERR_NOMEM:
            raise Corrupt(str(error)) from error
        raise
    except UnicodeDecodeError as error:
        # SQLite quotes the file in the text of its error, and what it quotes is no longer text.
        raise Corrupt("SQLite's complaint about the file cannot be read") from error


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
        self._log_named = False
        self._head = Head(0, 0)
        self._head_written = Head(0, 0)

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
        with _typed(opening=True):
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
        if writes and not self._log_named:
            # SQLite syncs the directory too, when it first syncs a new log, but does not look at the answer.
            sync_directory(self._log.parent)  # INV-GATE-7
            self._log_named = True
        with _typed():
            self._connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")

    def commit(self) -> None:
        """Make the transaction durable: when this returns it is on the device. Raises Full, Corrupt."""
        with _typed():
            if self._head != self._head_written:
                self._connection.execute(
                    "UPDATE head SET seq = ?, keys = ?", (self._head.seq, self._head.keys)
                )
            self._connection.execute("COMMIT")
            self._head_written = self._head

    def rollback(self) -> None:
        """Forget the transaction. After Full or Corrupt SQLite may have done so itself."""
        self._head = self._head_written
        with _typed():
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    # Records.

    def put(self, key: bytes, value: bytes) -> int:
        """Store a value; its sequence number. Raises OverQuota (this put alone is undone), Full, Corrupt."""
        with _typed():
            execute = self._connection.execute
            before = self.used_bytes()
            seq = self._head.seq + 1
            bound = digest(self._persona, key, seq, value)
            execute("SAVEPOINT one")
            changed = execute(
                "UPDATE record SET seq = ?, digest = ?, value = ? WHERE key = ?", (seq, bound, value, key)
            ).rowcount
            if not changed:
                execute("INSERT INTO record VALUES (?, ?, ?, ?)", (key, seq, bound, value))
            verdict = admit_growth(before, self.used_bytes(), self._quota_bytes)
            if isinstance(verdict, Refuse):
                execute("ROLLBACK TO one")
                execute("RELEASE one")
                raise OverQuota(verdict)
            execute("RELEASE one")
            self._head = Head(seq, self._head.keys + (0 if changed else 1))
            return seq

    def get(self, key: bytes) -> tuple[bytes, int] | None:
        """The value and its sequence number, or None. Raises Rotten, Corrupt."""
        with _typed():
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
        with _typed():
            removed = self._connection.execute("DELETE FROM record WHERE key = ?", (key,)).rowcount == 1
        if removed:
            self._head = Head(self._head.seq + 1, self._head.keys - 1)
        return removed

    def list(self, after: bytes, limit: int) -> tuple[list[bytes], bool]:
        """Keys greater than `after` in byte order, at most a page; whether there are more. Raises Corrupt."""
        wanted = page_limit(limit)
        with _typed():
            rows = self._connection.execute(
                "SELECT key FROM record WHERE key > ? ORDER BY key LIMIT ?", (after, wanted + 1)
            ).fetchall()
        keys = [key for (key,) in rows]
        if not all(isinstance(key, bytes) for key in keys):
            raise Corrupt("a key is not bytes")
        return keys[:wanted], len(rows) > wanted

    def used_bytes(self) -> int:
        """What the store occupies: its pages less the free ones. Raises Corrupt."""
        with _typed():
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

    def log_bytes(self) -> int:
        """The length of the log. Raises OSError."""
        # stat only: opening and closing the file would drop the locks SQLite holds on it.
        try:
            return self._log.stat().st_size
        except FileNotFoundError:
            return 0

    def fold(self) -> None:
        """Write the log into the file and empty it. Raises Full (the log keeps everything), Corrupt."""
        with _typed():
            _fold(self._connection)

    def trim(self) -> int:
        """Give up to TRIM_PAGES free pages back to the device; how many are left. Raises Full, Corrupt."""
        with _typed():
            # A script, because `execute` ends after the first of the empty rows, and so after one page.
            self._connection.executescript(f"PRAGMA incremental_vacuum({TRIM_PAGES})")
            _fold(self._connection)
            (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        return int(free)

    def free_pages(self) -> int:
        """Pages of the file that hold nothing. Raises Corrupt."""
        with _typed():
            return int(self._connection.execute("PRAGMA freelist_count").fetchone()[0])

    def abandon(self) -> None:
        """Never touch the file again, not even to close it: closing would fold its log into it."""
        _ABANDONED.append(self._connection)

    def close(self) -> None:
        """Fold the log and close. Raises what `fold` raises, and closes all the same."""
        try:
            self.fold()
        finally:
            self._connection.close()


def _fold(connection: sqlite3.Connection) -> None:
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise Unsafe("gate: unable to empty the log: another connection reads it")
