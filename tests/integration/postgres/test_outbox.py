"""Mail in the caller's own transaction: queued when it commits, never if it is rolled back."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import psycopg
import pytest
from _mailers import arrived, config, email, eventually, message_id, recipient
from _server import on_one_server
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from mailstrom_async import (
    AlreadyQueued,
    Email,
    InvalidEmail,
    Mailstrom,
    MemoryStorage,
    MessageNotFound,
    QueueFull,
    StorageError,
    UnusableConnection,
)
from mailstrom_async.storage.postgres import PostgresStorage
from mailstrom_async.testing import ManualClock, SMTPServer

pytestmark = on_one_server


class Caller:
    """An application's connection of some kind, in a transaction."""

    def __init__(
        self,
        connection: object,
        execute: Callable[[str], Awaitable[object]],
        commit: Callable[[], Awaitable[object]],
        rollback: Callable[[], Awaitable[object]],
    ) -> None:
        self.connection = connection
        self.execute = execute
        self.commit = commit
        self.rollback = rollback


@asynccontextmanager
async def by_asyncpg(dsn: str) -> AsyncIterator[Caller]:
    connection = await asyncpg.connect(dsn)
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield Caller(connection, connection.execute, transaction.commit, transaction.rollback)
    finally:
        await connection.close()


@asynccontextmanager
async def by_asyncpg_pool(dsn: str) -> AsyncIterator[Caller]:
    async with asyncpg.create_pool(dsn, min_size=1) as pool, pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        yield Caller(connection, connection.execute, transaction.commit, transaction.rollback)


@asynccontextmanager
async def by_psycopg(dsn: str) -> AsyncIterator[Caller]:
    connection = await psycopg.AsyncConnection.connect(dsn, row_factory=psycopg.rows.dict_row)
    try:
        yield Caller(connection, connection.execute, connection.commit, connection.rollback)
    finally:
        await connection.close()


@asynccontextmanager
async def by_sqlalchemy_connection(dsn: str, driver: str) -> AsyncIterator[Caller]:
    engine = create_async_engine(dsn.replace("postgresql:", f"postgresql+{driver}:"))
    try:
        async with engine.connect() as connection:

            async def execute(statement: str) -> object:
                return await connection.execute(text(statement))

            yield Caller(connection, execute, connection.commit, connection.rollback)
    finally:
        await engine.dispose()


@asynccontextmanager
async def by_sqlalchemy_session(dsn: str, driver: str) -> AsyncIterator[Caller]:
    engine = create_async_engine(dsn.replace("postgresql:", f"postgresql+{driver}:"))
    try:
        async with AsyncSession(engine) as session:

            async def execute(statement: str) -> object:
                return await session.execute(text(statement))

            yield Caller(session, execute, session.commit, session.rollback)
    finally:
        await engine.dispose()


KINDS: dict[str, Callable[[str], object]] = {
    "asyncpg": by_asyncpg,
    "asyncpg pool": by_asyncpg_pool,
    "psycopg": by_psycopg,
    "SQLAlchemy connection on asyncpg": lambda dsn: by_sqlalchemy_connection(dsn, "asyncpg"),
    "SQLAlchemy connection on psycopg": lambda dsn: by_sqlalchemy_connection(dsn, "psycopg"),
    "SQLAlchemy session on asyncpg": lambda dsn: by_sqlalchemy_session(dsn, "asyncpg"),
    "SQLAlchemy session on psycopg": lambda dsn: by_sqlalchemy_session(dsn, "psycopg"),
}


