"""Sessions and sites: limits hold at every moment, nothing spins, nothing waits for ever, a fault is one attempt's."""

import asyncio
from datetime import timedelta

import anyio
import pytest

from mailstrom_async import Config, Limits, Mailstrom, RelayDelivery, RetryPolicy, Timeouts
from mailstrom_async._engine.scheduler import Scheduler
from mailstrom_async._engine.settlement import Settlement
from mailstrom_async.smtp import SMTPConnector
from mailstrom_async.testing import CertificateAuthority, Close, Gate, Hang, ManualClock, SMTPServer

from .conftest import DAY, MINUTE, SECOND, completed, email
from .test_trouble import SickStorage, degraded

PATIENCE = timedelta(seconds=20)
NO_GRACE = timedelta(0)


async def send(mailer, count: int) -> list[str]:
    return await mailer.send_emails([email(f"r{number}@example.net") for number in range(count)])


async def test_a_session_that_says_good_bye_still_counts(build, server):
    """I13: the host counts it until it is closed, and one that allows a single connection refuses the next."""
    server.script["QUIT"] = gate = Gate()
    limits = Limits(connections_per_host=1)
    async with build(limits=limits, timeouts=Timeouts(idle=timedelta(milliseconds=1))) as mailer:
        await mailer.wait(await mailer.send_email(email()), timeout=PATIENCE)
        await gate.reached()
        message_id = await mailer.send_email(email())
        await anyio.wait_all_tasks_blocked()
        gate.open()

        assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded
    assert server.max_concurrent_sessions == 1


async def test_what_another_session_took_during_a_good_bye_is_not_missed(build, server, caplog):
    """A session that carried its last message parts from the host, and may find then that nothing is left for it."""
    parting = Gate()
    server.script["QUIT"] = lambda context: parting if context.session.number == 1 else None
    server.script["end of data"] = both = Gate()
    async with build(limits=Limits(connections_per_host=2, messages_per_connection=1)) as mailer:
        ids = await send(mailer, 3)
        await both.reached(2)
        both.open()
        await parting.reached()
        for message_id in ids:
            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded
        parting.open()
        async with asyncio.timeout(5):
            while not server.sessions[0].closed:  # noqa: ASYNC110 - what a server sees has no event
                await asyncio.sleep(0)
        await anyio.wait_all_tasks_blocked()

    assert server.received == 3
    assert "failed unexpectedly" not in caplog.text


async def test_a_fault_while_a_session_is_opened_is_an_attempt_and_does_not_spin(build, server, clock, monkeypatch):
    """Whatever raised: each message has its outcome, and a later attempt is made."""
    calls = []

    async def connect(self, target):
        calls.append(target)
        raise RuntimeError("unforeseen")

    with monkeypatch.context() as broken:
        broken.setattr(SMTPConnector, "connect", connect)
        async with build(retry=RetryPolicy(jitter=0)) as mailer:
            ids = await send(mailer, 5)
            statuses = [await mailer.wait(message_id, until="attempted", timeout=PATIENCE) for message_id in ids]
    async with build() as mailer:
        for message_id in ids:
            assert (await completed(mailer, message_id, clock, MINUTE)).succeeded

    assert {status.recipients[0].result.cause for status in statuses} == {"local"}
    assert "unforeseen" in statuses[0].recipients[0].result.reason
    assert len(calls) <= 5


@pytest.mark.parametrize("failure", [RuntimeError("secret"), asyncio.CancelledError()])
async def test_a_token_callable_that_fails_defers_and_shows(build, clock, failure):
    """Kin of row A60: no login, no mail; but an attempt, a state that says degraded, and no storm of connections."""
    calls = 0

    async def token() -> str:
        nonlocal calls
        calls += 1
        raise failure

    authority = CertificateAuthority()
    async with SMTPServer(tls=authority.server_context("127.0.0.1"), tokens={"u": "t"}) as server:
        relay = RelayDelivery(host="127.0.0.1", port=server.port, username="u", oauth_token=token)
        async with build(delivery=relay, ca_file=authority.ca_file) as mailer:
            status = await mailer.wait(await mailer.send_email(email()), until="attempted", timeout=PATIENCE)
            reason = await degraded(mailer)

    assert status.recipients[0].result.state == "deferred"
    assert type(failure).__name__ in reason
    assert "secret" not in reason
    assert calls == 1


