"""What is asked of the mailer: statuses, attempts, prepared messages, waiting, events."""

import asyncio
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from mailstrom_async import (
    Deferred,
    Delivered,
    Failed,
    MessageCompleted,
    MessageNotFound,
    MessageQueued,
    RecipientDeferred,
    RecipientDelivered,
    RecipientFailed,
    RetryPolicy,
    WorkerStatusChanged,
)
from mailstrom_async.testing import Gate

HOUR = timedelta(hours=1)


async def test_each_recipient_has_its_own_result(build, email, internet, clock):
    """One message, three recipients, three endings; completed only when the last is final."""
    internet.exchangers["mx.example.net"].script["RCPT TO:<grace@example.net>"] = "550 5.1.1 no such person"
    internet.exchangers["mx.example.com"].script["RCPT"] = ["451 4.7.1 later", None]
    async with build() as mailer:
        message_id = await mailer.send_email(
            email("Ada <ada@example.net>, grace@example.net", cc="Edsger <edsger@Example.COM>")
        )
        status = await mailer.wait(message_id, until="attempted")
        ada, grace, edsger = status.recipients

        assert (ada.recipient, ada.address) == ("Ada <ada@example.net>", "ada@example.net")
        assert edsger.address == "edsger@example.com"
        assert isinstance(ada.result, Delivered)
        assert (ada.result.host, ada.result.tls, ada.result.reply.code) == ("mx.example.net", None, 250)
        assert isinstance(grace.result, Failed)
        assert (grace.result.cause, grace.result.enhanced) == ("smtp", "5.1.1")
        assert (grace.result.reply.code, grace.result.reply.command) == (550, "RCPT")
        assert isinstance(edsger.result, Deferred)
        assert edsger.result.next_attempt_at == clock.now() + timedelta(minutes=3)
        assert (status.completed, status.succeeded) == (False, False)

        clock.advance(HOUR)
        status = await mailer.wait(message_id)
        assert [recipient.result.state for recipient in status.recipients] == ["delivered", "failed", "delivered"]
        assert [recipient.attempts for recipient in status.recipients] == [1, 1, 2]
        assert (status.completed, status.succeeded) == (True, False)


async def test_attempts_are_told_oldest_first(build, email, server, clock):
    """Every try, with host, address, TLS, replies and duration; the conversation of those that failed."""
    server.script["RCPT"] = ["451 4.7.1 later", None]
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        await mailer.wait(message_id, until="attempted")
        clock.advance(HOUR)
        await mailer.wait(message_id)
        first, second = await mailer.query_attempts(message_id)

    assert first.started_at < second.started_at
    assert (first.destination, first.host, first.address) == ("example.net", "mx.example.net", server.host)
    assert first.recipients == ("ada@example.net",)
    assert first.tls.version is None
    assert first.outcome["ada@example.net"].state == "deferred"
    assert first.reply["ada@example.net"].code == 451
    assert any("RCPT TO:<ada@example.net>" in line for line in first.transcript)
    assert second.outcome["ada@example.net"].state == "delivered"
    assert second.transcript == ()


async def test_a_prepared_message_is_told_until_completion(build, email, server):
    """`query_prepared` gives the bytes of the wire while the body is kept; afterwards it says that it is gone."""
    async with build(deliver=False) as mailer:
        message_id = await mailer.send_email(email(bcc="secret@example.net"))
        prepared = await mailer.query_prepared(message_id)
        await mailer.start()
        await mailer.wait(message_id)
        with pytest.raises(MessageNotFound, match="it was dropped when the message was completed"):
            await mailer.query_prepared(message_id)

    assert prepared.message_id == message_id
    assert prepared.recipients == ("ada@example.net", "secret@example.net")
    assert prepared.content == server.messages[0].content
    assert b"secret" not in prepared.content