@pytest.fixture(params=list(KINDS))
async def caller(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[Caller]:
    async with KINDS[request.param](dsn) as caller:
        yield caller


@pytest.fixture
async def mailer(storage: PostgresStorage) -> AsyncIterator[Mailstrom]:
    """A mailer that only queues."""
    async with SMTPServer() as sink, Mailstrom(config(sink), storage, deliver=False) as mailer:
        yield mailer


async def test_mail_is_delivered_at_once_when_its_transaction_commits(
    storage: PostgresStorage, caller: Caller, schema: str
) -> None:
    """Not before: it can't even be seen. And at once: the clock stands still, so only the commit can tell."""
    clock = ManualClock()
    async with SMTPServer() as sink, Mailstrom(config(sink), storage, clock=clock) as mailer, eventually():
        await clock.until_waiting()
        await caller.execute(f"CREATE TABLE {schema}.orders (number integer)")
        await caller.execute(f"INSERT INTO {schema}.orders VALUES (1)")
        sent = await mailer.send_email(email(1), connection=caller.connection)
        with pytest.raises(MessageNotFound):
            await mailer.query_status(sent)
        await caller.commit()
        (message,) = await sink.wait_for_messages(1)

        assert sent == message_id(1)
        assert message.recipients == (recipient(1),)
        assert b"Hello" in message.content


async def test_mail_of_a_transaction_that_is_rolled_back_never_was(mailer: Mailstrom, caller: Caller) -> None:
    """Its Message-ID is free, too."""
    await mailer.send_emails([email(1), email(2)], connection=caller.connection)
    await caller.rollback()

    with pytest.raises(MessageNotFound):
        await mailer.query_status(message_id(1))
    await mailer.send_email(email(1))


async def test_a_refusal_leaves_the_transaction_as_it_was(mailer: Mailstrom, caller: Caller, schema: str) -> None:
    """What was refused is not in it, not even in part, and all else is."""
    await mailer.send_email(email(2))
    await caller.execute(f"CREATE TABLE {schema}.orders (number integer)")
    await mailer.send_email(email(0), connection=caller.connection)
    with pytest.raises(AlreadyQueued):
        await mailer.send_emails([email(1), email(2)], connection=caller.connection)
    with pytest.raises(InvalidEmail):
        await mailer.send_emails([email(3), email(3)], connection=caller.connection)
    await caller.execute(f"INSERT INTO {schema}.orders VALUES (1)")
    await caller.commit()

    assert (await mailer.query_status(message_id(0))).recipients[0].address == recipient(0)
    for number in [1, 3]:
        with pytest.raises(MessageNotFound):
            await mailer.query_status(message_id(number))


async def test_everything_of_a_message_arrives_in_the_store(mailer: Mailstrom, caller: Caller) -> None:
    """Several destinations, letters of all kinds, a NUL in the content's encoding, names as they were written."""
    sent = await mailer.send_email(
        Email(
            from_="Jörg <joerg@example.org>",
            to=["Ünal <a@example.net>", "b@example.com", '"\'; DROP TABLE x; -- %s :name {x}" <c@example.net>'],
            subject="100 % :sure {} $1",
            text="äöü",
            attachments=[
                {"filename": "a.bin", "content": bytes(range(256)), "content_type": "application/octet-stream"}
            ],
        ),
        connection=caller.connection,
        not_before=None,
        expires_after=timedelta(minutes=10),
        lane="auth",
    )
    await caller.commit()
    prepared = await mailer.query_prepared(sent)
    status = await mailer.query_status(sent)

    assert prepared.recipients == ("a@example.net", "b@example.com", "c@example.net")
    assert status.recipients[0].recipient == "Ünal <a@example.net>"
    assert status.lane == "auth"
    assert b"AAECAwQFBgcICQ" in prepared.content


async def test_a_full_queue_is_told_inside_a_transaction(dsn: str, schema: str, caller: Caller) -> None:
    """As outside of one; and who repeats a message is told that it is known."""
    async with SMTPServer() as sink:
        limited = config(sink).model_copy(update={"limits": config(sink).limits.model_copy(update={"queue_size": 1})})
        async with Mailstrom(limited, PostgresStorage(dsn, schema=schema), deliver=False) as mailer:
            await mailer.send_email(email(1))
            with pytest.raises(QueueFull):
                await mailer.send_email(email(2), connection=caller.connection)
            with pytest.raises(AlreadyQueued):
                await mailer.send_email(email(1), connection=caller.connection)
            await caller.commit()

            assert len(await mailer.query_recent()) == 1


async def test_a_transaction_that_has_failed_is_refused(mailer: Mailstrom, caller: Caller) -> None:
    """With what to do about it."""
    with pytest.raises(Exception, match="nowhere"):
        await caller.execute("SELECT * FROM nowhere")

    with pytest.raises((UnusableConnection, StorageError), match="roll it back"):
        await mailer.send_email(email(1), connection=caller.connection)


async def test_a_connection_without_a_transaction_is_refused(mailer: Mailstrom, dsn: str) -> None:
    """Nothing could be rolled back, so this is a mistake: each driver's way to be in no transaction."""
    plain = await asyncpg.connect(dsn)
    by_itself = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    engine = create_async_engine(dsn.replace("postgresql:", "postgresql+asyncpg:"), isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as autocommit:
            for connection in [plain, by_itself, autocommit]:
                with pytest.raises(UnusableConnection, match=r"is in no transaction.*begin one"):
                    await mailer.send_email(email(1), connection=connection)
        async with by_itself.transaction():
            await mailer.send_email(email(1), connection=by_itself)
    finally:
        await plain.close()
        await by_itself.close()
        await engine.dispose()

    assert (await mailer.query_status(message_id(1))).recipients[0].result.state == "queued"


async def test_a_connection_to_another_database_is_refused(mailer: Mailstrom, dsn: str, schema: str) -> None:
    """Without our schema, or with one of the same name that belongs to another queue."""
    other = f"other_{schema}"
    here = await asyncpg.connect(dsn)
    await here.execute(f"CREATE DATABASE {other}")
    try:
        there = await asyncpg.connect(dsn, database=other)
        try:
            with pytest.raises(UnusableConnection, match="another database"):
                async with there.transaction():
                    await mailer.send_email(email(1), connection=there)
            twin = PostgresStorage(dsn.rpartition("/")[0] + f"/{other}", schema=schema)
            await twin.open(ManualClock().now())
            await twin.aclose()
            with pytest.raises(UnusableConnection, match="another database"):
                async with there.transaction():
                    await mailer.send_email(email(1), connection=there)
        finally:
            await there.close()
    finally:
        await here.execute(f"DROP DATABASE {other}")
        await here.close()


async def test_a_connection_of_an_unknown_kind_is_refused(mailer: Mailstrom) -> None:
    """With the kinds that are known; and so is every connection by a store that has no transactions to offer."""
    sqlite = create_async_engine("sqlite+aiosqlite://")
    async with sqlite.connect() as connection:
        with pytest.raises(UnusableConnection, match="leads to sqlite"):
            await mailer.send_email(email(1), connection=connection)
    await sqlite.dispose()
    with pytest.raises(UnusableConnection, match=r"builtins\.str: PostgresStorage knows asyncpg"):
        await mailer.send_email(email(1), connection="postgresql://")
    async with SMTPServer() as sink, Mailstrom(config(sink), MemoryStorage()) as other:
        with pytest.raises(UnusableConnection, match="MemoryStorage can't write into a transaction"):
            await other.send_email(email(1), connection=object())

        assert arrived(sink) == {}
