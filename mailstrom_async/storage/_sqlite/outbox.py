"""Writes mail into a transaction of the caller's, on a connection of the caller's to the same file.

Within a savepoint: whatever fails here, the transaction is as it was. Only if the call is cancelled while the savepoint
is released, which is its very last step, may the mail be in the transaction all the same.

Drivers are recognised without importing them.
"""

import os
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import anyio

from mailstrom_async._errors import MailstromError, StorageError, UnusableConnection
from mailstrom_async.storage._sqlite.errors import primary_code, storage_error
from mailstrom_async.storage._sqlite.queue import accepting
from mailstrom_async.storage._sqlite.steps import Content, Repeated, Rows, Statement, Step, Steps, do
from mailstrom_async.storage.base import Acceptance, Due

_KINDS = "sqlite3's Connection, aiosqlite's Connection, and SQLAlchemy's AsyncConnection and AsyncSession on aiosqlite"
_LEAVE_OUT = "or leave `connection` out"


class Transaction(Protocol):
    """**Protocol:** a connection of the caller's."""

    def is_open(self) -> bool:
        """Whether it is in a transaction."""
        ...

    async def take(self, step: Step) -> Rows:
        """Take one step over it; the rows that come of it."""
        ...


class _Sqlite3:
    # In the thread of the event loop, like all that the caller does with it: SQLite is not to be asked from elsewhere.
    # And without a pause: another part of the program would use the connection in the midst of our savepoint.

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def is_open(self) -> bool:
        return self._connection.in_transaction

    async def take(self, step: Step) -> Rows:
        cursor = self._connection.cursor()
        cursor.row_factory = None  # whatever rows the caller wants its own cursors to give
        try:
            return do(self._connection, cursor, step)
        finally:
            cursor.close()


class _Aiosqlite:
    # Each call goes to the connection's own thread and back.

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._cursor: Any = None

    def is_open(self) -> bool:
        return bool(self._connection.in_transaction)

    async def take(self, step: Step) -> Rows:
        if self._cursor is None:
            self._cursor = await self._connection.cursor()
            self._cursor.row_factory = None
        if isinstance(step, Content):
            await self._cursor.execute("INSERT INTO contents VALUES (?, ?)", step)
        elif isinstance(step, Repeated):
            await self._cursor.executemany(step.sql, step.rows)
        else:
            await self._cursor.execute(step.sql, step.values)
            if self._cursor.description is not None:
                rows: Rows = await self._cursor.fetchall()
                return rows
        return []


async def transaction_of(connection: object) -> Transaction:
    """The transaction that a connection of the caller's is in, or begins with its first change.

    Raises:
        UnusableConnection: It is of none of the kinds that we know.
    """
    connection = await _below_sqlalchemy(connection)
    if isinstance(connection, sqlite3.Connection):
        return _Sqlite3(connection)
    aiosqlite: Any = sys.modules.get("aiosqlite")
    if aiosqlite is not None and isinstance(connection, aiosqlite.Connection):
        return _Aiosqlite(connection)
    kind = type(connection)
    raise UnusableConnection(
        f"send_email can't write over a {kind.__module__}.{kind.__qualname__}: SQLiteStorage knows {_KINDS}; "
        f"{_LEAVE_OUT}"
    )


async def _below_sqlalchemy(connection: Any) -> object:
    alchemy: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    if alchemy is None:
        return connection
    try:
        if isinstance(connection, (alchemy.AsyncSession, alchemy.async_scoped_session)):
            connection = await connection.connection()
        if not isinstance(connection, alchemy.AsyncConnection):
            return connection
        dialect = connection.engine.dialect.name
        if dialect != "sqlite":
            raise UnusableConnection(
                f"the connection given to send_email leads to {dialect}, not to the SQLite file of this store: nothing "
                f"could commit both; {_LEAVE_OUT}"
            )
        # Else it would take itself for unused, and not commit.
        await connection.exec_driver_sql("SELECT 1")
        return (await connection.get_raw_connection()).driver_connection
    except sys.modules["sqlalchemy"].exc.SQLAlchemyError as error:
        raise UnusableConnection(
            f"the connection given to send_email is no good: {error} Give one that is open"
        ) from error