@pytest.mark.parametrize("message_id", ["", "1@example.org", "x" * 100_000, "\0", "'; DROP TABLE messages; --"])
async def test_an_unknown_message_is_a_lookup_error(build, message_id):
    """Any text may be asked for; the error is short, whatever it is."""
    async with build() as mailer:
        for asked in (
            mailer.query_status,
            mailer.query_attempts,
            mailer.query_prepared,
            mailer.wait,
            mailer.cancel,
            mailer.retry_now,
        ):
            with pytest.raises(LookupError) as caught:
                await asked(message_id)
            assert isinstance(caught.value, MessageNotFound)
            assert len(str(caught.value)) < 400


async def test_recent_are_the_incomplete_and_those_completed_since(build, email, server, clock):
    """`query_recent` takes nothing away: asked twice, it answers twice. The oldest come first, at most `limit`."""
    async with build() as mailer:
        begin = clock.now()
        done = await mailer.send_email(email())
        await mailer.wait(done)
        clock.advance(timedelta(seconds=1))
        server.script["RCPT"] = "451 4.7.1 later"
        waiting = []
        for _ in range(3):
            waiting.append(await mailer.send_email(email()))
            clock.advance(timedelta(seconds=1))

        for _ in range(2):
            assert [status.message_id for status in await mailer.query_recent()] == waiting
            assert [status.message_id for status in await mailer.query_recent(since=begin)] == [done, *waiting]
        assert [status.message_id for status in await mailer.query_recent(limit=2)] == waiting[:2]
        assert await mailer.query_recent(since=clock.now(), limit=1) != []


async def test_waiting_ends_with_a_timeout_and_the_mail_goes_on(build, email, server):
    """`TimeoutError` says only that it is not done yet."""
    server.script["end of data"] = gate = Gate()
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        with pytest.raises(TimeoutError):
            await mailer.wait(message_id, timeout=timedelta(milliseconds=20))
        with pytest.raises(TimeoutError):
            await mailer.wait(message_id, until="attempted", timeout=timedelta(milliseconds=20))
        gate.open()

        assert (await mailer.wait(message_id, timeout=timedelta(seconds=20))).succeeded


async def test_waiting_for_what_is_done_returns_at_once(build, email):
    """No event is needed for what was recorded before."""
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        await mailer.wait(message_id)

        assert (await mailer.wait(message_id, timeout=timedelta(0))).completed


async def test_many_may_wait_for_one_message(build, email, server):
    """All are told; one that is cancelled disturbs nobody, and nobody is remembered afterwards."""
    server.script["end of data"] = gate = Gate()
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        waiting = [asyncio.create_task(mailer.wait(message_id)) for _ in range(5)]
        await gate.reached()
        waiting[0].cancel()
        gate.open()
        ended = await asyncio.gather(*waiting, return_exceptions=True)

        assert isinstance(ended[0], asyncio.CancelledError)
        assert all(status.succeeded for status in ended[1:])
        assert mailer._broadcast._watchers == {}


async def test_waiting_for_the_attempt_is_over_before_the_end(build, email, server):
    """`until="attempted"` returns with the first deferral, "completed" does not."""
    server.script["RCPT"] = "451 4.7.1 later"
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        attempted = await mailer.wait(message_id, until="attempted")
        with pytest.raises(TimeoutError):
            await mailer.wait(message_id, timeout=timedelta(milliseconds=20))

    assert attempted.recipients[0].result.state == "deferred"


async def test_events_tell_a_life_in_order(build, email, server, clock):
    """Queued, deferred, delivered, completed: each when it is recorded, with the result that the status then has."""
    server.script["RCPT"] = ["451 4.7.1 later", None]
    async with build() as mailer, mailer.events() as events:
        queued_at = clock.now()
        message_id = await mailer.send_email(email())
        await mailer.wait(message_id, until="attempted")
        deferred = (await mailer.query_status(message_id)).recipients[0].result
        clock.advance(HOUR)
        delivered = (await mailer.wait(message_id)).recipients[0].result
        seen = [await anext(events) for _ in range(4)]

    assert seen == [
        MessageQueued(message_id=message_id, queued_at=queued_at),
        RecipientDeferred(message_id=message_id, address="ada@example.net", result=deferred),
        RecipientDelivered(message_id=message_id, address="ada@example.net", result=delivered),
        MessageCompleted(message_id=message_id),
    ]


