"""Stopping, and going on afterwards: nothing is lost, nothing is doubled, nobody waits."""

import asyncio
from datetime import timedelta

import anyio
import pytest

from mailstrom_async import Deferred, Limits
from mailstrom_async.testing import Gate, Hang

from .conftest import MINUTE, SECOND, email
from .test_switching import SlowStorage

PATIENCE = timedelta(seconds=20)
NO_GRACE = timedelta(0)


@pytest.mark.rule("C3", expected="running attempts end within the grace")
async def test_a_running_attempt_may_finish(build, server):
    """Row C3: within the grace, and nothing else is begun."""
    server.script["end of data"] = gate = Gate()
    async with build(limits=Limits(connections_per_host=1, connections=1)) as mailer:
        first = await mailer.send_email(email())
        await gate.reached()
        second = await mailer.send_email(email())
        async with asyncio.TaskGroup() as group:
            closing = group.create_task(mailer.aclose(PATIENCE))
            await anyio.wait_all_tasks_blocked()
            assert not closing.done()
            gate.open()
    assert server.received == 1
    async with build() as mailer:
        assert (await mailer.query_status(first)).succeeded
        status = await mailer.wait(second, timeout=PATIENCE)

    assert status.succeeded
    assert status.recipients[0].attempts == 1
    assert server.received == 2


@pytest.mark.rule("C3", expected="the rest is aborted, with its lease freed")
async def test_without_grace_what_was_not_sent_is_queued_as_before(build, server):
    """Row C3: an attempt that was aborted before its content was sent was none."""
    server.script["MAIL"] = gate = Gate(Hang())
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        await gate.reached()
        await mailer.aclose(NO_GRACE)
    server.script["MAIL"] = None
    async with build() as mailer:
        status = await mailer.wait(message_id, timeout=PATIENCE)

    assert status.succeeded
    assert status.recipients[0].attempts == 1
    assert server.received == 1


@pytest.mark.parametrize("step", ["greeting", "EHLO"])
async def test_nobody_waits_for_a_host_that_has_not_greeted(build, server, step):
    """Row C3: no content can be in doubt there, and who stops us may have little time for those where it can."""
    server.script[step] = opening = Gate(Hang())
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        await opening.reached()
        async with asyncio.timeout(10):
            await mailer.aclose(timedelta(minutes=1))
    async with build(deliver=False) as mailer:
        assert (await mailer.query_status(message_id)).recipients[0].attempts == 0


async def test_nothing_more_is_begun_while_the_store_takes_its_time(build, server):
    """Row C3: a claim that the store has not answered yet does not keep the sessions going."""
    storage = SlowStorage()
    server.extensions.remove("PIPELINING")  # or the next one would be begun already
    server.script["end of data"] = taking = Gate()
    limits = Limits(connections_per_host=1, connections=1)
    async with build(storage, limits=limits, shutdown_grace=NO_GRACE) as mailer:
        await mailer.send_emails([email(f"r{number}@example.net") for number in range(5)])
        await taking.reached()
        storage.gates["claim"] = claiming = Gate()
        await mailer.send_emails([email("ada@example.org"), email("eve@example.org")])
        await claiming.reached()
        async with asyncio.TaskGroup() as group:
            group.create_task(mailer.aclose(NO_GRACE))
            await anyio.wait_all_tasks_blocked()
            taking.open()
            with pytest.raises(TimeoutError):
                await server.wait_for_messages(2, timeout=timedelta(seconds=0.2))
            claiming.open()

    assert server.received == 1


async def test_an_attempt_aborted_after_the_dot_is_in_doubt_and_says_so(build, server, clock):
    """Row A36 at shutdown: a duplicate is possible, and the attempt tells."""
    server.script["end of data"] = gate = Gate(Hang())
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        await gate.reached()
        await mailer.aclose(NO_GRACE)
    async with build(deliver=False) as mailer:
        status = await mailer.query_status(message_id)
        attempts = await mailer.query_attempts(message_id)

    result = status.recipients[0].result
    assert isinstance(result, Deferred)
    assert result.cause == "outcome_unknown"
    assert [attempt.outcome["ada@example.net"].cause for attempt in attempts] == ["outcome_unknown"]


async def test_an_abort_in_a_later_transaction_does_not_forget_what_an_earlier_one_delivered(build, server):
    """Or those recipients would get the message twice (I6)."""
    gate = Gate(Hang())
    server.script["MAIL"] = [None, gate]
    async with build(limits=Limits(recipients_per_transaction=2)) as mailer:
        message_id = await mailer.send_email(email("a@example.net, b@example.net, c@example.net"))
        await gate.reached()
        await mailer.aclose(NO_GRACE)
    server.script["MAIL"] = None
    async with build() as mailer:
        before = await mailer.query_status(message_id)
        await mailer.retry_now(message_id)
        status = await mailer.wait(message_id, timeout=PATIENCE)

    assert [recipient.result.state for recipient in before.recipients[:2]] == ["delivered", "delivered"]
    assert status.succeeded
    assert [message.recipients for message in server.messages] == [
        ("a@example.net", "b@example.net"),
        ("c@example.net",),
    ]


async def test_a_close_that_is_cancelled_still_frees_the_claims(build, server):
    """The caller's patience ended; what was claimed must not wait for the end of its lease."""
    server.script["MAIL"] = gate = Gate(Hang())
    mailer = build()
    await mailer.__aenter__()
    message_id = await mailer.send_email(email())
    await gate.reached()
    closing = asyncio.create_task(mailer.aclose(PATIENCE))
    await anyio.wait_all_tasks_blocked()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    server.script["MAIL"] = None
    async with build() as mailer:
        assert (await mailer.wait(message_id, timeout=PATIENCE)).recipients[0].attempts == 1


async def test_idle_sessions_do_not_hold_a_close_up(build, server, clock):
    """They have nothing to finish."""
    async with build() as mailer:
        await mailer.wait(await mailer.send_email(email()), timeout=PATIENCE)
        async with asyncio.timeout(5):
            await mailer.aclose(PATIENCE)

    assert server.sessions[0].quit


async def test_due_times_outlive_a_restart(build, server, clock):
    """A restart neither forgets nor hurries: a bug of the original retried everything at once."""
    server.script["RCPT"] = ["450 4.2.1 later"]
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        status = await mailer.wait(message_id, until="attempted", timeout=PATIENCE)
        due_at = status.recipients[0].result.next_attempt_at
    clock.advance(MINUTE)
    async with build() as mailer:
        assert await clock.until_waiting() <= due_at
        assert (await mailer.query_status(message_id)).recipients[0].attempts == 1
        clock.set(due_at)
        status = await mailer.wait(message_id, timeout=PATIENCE)

    assert status.succeeded
    assert status.recipients[0].attempts == 2


async def test_a_paused_mailer_accepts_and_delivers_when_started(build, server):
    """`pause` and `start`, and the state that tells which."""
    async with build() as mailer:
        await mailer.pause()
        assert mailer.worker_status.state == "paused"
        message_id = await mailer.send_email(email())
        assert server.received == 0
        await mailer.start()
        assert mailer.worker_status.state == "running"

        assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded
    assert mailer.worker_status.state == "stopped"


async def test_a_mailer_can_be_entered_again(build, server, clock):
    """Its life has a beginning and an end, and another one after that."""
    mailer = build()
    for _ in range(3):
        async with mailer:
            assert (await mailer.wait(await mailer.send_email(email()), timeout=PATIENCE)).succeeded
        clock.advance(SECOND)

    assert server.received == 3