async def enqueue(
    transaction: Transaction,
    acceptances: Sequence[Acceptance],
    queue_size: int | None,
    *,
    path: Path,
    expect: Callable[[int], None],
) -> None:
    """Store messages, all or none.

    Args:
        transaction: The caller's.
        acceptances: The messages.
        queue_size: At most so many unfinished ones.
        path: The file of the store: the connection must lead to it.
        expect: Called with the number of the first delivery when all is written. Even if this raises then, the mail may
            be in the transaction, and somebody should see it committed.
    """
    try:
        was_open = transaction.is_open()
        await _check_place(transaction, path)
        try:
            await _begin(transaction)
            dues = await _walk(transaction, accepting(acceptances, queue_size))
            if dues:
                expect(dues[0].delivery_id)
            await transaction.take(Statement("RELEASE mailstrom"))
        except BaseException:
            # Also when it is cancelled: what was sent to another thread is done there all the same.
            with anyio.CancelScope(shield=True):
                await _undo(transaction, was_open=was_open)
            raise
    except sqlite3.Error as error:
        raise _translated(path, error) from error
    except ValueError as error:
        if isinstance(error, MailstromError):
            raise
        # What aiosqlite raises of one that is closed, or was never opened.
        raise UnusableConnection(
            f"the connection given to send_email is no good: {error}. Give one that is open"
        ) from error


async def _check_place(transaction: Transaction, path: Path) -> None:
    # It reads nothing of the file, which would be the begin of a transaction that can't wait for the lock any more.
    files = await transaction.take(Statement("PRAGMA database_list"))
    here, *attached = [os.fsdecode(file or "") for _, _, file in files]  # text is bytes, if the caller wants that
    if _is(path, here):
        return
    if any(_is(path, other) for other in attached):
        raise UnusableConnection(
            f"the connection given to send_email has {path} only attached: SQLite does not commit several files as "
            f"one when they keep a write-ahead log; connect to {path} itself, {_LEAVE_OUT}"
        )
    raise UnusableConnection(
        f"the connection given to send_email leads to {here or 'a database in memory'}, and not to {path}, where this "
        f"store is: nothing could commit both; connect to the same file, {_LEAVE_OUT}"
    )


def _is(path: Path, other: str) -> bool:
    try:
        return bool(other) and path.samefile(other)
    except OSError:
        return False


async def _begin(transaction: Transaction) -> None:
    # Python's sqlite3 begins a transaction before a first change, if it was not told to leave that alone.
    await transaction.take(Statement("UPDATE counters SET unfinished = unfinished WHERE only = 0"))
    if not transaction.is_open():
        raise UnusableConnection(
            "the connection given to send_email commits each statement by itself and is in no transaction, so there "
            "is nothing to commit the mail with: begin one (`BEGIN IMMEDIATE`, or no autocommit and no "
            f"isolation_level=None), {_LEAVE_OUT}"
        )
    await transaction.take(Statement("SAVEPOINT mailstrom"))


async def _walk(transaction: Transaction, steps: Steps[list[Due]]) -> list[Due]:
    try:
        step = next(steps)
        while True:
            step = steps.send(await transaction.take(step))
    except StopIteration as stop:
        dues: list[Due] = stop.value
        return dues


async def _undo(transaction: Transaction, *, was_open: bool) -> None:
    statements = ["ROLLBACK TO mailstrom", "RELEASE mailstrom"] if was_open else ["ROLLBACK"]
    # There may be nothing to undo: no savepoint yet, no transaction, or a fault over which SQLite has undone it all.
    with suppress(sqlite3.Error, ValueError):
        for statement in statements:
            await transaction.take(Statement(statement))


def _translated(path: Path, error: sqlite3.Error) -> MailstromError:
    code = primary_code(error)
    if isinstance(error, sqlite3.ProgrammingError):
        if "thread" in str(error):
            return UnusableConnection(
                "the connection given to send_email belongs to another thread, and sqlite3 lets nobody else use it: "
                "open it in the thread of the event loop, or take aiosqlite"
            )
        return UnusableConnection(f"the connection given to send_email is no good: {error} Give one that is open")
    if code == sqlite3.SQLITE_READONLY:
        return UnusableConnection(f"the connection given to send_email may only read {path}: give one that may write")
    if code == sqlite3.SQLITE_ERROR and "no such table" in str(error):
        return UnusableConnection(
            f"the connection given to send_email was opened before the store has made {path}, and leads to what was "
            "there before: connect again"
        )
    if code == sqlite3.SQLITE_BUSY:
        return StorageError(
            f"{path}: {error}: the transaction given to send_email can't write, for somebody else does, or has since "
            "it began with reading; roll it back and begin again, with BEGIN IMMEDIATE, which waits for its turn"
        )
    return storage_error(path, error)
