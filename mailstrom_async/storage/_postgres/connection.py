"""Connections to PostgreSQL: made when they are needed, kept, given up when they break, and made again.

Nothing here is kept on the server between two transactions, so a PgBouncer in transaction mode may stand in between.
The one exception is the listener, in listener.py.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from mailstrom_async._errors import StorageError
from mailstrom_async.storage._postgres.errors import (
    AGAIN,
    READ_ONLY,
    ConnectionLost,
    connection_ended,
    no_answer,
    storage_error,
    true_cause,
)

try:
    import asyncpg  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError("PostgresStorage needs asyncpg: pip install 'mailstrom-async[postgres]'") from error

T = TypeVar("T")
Row = Sequence[Any]

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
TRIES = 5
"""How often a transaction is begun again that others made fail."""
LAST_WORD = 1.0
"""Seconds for the server to hear that we no longer wait for its answer."""
LOCK_SHARE, STATEMENT_SHARE = 0.8, 0.9
"""Of our patience: so long a statement waits for a lock, and so long it runs, before the server ends it. Then it is
known that nothing was done; when our own patience ends first, it may be done later."""
LONGEST_TIMEOUT = 2**31 - 1
"""Milliseconds: what the server takes."""

_HOST = r"(?:[\w.%-]*|\[[0-9A-Fa-f:.%]+\])(?::\d*)?"
_DSN = re.compile(
    rf"(?:(?i:postgres(?:ql)?)://(?:[^@/?#]*@)?(?P<hosts>{_HOST}(?:,{_HOST})*)(?P<database>/[^@?#]*)?(?:\?[^#@]*)?)?"
)
"""A DSN whose parts are plain to see. It is none where a password has an "@", "/", "?" or "#" in it that is not
escaped: then a piece of the password would be taken for the host or the database, and be shown."""

DRIVER_ERRORS: tuple[type[Exception], ...] = cast(
    "tuple[type[Exception], ...]",
    (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError),
)

BROKEN = cast("tuple[type[Exception], ...]", (asyncpg.InternalClientError, asyncpg.InterfaceError))
"""What asyncpg raises for a connection that ended while nothing was asked: what the server said is lost."""

OWN_KIND: tuple[type, ...] = cast("tuple[type, ...]", (asyncpg.Connection, asyncpg.pool.PoolConnectionProxy))
"""What asyncpg's connections are, as a caller may have them."""


class Connection(Protocol):
    """**Protocol:** what we use of asyncpg's connections."""

    async def fetch(self, query: str, *args: object) -> Sequence[Row]: ...

    async def execute(self, query: str, *args: object) -> str: ...

    async def close(self, *, timeout: float) -> None: ...

    async def add_listener(self, channel: str, callback: Callable[[object, int, str, str], None]) -> None: ...

    def add_termination_listener(self, callback: Callable[[object], None]) -> None: ...

    def is_in_transaction(self) -> bool: ...

    def is_closed(self) -> bool: ...

    def terminate(self) -> None: ...


