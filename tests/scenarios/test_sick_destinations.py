"""A sick destination, or many of them, costs the healthy ones nothing (I17; rows B28, A39, E2, E3, E5)."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from itertools import count

import pytest

from mailstrom_async import Config, Email, Limits, Mailstrom, MemoryStorage, Timeouts
from mailstrom_async.testing import Close, Delay, FakeInternet, Fault, Gate, Hang, ManualClock, Reply, Scripted

PATIENCE = timedelta(seconds=60)
Script = Mapping[str, Scripted]
NO_GRACE = timedelta(0)


def email(domain: str, number: int = 0) -> Email:
    return Email(from_="app@example.org", to=f"r{number}@{domain}", subject="Hello", text="Hello")


def config(internet: FakeInternet, **settings) -> Config:
    return Config(helo_name="app.example.org", delivery=internet.delivery, shutdown_grace=NO_GRACE, **settings)


@pytest.mark.rule("E2", expected="healthy domains are delivered while a dead one holds 90 % of the queue")
@pytest.mark.parametrize("moment", ["greeting", "MAIL", "end of data"])
async def test_a_backlog_for_a_hanging_host_holds_nobody_up(moment):
    """Row E2: all that is due at the sick host was due before the healthy mail."""
    async with FakeInternet() as internet:
        gate = Gate(Hang())
        sick = await internet.exchanger("mx.sick.example.net", {moment: gate})
        internet.domain("sick.example.net", mx=["mx.sick.example.net"])
        await internet.exchanger("mx.well.example.org")
        for number in range(10):
            internet.domain(f"well{number}.example.org", mx=["mx.well.example.org"])
        async with Mailstrom(config(internet), MemoryStorage()) as mailer:
            await mailer.send_emails([email("sick.example.net", number) for number in range(1800)])
            await gate.reached()
            ids = await mailer.send_emails([email(f"well{number % 10}.example.org", number) for number in range(200)])
            for message_id in ids:
                assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded

            assert sick.max_concurrent_sessions <= Limits().connections_per_host


HEALTHY, BACKLOG = 100, 900


def flapping() -> Script:
    """Every second connection is closed at once, and every third mail."""
    connections, mails = count(), count()
    return {
        "greeting": lambda _: Close() if next(connections) % 2 else None,
        "MAIL": lambda _: Close() if next(mails) % 3 == 2 else None,
    }


def three_mails_a_session() -> Script:
    """The fourth is told to go away."""
    farewell = Reply("421 4.7.0 that is enough for now", then=Close())
    return {"MAIL": lambda context: farewell if context.transaction > 3 else None}


def slow() -> Script:
    """Four tenths of a second for each mail."""
    return {"end of data": Delay(timedelta(seconds=0.4))}


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(slow, marks=pytest.mark.rule("E3", "a slow domain delays nobody; its concurrency limit is kept")),
        pytest.param(flapping, marks=pytest.mark.rule("E2", "a flapping domain delays nobody")),
        pytest.param(three_mails_a_session, marks=pytest.mark.rule("E2", "421 after three mails: delays nobody")),
    ],
)
async def test_a_backlog_for_a_sick_host_holds_nobody_up(script):
    """Rows E2, E3, I13: nine tenths of the queue are for it and were due before the rest. The healthy mail is delivered
    at its first attempt, and long before the backlog is through, which is never given up either."""
    clock = ManualClock()
    async with FakeInternet() as internet:
        sick = await internet.exchanger("mx.sick.example.net", script())
        internet.domain("sick.example.net", mx=["mx.sick.example.net"])
        await internet.exchanger("mx.well.example.org")
        for number in range(50):
            internet.domain(f"well{number}.example.org", mx=["mx.well.example.org"])
        async with Mailstrom(config(internet), MemoryStorage(), clock=clock) as mailer:
            await mailer.send_emails([email("sick.example.net", number) for number in range(BACKLOG)])
            ids = await mailer.send_emails(
                [email(f"well{number % 50}.example.org", number) for number in range(HEALTHY)]
            )
            statuses = [await mailer.wait(message_id, timeout=PATIENCE) for message_id in ids]

            assert all(status.succeeded for status in statuses)
            assert {status.recipients[0].attempts for status in statuses} == {1}
            assert sick.received < BACKLOG
            left = await mailer.query_recent()
            assert {status.recipients[0].result.state for status in left} <= {"queued", "deferred"}
            assert len(left) >= BACKLOG - sick.received
        assert sick.max_concurrent_sessions <= Limits().connections_per_host


@pytest.mark.rule("E5", expected="more hanging sites than connections do not stop the healthy ones")
async def test_more_hanging_sites_than_connections_hold_nobody_up():
    """Every one of them has its turn at a connection, and the healthy ones have theirs."""
    async with FakeInternet() as internet:
        gate = Gate(Hang())
        for number in range(12):
            await internet.exchanger(f"mx{number}.sick.example.net", {"greeting": gate})
            internet.domain(f"sick{number}.example.net", mx=[f"mx{number}.sick.example.net"])
        await internet.exchanger("mx.well.example.org")
        internet.domain("well.example.org", mx=["mx.well.example.org"])
        async with Mailstrom(config(internet, limits=Limits(connections=8)), MemoryStorage()) as mailer:
            await mailer.send_emails([email(f"sick{number}.example.net") for number in range(12)])
            await gate.reached(6)
            message_id = await mailer.send_email(email("well.example.org"))

            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded


@pytest.mark.rule("E2", expected="421 after three mails, and only one connection: the others get it meanwhile")
async def test_a_host_that_ends_its_sessions_does_not_keep_the_only_connection():
    """Another session has to be opened in any case, so it may as well be to somebody else."""
    async with FakeInternet() as internet:
        sick = await internet.exchanger("mx.sick.example.net", three_mails_a_session())
        internet.domain("sick.example.net", mx=["mx.sick.example.net"])
        await internet.exchanger("mx.well.example.org")
        internet.domain("well.example.org", mx=["mx.well.example.org"])
        async with Mailstrom(config(internet, limits=Limits(connections=1)), MemoryStorage()) as mailer:
            await mailer.send_emails([email("sick.example.net", number) for number in range(BACKLOG)])
            await sick.wait_for_messages(1)
            message_id = await mailer.send_email(email("well.example.org"))

            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded
            assert sick.received < BACKLOG / 2


@pytest.mark.rule("B28", expected="a lookup that hangs delays no other domain")
async def test_a_hanging_lookup_holds_nobody_up():
    """Row B28: lookups run side by side."""
    async with FakeInternet() as internet:
        internet.dns.records["slow.example.net"] = {"MX": Fault.MUTE}
        await internet.exchanger("mx.well.example.org")
        internet.domain("well.example.org", mx=["mx.well.example.org"])
        async with Mailstrom(config(internet), MemoryStorage()) as mailer:
            slow = await mailer.send_emails([email("slow.example.net", number) for number in range(50)])
            message_id = await mailer.send_email(email("well.example.org"))

            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded
            assert (await mailer.query_status(slow[0])).recipients[0].result.state == "queued"


@pytest.mark.rule("E5", expected="nothing is kept for each domain afterwards")
async def test_nothing_is_kept_for_each_domain_afterwards():
    """Row E5: two hundred domains with a message each; when they are served, their sites are forgotten."""
    async with FakeInternet() as internet:
        await internet.exchanger("mx.example.org")
        for number in range(200):
            internet.domain(f"d{number}.example.org", mx=["mx.example.org"])
        async with Mailstrom(config(internet), MemoryStorage()) as mailer:
            internet.domain("first.example.org", mx=["mx.example.org"])
            await mailer.wait(await mailer.send_email(email("first.example.org")), timeout=PATIENCE)
            before = len(asyncio.all_tasks())
            ids = await mailer.send_emails([email(f"d{number}.example.org") for number in range(200)])
            for message_id in ids:
                assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded

            assert len(asyncio.all_tasks()) <= before + Limits().connections_per_host
        assert internet.exchangers["mx.example.org"].max_concurrent_sessions <= Limits().connections_per_host


@pytest.mark.rule("E5", expected="more sites than connections: a session without work makes room at once")
async def test_many_sites_with_a_message_each_share_few_connections():
    """Row E5: nobody waits until somebody else's idle session is closed."""
    async with FakeInternet(ttl=300) as internet:
        for number in range(60):
            await internet.exchanger(f"mx{number}.example.org")
            internet.domain(f"d{number}.example.org", mx=[f"mx{number}.example.org"])
        never = Timeouts(idle=timedelta(hours=1))
        async with Mailstrom(config(internet, limits=Limits(connections=4), timeouts=never), MemoryStorage()) as mailer:
            for _ in range(2):
                ids = await mailer.send_emails([email(f"d{number}.example.org") for number in range(60)])
                for message_id in ids:
                    assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded
