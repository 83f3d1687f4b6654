"""Mailers over one file: whoever accepts, one delivers, and everybody hears of it."""

from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

import pytest

from mailstrom_async import Config, Email, Mailstrom, RelayDelivery, SQLiteStorage
from mailstrom_async.testing import Gate, SMTPServer

from .conftest import becomes, role

PATIENCE = timedelta(seconds=30)


@pytest.fixture
async def server() -> AsyncGenerator[SMTPServer]:
    """The relay that everything goes to."""
    async with SMTPServer() as server:
        yield server


def mailer(path: Path, server: SMTPServer, *, deliver: bool = True) -> tuple[Mailstrom, SQLiteStorage]:
    """One process' mailer, and its store."""
    delivery = RelayDelivery(host=server.host, port=server.port, security="none")
    storage = SQLiteStorage(path)
    return Mailstrom(Config(helo_name="app.example.org", delivery=delivery), storage, deliver=deliver), storage


def email() -> Email:
    return Email(from_="app@example.org", to="ada@example.net", subject="Hello", text="Hello Ada")


async def test_what_a_follower_accepts_the_owner_delivers(path, server):
    """The follower's `wait` returns when it is delivered, though no event of its own tells of that."""
    first, owner = mailer(path, server)
    second, follower = mailer(path, server)
    async with first, second:
        assert (role(owner), role(follower)) == ("owner", "follower")
        status = await second.wait(await second.send_email(email()), timeout=PATIENCE)

    assert status.succeeded
    assert server.received == 1


async def test_the_next_owner_delivers_what_was_left(path, server):
    """Its engine, which had nothing to do until then, is woken."""
    server.script["RCPT"] = gate = Gate()
    first, owner = mailer(path, server)
    second, follower = mailer(path, server)
    async with second:
        await becomes(follower, "owner")
        message_id = await second.send_email(email())
        await gate.reached()
        async with first:
            assert role(owner) == "follower"
            await second.aclose(timedelta(0))  # aborts the attempt, and leaves the mail in the queue
            server.script["RCPT"] = None
            gate.open()
            status = await first.wait(message_id, timeout=PATIENCE)

    assert status.succeeded
    assert server.received == 1


async def test_a_mailer_that_does_not_deliver_leaves_that_to_one_that_does(path, server):
    """Web processes that only queue were there first; the worker that delivers gets the file from them."""
    web, queueing = mailer(path, server, deliver=False)
    worker, delivering = mailer(path, server)
    async with web, worker:
        status = await web.wait(await web.send_email(email()), timeout=PATIENCE)
        await becomes(queueing, "follower")
        assert role(delivering) == "owner"

    assert status.succeeded
    assert server.received == 1


async def test_a_mailer_that_is_paused_leaves_delivery_to_another(path, server, monkeypatch):
    """After a while in which its engine was not seen."""
    monkeypatch.setattr("mailstrom_async.storage._sqlite.share.IDLE_SECONDS", 0.1)
    first, owner = mailer(path, server)
    second, _ = mailer(path, server)
    async with first, second:
        await first.pause()
        message_id = await first.send_email(email())
        status = await second.wait(message_id, timeout=PATIENCE)

        assert status.succeeded
        await becomes(owner, "follower")
