"""The types of the public API, as mypy and pyright see them. Never run."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import assert_never, assert_type

from mailstrom_async import (
    Attachment,
    Attempt,
    Config,
    Deferred,
    Delivered,
    DirectDelivery,
    Email,
    Event,
    EventsLost,
    Failed,
    Lane,
    Limits,
    LimitsFor,
    Mailstrom,
    MemoryStorage,
    MessageCompleted,
    MessageStatus,
    Outcome,
    PreparedEmail,
    Queued,
    Rate,
    RecipientFailed,
    RecipientStatus,
    RelayDelivery,
    Reply,
    RetryPolicy,
    SiteStatus,
    SQLiteStorage,
    Storage,
    Timeouts,
    WorkerStatus,
)


def settings() -> None:
    async def token() -> str:
        return "fresh"

    config = Config(
        helo_name="mail.example.org",
        delivery=DirectDelivery(port=25, nameservers=("quad9",), allowed_networks=("10.0.0.0/8",)),
        tls="verify",
        retry=RetryPolicy(base_delay=timedelta(minutes=1), factor=3, jitter=0.1, lifetime=timedelta(days=1)),
        timeouts=Timeouts(connect=timedelta(seconds=10)),
        limits=Limits(
            connections=10,
            queue_size=None,
            rate=Rate(messages=100, per=timedelta(minutes=1)),
            overrides=[
                LimitsFor(mx="*.google.com", connections_per_host=20),
                LimitsFor(domain="b.example", connections_per_host=1),
            ],
        ),
        retention=timedelta(days=7),
    )
    assert_type(config.delivery, DirectDelivery | RelayDelivery)
    assert_type(config.retry.base_delay, timedelta)
    assert_type(config.limits.queue_size, int | None)
    RelayDelivery(host="smtp.example.com", username="app", oauth_token=token, fallbacks=("smtp2.example.com",))


def storages() -> None:
    sqlite: Storage = SQLiteStorage("mail.db")
    memory: Storage = MemoryStorage()
    for storage in (sqlite, memory):
        Mailstrom(Config(helo_name="mail.example.org"), storage, deliver=False)


async def sending(mailer: Mailstrom) -> None:
    email = Email(
        from_="App <app@example.org>",
        to=["Ada <ada@example.net>", "team: grace@example.com;"],
        attachments=(Attachment(filename="a.pdf", content=b"%PDF", content_type="application/pdf"),),
        date=datetime.now(UTC),
    )
    assert_type(await mailer.send_email(email), str)
    assert_type(await mailer.send_email(b"From: a@example.org\r\n\r\n", sender="", recipients=["b@example.net"]), str)
    assert_type(
        await mailer.send_email(
            EmailMessage(), not_before=datetime.now(UTC), expires_after=timedelta(minutes=10), sender=None
        ),
        str,
    )
    assert_type(await mailer.send_emails([email, email]), list[str])
    lane: Lane = "bulk"
    assert_type(await mailer.send_emails([email], lane=lane), list[str])
    assert_type(await mailer.send_email(email, lane="auth"), str)


async def asking(mailer: Mailstrom) -> None:
    assert_type(await mailer.query_status("1@example.org"), MessageStatus)
    assert_type((await mailer.query_status("1@example.org")).lane, Lane)
    assert_type(await mailer.query_recent(since=datetime.now(UTC), limit=10), list[MessageStatus])
    assert_type(await mailer.query_attempts("1@example.org"), list[Attempt])
    assert_type(await mailer.query_prepared("1@example.org"), PreparedEmail)
    assert_type(await mailer.wait("1@example.org", until="attempted", timeout=timedelta(seconds=1)), MessageStatus)
    assert_type(await mailer.cancel("1@example.org"), MessageStatus)
    await mailer.retry_now("1@example.org")
    assert_type(await mailer.purge(completed_before=datetime.now(UTC)), int)
    assert_type(mailer.worker_status, WorkerStatus)
    assert_type(mailer.sites(), tuple[SiteStatus, ...])


def reading(status: MessageStatus) -> str:
    assert_type(status.recipients, tuple[RecipientStatus, ...])
    assert_type(status.completed, bool)
    assert_type(status.succeeded, bool)
    result = status.recipients[0].result
    assert_type(result, Queued | Deferred | Delivered | Failed)
    match result:
        case Queued():
            return "not yet attempted"
        case Deferred(reason=reason, next_attempt_at=next_attempt_at):
            assert_type(next_attempt_at, datetime)
            return reason
        case Delivered(reply=reply, tls=tls):
            assert_type(reply, Reply)
            assert_type(tls, str | None)
            return reply.text
        case Failed(enhanced=enhanced, reply=reply):
            assert_type(reply, Reply | None)
            return enhanced
        case _:
            assert_never(result)


def looking_back(attempt: Attempt) -> None:
    assert_type(attempt.duration, timedelta)
    assert_type(attempt.outcome, dict[str, Outcome])
    assert_type(attempt.reply, dict[str, Reply | None])


async def listening(mailer: Mailstrom) -> None:
    async with mailer.events() as everything:
        assert_type(everything, AsyncIterator[Event])
    async with mailer.events(RecipientFailed) as failures:
        assert_type(failures, AsyncIterator[RecipientFailed | EventsLost])
        async for failure in failures:
            if isinstance(failure, EventsLost):
                assert_type(failure.count, int)
            else:
                assert_type(failure.result, Failed)
    async with mailer.events(RecipientFailed, MessageCompleted) as some:
        assert_type(some, AsyncIterator[RecipientFailed | MessageCompleted | EventsLost])
        async for event in some:
            if isinstance(event, MessageCompleted):
                assert_type(event.message_id, str)


async def living(mailer: Mailstrom) -> None:
    async with mailer as entered:
        assert_type(entered, Mailstrom)
        await mailer.pause()
        await mailer.start()
    await mailer.aclose(grace=timedelta(seconds=1))
    assert_type(mailer.lifespan(object()), AbstractAsyncContextManager[None])
    assert_type(mailer.cleanup_ctx(object()), AsyncIterator[None])
    asyncio.run(mailer.aclose())
