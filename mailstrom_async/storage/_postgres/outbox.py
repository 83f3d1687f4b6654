"""Writes mail into a transaction that the caller has begun, on a connection of the caller's.

Nothing but SQL goes over that connection, within a savepoint: whatever fails here, the caller's transaction is as it
was. Drivers are recognised without importing them; each writes parameters its own way.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from mailstrom_async._errors import AlreadyQueued, MailstromError, QueueFull, StorageError, UnusableConnection
from mailstrom_async._message.ids import first_repeated
from mailstrom_async.storage._postgres.accept import PARAMETERS, SIZE, STATEMENT, parameters
from mailstrom_async.storage._postgres.connection import OWN_KIND, Address, Connection, Row, in_schema
from mailstrom_async.storage._postgres.errors import storage_error
from mailstrom_async.storage.base import Acceptance

NO_TRANSACTION = "25P01"
FAILED_TRANSACTION = "25P02"

_KINDS = "asyncpg's connections, psycopg's AsyncConnection, and SQLAlchemy's AsyncConnection and AsyncSession"

_TYPES = {**PARAMETERS, "table": "text", "most": "bigint", "channel": "text"}


class Transaction(Protocol):
    """**Protocol:** a transaction of the caller's. `fetch` takes statements with `{name}` where a value belongs."""

    async def fetch(self, statement: str, values: Mapping[str, object]) -> Sequence[Row]: ...


def transaction_of(connection: object) -> Transaction:
    """The transaction that a connection of the caller's is in, or begins with its first statement.

    Raises:
        UnusableConnection: It is of none of the kinds that we know.
    """
    if isinstance(connection, OWN_KIND):
        return _Asyncpg(cast("Connection", connection))
    psycopg: Any = sys.modules.get("psycopg")
    if psycopg is not None and isinstance(connection, psycopg.AsyncConnection):
        return _Psycopg(connection, psycopg.rows.tuple_row)
    alchemy: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    if alchemy is not None:
        if isinstance(connection, (alchemy.AsyncSession, alchemy.async_scoped_session)):
            return _Alchemy(connection, is_session=True)
        if isinstance(connection, alchemy.AsyncConnection):
            return _Alchemy(connection, is_session=False)
    kind = type(connection)
    raise UnusableConnection(
        f"send_email can't write over a {kind.__module__}.{kind.__qualname__}: PostgresStorage knows {_KINDS}; "
        "or leave `connection` out"
    )


class _Asyncpg:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def fetch(self, statement: str, values: Mapping[str, object]) -> Sequence[Row]:
        marks = {name: f"CAST(${number} AS {_TYPES[name]})" for number, name in enumerate(values, 1)}
        return await self._connection.fetch(statement.format(**marks), *values.values())


class _Psycopg:
    def __init__(self, connection: Any, tuples: object) -> None:
        self._connection = connection
        self._tuples = tuples

    async def fetch(self, statement: str, values: Mapping[str, object]) -> Sequence[Row]:
        marks = {name: f"CAST(%({name})s AS {_TYPES[name]})" for name in values}
        # Whatever rows the caller wants its own cursors to give.
        async with self._connection.cursor(row_factory=self._tuples) as cursor:
            await cursor.execute(statement.format(**marks), dict(values))
            rows: Sequence[Row] = await cursor.fetchall() if cursor.description else []
            return rows


class _Alchemy:
    def __init__(self, connection: Any, *, is_session: bool) -> None:
        self._connection = connection
        self._is_session = is_session

    async def fetch(self, statement: str, values: Mapping[str, object]) -> Sequence[Row]:
        text: Any = sys.modules["sqlalchemy"].text
        # Below a session, so that it neither flushes what the caller has not finished nor keeps what we read.
        connection = await self._connection.connection() if self._is_session else self._connection
        if connection.dialect.name != "postgresql":
            raise UnusableConnection(
                f"the connection given to send_email leads to {connection.dialect.name}, not to the PostgreSQL "
                "database of this store: nothing could commit both; leave `connection` out"
            )
        marks = {name: f"CAST(:{name} AS {_TYPES[name]})" for name in values}
        result = await connection.execute(text(statement.format(**marks)), dict(values))
        rows: Sequence[Row] = result.fetchall() if result.returns_rows else []
        return rows


