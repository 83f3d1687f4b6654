"""A caller's transaction beside all others who write: other mail, the engine, other processes; and what ends early."""

import asyncio
import gc
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import aiosqlite
import pytest

from mailstrom_async import Mailstrom, MessageNotFound, SQLiteStorage, StorageError
from mailstrom_async.storage._sqlite import file
from mailstrom_async.testing import Gate, ManualClock, SMTPServer

from .conftest import PATIENCE, Connect, config, email, message_id, recipient

# Writes a mail into a transaction, says so, and does the rest when it is told to.
CHILD = """
import asyncio, sqlite3, sys
from mailstrom_async import Config, Email, Mailstrom, SQLiteStorage

async def main():
    path = sys.argv[1]
    async with Mailstrom(Config(helo_name="app.example.org"), SQLiteStorage(path), deliver=False) as mailer:
        connection = sqlite3.connect(path)
        await mailer.send_email(
            Email(from_="app@example.org", to="user1@example.net", text="Hello", message_id="1@app.example.org"),
            connection=connection,
        )
        print("written", flush=True)
        sys.stdin.readline()
        connection.commit()
        print("committed", flush=True)
        sys.stdin.readline()

asyncio.run(main())
"""

Start = Callable[[Path], subprocess.Popen[str]]


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Start:
    """Starts a process that has written a mail into its transaction when this returns."""

    def start(path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(request.config.rootpath)},
        )
        request.addfinalizer(process.communicate)
        request.addfinalizer(process.kill)
        assert said(process) == "written"
        return process

    return start


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


async def test_the_owner_delivers_at_once_what_a_follower_commits(path: Path, sink: SMTPServer, connect: Connect):
    """Its clock stands still: the follower's look tells its engine."""
    clock = ManualClock()
    async with (
        Mailstrom(config(sink), SQLiteStorage(path), clock=clock) as owner,
        Mailstrom(config(sink), SQLiteStorage(path), clock=ManualClock()) as follower,
        connect(path) as caller,
    ):
        await clock.until_waiting()
        await caller.begin()
        await follower.send_email(email(1), connection=caller.connection)
        await caller.commit()
        (message,) = await sink.wait_for_messages(1, timeout=PATIENCE)

        assert message.recipients == (recipient(1),)
        assert (await owner.query_status(message_id(1))).recipients[0].address == recipient(1)


async def test_other_mail_is_refused_while_a_transaction_is_open_too_long(
    path: Path, sink: SMTPServer, monkeypatch: pytest.MonkeyPatch
):
    """Who awaits another `send_email` within its own transaction would wait for itself: it is told what to end."""
    monkeypatch.setattr(file, "BUSY_SECONDS", 0.1)
    async with (
        Mailstrom(config(sink), SQLiteStorage(path), deliver=False) as owner,
        Mailstrom(config(sink), SQLiteStorage(path), deliver=False) as follower,
        aiosqlite.connect(path) as connection,
    ):
        await owner.send_email(email(1), connection=connection)
        for mailer in (owner, follower):
            with pytest.raises(StorageError, match="an unfinished transaction that was given to send_email; end it"):
                await mailer.send_email(email(2))
        await connection.commit()
        for number, mailer in enumerate((owner, follower), 2):
            await mailer.send_email(email(number))

        assert len(await owner.query_recent()) == 3


async def test_other_mail_waits_for_a_transaction_that_ends_in_time(path: Path, sink: SMTPServer):
    """It is accepted then, and nobody hears of it."""
    async with (
        Mailstrom(config(sink), SQLiteStorage(path), deliver=False) as mailer,
        aiosqlite.connect(path) as connection,
    ):
        await mailer.send_email(email(1), connection=connection)
        other = asyncio.create_task(mailer.send_email(email(2)))
        with pytest.raises(MessageNotFound):  # another lane, so it is answered meanwhile
            await mailer.query_status(message_id(1))
        assert not other.done()
        await connection.commit()

        assert await other == message_id(2)
        assert len(await mailer.query_recent()) == 2


