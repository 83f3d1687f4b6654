"""Limits, rates and feedback: what one site gets, and that nobody else waits for it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from itertools import pairwise

import anyio
import pytest

from mailstrom_async import (
    Config,
    Limits,
    LimitsFor,
    Mailstrom,
    MemoryStorage,
    Rate,
    RecipientDeferred,
    RecipientFailed,
    RetryPolicy,
    Timeouts,
)
from mailstrom_async._engine import claims
from mailstrom_async._queue import fairness
from mailstrom_async._queue.backlog import KEPT_CLAIMS
from mailstrom_async.testing import Close, FakeInternet, Gate, ManualClock, Reply, SMTPServer

from .conftest import HOUR, MINUTE, SECOND, completed, email

PATIENCE = timedelta(seconds=20)


class Arrivals:
    """When messages came, by the queue's clock; put it at "MAIL"."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.at: list[datetime] = []

    def __call__(self, context):
        self.at.append(self._clock.now())


@pytest.fixture
async def internet() -> AsyncIterator[FakeInternet]:
    """Several exchangers."""
    async with FakeInternet() as internet:
        yield internet


def mailer(internet: FakeInternet, clock: ManualClock, **settings) -> Mailstrom:
    config = {"helo_name": "app.example.org", "delivery": internet.delivery, "shutdown_grace": timedelta(0)}
    return Mailstrom(Config(**{**config, **settings}), MemoryStorage(), clock=clock)


async def go_to_next_due(mailer: Mailstrom, clock: ManualClock, events) -> bool:
    """Move the clock to when something is due, and return when all that is due has been settled. Whether there was."""
    statuses = await mailer.query_recent()
    waiting = [status.recipients[0].result for status in statuses]
    if not waiting:
        return False
    clock.set(max(clock.now(), min(result.next_attempt_at for result in waiting)))
    async with asyncio.timeout(20):
        for _ in range(sum(result.next_attempt_at <= clock.now() for result in waiting)):
            await anext(events)
    return True


async def received(server: SMTPServer, count: int) -> None:
    await server.wait_for_messages(count, timeout=PATIENCE)


async def test_what_is_over_the_rate_waits_and_is_no_attempt(build, server, clock):
    """Three at once, then one each 20 seconds; a session that waits for so long is kept open."""
    server.script["MAIL"] = arrivals = Arrivals(clock)
    limits = Limits(rate=Rate(messages=3, per=MINUTE, burst=3))
    async with build(limits=limits) as mailer:
        start = clock.now()
        ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(6)])
        await received(server, 3)
        await anyio.wait_all_tasks_blocked()
        assert server.received == 3
        (site,) = mailer.sites()
        assert (site.rate_left, site.waiting) == (0, 3)
        waiting = [await mailer.query_status(message_id) for message_id in ids[3:]]
        assert {status.recipients[0].result.state for status in waiting} == {"queued"}
        for count in (4, 5, 6):
            clock.advance(20 * SECOND)
            await received(server, count)
        statuses = [await mailer.wait(message_id, timeout=PATIENCE) for message_id in ids]

    assert {status.recipients[0].attempts for status in statuses} == {1}
    assert [at - start for at in arrivals.at] == [span * SECOND for span in (0, 0, 0, 20, 40, 60)]


async def test_a_site_whose_rate_others_used_while_it_waited_for_a_connection_goes_on(internet, clock):
    """The only connection is the first site's, and so are the tokens that both share: the second one waits for the next
    token, and not for ever."""
    for number in range(3):
        await internet.exchanger(f"mx{number}.example.org")
        internet.domain(f"d{number}.example.org", mx=[f"mx{number}.example.org"])
    shared = LimitsFor(mx="*.example.org", rate=Rate(messages=1, per=MINUTE, burst=1))
    async with mailer(internet, clock, limits=Limits(connections=1, overrides=[shared])) as opened:
        ids = await opened.send_emails([email(f"r@d{number}.example.org") for number in range(3)])
        statuses = [await completed(opened, message_id, clock, 20 * SECOND) for message_id in ids]

    assert all(status.succeeded for status in statuses)


