"""Login codes, ordinary mail and newsletters: who goes first where there is not room for all.

The senders tell the lanes apart, so that the server can hold one of them.
"""

import asyncio
from datetime import timedelta

import anyio
import pytest

from mailstrom_async import Config, Limits, Mailstrom, MemoryStorage, SQLiteStorage
from mailstrom_async.testing import Delay, FakeInternet, Gate, Hang, SMTPServer

from .conftest import email

PATIENCE = timedelta(seconds=20)
NO_GRACE = timedelta(0)


def of(lane: str, number: int = 0, domain: str = "example.net"):
    return email(f"{lane}{number}@{domain}", from_=f"{lane}@example.org")


async def send(mailer, lane: str, count: int) -> list[str]:
    return await mailer.send_emails([of(lane, number) for number in range(count)], lane=lane)


def senders(server: SMTPServer) -> list[str]:
    """The lanes of what was taken, in the order in which it was."""
    return [message.sender.partition("@")[0] for message in server.messages]


@pytest.fixture
def held(server) -> dict[str, Gate]:
    """The server lets the mail of each lane wait after its MAIL until the test opens its gate."""
    server.extensions.remove("PIPELINING")
    gates = {lane: Gate() for lane in ("auth", "default", "bulk")}
    for lane, gate in gates.items():
        server.script[f"MAIL FROM:<{lane}@example.org>"] = gate
    gates["auth"].open()
    return gates


@pytest.mark.parametrize("allowed", [2, 4])
async def test_a_login_code_goes_at_once_though_a_slow_host_has_its_fill_of_newsletters(build, server, held, allowed):
    """Newsletters never use the last session: it opens for the login code, and carries the next one as well."""
    async with build(limits=Limits(connections_per_host=allowed), shutdown_grace=NO_GRACE) as mailer:
        # Some are taken first, so that the site may have all its sessions.
        held["bulk"].open()
        for message_id in await send(mailer, "bulk", 10):
            await mailer.wait(message_id, timeout=PATIENCE)
        held["bulk"].close()
        before = held["bulk"].arrivals
        await send(mailer, "bulk", 50)
        await held["bulk"].reached(before + allowed - 1)
        for number in range(3):
            code = await mailer.send_email(of("auth", number), lane="auth")
            assert (await mailer.wait(code, timeout=PATIENCE)).succeeded
        await anyio.wait_all_tasks_blocked()

        assert held["bulk"].arrivals == before + allowed - 1
        assert server.max_concurrent_sessions == allowed
    assert senders(server)[10:] == ["auth"] * 3


async def test_ordinary_mail_has_all_sessions_until_the_first_login_code_is_seen(build, server, held):
    """Who does not use lanes pays nothing for them; who does has a session kept free of ordinary mail, too."""
    async with build(limits=Limits(connections_per_host=2), shutdown_grace=NO_GRACE) as mailer:
        ids = await send(mailer, "default", 20)
        await held["default"].reached(2)
        ids.append(await mailer.send_email(of("auth"), lane="auth"))
        held["default"].open()
        for message_id in ids:
            await mailer.wait(message_id, timeout=PATIENCE)
        held["default"].close()
        before = held["default"].arrivals
        await send(mailer, "default", 20)
        await held["default"].reached(before + 1)
        for number in range(3):
            code = await mailer.send_email(of("auth", number), lane="auth")
            assert (await mailer.wait(code, timeout=PATIENCE)).succeeded

        assert held["default"].arrivals == before + 1


async def test_newsletters_are_not_starved_where_no_login_code_was_ever_seen(build, server, held):
    """Ordinary mail has all sessions of the site; of those that become free, newsletters get their share."""
    # Each session has a time of its own, so that no two become free in the same moment.
    server.script["end of data"] = lambda context: Delay(timedelta(milliseconds=3 + context.session.number))
    for gate in held.values():
        gate.open()
    async with build(limits=Limits(connections_per_host=8), shutdown_grace=NO_GRACE) as mailer:
        for message_id in await send(mailer, "default", 300):
            await mailer.wait(message_id, timeout=PATIENCE)
        ids = await send(mailer, "default", 250)
        await server.wait_for_messages(320)
        ids += await send(mailer, "bulk", 2)
        for message_id in ids:
            await mailer.wait(message_id, timeout=PATIENCE)

    assert senders(server)[:500].count("bulk") == 2


async def test_what_waits_for_the_only_session_takes_turns_by_weight(build, server, held):
    """A login code is the next to go, four ordinary mails come to a newsletter, and none is starved."""
    limits = Limits(connections_per_host=1, connections=1)
    async with build(limits=limits, shutdown_grace=NO_GRACE) as mailer:
        await send(mailer, "bulk", 30)
        await held["bulk"].reached()
        await send(mailer, "default", 8)
        ids = await send(mailer, "auth", 2)
        held["default"].open()
        held["bulk"].open()
        for message_id in ids:
            await mailer.wait(message_id, timeout=PATIENCE)
        first = senders(server)[:4]
        async with asyncio.timeout(20):
            while server.received < 40:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    assert first.count("auth") == 2
    assert 1 <= senders(server)[:11].count("bulk") <= 4
    assert senders(server).count("bulk") == 30


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_backlog_of_newsletters_hides_no_login_code_after_a_restart(build, server, held, tmp_path, kind):
    """What was accepted last, after more than is read from the store at once, is attempted at once."""
    store = MemoryStorage() if kind == "memory" else SQLiteStorage(tmp_path / "mail.db")
    async with build(store, deliver=False) as mailer:
        template = of("bulk")
        await mailer.send_emails([template.but(to=f"bulk{number}@example.net") for number in range(3000)], lane="bulk")
        code = await mailer.send_email(of("auth"), lane="auth")
        ordinary = await mailer.send_email(of("default"))
    held["default"].open()
    async with build(store, shutdown_grace=NO_GRACE) as mailer:
        for message_id in (code, ordinary):
            status = await mailer.wait(message_id, timeout=PATIENCE)
            assert status.succeeded
    assert status.lane == "default"
    assert sorted(senders(server)) == ["auth", "default"]


async def test_a_connection_of_all_there_are_is_kept_for_login_codes(monkeypatch):
    """Newsletters to many slow hosts leave one of `Limits.connections`, and it is given back when it is not needed."""
    monkeypatch.setattr("mailstrom_async._engine.waits.SLOW", 60.0)  # or the slow ones would not be counted
    async with FakeInternet() as internet:
        gate = Gate(Hang())
        for number in range(5):
            await internet.exchanger(f"mx{number}.example.net", {"MAIL FROM:<bulk@example.org>": gate})
            internet.domain(f"d{number}.example.net", mx=[f"mx{number}.example.net"])
        config = Config(
            helo_name="app.example.org",
            delivery=internet.delivery,
            limits=Limits(connections=3),
            shutdown_grace=NO_GRACE,
        )
        async with Mailstrom(config, MemoryStorage()) as mailer:
            await mailer.send_emails([of("bulk", 0, f"d{number}.example.net") for number in range(5)], lane="bulk")
            await gate.reached(2)
            for number in (4, 3, 4, 2):
                code = await mailer.send_email(of("auth", number, f"d{number}.example.net"), lane="auth")

                assert (await mailer.wait(code, timeout=PATIENCE)).succeeded