async def enqueue(
    transaction: Transaction,
    acceptances: Sequence[Acceptance],
    queue_size: int | None,
    *,
    address: Address,
    identity: str,
    channel: str,
) -> None:
    """Store messages, all or none.

    Args:
        transaction: The caller's.
        acceptances: The messages.
        queue_size: At most so many unfinished ones. What others store meanwhile is not seen, so it may be some more.
        address: Of the store, for its schema and its name.
        identity: Of the store: the connection must lead to it.
        channel: Where all processes, this one as well, are told when the transaction commits.
    """
    if (twice := first_repeated([acceptance.prepared.message_id for acceptance in acceptances])) is not None:
        raise AlreadyQueued(twice)
    try:
        await _begin(transaction)
        try:
            await _check_place(transaction, address, identity)
            await _insert(transaction, acceptances, queue_size, address.schema, channel)
        except Exception:
            await transaction.fetch("ROLLBACK TO SAVEPOINT mailstrom", {})
            raise
        await transaction.fetch("RELEASE SAVEPOINT mailstrom", {})
    except MailstromError:
        raise
    except Exception as error:
        # SQLAlchemy's has the driver's inside.
        cause: Exception = getattr(error, "orig", None) or error
        if isinstance(getattr(cause, "sqlstate", None), str):
            raise storage_error(address.name, cause) from error
        raise StorageError(
            f"the mail could not be written into your transaction: {error}; roll it back, and begin again"
        ) from error


async def _begin(transaction: Transaction) -> None:
    try:
        await transaction.fetch("SAVEPOINT mailstrom", {})
    except Exception as error:
        code = getattr(getattr(error, "orig", None) or error, "sqlstate", None)
        if code == NO_TRANSACTION:
            raise UnusableConnection(
                "the connection given to send_email is in no transaction, so there is nothing to commit the mail with: "
                "begin one (`async with connection.transaction()`, or no autocommit), or leave `connection` out"
            ) from error
        if code == FAILED_TRANSACTION:
            raise UnusableConnection(
                "the transaction given to send_email has failed before: roll it back, and begin again"
            ) from error
        raise


async def _check_place(transaction: Transaction, address: Address, identity: str) -> None:
    table = f"{address.schema}.schema_version"
    [(found,)] = await transaction.fetch("SELECT CAST(to_regclass({table}) AS text)", {"table": table})
    if found is not None:
        rows = await transaction.fetch(f"SELECT CAST(identity AS text) FROM {table}", {})  # noqa: S608 - our own name
        if [row[0] for row in rows] == [identity]:
            return
    raise UnusableConnection(
        f"the connection given to send_email leads to another database than {address.name}, where this store has its "
        f"schema {address.schema}: nothing could commit both; connect to the same one, or leave `connection` out"
    )


async def _insert(
    transaction: Transaction, acceptances: Sequence[Acceptance], queue_size: int | None, schema: str, channel: str
) -> None:
    if queue_size is not None:
        [(unfinished,)] = await transaction.fetch(in_schema(SIZE, schema).replace("$1", "{most}"), {"most": queue_size})
        is_full = unfinished + len(acceptances) > queue_size
    else:
        is_full = False
    rows = await transaction.fetch(in_schema(STATEMENT, schema), parameters(acceptances))
    stored = {row[0] for row in rows}
    for number, acceptance in enumerate(acceptances, 1):
        if number not in stored:
            raise AlreadyQueued(acceptance.prepared.message_id)
    # Asked last, so that a repeated message is told that it is known, and not to come again later.
    if is_full and queue_size is not None:
        raise QueueFull(queue_size)
    # When it commits, our own listener is to hear of it, too, so it does not say from whom it is.
    await transaction.fetch("SELECT CAST(pg_notify({channel}, '') AS text)", {"channel": channel})