async def test_small_mail_goes_on_though_slow_hosts_have_the_memory_that_a_large_one_waits_for(internet, clock):
    """I17: the large one has its room once a slow host is done, and nobody else waits for that."""
    taking = Gate()
    await internet.exchanger("mx.slow.example.org", {"end of data": taking})
    await internet.exchanger("mx.well.example.org")
    for name, exchanger in (("slow", "slow"), ("well", "well"), ("large", "well")):
        internet.domain(f"{name}.example.org", mx=[f"mx.{exchanger}.example.org"])
    async with mailer(internet, clock, limits=Limits(bytes_in_flight=4_000_000)) as opened:
        large = [email(f"r{number}@slow.example.org", text="x\n" * 500_000) for number in range(2)]
        slow = await opened.send_emails(large)
        await taking.reached(2)
        waiting = await opened.send_email(email("r@large.example.org", text="x\n" * 600_000))
        for number in range(2 * fairness.PATIENCE):
            small = await opened.send_email(email(f"r{number}@well.example.org"))
            assert (await opened.wait(small, timeout=PATIENCE)).succeeded
        assert not (await opened.query_status(waiting)).completed
        taking.open()
        for message_id in (*slow, waiting):
            assert (await opened.wait(message_id, timeout=PATIENCE)).succeeded


async def test_what_expires_while_it_waits_costs_nothing_of_the_rate(build, server, clock):
    """The next one has its turn."""
    server.script["MAIL"] = arrivals = Arrivals(clock)
    start = clock.now()
    async with build(limits=Limits(rate=Rate(messages=1, per=MINUTE, burst=1))) as mailer:
        await mailer.send_email(email())
        await received(server, 1)
        late = await mailer.send_email(email(), expires_after=30 * SECOND)
        last = await mailer.send_email(email())
        assert (await completed(mailer, last, clock, 10 * SECOND)).succeeded
        assert (await mailer.query_status(late)).recipients[0].result.state == "failed"

    assert [at - start for at in arrivals.at] == [timedelta(0), MINUTE]


async def test_a_session_does_not_wait_for_the_rate_longer_than_it_may_idle(build, server, clock):
    """A message an hour: the connection is not held meanwhile, and the leases hold."""
    limits = Limits(rate=Rate(messages=1, per=HOUR))
    async with build(limits=limits) as mailer:
        await mailer.send_emails([email(f"r{number}@example.net") for number in range(2)])
        await received(server, 1)
        async with asyncio.timeout(20):
            while not server.sessions[0].quit:  # noqa: ASYNC110 - what a server sees has no event
                await asyncio.sleep(0)
        for _ in range(190):
            await clock.until_waiting()
            clock.advance(19 * SECOND)
        await received(server, 2)

    assert server.connections == 2


async def test_a_site_that_waits_for_its_rate_leaves_its_connection_to_others(internet, clock):
    """The only connection that there may be serves a second site, although the first one has mail and a session."""
    one, two = [await internet.exchanger(f"mx.{name}.example.org") for name in ("one", "two")]
    for name in ("one", "two"):
        internet.domain(f"{name}.example.org", mx=[f"mx.{name}.example.org"])
    limits = Limits(connections=1, overrides=[LimitsFor(mx="mx.one.example.org", rate=Rate(messages=4, per=MINUTE))])
    async with mailer(internet, clock, limits=limits) as opened:
        await opened.send_emails([email(f"r{number}@one.example.org") for number in range(5)])
        await received(one, 1)
        await opened.send_emails([email(f"r{number}@two.example.org") for number in range(5)])
        await received(two, 5)

        assert one.received == 1


async def test_a_rate_of_an_entry_is_shared_by_all_whom_it_concerns(internet, clock):
    """A provider counts what comes to any of its hosts."""
    servers = [await internet.exchanger(f"mx{number}.example.com") for number in range(3)]
    for number in range(3):
        internet.domain(f"d{number}.example.org", mx=[f"mx{number}.example.com"])
    entry = LimitsFor(mx="*.example.com", rate=Rate(messages=2, per=MINUTE, burst=2))
    async with mailer(internet, clock, limits=Limits(overrides=[entry])) as opened:
        for number in range(2):
            await opened.wait(await opened.send_email(email(f"a@d{number}.example.org")), timeout=PATIENCE)
        third = await opened.send_email(email("a@d2.example.org"))
        await anyio.wait_all_tasks_blocked()
        assert sum(server.received for server in servers) == 2
        await clock.until_waiting()
        clock.advance(30 * SECOND)
        await opened.wait(third, timeout=PATIENCE)

    assert [server.received for server in servers] == [1, 1, 1]