async def test_a_relay_without_the_tls_that_is_demanded_shows_until_it_has_it(build, clock):
    """Kin of row A60: it hits all mail, and whoever operates the relay should know."""
    authority = CertificateAuthority()
    async with SMTPServer({"STARTTLS": "454 4.7.0 no"}, tls=authority.server_context("127.0.0.1")) as server:
        relay = RelayDelivery(host="127.0.0.1", port=server.port)
        async with build(delivery=relay, ca_file=authority.ca_file) as mailer:
            message_id = await mailer.send_email(email())
            await mailer.wait(message_id, until="attempted", timeout=PATIENCE)
            reason = await degraded(mailer)
            server.script["STARTTLS"] = None
            status = await completed(mailer, message_id, clock, MINUTE)

            assert "relay" in reason
            assert status.succeeded
            assert mailer.worker_status.state == "running"


async def test_a_result_that_can_not_be_made_does_not_leave_its_delivery_claimed_for_ever(
    build, server, clock, monkeypatch
):
    """A fault in this library costs an attempt, and shows in the status."""

    def fail(*args):
        raise RuntimeError("unforeseen")

    async with build() as mailer:
        with monkeypatch.context() as broken:
            broken.setattr(Settlement, "_record", fail)
            message_id = await mailer.send_email(email())
            async with asyncio.timeout(10):
                while (await mailer.query_status(message_id)).recipients[0].result.state == "queued":  # noqa: ASYNC110
                    await asyncio.sleep(0)
        result = (await mailer.query_status(message_id)).recipients[0].result
        assert (result.state, result.cause) == ("deferred", "local")
        assert "unforeseen" in result.reason
        assert (await completed(mailer, message_id, clock, MINUTE)).succeeded


class RaisingStorage(SickStorage):
    """A store with a fault of its own: what it raises is no StorageError."""

    def _suffer(self, what: str) -> None:
        if what in self.sick:
            raise ZeroDivisionError(what)


@pytest.mark.parametrize("what", ["record", "claim", "upcoming", "renew"])
async def test_a_store_that_raises_what_it_must_not_does_not_end_delivery(build, server, clock, what):
    """It shows in the log, and delivery goes on when the store is well again."""
    store = RaisingStorage()
    server.script["end of data"] = gate = Gate()
    async with build(store) as mailer:
        first = await mailer.send_email(email())
        await gate.reached()
        store.sick.add(what)
        second = await mailer.send_email(email())
        gate.open()
        for _ in range(5):
            clock.advance(25 * SECOND)
            await anyio.wait_all_tasks_blocked()
        store.sick.clear()

        for message_id in (first, second):
            assert (await completed(mailer, message_id, clock, 2 * SECOND)).succeeded
        assert mailer.worker_status.state == "running"
    assert server.received == 2


@pytest.mark.rule("C16", expected="an unreachable site is not out of reach for a day")
async def test_a_clock_that_is_set_back_does_not_keep_a_site_out_of_reach(build, server, clock):
    """Row C16: that no session could be had is remembered for moments, not until the clock is there again."""
    server.script["greeting"] = Close()
    async with build() as mailer:
        await mailer.wait(await mailer.send_email(email()), until="attempted", timeout=PATIENCE)
        server.script["greeting"] = None
        clock.advance(-DAY)

        status = await mailer.wait(await mailer.send_email(email()), until="attempted", timeout=PATIENCE)
        assert status.succeeded


class RestlessClock(ManualClock):
    """One whose waits end early, as they may."""

    async def wait(self, wake, until):
        await asyncio.sleep(0)


async def test_leases_are_renewed_although_the_clock_was_set_back(server, storage):
    """Others, whose clocks are right, would take over what we still attempt."""
    server.script["MAIL"] = gate = Gate(Hang())
    renewed: list[int] = []
    renew = storage.renew

    async def noting(deliveries, lease_until):
        renewed.append(len(deliveries))
        return await renew(deliveries, lease_until)

    storage.renew = noting
    clock = RestlessClock()
    relay = RelayDelivery(host="127.0.0.1", port=server.port, security="none")
    config = Config(helo_name="app.example.org", delivery=relay, shutdown_grace=NO_GRACE)
    async with Mailstrom(config, storage, clock=clock) as mailer:
        await mailer.send_email(email())
        await gate.reached()
        clock.advance(-DAY)
        for _ in range(3):
            clock.advance(25 * SECOND)
            for _ in range(20):
                await asyncio.sleep(0)

    assert renewed


