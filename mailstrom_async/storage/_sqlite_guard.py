"""Keeps the other connections to a file from damaging it, whatever they do and whichever SQLite they use.

SQLite up to 3.51.2 has a fault (sqlite.org/wal.html#walresetbug). A checkpoint, which moves the log into the file, sees
how long the log is, and then goes to work. If somebody who writes begins the log anew in between, as is possible when
all of it was moved before, the checkpoint reports the old length for the new log, and what is written there later is
taken for moved though it was not. So it takes a checkpoint, and a connection that writes at the same moment.

The callers of `send_email(connection=...)` write, and any connection checkpoints, by itself, after a commit. But no
checkpoint moves anything while somebody reads who has begun when the whole log was moved: such a reader looks into the
file itself. And nobody begins the log anew while somebody reads who has begun at any other time: such a reader looks
into the log. So with one transaction that is always open and does nothing but read, one of the two never happens:

    begun when all was moved:   the log can begin anew, and nobody's checkpoint does anything
    begun at any other time:    checkpoints do what they do, and the log does not begin anew

From the one to the other, and back, it goes only by `checkpoint`, while nobody can write.
"""

import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Self

from mailstrom_async.storage._sqlite_file import open_for_reading


class Guard:
    """The transaction that is always open, and all checkpoints of the store. Used in the writer's thread.

    Args:
        path: The file; the lock is held.
    """

    def __init__(self, path: Path) -> None:
        self._connection = open_for_reading(path)
        try:
            self._connection.execute("PRAGMA cache_size = 0")
            self._connection.execute("PRAGMA synchronous = FULL")  # of the file, before the log begins anew
            self._begin()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    def checkpoint(self, writer: sqlite3.Connection) -> None:
        """Move what is committed from the log into the file, as far as no reader needs the log.

        Not at all if somebody else writes just now: there will be another time.
        """
        # A checkpoint that somebody has begun before the log did would go on as soon as we let go. While there is one,
        # nobody else gets one: not us either.
        busy, _, _ = writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if busy or not _lock(writer):
            return
        try:
            self._connection.execute("COMMIT")
            try:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            finally:
                self._begin()
        finally:
            writer.execute("ROLLBACK")

    def _begin(self) -> None:
        self._connection.execute("BEGIN")
        self._connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()  # only now does it read


def _lock(writer: sqlite3.Connection) -> bool:
    """Whether nobody else can write from now on. Does not wait: who wants to send would wait as well."""
    (patience,) = writer.execute("PRAGMA busy_timeout").fetchone()
    writer.execute("PRAGMA busy_timeout = 0")
    try:
        writer.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    finally:
        writer.execute(f"PRAGMA busy_timeout = {patience}")
    return True
