"""Connections that can't take mail into their transaction: each is refused with what to do, and nothing is stored."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import aiosqlite
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from mailstrom_async import (
    MailerStateError,
    Mailstrom,
    MemoryStorage,
    SQLiteStorage,
    StorageError,
    UnusableConnection,
)
from mailstrom_async.testing import SMTPServer

from .conftest import Connect, config, email


@pytest.fixture(autouse=True)
async def nothing_is_stored(mailer: Mailstrom) -> AsyncIterator[None]:
    """Whatever the test does."""
    yield
    assert await mailer.query_recent() == []


async def test_a_connection_in_no_transaction_is_refused(mailer: Mailstrom, path: Path):
    """One that commits each statement by itself: there would be nothing to commit the mail with."""
    connection = sqlite3.connect(path, isolation_level=None)
    with closing(connection), pytest.raises(UnusableConnection, match=r"is in no transaction.*BEGIN IMMEDIATE"):
        await mailer.send_email(email(1), connection=connection)
    async with aiosqlite.connect(path, isolation_level=None) as connection:
        with pytest.raises(UnusableConnection, match="is in no transaction"):
            await mailer.send_email(email(1), connection=connection)


async def test_a_connection_to_another_file_is_refused(mailer: Mailstrom, path: Path, tmp_path: Path, connect: Connect):
    """Also to the same name in another place; it is named, and the right one as well."""
    other = tmp_path / "other" / path.name
    other.parent.mkdir()
    async with connect(other) as caller:
        await caller.begin()
        with pytest.raises(UnusableConnection, match=f"{other}, and not to {path}.*connect to the same file"):
            await mailer.send_email(email(1), connection=caller.connection)


async def test_a_connection_by_another_name_is_taken(mailer: Mailstrom, path: Path, tmp_path: Path):
    """A link to the file leads to it."""
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with closing(sqlite3.connect(link)) as connection:
        await mailer.send_email(email(1), connection=connection)
        connection.rollback()


@pytest.mark.parametrize("name", [":memory:", ""])
async def test_a_database_in_memory_is_refused(mailer: Mailstrom, name: str):
    """It is no file at all."""
    connection = sqlite3.connect(name)
    with closing(connection), pytest.raises(UnusableConnection, match="leads to a database in memory"):
        await mailer.send_email(email(1), connection=connection)


async def test_a_file_that_is_only_attached_is_refused(mailer: Mailstrom, path: Path, tmp_path: Path):
    """A crash in the midst of the commit could leave the order without its mail."""
    with closing(sqlite3.connect(tmp_path / "orders.db")) as connection:
        connection.execute("ATTACH ? AS mail", (str(path),))
        with pytest.raises(UnusableConnection, match="only attached"):
            await mailer.send_email(email(1), connection=connection)


async def test_a_connection_that_was_there_before_the_store_is_refused(sink: SMTPServer, tmp_path: Path):
    """It leads to an empty file that is not there any more."""
    path = tmp_path / "late.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT * FROM sqlite_schema").fetchall()
        async with Mailstrom(config(sink), SQLiteStorage(path), deliver=False) as mailer:
            with pytest.raises(UnusableConnection, match="connect again"):
                await mailer.send_email(email(1), connection=connection)


async def test_a_closed_connection_is_refused(mailer: Mailstrom, path: Path):
    """And one that was never opened."""
    connection = sqlite3.connect(path)
    connection.close()
    with pytest.raises(UnusableConnection, match=r"closed database\. Give one that is open"):
        await mailer.send_email(email(1), connection=connection)
    async with aiosqlite.connect(path) as other:
        pass
    for unusable in (other, aiosqlite.connect(path)):
        with pytest.raises(UnusableConnection, match=r"no active connection\. Give one that is open"):
            await mailer.send_email(email(1), connection=unusable)


async def test_a_connection_of_another_thread_is_refused(mailer: Mailstrom, path: Path):
    """sqlite3 does not let it be used here; it says so only if it is asked."""
    with ThreadPoolExecutor(1) as thread:
        connection = thread.submit(sqlite3.connect, path).result()
        with pytest.raises(UnusableConnection, match=r"another thread.*or take aiosqlite"):
            await mailer.send_email(email(1), connection=connection)
        thread.submit(connection.close).result()


async def test_a_connection_of_another_thread_that_may_be_used_here_is_taken(mailer: Mailstrom, path: Path):
    """The caller has said that it takes care of that."""
    with ThreadPoolExecutor(1) as thread:
        opened = thread.submit(sqlite3.connect, path, check_same_thread=False).result()
    with closing(opened) as connection:
        await mailer.send_email(email(1), connection=connection)
        connection.rollback()


@pytest.mark.parametrize(
    "open_it",
    [
        lambda path: sqlite3.connect(f"file:{path}?mode=ro", uri=True),
        lambda path: query_only(sqlite3.connect(path)),
    ],
    ids=["mode=ro", "query_only"],
)
async def test_a_connection_that_may_only_read_is_refused(
    mailer: Mailstrom, path: Path, open_it: Callable[[Path], sqlite3.Connection]
):
    """And is left without a transaction."""
    with closing(open_it(path)) as connection:
        with pytest.raises(UnusableConnection, match="may only read"):
            await mailer.send_email(email(1), connection=connection)

        assert not connection.in_transaction


def query_only(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.execute("PRAGMA query_only = ON")
    return connection


async def test_a_transaction_that_began_with_reading_and_was_overtaken_is_told_so(mailer: Mailstrom, path: Path):
    """SQLite never lets it write any more, however long it waits."""
    with closing(sqlite3.connect(path, isolation_level=None)) as reading, closing(sqlite3.connect(path)) as writing:
        reading.execute("BEGIN")
        reading.execute("SELECT * FROM counters").fetchall()
        writing.execute("CREATE TABLE orders (number INTEGER)")
        with pytest.raises(
            StorageError, match="began with reading; roll it back and begin again, with BEGIN IMMEDIATE"
        ):
            await mailer.send_email(email(1), connection=reading)

        assert reading.in_transaction


async def test_a_connection_of_an_unknown_kind_is_refused(mailer: Mailstrom, sink: SMTPServer):
    """With the kinds that are known; and so is every connection by a store that has no transactions to offer."""
    with pytest.raises(
        UnusableConnection, match=r"builtins\.str: SQLiteStorage knows sqlite3's Connection, aiosqlite's"
    ):
        await mailer.send_email(email(1), connection="app.db")
    elsewhere = create_async_engine("postgresql+asyncpg://nowhere/shop").connect()
    with pytest.raises(UnusableConnection, match="leads to postgresql"):
        await mailer.send_email(email(1), connection=elsewhere)
    unopened = create_async_engine("sqlite+aiosqlite://").connect()
    with pytest.raises(UnusableConnection, match=r"not been started .* Give one that is open"):
        await mailer.send_email(email(1), connection=unopened)
    async with Mailstrom(config(sink), MemoryStorage()) as other:
        with pytest.raises(UnusableConnection, match="MemoryStorage can't write into a transaction"):
            await other.send_email(email(1), connection=object())


async def test_a_closed_store_takes_nothing(mailer: Mailstrom, path: Path, sink: SMTPServer):
    """Whatever the connection leads to."""
    closed = Mailstrom(config(sink), SQLiteStorage(path))
    with closing(sqlite3.connect(path)) as connection, pytest.raises(MailerStateError):
        await closed.send_email(email(1), connection=connection)