# asyncpg has no type hints.
_connect = cast("Callable[..., Awaitable[Connection]]", asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True, slots=True)
class Address:
    """Where and how to connect.

    Attributes:
        patience: Seconds to wait for a connection, or for the answer to a statement.
        statement_cache_size: 0: nothing is prepared on the server (PgBouncer).
    """

    dsn: str = field(repr=False)
    schema: str
    patience: float
    statement_cache_size: int

    @property
    def name(self) -> str:
        """What to call it in messages: no password, no parameters."""
        parts = _DSN.fullmatch(self.dsn)
        if parts is None:
            return "PostgreSQL"
        return f"PostgreSQL {parts['hosts'] or 'on this host'}{parts['database'] or ''}"

    @property
    def keeps_session(self) -> bool:
        """Whether the server's session is ours alone. Behind a PgBouncer it may be another one in each transaction."""
        return self.statement_cache_size > 0

    @property
    def begin(self) -> str:
        """What begins a transaction."""
        if self.keeps_session:
            return "BEGIN"
        return "; ".join(["BEGIN", *(f"SET LOCAL {name} = {value}" for name, value in self._server_timeouts.items())])

    @property
    def _server_timeouts(self) -> dict[str, str]:
        return {
            "lock_timeout": _milliseconds(LOCK_SHARE * self.patience),
            "statement_timeout": _milliseconds(STATEMENT_SHARE * self.patience),
        }

    async def connect(self) -> Connection:
        """Raises StorageError; `ConnectionLost` if it is worth trying again."""
        unreadable = StorageError(
            "the DSN of PostgresStorage can't be read: write postgresql://user:password@host:port/database, and what "
            "is special in a URL as its code, such as %2F for / in a password"
        )
        if not _DSN.fullmatch(self.dsn):
            raise unreadable
        try:
            if self.keeps_session:
                try:
                    return await self._connect(self._server_timeouts)
                except asyncpg.ProtocolViolationError as error:
                    # A PgBouncer that lets each client have a session of its own does without them.
                    if "startup parameter" not in str(error):
                        raise
            return await self._connect({})
        except ValueError:
            # It quotes what it can't make out, which may be the password: not even a traceback may show it.
            raise unreadable from None
        except DRIVER_ERRORS as error:
            raise storage_error(self.name, error) from error

    async def _connect(self, settings: dict[str, str]) -> Connection:
        # By the libpq environment variables and defaults where the DSN is silent.
        return await _connect(
            self.dsn,
            timeout=self.patience,
            command_timeout=self.patience,
            statement_cache_size=self.statement_cache_size,
            server_settings={"application_name": "mailstrom_async", **settings},
        )

    def error_of(self, cause: Exception) -> StorageError:
        """The error to raise in place of one that the driver raised when a connection was there."""
        if isinstance(cause, TimeoutError):
            return no_answer(self.name, self.patience)
        if isinstance(cause, BROKEN) and not isinstance(cause, ValueError):  # which is about what was asked
            return connection_ended(self.name)
        return storage_error(self.name, cause)


def _milliseconds(seconds: float) -> str:
    # 0 would be for ever.
    return str(int(min(max(1000 * seconds, 1), LONGEST_TIMEOUT)))


class Session:
    """A connection, in the hands of one operation."""

    def __init__(self, connection: Connection, address: Address) -> None:
        self._connection = connection
        self.schema = address.schema
        self.name = address.name

    async def fetch(self, statement: str, *values: object) -> Sequence[Row]:
        return await self._connection.fetch(in_schema(statement, self.schema), *values)

    async def execute(self, statement: str, *values: object) -> str:
        return await self._connection.execute(in_schema(statement, self.schema), *values)


def in_schema(statement: str, schema: str) -> str:
    """A statement of ours, which names the schema `mailstrom`, for another schema."""
    return statement if schema == "mailstrom" else statement.replace("mailstrom.", f"{schema}.")


Operation = Callable[[Session], Awaitable[T]]


