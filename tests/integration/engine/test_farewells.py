"""Hosts that end a session with 421 in place of the answer to another MAIL: no attempt, but it tells of the site."""

import asyncio
from datetime import timedelta

import pytest

from mailstrom_async import Limits
from mailstrom_async._policy.congestion import Window
from mailstrom_async.testing import Close, Reply

from .conftest import email

PATIENCE = timedelta(seconds=20)
FAREWELL = Reply("421 4.7.0 that is enough", then=Close())


def after(count: int, action=FAREWELL):
    """Ends each session in place of taking one message more."""
    return lambda context: action if context.transaction > count else None


async def deliver(mailer, count: int) -> None:
    """So many messages at once, all at their first attempt."""
    for message_id in await mailer.send_emails([email(f"r{number}@example.net") for number in range(count)]):
        status = await mailer.wait(message_id, timeout=PATIENCE)
        assert status.succeeded
        assert status.recipients[0].attempts == 1


@pytest.mark.parametrize(
    ("script", "messages", "allowed"),
    [
        pytest.param(after(3), 3, 5, id="nobody was shown out yet"),
        pytest.param(after(3), 4, 2, id="few"),
        pytest.param(after(9), 10, 5, id="nine are few"),
        pytest.param(after(10), 11, 13, id="ten are many"),
        pytest.param(after(3, Close()), 4, 6, id="without a word"),
    ],
)
async def test_a_host_that_ends_a_session_after_few_messages_gets_fewer_of_them(
    build, server, script, messages, allowed
):
    """Or we would do little else than open them, and the mail for others would wait (row E2). Hosts that end them after
    many, or drop them, mean nothing by it. The window begins with two, and each message opens it by one."""
    server.script["MAIL"] = script
    async with build(limits=Limits(connections_per_host=20)) as mailer:
        for _ in range(messages):
            await deliver(mailer, 1)

        (site,) = mailer.sites()
        assert site.connections_allowed == allowed


@pytest.mark.parametrize("bdat_window", [0, 64])
async def test_what_was_sent_ahead_was_not_carried(build, server, monkeypatch, bdat_window):
    """A host that took five messages has not taken those behind them."""
    counted = []

    def shown_out(self, carried: int, lasted: float) -> float:
        counted.append(carried)
        return 0.0

    monkeypatch.setattr(Window, "shown_out", shown_out)
    server.extensions.append("CHUNKING")
    server.script["MAIL"] = after(5)
    async with build(limits=Limits(connections_per_host=1, bdat_window=bdat_window)) as mailer:
        await deliver(mailer, 60)

    assert set(counted) == {5}


async def test_a_host_that_ended_a_session_soon_has_a_rest(build, server):
    """We are there an eighth of the time; the rest is for others."""
    now = asyncio.get_running_loop().time
    begun, ended = [], []

    def greet(context):
        begun.append(now())

    def end(context):
        if context.transaction > 3:
            ended.append(now())
            return FAREWELL
        return None

    server.script["greeting"], server.script["MAIL"] = greet, end
    async with build(limits=Limits(connections_per_host=1)) as mailer:
        await deliver(mailer, 30)

    assert len(ended) >= 9
    for came, went, came_again in zip(begun, ended, begun[1:], strict=False):
        assert came_again - went >= min(6 * (went - came), 0.9)
