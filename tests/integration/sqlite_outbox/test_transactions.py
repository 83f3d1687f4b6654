"""Mail in the caller's own transaction: queued when it commits, never if it is rolled back."""

import asyncio
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import aiosqlite
import pytest

from mailstrom_async import AlreadyQueued, Email, InvalidEmail, Mailstrom, MessageNotFound, QueueFull, SQLiteStorage
from mailstrom_async.testing import ManualClock, SMTPServer

from .conftest import PATIENCE, Caller, Connect, config, email, message_id, orders, recipient


async def test_mail_is_delivered_at_once_when_its_transaction_commits(path: Path, sink: SMTPServer, connect: Connect):
    """Not before: it can't even be seen. And at once: the clock stands still, so only the commit can tell."""
    clock = ManualClock()
    async with Mailstrom(config(sink), SQLiteStorage(path), clock=clock) as mailer, connect(path) as caller:
        await clock.until_waiting()
        await caller.execute("CREATE TABLE orders (number INTEGER)")
        await caller.commit()
        await caller.begin()
        await caller.execute("INSERT INTO orders VALUES (1)")
        sent = await mailer.send_email(email(1), connection=caller.connection)
        with pytest.raises(MessageNotFound):
            await mailer.query_status(sent)
        await caller.commit()
        (message,) = await sink.wait_for_messages(1, timeout=PATIENCE)

        assert sent == message_id(1)
        assert message.recipients == (recipient(1),)
        assert b"Hello" in message.content
        assert orders(path) == [1]


async def test_one_transaction_after_the_other_is_noticed(path: Path, sink: SMTPServer, connect: Connect):
    """Also when the next one begins in the same turn of the event loop, and when one in between is rolled back."""
    clock = ManualClock()
    async with Mailstrom(config(sink), SQLiteStorage(path), clock=clock) as mailer, connect(path) as caller:
        await clock.until_waiting()
        for number in range(6):
            await caller.begin()
            await mailer.send_email(email(number), connection=caller.connection)
            await (caller.rollback() if number == 3 else caller.commit())
        messages = await sink.wait_for_messages(5, timeout=PATIENCE)

        assert {message.recipients for message in messages} == {(recipient(number),) for number in (0, 1, 2, 4, 5)}


async def test_mail_of_a_transaction_that_is_rolled_back_never_was(mailer: Mailstrom, caller: Caller, path: Path):
    """Its Message-ID is free, too."""
    await caller.execute("INSERT INTO orders VALUES (1)")
    await mailer.send_emails([email(1), email(2)], connection=caller.connection)
    await caller.rollback()

    with pytest.raises(MessageNotFound):
        await mailer.query_status(message_id(1))
    assert orders(path) == []
    await mailer.send_email(email(1))


async def test_mail_behind_a_savepoint_goes_with_it(path: Path, sink: SMTPServer, connect: Connect):
    """What was rolled back to a savepoint was never queued, and the rest is delivered at once."""
    clock = ManualClock()
    async with Mailstrom(config(sink), SQLiteStorage(path), clock=clock) as mailer, connect(path) as caller:
        await clock.until_waiting()
        await caller.begin()
        await mailer.send_email(email(1), connection=caller.connection)
        await caller.execute("SAVEPOINT mine")
        await mailer.send_email(email(2), connection=caller.connection)
        await caller.execute("ROLLBACK TO mine")
        await mailer.send_email(email(3), connection=caller.connection)
        await caller.commit()
        messages = await sink.wait_for_messages(2, timeout=PATIENCE)

        assert {message.recipients for message in messages} == {(recipient(1),), (recipient(3),)}
        with pytest.raises(MessageNotFound):
            await mailer.query_status(message_id(2))


async def test_a_refusal_leaves_the_transaction_as_it_was(mailer: Mailstrom, caller: Caller, path: Path):
    """What was refused is not in it, not even in part, and all else is."""
    await caller.rollback()
    await mailer.send_email(email(2))
    await caller.begin()
    await mailer.send_email(email(0), connection=caller.connection)
    with pytest.raises(AlreadyQueued, match=message_id(2)):
        await mailer.send_emails([email(1), email(2)], connection=caller.connection)
    with pytest.raises(InvalidEmail, match=message_id(3)):
        await mailer.send_emails([email(3), email(3)], connection=caller.connection)
    await caller.execute("INSERT INTO orders VALUES (1)")
    await caller.commit()

    assert (await mailer.query_status(message_id(0))).recipients[0].address == recipient(0)
    assert orders(path) == [1]
    for number in [1, 3]:
        with pytest.raises(MessageNotFound):
            await mailer.query_status(message_id(number))


async def test_a_refusal_of_the_first_change_leaves_no_transaction_behind(mailer: Mailstrom, path: Path):
    """Nobody would end it, for nobody has begun it, and its lock would keep all others from writing."""
    await mailer.send_email(email(1))
    with closing(sqlite3.connect(path)) as connection:
        with pytest.raises(AlreadyQueued):
            await mailer.send_email(email(1), connection=connection)

        assert not connection.in_transaction
    await mailer.send_email(email(2))