class Connections:
    """A few connections that all operations share. Each is made when it is first needed.

    An operation is not cut in half: whoever waits for it may be cancelled, the operation goes on to its end. So no
    connection is ever left in the middle of a statement.
    """

    def __init__(self, address: Address, size: int) -> None:
        self.address = address
        self._room = asyncio.Semaphore(size)
        self._free: list[Connection] = []
        self._running: set[asyncio.Task[Any]] = set()
        self._failures = 0
        self._closing = False
        self._closed = False

    async def transact(self, operation: Operation[T]) -> T:
        """Run an operation in a transaction of its own; again, if others made it fail. It must do nothing but SQL.

        Raises:
            ConnectionLost: If it is `midway`, nobody knows whether it was done.
            StorageError: It was not done.
        """
        return await self._uncut(self._repeated(operation, in_transaction=True))

    async def run(self, operation: Operation[T]) -> T:
        """Run an operation of one statement, which is a transaction by itself. Raises as `transact` does."""
        return await self._uncut(self._repeated(operation, in_transaction=False))

    async def read(self, operation: Operation[T]) -> T:
        """Run an operation that changes nothing; once more on another connection if the first is found broken."""

        async def read_twice() -> T:
            with suppress(ConnectionLost):
                return await self._once(operation)
            return await self._once(operation)

        return await self._uncut(read_twice())

    async def aclose(self) -> None:
        """Let what runs come to its end, and close."""
        self._closing = True
        try:
            while self._running:
                await asyncio.wait(set(self._running))
            while self._free:
                with suppress(*DRIVER_ERRORS):
                    await self._free[-1].close(timeout=self.address.patience)
                self._free.pop().terminate()
        finally:
            self.break_off()

    def break_off(self) -> None:
        """Close without a word, for who can't wait: what still runs breaks its connection off when it ends."""
        self._closing = self._closed = True
        self._drop_free()

    def _drop_free(self) -> None:
        while self._free:
            self._free.pop().terminate()

    async def _uncut(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited may be gone

    async def _repeated(self, operation: Operation[T], *, in_transaction: bool) -> T:
        tries = 0
        while True:
            tries += 1
            try:
                return await self._once(operation, in_transaction=in_transaction)
            except StorageError as error:
                code = getattr(error.__cause__, "sqlstate", None)
                if code not in AGAIN or tries == TRIES:
                    raise

    async def _once(self, operation: Operation[T], *, in_transaction: bool = False) -> T:
        async with self._taken() as connection:
            session = Session(connection, self.address)
            if in_transaction or not self.address.keeps_session:
                # Without a cache a statement is parsed and run in two steps, which PgBouncer keeps on one connection
                # to the server only within a transaction.
                async with _transaction(connection, self.address.begin):
                    return await operation(session)
            return await operation(session)

    @asynccontextmanager
    async def _taken(self) -> AsyncGenerator[Connection, None]:
        connection: Connection | None = None
        try:
            async with asyncio.timeout(2 * self.address.patience):
                await self._room.acquire()
        except TimeoutError:
            raise StorageError(
                f"{self.address.name}: all connections were busy for {2 * self.address.patience:g} s; "
                "give PostgresStorage more, or see what slows the server down"
            ) from None
        try:
            connection = await self._connected()
            yield connection
        except DRIVER_ERRORS as error:
            cause = true_cause(error)
            told = self.address.error_of(cause)
            if isinstance(told, ConnectionLost):
                told.midway = True
            is_read_only = getattr(cause, "sqlstate", None) == READ_ONLY
            if is_read_only:
                # A session may stay so when the server is writable again, and those that are free are no younger.
                self._drop_free()
            if connection is not None and (is_read_only or isinstance(told, ConnectionLost)):
                await _hang_up(connection)
            raise told from cause
        finally:
            if connection is not None:
                self._put_back(connection)
            self._room.release()

    def _put_back(self, connection: Connection) -> None:
        if connection.is_closed():
            return
        if connection.is_in_transaction() or self._closed:
            connection.terminate()
        else:
            self._free.append(connection)

    async def _connected(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed():
                return connection
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.address.patience
        while True:
            try:
                connection = await self.address.connect()
            except ConnectionLost:
                pause = back_off(self._failures)
                self._failures += 1
                if self._closing or loop.time() + pause > deadline:
                    raise
                await asyncio.sleep(pause)
            else:
                self._failures = 0
                return connection


@asynccontextmanager
async def _transaction(connection: Connection, begin: str) -> AsyncGenerator[None, None]:
    """As asyncpg's own; but what failed in it is told, and not that the rest of it failed after that."""
    await connection.execute(begin)
    try:
        yield
    except BaseException:
        with suppress(*DRIVER_ERRORS):
            await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")


async def _hang_up(connection: Connection) -> None:
    """Close a connection that fails us. If it is in the middle of a statement, the server is asked to cancel that."""
    with suppress(*DRIVER_ERRORS):
        # Older versions of asyncpg wait for the server's answer for longer than they are asked to.
        async with asyncio.timeout(LAST_WORD):
            await connection.close(timeout=LAST_WORD)
    connection.terminate()


def back_off(failures: int) -> float:
    """Seconds to wait before connecting again, after so many failures in a row."""
    return min(FIRST_PAUSE * float(2 ** min(failures, 10)), LONGEST_PAUSE)
