"""Opening: what makes the tables, what is refused, and with which words."""

import asyncio
import os
import traceback
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from mailstrom_async import MailerStateError, StorageError, StorageIncompatible
from mailstrom_async.storage._postgres import schema as schema_room
from mailstrom_async.storage._postgres.schema import MIGRATIONS
from mailstrom_async.storage.postgres import PostgresStorage
from mailstrom_async.testing._contract.ground import claim_one, delivered, email, record_of

NOW = datetime(2030, 1, 1, tzinfo=UTC)


async def run(dsn: str, *statements: str) -> list[asyncpg.Record]:
    """Run statements; returns the rows of the last."""
    connection = await asyncpg.connect(dsn)
    try:
        return [await connection.fetch(statement) for statement in statements][-1]
    finally:
        await connection.close()


async def test_many_processes_may_open_a_new_store_at_once(dsn: str, schema: str) -> None:
    """One of them makes the tables, under an advisory lock."""
    stores = [PostgresStorage(dsn, schema=schema) for _ in range(8)]
    await asyncio.gather(*(store.open(NOW) for store in stores))
    versions = await run(dsn, f"SELECT version FROM {schema}.schema_version")
    await asyncio.gather(*(store.aclose() for store in stores))

    assert [row[0] for row in versions] == [len(MIGRATIONS)]


async def test_another_programs_tables_are_left_alone(dsn: str, schema: str, storage: PostgresStorage) -> None:
    """Row C9: the schema has a table of a name that we need."""
    await run(dsn, f"CREATE SCHEMA {schema}", f"CREATE TABLE {schema}.messages (theirs text)")
    with pytest.raises(StorageIncompatible, match=rf"schema {schema}.*another program's table messages.*left as it is"):
        await storage.open(NOW)

    tables = await run(dsn, f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema}'")
    assert [row[0] for row in tables] == ["messages"]