async def test_limits_for_a_domain_hold_for_it_alone(internet, clock):
    """Two domains with one exchanger: one of them may have a single recipient in a transaction."""
    server = await internet.exchanger("mx.example.org")
    for name in ("small", "large"):
        internet.domain(f"{name}.example.org", mx=["mx.example.org"])
    entry = LimitsFor(domain="small.example.org", recipients_per_transaction=1, messages_per_connection=2)
    async with mailer(internet, clock, limits=Limits(overrides=[entry])) as opened:
        for name in ("small", "large"):
            to = [f"r{number}@{name}.example.org" for number in range(4)]
            assert (await opened.wait(await opened.send_email(email(to)), timeout=PATIENCE)).succeeded

    assert [len(message.recipients) for message in server.messages] == [1, 1, 1, 1, 4]


async def test_a_host_that_is_silent_is_throttled_as_a_whole_and_probed_with_one_message(build, server, clock):
    """Row E2: two messages find out, the others are held back: no contact, no attempt, a status that tells why. After
    half a minute one of them tries, and when it is taken they all go."""
    server.script["MAIL"] = Close()
    async with build(retry=RetryPolicy(jitter=0)) as mailer:
        ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(40)])
        statuses = [await mailer.wait(message_id, until="attempted", timeout=PATIENCE) for message_id in ids]
        results = [status.recipients[0].result for status in statuses]
        assert {result.state for result in results} == {"deferred"}
        attempts = [status.recipients[0].attempts for status in statuses]
        assert 2 <= sum(attempts) <= 4
        assert server.connections <= 4
        held_back = results[attempts.index(0)]
        assert "held back with all mail for its hosts" in held_back.reason
        assert "127.0.0.1" in held_back.reason
        assert held_back.next_attempt_at == clock.now() + 30 * SECOND
        assert await mailer.query_attempts(ids[attempts.index(0)]) == []
        (site,) = mailer.sites()
        assert site.throttled_until == clock.now() + 30 * SECOND
        assert site.reason in held_back.reason

        probe = Gate()
        server.script["MAIL"] = probe
        await clock.until_waiting()
        clock.advance(30 * SECOND)
        await probe.reached()
        await anyio.wait_all_tasks_blocked()
        assert probe.arrivals == 1
        server.script["MAIL"] = None
        probe.open()
        first = [message_id for message_id, count in zip(ids, attempts, strict=True) if not count]
        for message_id in first:
            assert (await mailer.wait(message_id, timeout=PATIENCE)).recipients[0].attempts == 1


async def test_a_site_that_stays_dead_is_probed_more_and_more_rarely(build, server, clock):
    """One connection each time, for all that waits."""
    server.script["greeting"] = Reply("421 4.3.2 down", then=Close())
    async with build(retry=RetryPolicy(lifetime=12 * HOUR, jitter=0)) as mailer:
        start = clock.now()
        seen: list[timedelta] = []
        known = 0
        async with mailer.events(RecipientDeferred) as events:
            ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(20)])
            for _ in ids:
                await anext(events)
            while clock.now() - start < 2 * HOUR:
                if server.connections > known:
                    seen.append(clock.now() - start)
                    known = server.connections
                await go_to_next_due(mailer, clock, events)
        statuses = await mailer.query_recent()

    assert server.connections <= 16
    gaps = [later - earlier for earlier, later in pairwise(seen)]
    assert gaps[0] <= 1 * MINUTE
    assert min(gaps[5:]) >= 14 * MINUTE
    assert sum(status.recipients[0].attempts for status in statuses) <= server.connections


async def test_what_is_held_back_expires_all_the_same(build, server, clock):
    """I3: whoever never had his turn fails at the end of his lifetime, with what was learned at his hosts."""
    server.script["greeting"] = Reply("421 4.3.2 down", then=Close())
    async with build(retry=RetryPolicy(lifetime=20 * MINUTE)) as mailer:
        start = clock.now()
        async with mailer.events(RecipientDeferred, RecipientFailed) as events:
            ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(5)])
            for _ in ids:
                await anext(events)
            while await go_to_next_due(mailer, clock, events):
                pass
        statuses = [await mailer.query_status(message_id) for message_id in ids]

    assert {status.recipients[0].result.cause for status in statuses} == {"expired"}
    assert all("4.3.2 down" in status.recipients[0].result.reason for status in statuses)
    assert {status.recipients[0].result.failed_at - start for status in statuses} == {20 * MINUTE}


