"""Rows A1 to A14: from the connection to the reply to EHLO.

Wherever this fails the next exchanger is tried at once, in the same attempt. A refusal here, even one for good,
concerns the host, or us, rather than the recipient (as Postfix has it): so nothing fails before its lifetime is over.
"""

import socket
from datetime import timedelta

import pytest

from mailstrom_async import RetryPolicy
from mailstrom_async.testing import Close, Drip, Flood, Hang, Raw, Reset

from .world import DOMAIN, SHORT, A, deferred, delivered, failed, failing_host

MX1, MX2 = f"mx1.{DOMAIN}", f"mx2.{DOMAIN}"
FAST = timedelta(milliseconds=20)


@pytest.mark.rule("A1", "connect refused: next address, next MX")
async def test_a1_a_refused_connection_leads_to_the_next_exchanger(world):
    """Row A1: nobody listens at the first one."""
    world.internet.down(MX1)
    second = await world.internet.exchanger(MX2)
    world.internet.domain(DOMAIN, mx=[MX1, MX2])
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: delivered()}
    assert second.received == 1


@pytest.mark.rule("A1", "connect refused: next address of the same MX")
async def test_a1_a_refused_connection_leads_to_the_next_address(world):
    """Row A1: one host with two addresses, at one of which nobody listens."""
    exchanger = await world.exchanger()
    world.internet.dns.records[MX1] = {"A": ["127.0.9.9", exchanger.host]}
    async with world.mailer() as mailer:
        for _ in range(4):
            mail = await world.send(mailer, A)
            assert await mail.attempted() == {A: delivered()}


@pytest.mark.rule("A1", "connect refused by all: D 4.4.1; at expiry F 4.4.7")
async def test_a1_refused_by_all_it_is_deferred_and_expires(world):
    """Row A1: nobody listens anywhere, for as long as the mail lives."""
    world.internet.down(MX1)
    world.internet.down(MX2)
    world.internet.domain(DOMAIN, mx=[MX1, MX2])
    async with world.sent(A, retry=RetryPolicy(lifetime=timedelta(minutes=10))) as mail:
        assert await mail.attempted() == {A: deferred("network", "4.4.1")}
        assert "refused the connection" in (await mail.result()).reason
        seen = await mail.completed()
        attempts = len(await mail.attempts())

    assert seen == {A: failed("expired", "4.4.7", attempts=attempts)}
    assert attempts > 1


class Silence:
    """An address at which connections are neither taken nor refused: its backlog is full."""

    def __init__(self, address: str, port: int) -> None:
        self._sockets = [socket.socket() for _ in range(5)]
        listening, *waiting = self._sockets
        listening.bind((address, port))
        listening.listen(0)
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex((address, port))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.mark.rule("A2", "connect hangs: next address after the timeout")
async def test_a2_a_connection_that_hangs_leads_to_the_next_exchanger(world):
    """Row A2: the first one's address does not answer."""
    second = await world.internet.exchanger(MX2)
    world.internet.dns.records[MX1] = {"A": ["127.0.9.9"]}
    world.internet.domain(DOMAIN, mx=[MX1, MX2])
    with Silence("127.0.9.9", second.port):
        async with world.sent(A, timeouts={"connect": SHORT}) as mail:
            assert await mail.attempted() == {A: delivered()}


@pytest.mark.rule("A2", "connect hangs everywhere: D 4.4.1; slot not held beyond the timeout")
async def test_a2_a_connection_that_hangs_defers(world):
    """Row A2: no address answers. Afterwards the only connection that there may be is another domain's."""
    world.internet.dns.records[MX1] = {"A": ["127.0.9.9"]}
    world.internet.domain(DOMAIN, mx=[MX1])
    await world.internet.exchanger("mx.other.example.com")
    world.internet.domain("other.example.com", mx=["mx.other.example.com"])
    with Silence("127.0.9.9", world.internet.delivery.port):
        async with world.sent(A, timeouts={"connect": SHORT}, limits={"connections": 1}) as mail:
            assert await mail.attempted() == {A: deferred("network", "4.4.1")}
            assert "gave no answer within 0.2 s" in (await mail.result()).reason
            other = await world.send(mail.mailer, "x@other.example.com")
            assert await other.attempted() == {"x@other.example.com": delivered()}


@pytest.mark.rule("A3", "RST after accept: next MX; D 4.4.2")
async def test_a3_a_reset_after_the_connection_stands(world):
    """Row A3: before anything is said."""
    failure = await failing_host(world, {"connect": Reset()})

    assert failure.seen == deferred("network", "4.4.2")
    assert "closed the connection, at greeting" in failure.result.reason


@pytest.mark.rule("A4", "FIN before banner: next MX; D 4.4.2")
async def test_a4_a_connection_closed_in_place_of_a_greeting(world):
    """Row A4: in order, but without a word."""
    failure = await failing_host(world, {"greeting": Close()})

    assert failure.seen == deferred("network", "4.4.2")
    assert failure.server.sessions[0].commands == []


@pytest.mark.rule("A5", "no banner: after the banner timeout next MX; D")
async def test_a5_no_greeting(world):
    """Row A5: the connection stands, and nothing comes."""
    failure = await failing_host(world, {"greeting": Hang()}, timeouts={"greeting": SHORT})

    assert failure.seen == deferred("network", "4.4.2")
    assert "gave no answer within 0.2 s, at greeting" in failure.result.reason