async def test_a_store_of_a_newer_version_is_left_alone(dsn: str, schema: str, storage: PostgresStorage) -> None:
    """Row C27."""
    await storage.open(NOW)
    await storage.aclose()
    await run(dsn, f"UPDATE {schema}.schema_version SET version = 99")

    with pytest.raises(StorageIncompatible, match=f"version 99, and this library knows up to {len(MIGRATIONS)}"):
        await storage.open(NOW)


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
async def test_a_store_of_an_older_version_is_brought_to_the_newest(
    dsn: str, schema: str, storage: PostgresStorage, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row C27: with all that it holds, and it is used on as if it had always been new."""
    with monkeypatch.context() as patch:
        patch.setattr(schema_room, "MIGRATIONS", MIGRATIONS[:version])
        await storage.open(NOW)
        await storage.aclose()
    await run(dsn, *(statement.replace("mailstrom.", f"{schema}.") for statement in OLD_MAIL))
    await storage.open(NOW)
    due = await storage.upcoming(10)
    delivery = await claim_one(storage)
    await storage.record([record_of(delivery, delivered())])
    await storage.enqueue([email("code@example.org", lane="auth")])
    statuses = await storage.recent(NOW, 10)
    await storage.aclose()

    assert [(entry.destination, entry.size, entry.lane) for entry in due] == [("example.net", 9, "default")]
    assert [(status.message_id, status.lane, status.completed) for status in statuses] == [
        ("old@example.org", "default", True),
        ("code@example.org", "auth", False),
    ]


OLD_MAIL = (
    """
    INSERT INTO mailstrom.messages (message_id, sender, smtputf8, eight_bit, queued_at, expires_at, unfinished)
    VALUES ('old@example.org', 'app@example.org', false, false, '2030-01-01Z', '2030-01-06Z', 1)
    """,
    "INSERT INTO mailstrom.contents VALUES (1, 'old mail!')",
    "INSERT INTO mailstrom.deliveries (message, destination, size, due_at) VALUES (1, 'example.net', 9, '2030-01-01Z')",
    "INSERT INTO mailstrom.recipients (delivery, position, address) VALUES (1, 0, 'ada@example.net')",
)
"""A message as version 1 held it, and any later one still takes it."""


async def test_a_schema_that_was_made_beforehand_is_used(dsn: str, schema: str, storage: PostgresStorage) -> None:
    """By an administrator, for a role that may not make one."""
    await run(dsn, f"CREATE SCHEMA {schema}")
    await storage.open(NOW)

    assert await storage.upcoming(10) == []
    await storage.aclose()


async def test_a_role_that_makes_accepting_unsafe_is_refused(dsn: str, schema: str) -> None:
    """Row C25: synchronous_commit off means that what was acknowledged can be lost."""
    role = f"hasty_{schema}"
    await run(dsn, f"CREATE ROLE {role} LOGIN SUPERUSER", f"ALTER ROLE {role} SET synchronous_commit = off")
    try:
        storage = PostgresStorage(f"postgresql://{role}@{dsn.rpartition('@')[2]}", schema=schema)
        with pytest.raises(StorageError, match=r"synchronous_commit off.*ALTER ROLE"):
            await storage.open(NOW)
    finally:
        await run(dsn, f"DROP ROLE {role}")


async def test_a_role_without_rights_is_told_what_it_lacks(dsn: str, schema: str) -> None:
    """And the store is not half made."""
    role = f"poor_{schema}"
    await run(dsn, f"CREATE ROLE {role} LOGIN")
    try:
        storage = PostgresStorage(f"postgresql://{role}@{dsn.rpartition('@')[2]}", schema=schema)
        with pytest.raises(StorageError, match=r"permission denied.*grant the role"):
            await storage.open(NOW)
    finally:
        await run(dsn, f"DROP ROLE {role}")

    assert await run(dsn, f"SELECT FROM pg_namespace WHERE nspname = '{schema}'") == []


@pytest.mark.parametrize(
    ("dsn_", "words"),
    [
        ("postgresql://u:secret@127.0.0.1:1/shop", r"PostgreSQL 127.0.0.1:1/shop can't be reached"),
        ("postgresql://u:secret@127.0.0.1:x/shop", "write postgresql://user:password@host:port/database"),
        ("mysql://u:secret@127.0.0.1/shop", "write postgresql://user:password@host:port/database"),
        ("postgresql://u:1secret/2secret@127.0.0.1:1/shop", "such as %2F for / in a password"),
        ("postgresql://u:1#secret@127.0.0.1:1/shop", "special in a URL"),
        ("postgresql://u:1?a=secret@127.0.0.1:1/shop", "special in a URL"),
        ("postgresql://u:secret@secret@127.0.0.1:1/shop", "special in a URL"),
        ("postgresql://u:[secret@127.0.0.1:1/shop", "special in a URL"),
        ("host=127.0.0.1 user=u password=secret", "write postgresql://user:password@host:port/database"),
        ("postgresql://u@127.0.0.1:1/shop?password=secret", r"PostgreSQL 127.0.0.1:1/shop can't be reached"),
    ],
)
async def test_what_can_not_be_reached_is_named_without_its_password(dsn_: str, words: str) -> None:
    """At once after `timeout`, with the cause."""
    storage = PostgresStorage(dsn_, timeout=timedelta(milliseconds=200))
    with pytest.raises(StorageError, match=words) as caught:
        await storage.open(NOW)

    told = "".join(traceback.format_exception(caught.value))
    assert "secret" not in told.replace(repr(dsn_), "") + repr(storage) + repr(storage._address)


async def test_a_missing_database_is_named(dsn: str) -> None:
    """With the remedy."""
    with pytest.raises(StorageError, match=r"nowhere.*create the database"):
        await PostgresStorage(dsn.rpartition("/")[0] + "/nowhere").open(NOW)


@pytest.mark.parametrize("schema_", ["", "Mail", "pg_mail", "a b", 'x"; DROP', "x" * 51])
def test_a_schema_needs_a_plain_name(schema_: str) -> None:
    """It stands in every statement, so it must need no quotes."""
    with pytest.raises(ValueError, match="can't be the schema"):
        PostgresStorage("postgresql://localhost/shop", schema=schema_)


async def test_a_fork_is_told_to_open_a_store_of_its_own(storage: PostgresStorage) -> None:
    """Row C23: a connection must not be used by two processes."""
    await storage.open(NOW)
    try:
        child = os.fork()
        if child == 0:
            try:
                storage._usable()
            except MailerStateError:
                os._exit(7)
            os._exit(1)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)

        assert os.waitstatus_to_exitcode(status) == 7
    finally:
        await storage.aclose()
