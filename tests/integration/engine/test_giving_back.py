"""What finds no room at its site goes back to the queue, and what comes between harms nobody."""

import asyncio
from datetime import timedelta
from itertools import count

import anyio

from mailstrom_async import (
    Config,
    Limits,
    Mailstrom,
    MemoryStorage,
    MessageCompleted,
    Rate,
    RecipientFailed,
    RetryPolicy,
    StorageError,
)
from mailstrom_async._engine import carrier
from mailstrom_async._engine.settlement import Settlement
from mailstrom_async._engine.sites import Sites
from mailstrom_async.testing import Close, FakeInternet

from .conftest import MINUTE, SECOND, completed, email

PATIENCE = timedelta(seconds=20)


class Troubled(MemoryStorage):
    """The first message that is given back was cancelled a moment before, and then no status can be read, once."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = 0

    async def release(self, deliveries, due_at):
        if self.fails == 0:
            await self.cancel(deliveries[0].message.message_id, due_at)
            self.fails = 1
        return await super().release(deliveries, due_at)

    async def status(self, message_id):
        if self.fails == 1:
            self.fails = 2
            raise StorageError("out of order for a moment")
        return await super().status(message_id)


async def test_what_was_given_back_is_not_kept_as_well(build, server, clock):
    """I6, I15: though nobody could be told that one of them was cancelled; else all would be sent twice."""
    storage = Troubled()
    rate = Rate(messages=1, per=SECOND, burst=1)
    async with build(storage, limits=Limits(rate=rate)) as mailer:
        ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(12)])
        statuses = [await completed(mailer, message_id, clock, SECOND) for message_id in ids]

    assert storage.fails == 2
    states = [status.recipients[0].result.state for status in statuses]
    assert sorted(states) == ["delivered"] * 11 + ["failed"]
    assert len(server.messages) == 11


async def test_room_for_some_lets_some_go(clock, monkeypatch):
    """A slow provider with many domains: of all that are held, so many are claimed anew as may wait, and not all of
    them each time."""
    claimed = count()
    assign = Sites.assign

    def counted(self, deliveries):
        for _ in deliveries:
            next(claimed)
        assign(self, deliveries)

    monkeypatch.setattr(Sites, "assign", counted)
    async with FakeInternet(ttl=3600) as internet:
        await internet.exchanger("mx.example.org")
        for number in range(60):
            internet.domain(f"d{number}.example.org", mx=["mx.example.org"])
        rate = Rate(messages=1, per=SECOND, burst=1)
        config = Config(
            helo_name="app.example.org",
            delivery=internet.delivery,
            limits=Limits(rate=rate),
            shutdown_grace=timedelta(0),
        )
        async with Mailstrom(config, MemoryStorage(), clock=clock) as mailer:
            await mailer.send_emails([email(f"a@d{number}.example.org") for number in range(60)])
            async with asyncio.timeout(30):
                while left := len(await mailer.query_recent()):
                    # Only when those who were let go have come: a second is much longer than they take.
                    if sum(site.waiting for site in mailer.sites()) >= min(left, 2):
                        clock.advance(SECOND)
                    await asyncio.sleep(0)

    assert next(claimed) < 60 * 5


async def test_all_are_told_what_broke_and_not_what_was_said_of_somebody(build, server):
    """Row E2: a reply that names a recipient is that one's own."""
    server.script["RCPT TO:<full@example.net>"] = "450 4.2.2 <full@example.net> mailbox full"
    server.script["RCPT TO:<gone@example.net>"] = Close()
    async with build(retry=RetryPolicy(jitter=0), limits=Limits(connections_per_host=1)) as mailer:
        both = [email(["full@example.net", "gone@example.net"]) for _ in range(3)]
        await mailer.send_emails([*both, *(email(f"r{number}@example.net") for number in range(3))])
        for status in await mailer.query_recent():
            await mailer.wait(status.message_id, until="attempted", timeout=PATIENCE)
        (site,) = mailer.sites()
        reasons = [
            recipient.result.reason
            for status in await mailer.query_recent()
            for recipient in status.recipients
            if recipient.attempts == 0
        ]

    assert reasons
    assert "closed the connection" in site.reason
    assert not [reason for reason in reasons if "full@example.net" in reason]


