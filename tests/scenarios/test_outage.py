"""All destinations are down for an hour, and come back (rows E2, E4; I3, I13)."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import pytest

from mailstrom_async import Config, Email, Event, Limits, Mailstrom, MemoryStorage
from mailstrom_async.testing import Close, FakeInternet, ManualClock, Reply

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
DOMAINS = 12
DOWN = Reply("421 4.3.2 down", then=Close())


class World:
    """Domains with an exchanger each, a clock, and when who connected and what was taken."""

    def __init__(self, internet: FakeInternet) -> None:
        self.internet = internet
        self.clock = ManualClock()
        self.connected: dict[str, list[datetime]] = defaultdict(list)
        self.most_at_once = 0
        self.is_down = True

    def open_for_all(self) -> None:
        self.is_down = False
        self.connected.clear()
        self.most_at_once = 0

    async def build(self) -> None:
        for number in range(DOMAINS):
            name = f"d{number}.example.org"

            def greeting(context, name=name):
                self.connected[name].append(self.clock.now())
                servers = self.internet.exchangers.values()
                at_once = sum(not (session.closed or session.quit) for one in servers for session in one.sessions)
                self.most_at_once = max(self.most_at_once, at_once)
                return DOWN if self.is_down else None

            await self.internet.exchanger(f"mx.{name}", {"greeting": greeting})
            self.internet.domain(name, mx=[f"mx.{name}"])

    async def settle(self, mailer: Mailstrom, events: AsyncIterator[Event]) -> None:
        """Return when nothing is due any more."""
        async with asyncio.timeout(60):
            while any(
                status.recipients[0].result.state == "queued"
                or status.recipients[0].result.next_attempt_at <= self.clock.now()
                for status in await mailer.query_recent()
            ):
                await anext(events)

    async def go_to_next_due(self, mailer: Mailstrom, events: AsyncIterator[Event]) -> None:
        statuses = await mailer.query_recent()
        self.clock.set(min(status.recipients[0].result.next_attempt_at for status in statuses))
        await self.settle(mailer, events)


@asynccontextmanager
async def outage(**limits) -> AsyncIterator[tuple[World, Mailstrom, AsyncIterator[Event]]]:
    """An hour in which every destination is down, while ten mails for each of them come."""
    async with FakeInternet() as internet:
        world = World(internet)
        await world.build()
        config = Config(
            helo_name="app.example.org",
            delivery=internet.delivery,
            limits=Limits(**limits),
            shutdown_grace=timedelta(0),
        )
        async with Mailstrom(config, MemoryStorage(), clock=world.clock) as mailer, mailer.events() as events:
            for number in range(10):
                await mailer.send_emails([email(f"d{domain}.example.org", number) for domain in range(DOMAINS)])
                await world.settle(mailer, events)
                next_mail = world.clock.now() + 6 * MINUTE
                while world.clock.now() < next_mail:
                    world.clock.advance(40 * SECOND)
                    await world.settle(mailer, events)
            yield world, mailer, events


def email(domain: str, number: int) -> Email:
    return Email(from_="app@example.org", to=f"r@{domain}", subject=f"mail {number}", text="Hello")


@pytest.mark.rule("E4", "while all are down, each is probed now and then, not once for each mail and retry")
async def test_an_outage_costs_few_connections_and_few_attempts():
    """Rows E2, E4: ten mails for each domain in an hour, whose retries alone would be thirty connections to each."""
    async with outage() as (world, mailer, _):
        assert max(len(times) for times in world.connected.values()) <= 14
        statuses = await mailer.query_recent()
        assert sum(status.recipients[0].attempts for status in statuses) <= 12 * DOMAINS
        assert all(status.recipients[0].result.state == "deferred" for status in statuses)
        assert all("4.3.2 down" in status.recipients[0].result.reason for status in statuses)
        assert len(mailer.sites()) == DOMAINS


@pytest.mark.rule("E4", "after an outage the backlog drains in due order, and no mail is left behind")
async def test_the_backlog_of_an_outage_drains_in_due_order():
    """Row E4: when all of it is due at once, what was due first is taken first at each domain, by one attempt."""
    async with outage(connections_per_host=1) as (world, mailer, events):
        waiting = await mailer.query_recent()
        due = {status.message_id: status.recipients[0].result.next_attempt_at for status in waiting}
        attempts = {status.message_id: status.recipients[0].attempts for status in waiting}
        world.open_for_all()
        world.clock.set(max(due.values()))
        await world.settle(mailer, events)

        assert await mailer.query_recent() == []
        for server in world.internet.exchangers.values():
            taken = [due[message.email["Message-ID"].strip("<>")] for message in server.messages]
            assert taken == sorted(taken)
            assert len(taken) == 10
        for message_id, before in attempts.items():
            assert (await mailer.query_status(message_id)).recipients[0].attempts == before + 1


@pytest.mark.rule("E4", "after an outage no mail waits for long, old or new")
async def test_all_mail_is_through_soon_after_an_outage():
    """Row E4: what was held back, and what is new, as long as a dead site is left alone, and a quarter of its age. Only
    what was attempted itself comes by its own schedule (I13)."""
    async with outage() as (world, mailer, events):
        world.open_for_all()
        end = world.clock.now()
        await mailer.send_emails([email(f"d{domain}.example.org", 99) for domain in range(DOMAINS)])
        await world.settle(mailer, events)
        held_back = [status for status in await mailer.query_recent() if status.recipients[0].attempts == 0]
        assert len(held_back) >= 5 * DOMAINS
        while await mailer.query_recent():
            await world.go_to_next_due(mailer, events)

        for status in held_back:
            (recipient,) = (await mailer.query_status(status.message_id)).recipients
            assert recipient.result.delivered_at - end <= 40 * MINUTE
            assert recipient.attempts == 1
        assert [server.received for server in world.internet.exchangers.values()] == [11] * DOMAINS


@pytest.mark.rule("E4", "after an outage there is no herd: connections are bounded, jitter is visible")
async def test_after_an_outage_there_is_no_herd():
    """Row E4: the sites come back one after another, each with one connection first; all together never have more than
    are allowed, however many are due."""
    async with outage(connections=6) as (world, mailer, events):
        world.open_for_all()
        while await mailer.query_recent():
            await world.go_to_next_due(mailer, events)

        assert world.most_at_once <= 6
        first = Counter(times[0].replace(microsecond=0) for times in world.connected.values())
        assert len(first) > DOMAINS / 2
        assert max(first.values()) <= 5
        assert max(len(times) for times in world.connected.values()) <= 10


@pytest.mark.rule("E4", "a backlog that is due all at once is a matter of the connections allowed, and no herd")
async def test_a_backlog_that_is_due_at_once_is_no_herd():
    """Row E4: this machine was asleep, say. Each site is probed, and gets more connections for what it takes."""
    async with outage(connections=6) as (world, mailer, events):
        world.open_for_all()
        waiting = await mailer.query_recent()
        world.clock.set(max(status.recipients[0].result.next_attempt_at for status in waiting))
        await world.settle(mailer, events)

        assert await mailer.query_recent() == []
        assert world.most_at_once <= 6
        assert sum(len(times) for times in world.connected.values()) <= 10 * DOMAINS


@pytest.mark.rule("E4", "after an outage new mail and old mail are both served")
async def test_new_mail_for_others_does_not_wait_for_the_backlog_of_an_outage():
    """Row E4: a domain that is well is served while all others are still down, and while they come back."""
    async with outage(connections=6) as (world, mailer, events):
        well = await world.internet.exchanger("mx.well.example.org")
        world.internet.domain("well.example.org", mx=["mx.well.example.org"])
        for number in range(5):
            before = world.clock.now()
            status = await mailer.wait(await mailer.send_email(email("well.example.org", number)), timeout=MINUTE)
            assert status.succeeded
            assert world.clock.now() == before
            world.open_for_all()
            await world.go_to_next_due(mailer, events)
        while await mailer.query_recent():
            await world.go_to_next_due(mailer, events)

        assert well.received == 5
