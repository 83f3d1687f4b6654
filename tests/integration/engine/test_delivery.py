"""The way of a message through the engine: delivered, deferred and tried again, failed, expired."""

import asyncio
import logging
from datetime import timedelta

import anyio
import pytest

from mailstrom_async import Deferred, Delivered, Failed, Limits, RetryPolicy
from mailstrom_async._engine.settlement import ADDRESS
from mailstrom_async.testing import Close, Gate, Greylist, Hang, Reply

from .conftest import DAY, HOUR, MINUTE, SECOND, completed, email

PATIENCE = timedelta(seconds=20)


async def test_a_message_is_delivered_and_accounted_for(build, server):
    """What arrives is what was prepared, and the status names the host and its reply."""
    async with build() as mailer:
        message_id = await mailer.send_email(email("Ada <ada@example.net>"))
        status = await mailer.wait(message_id, timeout=PATIENCE)

    (recipient,) = status.recipients
    assert (recipient.recipient, recipient.address) == ("Ada <ada@example.net>", "ada@example.net")
    assert recipient.attempts == 1
    assert isinstance(recipient.result, Delivered)
    assert (recipient.result.host, recipient.result.reply.code, recipient.result.tls) == ("127.0.0.1", 250, None)
    assert status.completed
    assert status.succeeded
    assert server.messages[0].recipients == ("ada@example.net",)
    assert server.violations == []


async def test_recipients_of_one_message_share_a_transaction_whatever_their_domains(build, server):
    """All destinations lead to the relay, so they are one site, and the content goes there once."""
    async with build() as mailer:
        message_id = await mailer.send_email(email("a@one.example.net, b@two.example.net, c@three.example.net"))
        await mailer.wait(message_id, timeout=PATIENCE)

    assert [set(message.recipients) for message in server.messages] == [
        {"a@one.example.net", "b@two.example.net", "c@three.example.net"}
    ]


async def test_a_deferred_recipient_is_attempted_again_when_due_and_only_then(build, server, clock):
    """Row A58: greylisting costs attempts, not the mail; the schedule is kept."""
    server.script["RCPT"] = Greylist(5 * MINUTE, clock)
    async with build(retry=RetryPolicy(jitter=0)) as mailer:
        message_id = await mailer.send_email(email())
        status = await mailer.wait(message_id, until="attempted", timeout=PATIENCE)
        (recipient,) = status.recipients
        assert isinstance(recipient.result, Deferred)
        assert recipient.result.next_attempt_at == clock.now() + 3 * MINUTE
        clock.advance(3 * MINUTE - SECOND)
        await clock.until_waiting()

        assert (await mailer.query_status(message_id)).recipients[0].attempts == 1
        clock.advance(SECOND)
        async with asyncio.timeout(20):
            while (status := await mailer.query_status(message_id)).recipients[0].attempts < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert status.recipients[0].result.next_attempt_at == clock.now() + 9 * MINUTE
        clock.advance(9 * MINUTE)
        status = await mailer.wait(message_id, timeout=PATIENCE)

        assert status.succeeded
        assert status.recipients[0].attempts == 3
        assert [attempt.outcome["ada@example.net"].state for attempt in await mailer.query_attempts(message_id)] == [
            "deferred",
            "deferred",
            "delivered",
        ]


async def test_only_deferred_recipients_are_attempted_again(build, server, clock):
    """Row A32: each recipient has its own outcome from its own reply, and final ones are left alone."""
    server.script["RCPT TO:<b@example.net>"] = ["450 4.2.1 busy"]
    server.script["RCPT TO:<c@example.net>"] = "550 5.1.1 no such person"
    async with build() as mailer:
        message_id = await mailer.send_email(email("a@example.net, b@example.net, c@example.net"))
        first = await mailer.wait(message_id, until="attempted", timeout=PATIENCE)
        clock.advance(5 * MINUTE)
        status = await mailer.wait(message_id, timeout=PATIENCE)

    assert [recipient.result.state for recipient in first.recipients] == ["delivered", "deferred", "failed"]
    assert [recipient.result.state for recipient in status.recipients] == ["delivered", "delivered", "failed"]
    assert [recipient.attempts for recipient in status.recipients] == [1, 2, 1]
    assert [message.recipients for message in server.messages] == [("a@example.net",), ("b@example.net",)]
    assert status.recipients[0] == first.recipients[0]
    assert status.recipients[2].result.enhanced == "5.1.1"
    assert not status.succeeded


async def test_a_recipient_deferred_for_its_whole_lifetime_expires(build, server, clock):
    """The last reply stays visible, and nothing is attempted afterwards (I16)."""
    server.script["RCPT"] = "450 4.2.2 mailbox full"
    async with build(retry=RetryPolicy(lifetime=1 * DAY)) as mailer:
        message_id = await mailer.send_email(email())
        status = await completed(mailer, message_id, clock, MINUTE)
        attempts = len(server.sessions), status.recipients[0].attempts
        clock.advance(10 * DAY)
        await clock.until_waiting()

        result = status.recipients[0].result
        assert isinstance(result, Failed)
        assert (result.cause, result.enhanced) == ("expired", "4.4.7")
        assert "mailbox full" in result.reason
        assert (len(server.sessions), (await mailer.query_status(message_id)).recipients[0].attempts) == attempts