async def test_events_are_chosen_by_type(build, email, server):
    """Whoever asks for one kind gets that kind only; several readers do not take from each other."""
    server.script["RCPT TO:<nobody@example.net>"] = "550 5.1.1 no such person"
    async with (
        build() as mailer,
        mailer.events(RecipientFailed) as failures,
        mailer.events(MessageCompleted, WorkerStatusChanged) as others,
    ):
        good = await mailer.send_email(email())
        await mailer.wait(good)
        bad = await mailer.send_email(email("nobody@example.net"))
        await mailer.wait(bad)
        await mailer.pause()

        failure = await anext(failures)
        assert (failure.message_id, failure.result.enhanced) == (bad, "5.1.1")
        assert [await anext(others) for _ in range(2)] == [
            MessageCompleted(message_id=good),
            MessageCompleted(message_id=bad),
        ]
        assert (await anext(others)).status.state == "paused"


async def test_a_reader_that_goes_away_is_forgotten(build, email):
    """Leaving the block, by whatever way, ends the subscription."""
    async with build() as mailer:
        with pytest.raises(ZeroDivisionError):
            async with mailer.events():
                raise ZeroDivisionError
        reading = asyncio.create_task(_read_all(mailer))
        await anyio.wait_all_tasks_blocked()
        reading.cancel()
        await asyncio.wait([reading])

        assert mailer._broadcast._subscriptions == set()


async def _read_all(mailer) -> None:
    async with mailer.events() as events:
        async for _ in events:
            pass


async def test_retry_now_does_not_wait_for_the_due_time(build, email, server):
    """What was deferred for minutes is attempted at once, though the clock stands still."""
    server.script["RCPT"] = ["451 4.7.1 later", None]
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        await mailer.wait(message_id, until="attempted")
        await mailer.retry_now(message_id)
        status = await mailer.wait(message_id)

        assert status.succeeded
        assert status.recipients[0].attempts == 2
        await mailer.retry_now(message_id)  # of what is done: nothing happens
        assert (await mailer.query_status(message_id)) == status
    assert server.received == 1


async def test_a_cancelled_message_is_not_sent(build, email, server):
    """Recipients that wait become Failed with the cause "cancelled"; events tell it; a second time changes nothing."""
    async with build(deliver=False) as mailer, mailer.events(RecipientFailed, MessageCompleted) as events:
        message_id = await mailer.send_email(email("ada@example.net, grace@example.com"))
        status = await mailer.cancel(message_id)
        again = await mailer.cancel(message_id)
        await mailer.start()
        late = await mailer.send_email(email())
        await mailer.wait(late)
        seen = [await anext(events) for _ in range(4)]

    assert again == status
    assert status.completed
    assert not status.succeeded
    for recipient in status.recipients:
        assert (recipient.result.state, recipient.result.cause) == ("failed", "cancelled")
        assert recipient.result.enhanced.startswith("5.")
    assert {event.address for event in seen[:2]} == {"ada@example.net", "grace@example.com"}
    assert seen[2:] == [MessageCompleted(message_id=message_id), MessageCompleted(message_id=late)]
    assert [message.email["Message-ID"] for message in server.messages] == [f"<{late}>"]


async def test_what_is_delivered_stays_delivered_when_the_rest_is_cancelled(build, email, internet):
    """Cancel touches only recipients that are not final."""
    internet.exchangers["mx.example.com"].script["RCPT"] = "451 4.7.1 later"
    async with build() as mailer:
        message_id = await mailer.send_email(email("ada@example.net, grace@example.com"))
        await mailer.wait(message_id, until="attempted")
        status = await mailer.cancel(message_id)

    assert [recipient.result.state for recipient in status.recipients] == ["delivered", "failed"]
    assert status.recipients[1].result.cause == "cancelled"


