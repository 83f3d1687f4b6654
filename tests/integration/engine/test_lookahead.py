"""A session sends the next envelope with the end of a content: whatever goes wrong then, each message has its own fate.

One connection, so that all messages follow one another on it.
"""

import asyncio
from contextlib import suppress
from datetime import timedelta

import anyio
import pytest

from mailstrom_async import Limits, RetryPolicy, Timeouts
from mailstrom_async.testing import Close, Gate, Reply, Reset, SMTPServer

from .conftest import SECOND, completed, email

PATIENCE = timedelta(seconds=20)
NO_GRACE = timedelta(0)
ALONE = Limits(connections_per_host=1, connections=1)


async def send(mailer, count: int) -> list[str]:
    return await mailer.send_emails([email(f"r{number}@example.net", text=f"{number}") for number in range(count)])


def taken(server: SMTPServer) -> list[str]:
    """Who got a message, and that it was his."""
    for message in server.messages:
        (recipient,) = message.recipients
        assert message.email.get_content().strip() == recipient.partition("@")[0][1:]
    return [message.recipients[0] for message in server.messages]


def everybody(count: int) -> list[str]:
    return [f"r{number}@example.net" for number in range(count)]


@pytest.mark.parametrize(
    ("moment", "actions", "lost"),
    [
        ("MAIL", [None, "450 4.3.2 later"], 1),
        ("MAIL", [None, "550 5.7.1 no"], 1),
        ("MAIL", [None, Reply("421 4.3.2 bye", then=Close())], 0),
        ("MAIL", [None, Close()], 0),
        ("MAIL", [None, Reset()], 0),
        ("RCPT", [None, "450 4.2.1 busy"], 1),
        ("RCPT", [None, "550 5.1.1 unknown"], 1),
        ("RCPT", [None, Close()], 1),
        ("DATA", [None, "451 4.3.0 later"], 1),
        ("DATA", [None, "554 5.5.1 no"], 1),
        ("DATA", [None, Close()], 1),
        ("end of data", ["451 4.3.0 later"], 1),
        ("end of data", ["554 5.6.0 no"], 1),
        ("end of data", [Reply("421 4.3.2 bye", then=Close())], 1),
        ("end of data", [Close()], 1),
        ("end of data", [Reset()], 1),
        ("end of data", [Reply("250 2.0.0 taken", then=Close())], 0),
        ("end of data", [Reply("250 2.0.0 taken", then=Reset())], None),
    ],
)
async def test_trouble_around_an_envelope_sent_ahead_is_its_own_messages_alone(
    build, server, clock, moment, actions, lost
):
    """Who was refused, or was cut off, pays with one attempt; all others are delivered at their first, and once."""
    server.script[moment] = actions
    async with build(limits=ALONE, retry=RetryPolicy(jitter=0)) as mailer:
        ids = await send(mailer, 5)
        first = [await mailer.wait(message_id, until="attempted", timeout=PATIENCE) for message_id in ids]
        unlucky = [status for status in first if not status.succeeded]
        statuses = [await completed(mailer, message_id, clock, 30 * SECOND) for message_id in ids]

    if lost is not None:  # a reset may or may not overtake the reply before it
        assert len(unlucky) == lost
    failed = [status.recipients[0].address for status in statuses if not status.succeeded]
    refused = "55" in str(actions[-1])
    assert len(failed) == refused
    copies = taken(server)
    assert sorted(set(copies)) == sorted(set(everybody(5)) - set(failed))
    if lost is not None:
        assert len(copies) == len(set(copies))
    assert [status.recipients[0].attempts for status in statuses].count(1) >= 4


async def test_a_message_cancelled_while_its_envelope_is_ahead_is_sent_or_not_but_says_the_truth(build, server):
    """It is being attempted, so it may still be delivered: then it says so."""
    async with build(limits=ALONE) as mailer:
        server.script["end of data"] = gate = Gate()
        ids = await send(mailer, 3)
        await gate.reached()
        for message_id in ids:
            await mailer.cancel(message_id)
        gate.open()
        statuses = [await mailer.wait(message_id, timeout=PATIENCE) for message_id in ids]

    delivered = [status.recipients[0].address for status in statuses if status.succeeded]
    assert sorted(taken(server)) == sorted(delivered)
    assert delivered


