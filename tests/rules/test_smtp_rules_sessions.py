"""Rows A55, A56, A58 to A61 and A63: sessions that carry several messages, greylisting, and relays."""

import asyncio
import logging
from base64 import b64encode
from contextlib import asynccontextmanager

import pytest

from mailstrom_async import RelayDelivery
from mailstrom_async.testing import Close, Greylist, Hang, Raw, Reset, SMTPServer

from .world import DOMAIN, MINUTE, A, B, deferred, delivered, failed


@pytest.mark.rule("A55", "pooled connection closed while idle: reconnect silently; no attempt charged, no D")
async def test_a55_a_session_closed_while_idle_is_replaced(world, extensions):
    """Row A55: the server closed it, as servers do."""
    exchanger = await world.exchanger(extensions=extensions)
    async with world.mailer() as mailer:
        for _ in range(3):
            mail = await world.send(mailer, A)
            assert await mail.attempted() == {A: delivered()}
            await exchanger.disconnect()

    assert exchanger.received == 3


@pytest.mark.rule("A55", "pooled connection found closed when MAIL is sent: the same; resent as MAIL was not answered")
@pytest.mark.parametrize("end", [Close(), Reset(), "421 4.4.2 idle for too long"])
async def test_a55_a_session_that_turns_out_to_be_closed_is_replaced(world, extensions, end):
    """Row A55: we hear of it only when we use it."""
    exchanger = await world.exchanger({"MAIL": [None, end]}, extensions=extensions)
    async with world.mailer() as mailer:
        for _ in range(2):
            mail = await world.send(mailer, A)
            assert await mail.attempted() == {A: delivered()}
            assert len(await mail.attempts()) == 1

    assert exchanger.connections == exchanger.received == 2


@pytest.mark.rule("A55", "pooled connection closed after MAIL was answered: D")
async def test_a55_a_session_that_is_closed_later_defers(world, extensions):
    """Row A55: from there on it is an attempt like any other."""
    exchanger = await world.exchanger({"RCPT": [None, Close()]}, extensions=extensions)
    async with world.mailer() as mailer:
        mail = await world.send(mailer, A)
        assert await mail.attempted() == {A: delivered()}
        mail = await world.send(mailer, A)
        assert await mail.attempted() == {A: deferred("network", "4.4.2")}

    assert exchanger.received == 1


@pytest.mark.rule("A56", "RSET refused or 421 between transactions: drop, new connection; no recipient harmed")
@pytest.mark.parametrize("answer", ["502 5.5.1 no RSET here", "421 4.3.2 bye", Close(), Reset(), Raw(b"junk\r\n")])
async def test_a56_a_refused_rset_harms_nobody(world, extensions, answer):
    """Row A56: RSET comes before the second message, as nobody was accepted for the first."""
    exchanger = await world.exchanger({f"RCPT TO:<{B}>": "550 5.1.1 no", "RSET": [answer]}, extensions=extensions)
    async with world.mailer() as mailer:
        mail = await world.send(mailer, B)
        assert await mail.attempted() == {B: failed("smtp", "5.1.1", 550)}
        mail = await world.send(mailer, A)
        if isinstance(answer, Raw):
            # Whoever does not speak SMTP is not given the message again at once.
            assert await mail.attempted() == {A: deferred("protocol", "4.5.0")}
        else:
            assert await mail.attempted() == {A: delivered()}

    assert [message.recipients for message in exchanger.messages] == ([] if isinstance(answer, Raw) else [(A,)])


@pytest.mark.rule("A58", "greylisting: 451 until n minutes; V at a later attempt, within the retry schedule")
async def test_a58_a_greylisted_mail_is_delivered_later(world, extensions):
    """Row A58: the first retry comes soon enough for the usual five minutes, or the second."""
    exchanger = await world.exchanger({"RCPT": Greylist(5 * MINUTE, world.clock)}, extensions=extensions)
    begin = world.clock.now()
    async with world.sent(A, B) as mail:
        greylisted = deferred("smtp", "4.7.1", 451)
        assert await mail.attempted() == {A: greylisted, B: greylisted}
        assert await mail.completed() == {A: delivered(attempts=3), B: delivered(attempts=3)}

    assert exchanger.received == 1
    assert world.clock.now() - begin < 15 * MINUTE


