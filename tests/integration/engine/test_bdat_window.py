"""Several messages are on their way on one connection: whatever goes wrong, each has its own fate, and none is lost.

One connection, so that all messages follow one another on it.
"""

import asyncio
from datetime import timedelta
from itertools import chain

import anyio
import pytest

from mailstrom_async import Limits, RetryPolicy, Timeouts
from mailstrom_async.testing import Close, Drip, Gate, Hang, Raw, Reply, Reset, SMTPServer, TakeThenClose

from .conftest import SECOND, completed, email

PATIENCE = timedelta(seconds=20)
NO_GRACE = timedelta(0)
STREAMING = Limits(connections_per_host=1, connections=1, bdat_window=8)
COUNT = 14


@pytest.fixture(autouse=True)
def chunking(server):
    """What the server offers, too."""
    server.extensions.append("CHUNKING")


async def send(mailer, count: int = COUNT, **fields) -> list[str]:
    return await mailer.send_emails([email(f"r{n}@example.net", text=f"{n}", **fields) for n in range(count)])


def taken(server: SMTPServer) -> list[str]:
    """Who got a message, and that it was his."""
    for message in server.messages:
        (recipient,) = message.recipients
        assert message.email.get_content().strip() == recipient.partition("@")[0][1:]
    return [message.recipients[0] for message in server.messages]


def everybody(count: int = COUNT) -> set[str]:
    return {f"r{number}@example.net" for number in range(count)}


async def doubted(mailer, message_ids) -> list[str]:
    """Whose attempts say that the outcome is unknown."""
    return [
        attempt.recipients[0]
        for message_id in message_ids
        for attempt in await mailer.query_attempts(message_id)
        if "outcome_unknown" in str(attempt.outcome)
    ]


def commands(server: SMTPServer, verb: str) -> int:
    return sum(command.startswith(verb) for session in server.sessions for command in session.commands)


async def test_messages_do_not_wait_for_one_another(build, server):
    """A window of eight: while the third one's reply is held, five more are here whole, and nine are not."""
    server.script["end of data"] = [None] * 8 + [gate := Gate()]
    async with build(limits=STREAMING) as mailer:
        ids = await send(mailer, 40)
        await gate.reached()
        await anyio.wait_all_tasks_blocked()
        gate.open()
        statuses = [await mailer.wait(message_id, timeout=PATIENCE) for message_id in ids]

    assert all(status.succeeded for status in statuses)
    assert server.connections == 1
    assert commands(server, "DATA") == 0
    assert server.sessions[0].pipelined > 40
    assert server.violations == []
    assert set(taken(server)) == everybody(40)
    assert server.received == 40


@pytest.mark.parametrize("offer", ["no CHUNKING", "no PIPELINING", "no window"])
async def test_it_is_off_unless_asked_for_and_offered(build, server, offer):
    """Then everything goes by DATA."""
    if offer != "no window":
        server.extensions.remove(offer.removeprefix("no "))
    async with build(limits=Limits() if offer == "no window" else STREAMING) as mailer:
        for message_id in await send(mailer, 5):
            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded

    assert commands(server, "BDAT") == 0
    assert server.violations == []


@pytest.mark.parametrize(
    ("moment", "action", "unlucky", "doubts"),
    [
        ("RSET", "502 5.5.1 what", 0, None),
        ("RSET", Close(), 0, None),
        ("MAIL", "450 4.3.2 later", 1, 0),
        ("MAIL", "550 5.7.1 no", 1, 0),
        ("MAIL", Reply("421 4.3.2 bye", then=Close()), 0, 0),
        ("MAIL", Close(), 0, None),
        ("MAIL", Reset(), 0, None),
        ("MAIL", Raw(b"what?\r\n"), 0, None),
        ("RCPT", "450 4.2.1 busy", 1, 0),
        ("RCPT", "550 5.1.1 unknown", 1, 0),
        ("RCPT", Reply("421 4.3.2 bye", then=Close()), 1, 0),
        ("RCPT", Close(), 0, None),
        ("end of data", "451 4.3.0 later", 1, 0),
        ("end of data", "554 5.6.0 no", 1, 0),
        ("end of data", Reply("421 4.3.2 bye", then=Close()), 1, 0),
        ("end of data", Close(), 0, None),
        ("end of data", Reset(), 0, None),
        ("end of data", TakeThenClose(), 0, None),
        ("end of data", Hang(), 0, None),
        ("end of data", Drip("250 2.0.0 taken", timedelta(seconds=0.2)), 0, None),
        ("end of data", Raw(b"250 2.0.0 ok\r\n250 2.0.0 ok\r\n"), 0, None),
        ("end of data", "354 go on", 0, None),
        ("end of data", Reply("250 2.0.0 taken", then=Close()), 0, None),
    ],
)
async def test_trouble_in_the_window_is_its_own_messages_alone(build, server, clock, moment, action, unlucky, doubts):
    """Who was refused pays with one attempt. All others arrive; twice only those of whom it was said that they may."""
    server.script[moment] = [None] * 5 + [action]
    timeouts = Timeouts(end_of_data=timedelta(seconds=0.5), command=timedelta(seconds=5))
    async with build(limits=STREAMING, retry=RetryPolicy(jitter=0), timeouts=timeouts) as mailer:
        ids = await send(mailer)
        first = [await mailer.wait(message_id, until="attempted", timeout=PATIENCE) for message_id in ids]
        statuses = [await completed(mailer, message_id, clock, 30 * SECOND) for message_id in ids]
        in_doubt = await doubted(mailer, ids)

    if doubts is not None:
        assert sum(not status.succeeded for status in first) == unlucky
        assert len(in_doubt) == doubts
    else:
        assert 0 < len(in_doubt) <= 8
    failed = {status.recipients[0].address for status in statuses if not status.succeeded}
    assert len(failed) == str(action).startswith("55")
    copies = taken(server)
    assert set(copies) == everybody() - failed
    assert {recipient for recipient in copies if copies.count(recipient) > 1} <= set(in_doubt)