async def test_retry_now_makes_an_attempt_although_the_site_was_just_out_of_reach(build, server, clock):
    """Who asks for an attempt wants to see one, not what was learned a moment ago."""
    server.script["greeting"] = Close()
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        await mailer.wait(message_id, until="attempted", timeout=PATIENCE)
        server.script["greeting"] = None
        await mailer.retry_now(message_id)

        assert (await mailer.wait(message_id, timeout=PATIENCE)).recipients[0].attempts == 2


async def test_retry_now_of_what_is_being_attempted_changes_nothing(build, server):
    """I15: it is under way already, and is not attempted a second time beside."""
    server.script["end of data"] = gate = Gate()
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        await gate.reached()
        for _ in range(3):
            await mailer.retry_now(message_id)
        gate.open()
        status = await mailer.wait(message_id, timeout=PATIENCE)

    assert status.recipients[0].attempts == 1
    assert server.received == 1


async def test_a_message_cancelled_during_an_attempt_that_is_deferred_ends_cancelled(build, server):
    """And is not attempted again."""
    server.script["RCPT"] = gate = Gate("450 4.2.1 busy")
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        await gate.reached()
        await mailer.cancel(message_id)
        gate.open()
        status = await mailer.wait(message_id, timeout=PATIENCE)

    assert status.recipients[0].result.cause == "cancelled"


async def test_a_slow_host_does_not_keep_the_connections_from_the_others(build, server, monkeypatch):
    """I17: the only connection waits for a host that says nothing; after a moment it is not counted."""
    monkeypatch.setattr("mailstrom_async._engine.waits.SLOW", 0.05)
    server.script["MAIL FROM:<slow@example.org>"] = Hang()
    async with build(limits=Limits(connections=1, connections_per_host=2), shutdown_grace=NO_GRACE) as mailer:
        await mailer.send_email(email(from_="slow@example.org"))

        assert (await mailer.wait(await mailer.send_email(email()), timeout=PATIENCE)).succeeded
    assert server.max_concurrent_sessions == 2


async def test_an_engine_that_dies_says_so_and_can_be_started_again(build, server, monkeypatch, caplog):
    """A fault in this library must not end delivery silently."""

    async def die(self):
        raise RuntimeError("unforeseen")

    async with build() as mailer:
        await mailer.pause()
        with monkeypatch.context() as broken:
            broken.setattr(Scheduler, "run", die)
            await mailer.start()
            assert "unforeseen" in await degraded(mailer)
        message_id = await mailer.send_email(email())
        await mailer.pause()
        await mailer.start()

        assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded
        assert mailer.worker_status.state == "running"
    assert "delivery ended by a fault" in caplog.text


async def test_what_an_engine_has_when_it_dies_is_delivered_by_the_next(build, server, storage):
    """What is claimed does not stay with the dead; what is being accepted just then does not either."""
    server.script["MAIL"] = gate = Gate()
    async with build(limits=Limits(connections_per_host=1)) as mailer:
        early = await send(mailer, 3)  # of which two wait for their turn at the site
        await gate.reached()

        async def die():
            raise RuntimeError("unforeseen")

        mailer._engine._group.start_soon(die)
        await degraded(mailer)
        gate.open()
        async with asyncio.timeout(20):
            while storage._claimed:  # noqa: ASYNC110
                await asyncio.sleep(0)
        late = await mailer.send_email(email())
        await mailer.pause()
        await mailer.start()

        for message_id in (*early, late):
            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded
            assert len(await mailer.query_attempts(message_id)) == 1


@pytest.mark.rule("C15", expected="what is not ours any more is not begun")
async def test_what_was_lost_while_it_waited_for_its_turn_is_not_attempted(build, server, storage, clock):
    """Row C15: somebody else has taken it over; two of us would send it twice. The rest goes on."""
    server.extensions.remove("PIPELINING")
    server.script["end of data"] = gate = Gate()
    async with build(limits=Limits(connections_per_host=1)) as mailer:
        first, stolen, last = await send(mailer, 3)
        await gate.reached()
        (delivery,) = (d for d in storage._deliveries.values() if d.message.shared.message_id == stolen)
        delivery.owner = "somebody else"
        await clock.until_waiting()
        clock.advance(25 * SECOND)
        await anyio.wait_all_tasks_blocked()
        gate.open()

        for message_id in (first, last):
            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded
        assert (await mailer.query_attempts(stolen)) == []
        async with asyncio.timeout(5):
            while mailer._engine._claims.held():  # noqa: ASYNC110
                await asyncio.sleep(0)
    assert sorted(message.recipients[0] for message in server.messages) == ["r0@example.net", "r2@example.net"]