async def test_stopped_between_two_results_of_one_message_none_is_lost(build, server, storage, clock, monkeypatch):
    """Row C21: of thousands of recipients some get their results at a time; they were delivered, all of them."""
    monkeypatch.setattr(carrier, "SETTLED_AT_ONCE", 1)
    settle = Settlement.settle

    def settle_and_stop(self, *arguments, **more):
        settle(self, *arguments, **more)
        if stopping[0] is not None:
            stopping.insert(0, None)
            mailer._engine.hurry(timedelta(0))
            mailer._engine._stop_asked.set()

    stopping = [True]
    monkeypatch.setattr(Settlement, "settle", settle_and_stop)
    async with build(storage) as mailer:
        message_id = await mailer.send_email(email([f"a@{name}.example.net" for name in ("one", "two", "three")]))
        await server.wait_for_messages(1, timeout=PATIENCE)
        await mailer.aclose(grace=timedelta(0))
    async with build(storage) as mailer:
        status = await completed(mailer, message_id, clock, MINUTE)

    assert status.succeeded
    assert len(server.messages) == 1


class Locked(MemoryStorage):
    """Gives nothing back for now."""

    is_locked = False

    async def release(self, deliveries, due_at):
        if self.is_locked:
            raise StorageError("database is locked")
        return await super().release(deliveries, due_at)


async def test_what_could_not_be_given_back_at_a_pause_is_given_back_after_it(build, server, clock, caplog):
    """I3: nobody else knows of these claims, and they would be kept for as long as the process lives."""
    storage = Locked()
    async with build(storage, limits=Limits(rate=Rate(messages=1, per=MINUTE, burst=1))) as mailer:
        ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(3)])
        await server.wait_for_messages(1, timeout=PATIENCE)
        storage.is_locked = True
        await mailer.pause()
        assert "could not be given back" in caplog.text
        await mailer.start()
        await clock.until_waiting()
        storage.is_locked = False
        statuses = [await completed(mailer, message_id, clock, 10 * SECOND) for message_id in ids]

    assert all(status.succeeded and status.recipients[0].attempts == 1 for status in statuses)
    assert server.received == 3


async def test_a_cancel_reaches_what_waits_for_its_turn(build, server, clock):
    """Only what is being attempted may still be delivered; who listens is told of the others at once."""
    async with (
        build(limits=Limits(rate=Rate(messages=1, per=MINUTE, burst=1))) as mailer,
        mailer.events(RecipientFailed, MessageCompleted) as events,
    ):
        first, *others = await mailer.send_emails([email(f"r{number}@example.net") for number in range(3)])
        await mailer.wait(first, timeout=PATIENCE)
        assert (await anext(events)).message_id == first
        await anyio.wait_all_tasks_blocked()
        assert mailer.sites()[0].waiting == 2
        for message_id in others:
            status = await mailer.cancel(message_id)
            assert status.recipients[0].result.cause == "cancelled"
            assert [type(await anext(events)) for _ in range(2)] == [RecipientFailed, MessageCompleted]
        assert sum(site.waiting for site in mailer.sites()) == 0
        last = await mailer.send_email(email())
        assert (await completed(mailer, last, clock, MINUTE)).succeeded

    assert server.received == 2


async def test_a_cancel_that_the_store_does_not_take_back_leaves_the_rest_to_its_turn(build, server, clock, caplog):
    """Its claim is neither lost nor attempted twice."""
    storage = Locked()
    async with build(storage, limits=Limits(rate=Rate(messages=1, per=MINUTE, burst=1))) as mailer:
        ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(2)])
        await mailer.wait(ids[0], timeout=PATIENCE)
        await anyio.wait_all_tasks_blocked()
        storage.is_locked = True
        assert (await mailer.cancel(ids[1])).recipients[0].result.state == "queued"
        storage.is_locked = False
        await completed(mailer, ids[1], clock, MINUTE)

    assert "wait for their turn" in caplog.text
    assert server.received <= 2


async def test_mail_that_is_overdue_and_was_never_attempted_outlives_a_first_connection_that_failed(
    build, server, storage, clock
):
    """Row C17: nobody delivered for ten days, and the host refuses one connection by chance."""
    async with build(storage, deliver=False) as mailer:
        ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(20)])
    clock.advance(timedelta(days=10))
    server.script["greeting"] = [Close(), None]
    async with build(storage, limits=Limits(connections_per_host=1)) as mailer:
        statuses = [await completed(mailer, message_id, clock, SECOND) for message_id in ids]

    assert sum(status.succeeded for status in statuses) == 19  # the one that was attempted has had its time
    assert server.received == 19


async def test_mail_that_is_overdue_for_a_host_that_stays_dead_fails_soon(build, server, storage, clock):
    """It has its chance for an hour, and does not wait for ever."""
    async with build(storage, deliver=False) as mailer:
        ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(5)])
    clock.advance(timedelta(days=10))
    began = clock.now()
    server.script["greeting"] = Close()
    async with build(storage) as mailer:
        statuses = [await completed(mailer, message_id, clock, MINUTE) for message_id in ids]

    assert not any(status.succeeded for status in statuses)
    assert clock.now() - began < timedelta(hours=3)
