"""A mailer that is closed without grace at any moment of its deliveries."""

import asyncio
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import timedelta
from itertools import count

import pytest

from mailstrom_async import MemoryStorage, SQLiteStorage
from mailstrom_async._engine import recorder

from .conftest import email

NOBODY = "nobody@example.net"


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request):
    """Which event loop the test runs on."""
    return request.param


@pytest.mark.rule("C21", "never V at the server and D at us without the acknowledgement window; nothing left behind")
async def test_closing_at_any_moment_loses_and_doubles_nothing(build, server, clock, monkeypatch):
    """Row C21: the next mailer delivers the rest. Second copies exist only of what was said to be in doubt."""
    monkeypatch.setattr(recorder, "PACE", 0.0)  # in which nothing happens, for a thousand moments
    server.script[f"RCPT TO:<{NOBODY}>"] = "550 5.1.1 no such person"
    before = asyncio.all_tasks()
    for rounds in count():
        storage = MemoryStorage()
        async with build(storage, deliver=False) as mailer:
            ids = await mailer.send_emails([email(["ada@example.net", NOBODY]) for _ in range(3)])
        begun = len(server.messages)
        async with build(storage) as mailer:
            for _ in range(rounds):
                await asyncio.sleep(0)
            done = all([(await mailer.query_status(message_id)).completed for message_id in ids])
            await mailer.aclose(grace=timedelta(0))
        await _nothing_left(server, before)

        async with build(storage) as mailer:
            for message_id in ids:
                status = await _completed(mailer, message_id, clock)
                assert [recipient.result.state for recipient in status.recipients] == ["delivered", "failed"]
            attempts = {message_id: await mailer.query_attempts(message_id) for message_id in ids}
        copies = Counter(message.email["Message-ID"].strip("<>") for message in server.messages[begun:])
        for message_id in ids:
            causes = [outcome.cause for attempt in attempts[message_id] for outcome in attempt.outcome.values()]
            assert copies[message_id] <= 1 + causes.count("outcome_unknown")
            assert copies[message_id] >= 1
        if done:
            break

    assert rounds > 10


@pytest.mark.rule("C21", "never V at the server and D at us without the acknowledgement window; nothing left behind")
async def test_closing_at_any_moment_of_sending_leaves_no_claim(build, server, clock, tmp_path):
    """Row C21: what is claimed as it is accepted is delivered, or given back, whenever the mailer is closed: nothing
    waits for the end of a lease, and the next mailer delivers what was accepted."""
    for turns in range(0, 60, 3):
        path = tmp_path / f"{turns}.db"
        async with build(SQLiteStorage(path)) as mailer:
            calls = [asyncio.create_task(mailer.send_email(email(f"ada@{n}.example.net"))) for n in range(5)]
            for _ in range(turns):
                await asyncio.sleep(0)
            calls[0].cancel()
            await mailer.aclose(grace=timedelta(0))
        accepted = [call.result() for call in calls if not call.cancelled() and call.exception() is None]
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("SELECT count(*) FROM deliveries WHERE owner IS NOT NULL").fetchone() == (0,)

        async with build(SQLiteStorage(path)) as mailer:
            for message_id in accepted:
                status = await _completed(mailer, message_id, clock)
                assert [recipient.result.state for recipient in status.recipients] == ["delivered"]


async def _completed(mailer, message_id, clock):
    """The status of a message once it is completed. The clock goes on to what is due next and no further: a message
    must not expire while it is attempted."""
    async with asyncio.timeout(20):
        while not (status := await mailer.query_status(message_id)).completed:
            results = [recipient.result for recipient in status.recipients]
            due_at = min((result.next_attempt_at for result in results if result.state == "deferred"), default=None)
            if due_at is not None and due_at > clock.now():
                clock.advance(due_at - clock.now())
            await asyncio.sleep(0)
    return status


async def _nothing_left(server, tasks) -> None:
    """Return once all connections are closed and no more tasks are left than these (the server's take a moment)."""
    async with asyncio.timeout(10):
        while asyncio.all_tasks() != tasks or not all(r.closed for r in server.sessions):  # noqa: ASYNC110
            await asyncio.sleep(0)