async def test_everything_of_a_message_arrives_in_the_store(mailer: Mailstrom, caller: Caller):
    """Several destinations, letters of all kinds, a NUL in the content's encoding, names as they were written, and
    contents of a size that is written piece by piece otherwise."""
    attachment = bytes(range(256)) * 8000
    sent = await mailer.send_email(
        Email(
            from_="Jörg <joerg@example.org>",
            to=["Ünal <a@example.net>", "b@example.com", '"\'; DROP TABLE x; -- %s :name {x}" <c@example.net>'],
            subject="100 % :sure {} $1",
            text="äöü",
            attachments=[{"filename": "a.bin", "content": attachment, "content_type": "application/octet-stream"}],
        ),
        connection=caller.connection,
        expires_after=timedelta(minutes=10),
    )
    await caller.commit()
    prepared = await mailer.query_prepared(sent)
    status = await mailer.query_status(sent)

    assert prepared.recipients == ("a@example.net", "b@example.com", "c@example.net")
    assert status.recipients[0].recipient == "Ünal <a@example.net>"
    assert b"AAECAwQFBgcICQ" in prepared.content
    assert len(prepared.content) > len(attachment) * 4 // 3


async def test_a_full_queue_is_told_inside_a_transaction(
    path: Path, sink: SMTPServer, mailer: Mailstrom, caller: Caller
):
    """As outside of one; and who repeats a message is told that it is known."""
    await caller.rollback()
    limits = config(sink).limits.model_copy(update={"queue_size": 1})
    limited = config(sink).model_copy(update={"limits": limits})
    async with Mailstrom(limited, SQLiteStorage(path), deliver=False) as strict:
        await strict.send_email(email(1))
        await caller.begin()
        with pytest.raises(QueueFull):
            await strict.send_email(email(2), connection=caller.connection)
        with pytest.raises(AlreadyQueued):
            await strict.send_email(email(1), connection=caller.connection)
        await caller.commit()

        assert len(await strict.query_recent()) == 1


async def test_what_is_queued_in_a_transaction_counts(path: Path, sink: SMTPServer, mailer: Mailstrom, caller: Caller):
    """For the limit of the queue, and only when it is committed."""
    limits = config(sink).limits.model_copy(update={"queue_size": 1})
    limited = config(sink).model_copy(update={"limits": limits})
    async with Mailstrom(limited, SQLiteStorage(path), deliver=False) as strict:
        await strict.send_email(email(1), connection=caller.connection)
        with pytest.raises(QueueFull):
            await strict.send_email(email(2), connection=caller.connection)
        await caller.rollback()
        await strict.send_email(email(2))
        with pytest.raises(QueueFull):
            await strict.send_email(email(3))


@pytest.mark.rule("C20", "stored whole or not at all; the next send works")
async def test_a_call_that_is_cancelled_leaves_nothing_half_in_the_transaction(mailer: Mailstrom, path: Path):
    """Row C20: wherever it was cancelled, what the connection's own thread had begun is undone there."""
    async with aiosqlite.connect(path) as connection:
        await connection.execute("CREATE TABLE orders (number INTEGER)")
        turns = 0
        while True:
            await connection.execute("INSERT INTO orders VALUES (1)")
            sending = asyncio.create_task(mailer.send_emails([email(1), email(2)], connection=connection))
            for _ in range(turns):
                await asyncio.sleep(0)
            if not sending.cancel():
                break
            with pytest.raises(asyncio.CancelledError):
                await sending
            async with connection.execute("SELECT count(*) FROM messages") as cursor:
                (stored,) = await cursor.fetchone()
            assert stored in (0, 2)
            assert connection.in_transaction
            await (connection.rollback() if stored else connection.commit())
            turns += 1 + turns // 10  # where threads are slow it takes thousands

        assert turns > 10
        assert sending.result() == [message_id(1), message_id(2)]
        await connection.commit()
        assert len(orders(path)) > 10


@pytest.mark.rule("C20", "mail that is stored all the same is delivered when its transaction commits")
async def test_mail_of_a_call_that_is_cancelled_at_its_very_last_step_is_noticed_as_well(path: Path, sink: SMTPServer):
    """Row C20: if the transaction holds it, its commit is seen at once: the clock stands still."""
    clock = ManualClock()
    loop = asyncio.get_running_loop()
    async with (
        Mailstrom(config(sink), SQLiteStorage(path), clock=clock) as mailer,
        aiosqlite.connect(path) as connection,
    ):
        await clock.until_waiting()
        await connection.execute("BEGIN")
        sending = asyncio.create_task(mailer.send_email(email(1), connection=connection))

        def cancel_at_last(statement: str) -> None:
            if statement == "RELEASE mailstrom":
                loop.call_soon_threadsafe(sending.cancel)

        await connection.set_trace_callback(cancel_at_last)
        with pytest.raises(asyncio.CancelledError):
            await sending
        await connection.commit()
        (message,) = await sink.wait_for_messages(1, timeout=PATIENCE)

        assert message.recipients == (recipient(1),)
