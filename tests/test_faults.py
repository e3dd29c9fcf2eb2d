"""Whose fault an error is, for every number that this kernel knows."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from organs import faults
from organs.gate.store import Corrupt, Full, Unsafe, bad_data


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.proves("INV-STATE-3")
def test_every_number_has_one_answer() -> None:
    of_mount = {name for number, name in errno.errorcode.items() if faults.of_mount(error(number))}
    of_file = {name for number, name in errno.errorcode.items() if faults.of_file(error(number))}
    medium = {"EIO", "EBADMSG", "EUCLEAN", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EOVERFLOW", "ENODATA"}
    medium |= {"ENXIO", "ESTALE"}
    # Seen of ext4 on damaged images: see tests/integration/test_data.py.
    refusals = {"EINVAL", "ENOMEM", "EPROTONOSUPPORT", "E2BIG", "EACCES"}
    strange = {"EISDIR", "ENOTDIR", "ELOOP", "ESPIPE", "ENODEV", "EACCES", "ENOTEMPTY", "EEXIST"}
    no_such = errno.errorcode[errno.EOPNOTSUPP]
    assert of_mount == medium | refusals | {no_such}
    assert of_file == medium | strange | {no_such}
    # A kernel without ext4, a missing mount point, a power that was not granted: another slot may have them.
    assert not of_mount & {"ENODEV", "ENOENT", "EPERM", "EBUSY", "ENOSYS", "EFAULT"}
    # A defect of ours, or too many files open.
    assert not of_file & {
        "EBADF",
        "EINVAL",
        "EFAULT",
        "EMFILE",
        "ENFILE",
        "ENOMEM",
        "ENOENT",
        "EPERM",
        "ENOSYS",
    }


def sqlite(code: int) -> sqlite3.Error:
    found = sqlite3.OperationalError("what SQLite says")
    found.sqlite_errorcode, found.sqlite_errorname = code, "NAME"
    return found


def test_what_sqlite_says_of_the_data() -> None:
    primary = {name: getattr(sqlite3, name) for name in dir(sqlite3) if name.startswith("SQLITE_IOERR")}
    assert all(bad_data(sqlite(code)) for name, code in primary.items() if name != "SQLITE_IOERR_NOMEM")
    for code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_CANTOPEN):
        assert bad_data(sqlite(code)) == "what SQLite says (NAME)"
    ours = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR_NOMEM)
    for code in (*ours, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_INTERNAL):
        assert bad_data(sqlite(code)) is None
    assert bad_data(sqlite3.ProgrammingError("used from another thread")) is None


def test_other_endings_of_the_worker() -> None:
    assert bad_data(error(errno.EIO)) == "[Errno 5] Input/output error"
    assert bad_data(Full("no room")) == "no room"
    assert bad_data(Corrupt("a head")) == "a head"
    for ours in (error(errno.EBADF), Unsafe("a setting"), AssertionError(), MemoryError(), KeyError(Path())):
        assert bad_data(ours) is None
