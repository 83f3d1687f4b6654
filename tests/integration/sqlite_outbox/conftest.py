"""What the tests of mail in a caller's own transaction share: mailers over a file, and callers with all kinds of
connections to it."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path

import aiosqlite
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from mailstrom_async import Config, Email, Mailstrom, RelayDelivery, SQLiteStorage
from mailstrom_async.testing import SMTPServer

PATIENCE = timedelta(seconds=40)


def config(sink: SMTPServer) -> Config:
    """All mail goes to the sink."""
    relay = RelayDelivery(host=sink.host, port=sink.port, security="none")
    return Config(helo_name="app.example.org", delivery=relay, shutdown_grace=timedelta(seconds=1))


def email(number: int) -> Email:
    """A message with a recipient and a Message-ID of its own."""
    return Email(
        from_="app@example.org", to=recipient(number), subject="Hello", text="Hello", message_id=message_id(number)
    )


def message_id(number: int) -> str:
    return f"{number}@app.example.org"


def recipient(number: int) -> str:
    return f"user{number}@example.net"


class Caller:
    """An application's connection of some kind. `begin` begins a transaction, where that has to be said."""

    def __init__(
        self,
        connection: object,
        execute: Callable[[str], Awaitable[object]],
        commit: Callable[[], Awaitable[object]],
        rollback: Callable[[], Awaitable[object]],
        begin: str | None = None,
    ) -> None:
        self.connection = connection
        self.execute = execute
        self.commit = commit
        self.rollback = rollback
        self._begin = begin

    async def begin(self) -> None:
        if self._begin is not None:
            await self.execute(self._begin)


@asynccontextmanager
async def by_sqlite3(path: Path, begin: str | None) -> AsyncIterator[Caller]:
    level = {} if begin is None else {"isolation_level": None}
    with closing(sqlite3.connect(path, **level)) as connection:
        # What a caller may like, and we must not mind.
        connection.row_factory = lambda cursor, row: {"row": row}
        connection.text_factory = bytes

        async def execute(statement: str) -> object:
            return connection.execute(statement)

        async def commit() -> None:
            connection.commit()

        async def rollback() -> None:
            connection.rollback()

        yield Caller(connection, execute, commit, rollback, begin)


@asynccontextmanager
async def by_aiosqlite(path: Path, begin: str | None) -> AsyncIterator[Caller]:
    level = {} if begin is None else {"isolation_level": None}
    async with aiosqlite.connect(path, **level) as connection:
        connection.row_factory = aiosqlite.Row
        yield Caller(connection, connection.execute, connection.commit, connection.rollback, begin)


@asynccontextmanager
async def by_sqlalchemy_connection(path: Path) -> AsyncIterator[Caller]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    try:
        async with engine.connect() as connection:

            async def execute(statement: str) -> object:
                return await connection.execute(text(statement))

            yield Caller(connection, execute, connection.commit, connection.rollback)
    finally:
        await engine.dispose()


@asynccontextmanager
async def by_sqlalchemy_session(path: Path) -> AsyncIterator[Caller]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    try:
        async with AsyncSession(engine) as session:

            async def execute(statement: str) -> object:
                return await session.execute(text(statement))

            yield Caller(session, execute, session.commit, session.rollback)
    finally:
        await engine.dispose()


Connect = Callable[[Path], AbstractAsyncContextManager[Caller]]

KINDS: dict[str, Connect] = {
    "sqlite3": lambda path: by_sqlite3(path, None),
    "sqlite3 with BEGIN": lambda path: by_sqlite3(path, "BEGIN"),
    "sqlite3 with BEGIN IMMEDIATE": lambda path: by_sqlite3(path, "BEGIN IMMEDIATE"),
    "aiosqlite": lambda path: by_aiosqlite(path, None),
    "aiosqlite with BEGIN": lambda path: by_aiosqlite(path, "BEGIN"),
    "SQLAlchemy connection": by_sqlalchemy_connection,
    "SQLAlchemy session": by_sqlalchemy_session,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of the store, and of the application's own tables."""
    return tmp_path / "app.db"


@pytest.fixture(params=list(KINDS))
def connect(request: pytest.FixtureRequest) -> Connect:
    """A way to connect."""
    return KINDS[request.param]


@pytest.fixture
async def sink() -> AsyncIterator[SMTPServer]:
    """Where all mail goes to."""
    async with SMTPServer() as sink:
        yield sink


@pytest.fixture
async def mailer(path: Path, sink: SMTPServer) -> AsyncIterator[Mailstrom]:
    """A mailer that only queues."""
    async with Mailstrom(config(sink), SQLiteStorage(path), deliver=False) as mailer:
        yield mailer


@pytest.fixture
async def caller(mailer: Mailstrom, path: Path, connect: Connect) -> AsyncIterator[Caller]:
    """A caller in a transaction, which has done nothing yet, with a table of its own."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (number INTEGER)")
    async with connect(path) as caller:
        await caller.begin()
        yield caller


def orders(path: Path) -> list[int]:
    """The numbers of the orders that are committed."""
    with closing(sqlite3.connect(path)) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM orders ORDER BY number")]