@pytest.mark.rule("A59", "QUIT never answered: V at the dot's reply; QUIT waited for briefly or not at all")
async def test_a59_quit_is_not_waited_for(world, extensions):
    """Row A59: one message each connection, so that QUIT comes after each."""
    exchanger = await world.exchanger({"QUIT": Hang()}, extensions=extensions)
    async with asyncio.timeout(10):
        async with world.mailer(limits={"messages_per_connection": 1, "connections_per_host": 1}) as mailer:
            for _ in range(2):
                mail = await world.send(mailer, A)
                assert await mail.attempted() == {A: delivered()}

    assert [record.quit for record in exchanger.sessions] == [True, True]


PASSWORDS = (b"secret", b"\0app\0secret")  # as LOGIN and PLAIN write it


@asynccontextmanager
async def relay(world, authority, script=None, **server):
    """A relay that demands a login, and the settings for it."""
    context = authority.server_context("relay.example.org")
    options = {"tls": context, "users": {"app": "secret"}, **server}
    async with SMTPServer(script, **options) as server:
        world.internet.dns.records["relay.example.org"] = {"A": [server.host]}
        yield (
            server,
            RelayDelivery(
                host="relay.example.org",
                port=server.port,
                nameservers=(world.internet.dns.address,),
                username="app",
                password="secret",
            ),
        )


@pytest.mark.rule("A60", "relay: 535 to AUTH: D and a loud health signal, which ends when a login succeeds")
async def test_a60_a_refused_login_defers_and_is_loud(world, authority, caplog):
    """Row A60: it is a fault of the settings, and hits all mail."""
    async with relay(world, authority, {"AUTH": "535 5.7.8 bad credentials"}) as (server, delivery):
        with caplog.at_level(logging.WARNING, "mailstrom_async"):
            async with world.sent(A, delivery=delivery) as mail:
                assert await mail.attempted() == {A: deferred("smtp", "5.7.8", 535)}
                await world.until(lambda: mail.mailer.worker_status.state == "degraded")
                assert "bad credentials" in mail.mailer.worker_status.reason
                server.script["AUTH"] = None
                assert await mail.attempted_again() == {A: delivered(attempts=2)}
                await world.until(lambda: mail.mailer.worker_status.state == "running")
                first, _ = await mail.attempts()
    assert server.messages[0].session.username == "app"
    assert "C: (credentials)" in first.transcript
    said = " ".join([caplog.text, *first.transcript])
    assert not any(secret in said for secret in ("secret", *(b64encode(word).decode() for word in PASSWORDS)))
    assert "bad credentials" in caplog.text


@pytest.mark.rule("A61", "relay: AUTH offered in plaintext only: credentials never sent without TLS; D")
@pytest.mark.parametrize("script", [{}, {"EHLO": "250-relay\nSTARTTLS\nAUTH PLAIN LOGIN", "STARTTLS": "454 4.7.0 no"}])
async def test_a61_credentials_are_never_sent_in_plaintext(world, authority, script):
    """Row A61: nor is the mail."""
    async with (
        relay(world, authority, script, tls=None, auth_without_tls=True) as (server, delivery),
        world.sent(A, delivery=delivery, tls="none") as mail,
    ):
        assert await mail.attempted() == {A: deferred("tls", "4.7.5")}

    assert not any(command.startswith(("AUTH", "MAIL")) for command in server.sessions[0].commands)


@pytest.mark.rule("A63", "connection limit (421): D without burning the schedule for all; concurrency lowered")
@pytest.mark.parametrize("limit", [1, 3])
async def test_a63_a_limit_of_connections_is_respected(world, limit):
    """Row A63: all mail goes over the connections that the server allows; nobody waits for a retry."""
    exchanger = await world.exchanger(max_sessions=limit)
    addresses = [f"u{number}@{DOMAIN}" for number in range(40)]
    async with world.mailer(limits={"connections_per_host": 8}) as mailer:
        mails = [await world.send(mailer, address) for address in addresses]
        for mail, address in zip(mails, addresses, strict=True):
            assert await mail.attempted() == {address: delivered()}

    assert exchanger.received == 40
    assert exchanger.connections - limit <= 8