async def test_delivery_is_degraded_while_a_transaction_is_open_too_long_and_goes_on_after_it(
    path: Path, sink: SMTPServer, monkeypatch: pytest.MonkeyPatch
):
    """A result that can't be recorded is kept, and recorded once."""
    monkeypatch.setattr(file, "BUSY_SECONDS", 0.1)
    sink.script["RCPT"] = gate = Gate()
    async with (
        Mailstrom(config(sink), SQLiteStorage(path)) as mailer,
        aiosqlite.connect(path) as connection,
        mailer.events() as events,
        asyncio.timeout(PATIENCE.total_seconds()),
    ):
        await mailer.send_email(email(1))
        await gate.reached()
        await mailer.send_email(email(2), connection=connection)
        gate.open()
        while mailer.worker_status.state != "degraded":
            await anext(events)
        assert "locked" in (mailer.worker_status.reason or "")
        await connection.commit()
        statuses = [await mailer.wait(message_id(number)) for number in (1, 2)]
        while mailer.worker_status.state != "running":
            await anext(events)

    assert [status.succeeded for status in statuses] == [True, True]
    assert sorted(message.recipients for message in sink.messages) == [(recipient(1),), (recipient(2),)]


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # from Python 3.13 on; it is what we do here
async def test_the_mail_of_a_connection_that_is_dropped_never_was(path: Path, sink: SMTPServer):
    """Nobody holds the connection, and with it the lock, once its caller has forgotten it."""
    async with Mailstrom(config(sink), SQLiteStorage(path), deliver=False) as mailer:

        async def forget() -> None:
            await mailer.send_email(email(1), connection=sqlite3.connect(path))

        await forget()
        gc.collect()  # a connection of sqlite3's refers to itself
        await mailer.send_email(email(2))

        with pytest.raises(MessageNotFound):
            await mailer.query_status(message_id(1))


@pytest.mark.rule("C1", "kill -9 before the commit of a caller's transaction: its mail never was")
async def test_the_mail_of_a_process_that_is_killed_before_its_commit_never_was(
    path: Path, sink: SMTPServer, child: Start
):
    """Row C1: and its lock is gone with it."""
    async with Mailstrom(config(sink), SQLiteStorage(path), deliver=False) as mailer:
        process = await asyncio.to_thread(child, path)
        process.kill()
        process.wait()
        await mailer.send_email(email(2))

        with pytest.raises(MessageNotFound):
            await mailer.query_status(message_id(1))


@pytest.mark.rule("C1", "kill -9 after the commit of a caller's transaction: its mail is delivered")
async def test_the_mail_of_a_process_that_is_killed_after_its_commit_is_delivered(
    path: Path, sink: SMTPServer, child: Start
):
    """Row C1: if it could not tell the owner any more, the owner finds it when it looks by itself."""
    clock = ManualClock()
    async with Mailstrom(config(sink), SQLiteStorage(path), clock=clock) as mailer:
        process = await asyncio.to_thread(child, path)
        tell(process)
        assert await asyncio.to_thread(said, process) == "committed"
        process.kill()
        process.wait()
        await clock.until_waiting()
        clock.advance(timedelta(seconds=10))
        status = await mailer.wait(message_id(1), timeout=PATIENCE)

        assert status.succeeded


async def test_a_commit_while_the_file_changes_hands_is_delivered(path: Path, sink: SMTPServer):
    """Whoever owns the file next delivers what was written while somebody else did."""
    first, second = (Mailstrom(config(sink), SQLiteStorage(path)) for _ in range(2))
    async with first, second, aiosqlite.connect(path) as connection:
        await second.send_email(email(1), connection=connection)
        await first.aclose()
        await connection.commit()
        status = await second.wait(message_id(1), timeout=PATIENCE)

        assert status.succeeded


async def test_many_transactions_beside_much_mail_are_all_delivered_once(path: Path, sink: SMTPServer):
    """Every second one is rolled back; their callers wait for each other and for the mailer as SQLite has it."""
    async with Mailstrom(config(sink), SQLiteStorage(path)) as mailer:

        async def transactions(first: int) -> None:
            async with aiosqlite.connect(path, timeout=60) as connection:
                for number in range(first, first + 10):
                    await mailer.send_email(email(number), connection=connection)
                    await (connection.commit() if number % 2 else connection.rollback())

        async def mails(first: int) -> None:
            for number in range(first, first + 50):
                await mailer.send_email(email(number))

        async with asyncio.timeout(120):
            await asyncio.gather(*(transactions(first) for first in (100, 200, 300)), mails(1000), mails(2000))
            wanted = {recipient(first + number) for first in (100, 200, 300) for number in range(1, 10, 2)}
            wanted |= {recipient(first + number) for first in (1000, 2000) for number in range(50)}
            messages = await sink.wait_for_messages(len(wanted), timeout=PATIENCE)

        assert sorted(address for message in messages for address in message.recipients) == sorted(wanted)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
