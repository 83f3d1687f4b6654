"""What SQLite's errors mean for whoever uses the store."""

import sqlite3
from pathlib import Path

from mailstrom_async._errors import StorageError, StorageIncompatible

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})

_REMEDIES = {
    sqlite3.SQLITE_FULL: "make room on the disk; nothing of this was stored, and it works again after that",
    sqlite3.SQLITE_BUSY: (
        "another program holds a lock on the file, or an unfinished transaction that was given to send_email; end it"
    ),
    sqlite3.SQLITE_READONLY: "let this program write the file and its directory",
    sqlite3.SQLITE_PERM: "let this program write the file and its directory",
    sqlite3.SQLITE_CANTOPEN: "let this program write the file and its directory",
    sqlite3.SQLITE_IOERR: "look at the state of the disk and into the system's log",
    sqlite3.SQLITE_TOOBIG: "the message is larger than SQLite stores; lower Limits.message_size",
}


class Unreadable(Exception):
    """A row does not hold what we once wrote."""


class Unusual(Exception):
    """Operations are to be done one by one, and row by row."""


def primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's result code without its extension; None: the error is the Python module's own."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def storage_error(path: Path, error: sqlite3.Error) -> StorageError:
    """The error to raise in place of SQLite's."""
    code = primary_code(error)
    if code in _DAMAGED:
        return StorageIncompatible(
            f"{path} is damaged, or not a SQLite database: {error}; it was left as it is: restore it from a backup, "
            "or move it away to begin with an empty queue"
        )
    remedy = _REMEDIES.get(code, "see the cause above") if code is not None else "see the cause above"
    return StorageError(f"{path}: {error}; {remedy}")