@pytest.mark.parametrize("grace", [NO_GRACE, PATIENCE])
async def test_a_stop_with_a_full_window_loses_nothing(build, server, grace):
    """Row C3: what is under way ends or is in doubt; what is not is delivered now or in the next life."""
    server.script["end of data"] = [None] * 6 + [gate := Gate()]
    async with build(limits=STREAMING) as mailer:
        ids = await send(mailer)
        await gate.reached()
        closing = asyncio.create_task(mailer.aclose(grace))
        await anyio.wait_all_tasks_blocked()
        gate.open()
        await closing
    server.script["end of data"] = None
    async with build(limits=STREAMING) as mailer:
        for message_id in ids:
            await mailer.retry_now(message_id)
        statuses = [await mailer.wait(message_id, timeout=PATIENCE) for message_id in ids]
        in_doubt = await doubted(mailer, ids)

    copies = taken(server)
    assert all(status.succeeded for status in statuses)
    assert set(copies) == everybody()
    assert {recipient for recipient in copies if copies.count(recipient) > 1} <= set(in_doubt)
    assert (grace == NO_GRACE) == bool(in_doubt)


async def test_the_limit_of_messages_in_a_session_holds(build, server):
    """`messages_per_connection`: what is sent ahead counts."""
    async with build(limits=Limits(connections_per_host=1, messages_per_connection=5, bdat_window=8)) as mailer:
        for message_id in await send(mailer):
            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded

    assert max(session.transactions for session in server.sessions) == 5
    assert all(session.quit for session in server.sessions)
    assert server.received == COUNT


async def test_large_messages_and_those_that_do_not_fit_stand_between_small_ones(build, server):
    """Above 64 KiB a content waits for its turn; what is too big for the server fails by itself."""
    server.extensions[:] = [name for name in server.extensions if not name.startswith("SIZE")] + ["SIZE 300000"]
    async with build(limits=STREAMING) as mailer:
        sizes = [1, 1, 2000, 1, 8000, 1, 1, 2000, 1, 1]
        emails = [email(f"r{n}@example.net", text=("x" * 60 + "\n") * size) for n, size in enumerate(sizes)]
        statuses = [await mailer.wait(i, timeout=PATIENCE) for i in await mailer.send_emails(emails)]

    states = [status.recipients[0].result.state for status in statuses]
    assert states == ["failed" if size == 8000 else "delivered" for size in sizes]
    assert commands(server, "BDAT") == 9
    assert server.violations == []


async def test_recipients_who_are_too_many_go_in_another_transaction(build, server):
    """Row A35, with others on their way."""
    server.script["RCPT"] = lambda context: "452 4.5.3 too many" if len(context.recipients) >= 2 else None
    async with build(limits=Limits(connections_per_host=1, recipients_per_transaction=3, bdat_window=8)) as mailer:
        recipients = [[f"r{n}-{k}@example.net" for k in range(7)] for n in range(6)]
        ids = await mailer.send_emails([email(to) for to in recipients])
        statuses = [await mailer.wait(message_id, timeout=PATIENCE) for message_id in ids]

    assert all(status.succeeded for status in statuses)
    assert all(recipient.attempts == 1 for status in statuses for recipient in status.recipients)
    got = [recipient for message in server.messages for recipient in message.recipients]
    assert sorted(got) == sorted(chain.from_iterable(recipients))
    assert commands(server, "DATA") == 0
