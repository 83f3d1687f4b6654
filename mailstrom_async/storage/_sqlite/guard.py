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

From the one to the other, and back, it goes only by `checkpoint`, while nobody can write, and nobody is in the midst of
a checkpoint that was begun before: it would go on with what it saw then.

All that holds while a store has the file open. When it closes, it waits for the end of somebody else's checkpoint, but
not for long: who is stopped in the midst of one, and goes on when the log was begun anew, is where he would be without
us. So is he if the process that has the file open is killed.
"""

import sqlite3
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from mailstrom_async.storage._sqlite.file import open_for_reading

PATIENCE = 1.0
"""Seconds in which a checkpoint of somebody else's should have ended when the store closes."""
PAUSE = 0.01
"""Seconds between two looks whether it has."""

_CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"


class Guard:
    """The transaction that is always open, and all checkpoints of the store. Used in the writer's thread.

    Args:
        path: The file; the lock is held.
        writer: The connection that writes. It is not in a transaction when the guard is asked for something.
    """

    def __init__(self, path: Path, writer: sqlite3.Connection) -> None:
        self._writer = writer
        with ExitStack() as stack:
            self._connection = stack.enter_context(closing(open_for_reading(path)))
            # One that is in no transaction: in one, nobody may ask for a checkpoint.
            self._asking = stack.enter_context(closing(open_for_reading(path)))
            for connection in (self._connection, self._asking):
                connection.execute("PRAGMA cache_size = 0")
                connection.execute("PRAGMA synchronous = FULL")  # of the file, before the log begins anew
            self._begin()
            stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        locked = False
        try:
            with suppress(sqlite3.Error):  # who can't look closes all the same
                locked = self._lock()
                until = time.monotonic() + PATIENCE
                while self._somebody_moves_the_log() and time.monotonic() < until:
                    time.sleep(PAUSE)
        finally:
            self._connection.close()
            self._asking.close()
            if locked:
                self._writer.execute("ROLLBACK")

    def checkpoint(self) -> bool:
        """Move what is committed from the log into the file, as far as no reader needs the log; whether it was tried.

        Not if somebody else writes just now, or moves the log himself: there will be another time.
        """
        if not self._lock():
            return False
        try:
            # Asked only now that nobody can begin the log anew: whoever begins a checkpoint after this sees the log as
            # it is, and as it stays until we look into it again.
            if self._somebody_moves_the_log():
                return False
            self._connection.execute("COMMIT")
            try:
                self._connection.execute(_CHECKPOINT).fetchall()
            finally:
                self._begin()
        finally:
            self._writer.execute("ROLLBACK")
        return True

    def empty_log(self) -> bool:
        """Move all of the log into the file, and leave nothing of it; whether nobody stood in the way.

        Only for a file that has lost its name: the log still has its own, and would be taken for that of another file.
        SQLite writes into the file that it has open, wherever its name leads by now.
        """
        self._connection.execute("COMMIT")
        try:
            self._asking.execute("PRAGMA busy_timeout = 0")
            busy, _, _ = self._asking.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self._begin()
        return not busy

    def _begin(self) -> None:
        self._connection.execute("BEGIN")
        self._connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()  # only now does it read

    def _lock(self) -> bool:
        """Whether nobody else can write from now on. Does not wait: who wants to send would wait as well."""
        (patience,) = self._writer.execute("PRAGMA busy_timeout").fetchone()
        self._writer.execute("PRAGMA busy_timeout = 0")
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        finally:
            self._writer.execute(f"PRAGMA busy_timeout = {patience}")
        return True

    def _somebody_moves_the_log(self) -> bool:
        # While there is a checkpoint nobody else gets one: not us either.
        busy, _, _ = self._asking.execute(_CHECKPOINT).fetchone()
        return bool(busy)