@pytest.mark.parametrize(("reply", "ending"), [(None, "delivered"), ("451 4.3.0 later", "failed")])
async def test_a_cancel_during_an_attempt_waits_for_its_result(build, email, server, reply, ending):
    """Too late is too late: what the server took is delivered. What it deferred is cancelled, and not tried again."""
    server.script["end of data"] = gate = Gate(reply)
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        await gate.reached()
        during = await mailer.cancel(message_id)
        assert not during.completed
        gate.open()
        status = await mailer.wait(message_id)

    assert status.recipients[0].result.state == ending
    assert server.received == (1 if ending == "delivered" else 0)


async def test_purge_forgets_what_was_completed_before(build, email, server, clock):
    """Completed messages of that time are gone with their attempts; incomplete ones never are."""
    async with build() as mailer:
        old = await mailer.send_email(email())
        await mailer.wait(old)
        server.script["RCPT"] = "451 4.7.1 later"
        waiting = await mailer.send_email(email())
        await mailer.wait(waiting, until="attempted")
        server.script["RCPT"] = None
        clock.advance(timedelta(seconds=90))
        young = await mailer.send_email(email())
        await mailer.wait(young)

        assert await mailer.purge(completed_before=clock.now() - timedelta(seconds=30)) == 1
        assert await mailer.purge(clock.now() - timedelta(seconds=30)) == 0
        with pytest.raises(MessageNotFound):
            await mailer.query_status(old)
        assert {status.message_id for status in await mailer.query_recent(since=datetime(2000, 1, 1, tzinfo=UTC))} == {
            waiting,
            young,
        }


async def test_retention_forgets_by_itself(build, email, clock):
    """With `Config.retention` the status of a completed message goes when it is over, and not before."""
    async with build(retention=timedelta(hours=2)) as mailer:
        message_id = await mailer.send_email(email())
        await mailer.wait(message_id)
        clock.advance(timedelta(hours=1.5))
        await anyio.wait_all_tasks_blocked()
        assert (await mailer.query_status(message_id)).completed

        clock.advance(timedelta(hours=2))
        async with asyncio.timeout(20):
            while True:
                await anyio.wait_all_tasks_blocked()
                try:
                    await mailer.query_status(message_id)
                except MessageNotFound:
                    break


async def test_an_address_that_is_purged_may_use_its_message_id_again(build, email, clock):
    """A Message-ID is an idempotency key for as long as its message is known."""
    async with build() as mailer:
        await mailer.wait(await mailer.send_email(email(message_id="1@example.org")))
        clock.advance(HOUR)
        await mailer.purge(clock.now())

        assert await mailer.send_email(email(message_id="1@example.org")) == "1@example.org"


async def test_a_status_reads_the_same_with_any_retry_policy(build, email, server, clock):
    """The due time of a retry follows the policy: base * factor ** n, here without jitter."""
    server.script["RCPT"] = "451 4.7.1 later"
    retry = RetryPolicy(base_delay=timedelta(seconds=10), factor=2, max_delay=timedelta(minutes=1), jitter=0)
    waits = []
    async with build(retry=retry) as mailer:
        message_id = await mailer.send_email(email())
        await mailer.wait(message_id, until="attempted")
        for attempt in range(1, 6):
            async with asyncio.timeout(20):
                while (recipient := (await mailer.query_status(message_id)).recipients[0]).attempts < attempt:
                    await anyio.wait_all_tasks_blocked()
            waits.append((recipient.result.next_attempt_at - clock.now()).total_seconds())
            clock.set(recipient.result.next_attempt_at)

    assert waits == [20, 40, 60, 60, 60]
