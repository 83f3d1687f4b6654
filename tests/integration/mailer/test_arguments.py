"""Arguments that can't be meant: each is told by name, with what to write instead, and nothing is stored."""

import asyncio
from datetime import datetime, timedelta

import pytest

from mailstrom_async import (
    AlreadyQueued,
    Config,
    Event,
    InvalidEmail,
    Mailstrom,
    MemoryStorage,
    RecipientDelivered,
    RecipientFailed,
    RetryPolicy,
    SQLiteStorage,
)

NAIVE = datetime(2026, 11, 28, 12)  # noqa: DTZ001

CALLS = {
    "sender": (lambda m, e: m.send_email(e, sender=5), TypeError, "sender must be an address, and is a int"),
    "recipients": (lambda m, e: m.send_email(e, recipients=["a@example.net", 5]), TypeError, "each of recipients must"),
    "not_before": (
        lambda m, e: m.send_email(e, not_before="tomorrow"),
        TypeError,
        "not_before must be an aware datetime",
    ),
    "naive not_before": (lambda m, e: m.send_email(e, not_before=NAIVE), InvalidEmail, "not_before: has no time zone"),
    "expires_after": (lambda m, e: m.send_email(e, expires_after=600), TypeError, "expires_after must be a timedelta"),
    "lane": (lambda m, e: m.send_email(e, lane="fast"), InvalidEmail, "lane: is none of"),
    "one email": (
        lambda m, e: m.send_emails(e),
        TypeError,
        "emails must be a list, and is a single one; use send_email",
    ),
    "bytes": (lambda m, e: m.send_emails(b"From: a"), TypeError, "use send_email"),
    "no email": (lambda m, e: m.send_email("Hello"), TypeError, "email must be an Email"),
    "status of": (lambda m, e: m.query_status(5), TypeError, "message_id must be a str, and is a int"),
    "attempts of": (lambda m, e: m.query_attempts(None), TypeError, "message_id must be a str"),
    "prepared": (lambda m, e: m.query_prepared(5), TypeError, "message_id must be a str"),
    "cancel": (lambda m, e: m.cancel(5), TypeError, "message_id must be a str"),
    "retry": (lambda m, e: m.retry_now(5), TypeError, "message_id must be a str"),
    "since": (lambda m, e: m.query_recent(since="today"), TypeError, "since must be an aware datetime"),
    "naive since": (lambda m, e: m.query_recent(since=NAIVE), ValueError, "since has no time zone"),
    "limit": (lambda m, e: m.query_recent(limit=None), TypeError, "limit must be a number"),
    "purge": (lambda m, e: m.purge(5), TypeError, "completed_before must be an aware datetime"),
    "naive purge": (lambda m, e: m.purge(NAIVE), ValueError, "completed_before has no time zone"),
    "wait until": (lambda m, e: m.wait("1@example.org", until="opened"), ValueError, 'until must be "completed" or'),
    "wait for": (lambda m, e: m.wait("1@example.org", timeout=5), TypeError, "timeout must be a timedelta"),
    "grace": (lambda m, e: m.aclose(grace=5), TypeError, "grace must be a timedelta"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("role", ["alone", "second process"])
async def test_what_cannot_be_meant_is_told(build, email, tmp_path, call, role):
    """Whoever owns the queue."""
    make, kind, words = CALLS[call]
    path = tmp_path / "mail.db"
    async with build(SQLiteStorage(path), deliver=False) as owner, build(SQLiteStorage(path), deliver=False) as second:
        mailer = owner if role == "alone" else second
        with pytest.raises(kind, match=words):
            await make(mailer, email())
        assert await owner.query_recent() == []


@pytest.mark.parametrize("kind", [int, Event(), [RecipientFailed, RecipientDelivered], "RecipientFailed"], ids=repr)
async def test_a_type_that_is_no_event_is_told_at_once(build, kind):
    """And does no harm later: events are published, and the mailer is closed and opened again."""
    mailer = build()
    async with mailer:
        with pytest.raises(TypeError, match="each argument of events must be a type of events such as RecipientFailed"):
            mailer.events(kind)
    async with mailer:
        assert mailer.worker_status.state == "running"


@pytest.mark.parametrize(("config", "storage"), [({}, MemoryStorage()), (Config(helo_name="a.example.org"), "mail.db")])
def test_what_is_no_config_or_no_storage_is_told_when_the_mailer_is_made(config, storage):
    """And not when the application starts."""
    with pytest.raises(TypeError, match=r"must be a (Config|Storage such as)"):
        Mailstrom(config, storage)


async def test_a_message_id_twice_in_one_call_is_no_success(build, email):
    """AlreadyQueued may be taken for one, and here nothing is stored."""
    async with build(deliver=False) as mailer:
        with pytest.raises(InvalidEmail, match=r"message_id: two of these emails have '1@example.org'"):
            await mailer.send_emails([email(message_id="1@example.org"), email(), email(message_id="1@example.org")])
        assert await mailer.query_recent() == []
        await mailer.send_email(email(message_id="1@example.org"))
        with pytest.raises(AlreadyQueued) as caught:
            await mailer.send_emails([email(message_id="2@example.org"), email(message_id="1@example.org")])

        assert caught.value.message_id == "1@example.org"
        assert len(await mailer.query_recent()) == 1


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_who_waits_looks_at_least_once(build, email, clock, tmp_path, kind):
    """However short the time is; and is told what did not happen."""
    async with build(MemoryStorage() if kind == "memory" else SQLiteStorage(tmp_path / "mail.db")) as mailer:
        message_id = await mailer.send_email(email())
        await mailer.wait(message_id)
        assert (await mailer.wait(message_id, timeout=timedelta(0))).succeeded
        later = await mailer.send_email(email(), not_before=clock.now() + timedelta(days=1))
        with pytest.raises(TimeoutError, match=f"'{later}' is not completed after 0:00:00.010000; it is still being"):
            await mailer.wait(later, timeout=timedelta(milliseconds=10))


async def test_a_policy_may_never_give_up(build, email):
    """However long its lifetime is, mail can be sent."""
    async with build(retry=RetryPolicy(lifetime=timedelta.max)) as mailer:
        assert (await mailer.wait(await mailer.send_email(email()))).succeeded


async def test_who_waits_is_not_kept_by_a_store_that_does_not_answer(build, email):
    """The time counts from the call on; and a TimeoutError of somebody else's keeps its words."""

    class Slow(MemoryStorage):
        error: Exception | None = None

        async def status(self, message_id):
            if self.error is not None:
                raise self.error
            await asyncio.Event().wait()

    async with build(slow := Slow(), deliver=False) as mailer:
        message_id = await mailer.send_email(email())
        with pytest.raises(TimeoutError, match="is not completed after"):
            await mailer.wait(message_id, timeout=timedelta(milliseconds=10))
        slow.error = TimeoutError("pool exhausted")
        with pytest.raises(TimeoutError, match="pool exhausted"):
            await mailer.wait(message_id)