async def test_a_message_for_later_waits_for_its_time(build, server, clock):
    """`not_before`: accepted now, attempted then."""
    async with build() as mailer:
        message_id = await mailer.send_email(email(), not_before=clock.now() + HOUR)
        clock.advance(HOUR - SECOND)
        await clock.until_waiting()

        assert (await mailer.query_status(message_id)).recipients[0].result.state == "queued"
        clock.advance(SECOND)
        assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded


async def test_a_code_that_is_worthless_after_ten_minutes_does_not_arrive_late(build, server, clock):
    """`expires_after`: still deferred at its end, it fails and is never sent."""
    server.script["RCPT"] = "450 4.7.1 later"
    async with build() as mailer:
        message_id = await mailer.send_email(email(), expires_after=10 * MINUTE)
        await mailer.wait(message_id, until="attempted", timeout=PATIENCE)
        server.script["RCPT"] = None
        clock.set(clock.now() + 11 * MINUTE)
        status = await mailer.wait(message_id, timeout=PATIENCE)

    assert status.recipients[0].result.cause == "expired"
    assert server.received == 0


async def test_a_code_that_becomes_worthless_while_it_waits_for_a_session_is_not_sent(build, server, clock):
    """`expires_after`: the only session waits for a slow host; when it is free again, the code is too old."""
    server.extensions.remove("PIPELINING")
    server.script["end of data"] = gate = Gate()
    async with build(limits=Limits(connections_per_host=1), lease=DAY) as mailer:
        first = await mailer.send_email(email())
        await gate.reached()
        code = await mailer.send_email(email(), expires_after=10 * MINUTE, lane="auth")
        other = await mailer.send_email(email())
        await anyio.wait_all_tasks_blocked()
        clock.set(clock.now() + 11 * MINUTE)
        gate.open()
        for message_id in (first, other):
            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded
        result = (await mailer.wait(code, timeout=PATIENCE)).recipients[0].result

        assert (result.cause, result.enhanced) == ("expired", "4.4.7")
        assert await mailer.query_attempts(code) == []
    assert server.received == 2


async def test_a_code_that_is_worthless_after_a_restart_is_not_sent(build, server, storage, clock):
    """`expires_after`: it was never attempted, but its sender said until when it is of use."""
    async with build(deliver=False) as mailer:
        code = await mailer.send_email(email(), expires_after=10 * MINUTE)
    clock.advance(HOUR)
    async with build() as mailer:
        status = await mailer.wait(code, timeout=PATIENCE)

    assert status.recipients[0].result.cause == "expired"
    assert "there was none" in status.recipients[0].result.reason
    assert server.received == 0


@pytest.mark.rule("C17", expected="nothing expires without an attempt")
async def test_nothing_expires_that_was_never_attempted(build, server, storage, clock):
    """Row C17: however long the program was down, or wherever the clock jumped."""
    async with build(deliver=False) as mailer:
        message_id = await mailer.send_email(email())
    clock.advance(10 * DAY)
    async with build() as mailer:
        status = await mailer.wait(message_id, timeout=PATIENCE)

    assert status.succeeded


@pytest.mark.rule("C16", expected="nothing waits a day")
async def test_a_clock_that_is_set_back_stops_nothing_new(build, server, clock):
    """Row C16: what is accepted after the jump is delivered at once."""
    async with build() as mailer:
        await mailer.wait(await mailer.send_email(email()), timeout=PATIENCE)
        clock.advance(-DAY)
        message_id = await mailer.send_email(email())
        status = await mailer.wait(message_id, timeout=PATIENCE)

        (attempt,) = await mailer.query_attempts(message_id)

    assert status.succeeded
    assert attempt.duration >= timedelta(0)


@pytest.mark.rule("C16", expected="what was deferred before waits no longer than the schedule allows")
async def test_what_was_deferred_before_the_clock_was_set_back_is_tried_within_hours(build, server, clock):
    """Row C16: its due time lies a day ahead then; the longest wait between two attempts is what is left of it."""
    server.script["RCPT"] = "451 4.3.0 later"
    retry = RetryPolicy(max_delay=HOUR, jitter=0)
    async with build(retry=retry) as mailer:
        message_id = await mailer.send_email(email())
        await mailer.wait(message_id, until="attempted", timeout=PATIENCE)
        del server.script["RCPT"]
        clock.advance(-DAY)
        await mailer.wait(await mailer.send_email(email("bob@example.net")), timeout=PATIENCE)
        waiting = await mailer.query_status(message_id)
        clock.advance(HOUR)
        status = await mailer.wait(message_id, timeout=PATIENCE)

    assert waiting.recipients[0].result.next_attempt_at <= clock.now()
    assert status.succeeded