@pytest.mark.rule("A6", "421 banner: next MX at once; D with the reply's text")
async def test_a6_a_greeting_of_421(world):
    """Row A6: too busy."""
    failure = await failing_host(world, {"greeting": "421 4.3.2 Too busy, try the others"})

    assert failure.seen == deferred("smtp", "4.3.2", 421)
    assert failure.result.reply.text == "Too busy, try the others"
    assert failure.result.reply.command == "greeting"


@pytest.mark.rule("A7", "554 banner: next MX; all MX 5xx: D until expiry; 521: D too (our choice)")
@pytest.mark.parametrize("code", [554, 521])
async def test_a7_a_greeting_that_refuses_for_good(world, code):
    """Row A7: it may be our address that is on a list, or a host that is not meant for mail; either may change."""
    failure = await failing_host(world, {"greeting": f"{code} 5.7.1 No mail here"})

    assert failure.seen == deferred("smtp", "5.7.1", code)
    assert failure.result.reply.text == "No mail here"


@pytest.mark.rule("A7", "554 banner of all MX: F at expiry")
async def test_a7_a_host_that_never_greets_us_ends_with_the_mail_s_lifetime(world):
    """Row A7: the last reply stays visible."""
    await world.exchangers({"greeting": "554 go away"}, {"greeting": "554 go away"})
    async with world.sent(A, retry=RetryPolicy(lifetime=timedelta(hours=1))) as mail:
        seen = await mail.completed()
        attempts = len(await mail.attempts())

    assert seen == {A: failed("expired", "4.4.7", 554, attempts)}


@pytest.mark.rule("A8", "garbage banner: protocol error: next MX, D; never F")
@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01\x00\x02\x02\x46\r\n", b"550\x00 x\r\n"]
)
async def test_a8_a_greeting_that_is_no_smtp(world, greeting):
    """Row A8: another kind of server listens there."""
    failure = await failing_host(world, {"greeting": Raw(greeting)})

    assert failure.seen == deferred("protocol", "4.5.0")
    assert failure.server.sessions[0].commands == []


@pytest.mark.rule("A9", "4 MiB reply line, with and without end: <= 64 KiB kept; drop; D")
@pytest.mark.parametrize("end", [b"", b"\r\n"])
@pytest.mark.parametrize("moment", ["greeting", "EHLO"])
async def test_a9_a_reply_line_of_4_mib(world, moment, end):
    """Row A9: given up as soon as it is too long."""
    failure = await failing_host(world, {moment: Raw(b"250 " + 4 * 1024 * b"x" * 1024 + end)})

    assert failure.seen == deferred("protocol", "4.5.0")
    assert "more than 65536 bytes" in failure.result.reason
    assert len(repr(failure.attempt)) < 10_000


@pytest.mark.rule("A10", "endless multiline, fast: dropped by size; D")
async def test_a10_a_reply_without_end(world):
    """Row A10: line upon line."""
    failure = await failing_host(world, {"EHLO": Flood(b"250-MORE\r\n" * 400)})

    assert failure.seen == deferred("protocol", "4.5.0")
    assert "more than 65536 bytes" in failure.result.reason


@pytest.mark.rule("A11", "endless multiline, slow: dropped by the reply's deadline; D")
async def test_a11_a_reply_without_end_that_comes_slowly(world):
    """Row A11: a line now and then does not move the deadline."""
    failure = await failing_host(world, {"EHLO": Flood(b"250-MORE\r\n", FAST)}, timeouts={"command": SHORT})

    assert failure.seen == deferred("network", "4.4.2")
    assert "gave no answer within 0.2 s, at EHLO" in failure.result.reason


@pytest.mark.rule("A11", "one reply dripped by the byte: dropped by the reply's deadline; D")
async def test_a11_a_reply_that_comes_by_the_byte(world):
    """Row A11: nor does a byte now and then."""
    failure = await failing_host(world, {"greeting": Drip("220 " + 40 * "x", FAST)}, timeouts={"greeting": SHORT})

    assert failure.seen == deferred("network", "4.4.2")


@pytest.mark.rule("A12", "EHLO 502: HELO, V; no SIZE=, no BODY=, no 8-bit content")
@pytest.mark.parametrize("code", [500, 502, 550])
async def test_a12_a_server_of_the_old_days(world, code):
    """Row A12: it offers nothing, so nothing is used."""
    exchanger = await world.exchanger({"EHLO": f"{code} unknown"})
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: delivered()}

    (message,) = exchanger.messages
    assert message.mail_options == ()
    assert message.content.isascii()
    assert exchanger.sessions[0].commands[:2] == ["EHLO app.example.org", "HELO app.example.org"]
    assert exchanger.violations == []


@pytest.mark.rule("A13", "EHLO and HELO 5xx: next MX; then D (our choice); text kept")
async def test_a13_a_server_that_refuses_to_talk(world):
    """Row A13: it may not like our name, which somebody can mend."""
    failure = await failing_host(world, {"EHLO": "550 5.7.1 who?", "HELO": "554 5.7.1 Your name is on a list"})

    assert failure.seen == deferred("smtp", "5.7.1", 554)
    assert failure.result.reply.text == "Your name is on a list"


@pytest.mark.rule("A14", "EHLO 421: next MX; D")
async def test_a14_a_server_that_goes_when_we_introduce_ourselves(world):
    """Row A14: no HELO is tried on a session that is over."""
    failure = await failing_host(world, {"EHLO": "421 4.3.2 Going down"})

    assert failure.seen == deferred("smtp", "4.3.2", 421)
    assert failure.server.sessions[0].commands == ["EHLO app.example.org"]
