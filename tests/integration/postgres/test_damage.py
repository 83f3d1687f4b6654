"""Rows that do not hold what we once wrote harm nothing but themselves (row C24)."""

import asyncpg
import pytest
from _mailers import arrived, config, email, eventually, message_id, recipient

from mailstrom_async import Mailstrom, StorageError
from mailstrom_async.storage.postgres import PostgresStorage
from mailstrom_async.testing import SMTPServer


@pytest.mark.parametrize("missing", ["contents", "recipients"])
async def test_a_message_that_is_not_whole_is_set_aside(
    storage: PostgresStorage, dsn: str, schema: str, missing: str
) -> None:
    """It fails with the reason, is not tried again, and others go on."""
    async with SMTPServer() as sink, Mailstrom(config(sink), storage, deliver=False) as mailer, eventually():
        await mailer.send_email(email(1))
        connection = await asyncpg.connect(dsn)
        await connection.execute(f"DELETE FROM {schema}.{missing}")
        await mailer.send_email(email(2))
        await mailer.start()
        assert (await mailer.wait(message_id(2))).succeeded
        left = await connection.fetch(f"SELECT FROM {schema}.deliveries WHERE due_at IS NOT NULL")
        incomplete = await connection.fetch(f"SELECT FROM {schema}.messages WHERE completed_at IS NULL")
        await connection.close()

        assert (left, incomplete) == ([], [])
        assert arrived(sink) == {recipient(2): 1}
        if missing == "contents":
            (one,) = (await mailer.query_status(message_id(1))).recipients
            assert (one.result.state, one.result.cause) == ("failed", "local")
            assert "its content is missing" in one.result.reason


async def test_a_status_that_can_not_be_read_is_told_of(storage: PostgresStorage, dsn: str, schema: str) -> None:
    """Asked for it is an error; in a list it is left out."""
    async with SMTPServer() as sink, Mailstrom(config(sink), storage, deliver=False) as mailer:
        await mailer.send_emails([email(1), email(2)])
        connection = await asyncpg.connect(dsn)
        await connection.execute(f"UPDATE {schema}.recipients SET result = '{{}}' WHERE address = $1", recipient(1))
        await connection.close()

        with pytest.raises(StorageError, match="damaged in the store"):
            await mailer.query_status(message_id(1))
        assert [status.message_id for status in await mailer.query_recent()] == [message_id(2)]