@pytest.mark.rule("C16", expected="what waited while the clock was set back is delivered at once")
async def test_what_was_accepted_before_the_clock_was_set_back_is_delivered_at_once(build, server, clock):
    """Row C16: also if nobody delivered while that happened; but what is to be sent later is not sent sooner."""
    async with build(deliver=False) as mailer:
        message_id = await mailer.send_email(email())
        later_id = await mailer.send_email(email(), not_before=clock.now() + HOUR)
    clock.advance(-DAY)
    async with build() as mailer:
        status = await mailer.wait(message_id, timeout=PATIENCE)
        later = await mailer.query_status(later_id)

    assert status.succeeded
    assert later.recipients[0].attempts == 0


async def test_sessions_carry_one_message_after_another(build, server):
    """A hundred messages need a handful of connections, never more than allowed (I13)."""
    async with build(limits=Limits(connections_per_host=3, messages_per_connection=20)) as mailer:
        ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(100)])
        for message_id in ids:
            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded

    assert server.received == 100
    assert server.max_concurrent_sessions <= 3
    assert server.connections <= 8
    assert max(session.messages for session in server.sessions) <= 20


async def test_a_reused_session_that_the_server_closed_costs_no_attempt(build, server):
    """Row A55: the message goes over a new connection at once."""
    async with build() as mailer:
        await mailer.wait(await mailer.send_email(email()), timeout=PATIENCE)
        await server.disconnect()
        status = await mailer.wait(await mailer.send_email(email()), timeout=PATIENCE)

    assert status.succeeded
    assert status.recipients[0].attempts == 1
    assert server.connections == 2


async def test_a_connection_limit_of_the_server_is_respected(build, server, clock):
    """Row A63: 421 to further connections defers nobody while others of ours are served."""
    async with build() as mailer:
        server.script["greeting"] = [None] + ["421 4.7.0 too many connections"] * 50
        ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(60)])
        statuses = [await mailer.wait(message_id, timeout=PATIENCE) for message_id in ids]

    assert all(status.succeeded for status in statuses)
    assert {status.recipients[0].attempts for status in statuses} == {1}


@pytest.mark.parametrize("action", [Close(), Reply("421 4.3.2 shutting down", then=Close())])
async def test_a_dead_site_defers_all_that_waits_there_with_one_connection(build, server, clock, action):
    """A host that is down is probed, not hammered with a connection for each mail."""
    server.script["greeting"] = action
    async with build() as mailer:
        ids = await mailer.send_emails([email(f"r{number}@example.net") for number in range(50)])
        for message_id in ids:
            status = await mailer.wait(message_id, until="attempted", timeout=PATIENCE)
            assert status.recipients[0].result.state == "deferred"

    assert server.connections < 12


async def test_more_recipients_than_a_transaction_takes_are_one_attempt(build, server):
    """`recipients_per_transaction`, and row A35: 452 means another transaction now."""
    server.script["RCPT #8"] = "452 4.5.3 too many recipients"
    async with build(limits=Limits(recipients_per_transaction=10)) as mailer:
        message_id = await mailer.send_email(email(", ".join(f"r{number}@example.net" for number in range(25))))
        status = await mailer.wait(message_id, timeout=PATIENCE)

    assert status.succeeded
    assert {recipient.attempts for recipient in status.recipients} == {1}
    assert sum(len(message.recipients) for message in server.messages) == 25


async def test_a_hanging_server_does_not_hold_up_what_is_asked_of_the_mailer(build, server, clock):
    """Queries, cancels and new mail go on while every session hangs."""
    server.script["MAIL"] = gate = Gate(Hang())
    async with build(shutdown_grace=timedelta(0)) as mailer:
        message_id = await mailer.send_email(email())
        await gate.reached()
        assert (await mailer.query_status(message_id)).recipients[0].result.state == "queued"
        other = await mailer.send_email(email())
        assert {status.message_id for status in await mailer.query_recent()} == {message_id, other}


@pytest.mark.parametrize(
    ("address", "said", "logged"),
    [
        (
            "hidden@example.net",
            "<hidden@example.net>: User (hidden@example.net) unknown",
            "<(address)>: User ((address)) un",
        ),
        ('"hid den"@example.net', 'to="hid den"@example.net, no', "to=(address), no"),
        ("o'hidden@example.net", "o'hidden@example.net", "(address)"),
    ],
)
async def test_the_log_names_no_address(build, server, caplog, address, said, logged):
    """Not even where the server does: it may be a hidden recipient's."""
    caplog.set_level(logging.INFO, "mailstrom_async")
    server.script[f"RCPT TO:<{address}>"] = f"550 5.1.1 {said}"
    async with build() as mailer:
        status = await mailer.wait(await mailer.send_email(email(bcc=address)), timeout=PATIENCE)

    assert address in status.recipients[1].result.reply.text
    assert f"550 5.1.1 {logged}" in caplog.text
    assert "hid" not in caplog.text


def test_a_long_text_is_looked_through_at_once():
    """Whatever a server says: no more work than the text is long. (With one look for each character it is seconds.)"""
    for text in ("x" * 100_000, '"' * 100_000, "@" * 100_000, '"a' * 50_000):
        ADDRESS.sub("", text)