@pytest.mark.parametrize("grace", [NO_GRACE, PATIENCE])
async def test_a_stop_with_an_envelope_ahead_loses_and_doubles_nothing(build, server, grace):
    """Row C3: what is under way ends or is in doubt; the next one is delivered now or in the next life."""
    async with build(limits=ALONE) as mailer:
        server.script["end of data"] = gate = Gate()
        ids = await send(mailer, 4)
        await gate.reached()
        closing = asyncio.create_task(mailer.aclose(grace))
        await anyio.wait_all_tasks_blocked()
        gate.open()
        await closing
    server.script["end of data"] = None
    async with build(limits=ALONE) as mailer:
        for message_id in ids:
            await mailer.retry_now(message_id)
        statuses = [await mailer.wait(message_id, timeout=PATIENCE) for message_id in ids]
        doubted = [
            status.recipients[0].address
            for status in statuses
            if any(
                "outcome_unknown" in str(attempt.outcome) for attempt in await mailer.query_attempts(status.message_id)
            )
        ]

    copies = taken(server)
    assert all(status.succeeded for status in statuses)
    assert sorted(set(copies)) == everybody(4)
    assert {recipient for recipient in copies if copies.count(recipient) > 1} <= set(doubted)
    assert len(doubted) == (grace == NO_GRACE)


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_the_limit_of_messages_in_a_session_holds(build, server, most):
    """`messages_per_connection`: no envelope is sent ahead that this session may not carry."""
    async with build(limits=Limits(connections_per_host=1, messages_per_connection=most)) as mailer:
        for message_id in await send(mailer, 7):
            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded

    assert max(session.transactions for session in server.sessions) == most
    assert all(session.quit for session in server.sessions)
    assert sorted(taken(server)) == everybody(7)


async def test_without_pipelining_nothing_is_sent_ahead(build, server):
    """A server that does not offer it may lose what comes too early."""
    server.extensions.remove("PIPELINING")
    async with build(limits=ALONE) as mailer:
        for message_id in await send(mailer, 5):
            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded

    assert sum(session.pipelined for session in server.sessions) == 0
    assert sorted(taken(server)) == everybody(5)


async def test_a_message_that_the_server_can_not_take_does_not_stop_the_others(build, server):
    """Too big for it: it fails by itself, and neither the one before nor the one behind it notices."""
    server.extensions[:] = [name for name in server.extensions if not name.startswith("SIZE")] + ["SIZE 5000"]
    async with build(limits=ALONE) as mailer:
        emails = [
            email(f"r{n}@example.net", text="x" * 60 + "\n" if n % 2 else ("y" * 60 + "\n") * 200) for n in range(6)
        ]
        statuses = [await mailer.wait(i, timeout=PATIENCE) for i in await mailer.send_emails(emails)]

    results = [status.recipients[0].result for status in statuses]
    assert [result.state for result in results] == ["failed", "delivered"] * 3
    assert {result.enhanced for result in results[::2]} == {"5.3.4"}
    assert server.received == 3


async def test_an_engine_with_a_backlog_sends_the_next_envelope_ahead(build):
    """Or the rest of this file would test nothing: no reply to the dot comes before the next envelope is here."""
    ahead = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        await reader.readline()
        writer.write(b"250-here\r\n250 PIPELINING\r\n")
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"250 yes\r\n250 yes\r\n354 go\r\n")
        await reader.readuntil(b"\r\n.\r\n")
        await reader.readuntil(b"DATA\r\n")
        ahead.set()
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with build(limits=ALONE, port=port, shutdown_grace=NO_GRACE) as mailer, asyncio.timeout(10):
            await send(mailer, 3)
            await ahead.wait()


async def test_a_bundle_given_back_goes_to_a_session_that_idles(build, server):
    """The session that it was bound to is gone, and no other can be opened: the one that has nothing to do takes it."""
    gate = Gate(Reply("250 2.0.0 taken", then=Close()))
    server.script["end of data"] = lambda context: gate if context.session.number == 1 else None
    async with build(limits=Limits(connections_per_host=2), timeouts=Timeouts(idle=timedelta(hours=1))) as mailer:
        ids = await send(mailer, 8)
        await gate.reached()
        await server.wait_for_messages(6)  # all but the one at the gate and the one behind it
        server.script["greeting"] = "421 4.7.0 too many connections"
        gate.open()
        statuses = [await mailer.wait(message_id, timeout=PATIENCE) for message_id in ids]

    assert {status.recipients[0].attempts for status in statuses} == {1}
    assert sorted(taken(server)) == everybody(8)