async def test_a_clock_that_is_set_back_keeps_no_site_throttled(build, server, clock):
    """Rows C16 and E2: the throttle is over, not a day longer."""
    server.script["greeting"] = Reply("421 4.3.2 down", then=Close())
    async with build() as mailer:
        await mailer.wait(await mailer.send_email(email()), until="attempted", timeout=PATIENCE)
        server.script["greeting"] = None
        clock.advance(-24 * HOUR)

        assert mailer.sites() == ()
        assert (await mailer.wait(await mailer.send_email(email()), timeout=PATIENCE)).succeeded


async def test_trouble_in_transactions_closes_the_window_and_success_opens_it(build, server, clock):
    """4yz to MAIL is the site's own: half the connections are left, and the sessions that are too many end."""
    server.script["end of data"] = full = Gate()
    async with build(limits=Limits(connections_per_host=8), timeouts=Timeouts(idle=HOUR)) as mailer:
        server.script["end of data"] = None
        for _ in range(20):
            await mailer.wait(await mailer.send_email(email()), timeout=PATIENCE)
        assert mailer.sites()[0].connections_allowed == 8
        server.script["end of data"] = full
        await mailer.send_emails([email(f"r{number}@example.net") for number in range(8)])
        await full.reached(8)
        server.script["MAIL"] = "451 4.3.2 overloaded"
        full.open()
        await received(server, 28)
        ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(4)])
        for message_id in ids:
            status = await mailer.wait(message_id, until="attempted", timeout=PATIENCE)
            assert status.recipients[0].attempts == 1
        assert mailer.sites()[0].connections_allowed == 4
        server.script["MAIL"] = None
        for _ in range(3):
            await mailer.wait(await mailer.send_email(email()), timeout=PATIENCE)

        (site,) = mailer.sites()
        assert site.connections_allowed == 5
        assert site.last_reply.code == 250


async def test_greylisting_throttles_nobody(build, server, clock):
    """Each recipient is answered for himself, however often."""
    server.script["RCPT"] = "451 4.7.1 greylisted"
    async with build() as mailer:
        ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(30)])
        for message_id in ids:
            status = await mailer.wait(message_id, until="attempted", timeout=PATIENCE)
            assert status.recipients[0].attempts == 1
        assert all(site.throttled_until is None for site in mailer.sites())


async def test_a_site_over_its_rate_does_not_keep_the_claims_of_others_waiting(internet, clock, monkeypatch):
    """Three claims are all that there may be, and a hundred mails wait for a rate: what finds no room at its site goes
    back to the queue, so that another site's mail is claimed. Nothing of that is an attempt, and none is forgotten."""
    monkeypatch.setattr(claims, "CLAIMED_AT_MOST", 3 + KEPT_CLAIMS)
    one, two = [await internet.exchanger(f"mx.{name}.example.org") for name in ("one", "two")]
    for name in ("one", "two"):
        internet.domain(f"{name}.example.org", mx=[f"mx.{name}.example.org"])
    limits = Limits(overrides=[LimitsFor(domain="one.example.org", rate=Rate(messages=1, per=MINUTE))])
    async with mailer(internet, clock, limits=limits, lease=HOUR) as opened:
        ids = await opened.send_emails([email(f"r{number}@one.example.org") for number in range(12)])
        await received(one, 1)
        await opened.send_emails([email(f"r{number}@two.example.org") for number in range(5)])
        await received(two, 5)
        assert one.received == 1
        for count in range(2, 13):
            await clock.until_waiting()
            clock.advance(MINUTE)
            await received(one, count)
        statuses = [await opened.wait(message_id, timeout=PATIENCE) for message_id in ids]

    assert {status.recipients[0].attempts for status in statuses} == {1}
    assert one.received == 12


async def test_many_domains_of_a_provider_that_hangs_hold_few_claims(internet, clock):
    """Row E2: two hundred domains at one host that is silent; what does not fit goes back, and others are served."""
    gate = Gate()
    await internet.exchanger("mx.provider.example.com", {"MAIL": gate})
    for number in range(200):
        internet.domain(f"d{number}.example.com", mx=["mx.provider.example.com"])
    await internet.exchanger("mx.example.org")
    internet.domain("example.org", mx=["mx.example.org"])
    async with mailer(internet, clock) as opened:
        ids = await opened.send_emails([email(f"r@d{number}.example.com") for number in range(200)])
        await gate.reached(2)
        assert (await opened.wait(await opened.send_email(email("r@example.org")), timeout=PATIENCE)).succeeded
        await anyio.wait_all_tasks_blocked()
        assert opened.sites()[0].waiting <= 64
        gate.open()
        for message_id in ids:
            assert (await opened.wait(message_id, timeout=PATIENCE)).recipients[0].attempts == 1
