"""A sick destination, or many of them, costs the healthy ones nothing (I17; rows B28, A39, E2, E3, E5)."""

import asyncio
from datetime import timedelta

import pytest

from mailstrom_async import Config, Email, Limits, Mailstrom, MemoryStorage
from mailstrom_async.testing import FakeInternet, Fault, Gate, Hang

PATIENCE = timedelta(seconds=60)
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
