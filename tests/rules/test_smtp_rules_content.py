"""Rows A36 to A40 and A64: the content on its way, and what is in doubt afterwards.

Only the time between the final dot and its reply is in doubt: a connection lost then means that the mail is sent again,
and may arrive twice. That is the one source of duplicates, and it is named where it happens.
"""

import logging
from datetime import timedelta

import pytest

from mailstrom_async.testing import (
    Close,
    Delay,
    Drip,
    Gate,
    HalfClose,
    Hang,
    Raw,
    ReadSlowly,
    Reply,
    Reset,
    StopReading,
    Take,
    TakeThenClose,
)

from .world import DOMAIN, LONG, OFFERS, SHORT, A, deferred, delivered

# More than all the buffers between us and the server hold together.
BIG = b"From: a@example.org\r\nSubject: big\r\n\r\n" + (b"x" * 76 + b"\r\n") * 260_000


@pytest.mark.rule("A36", "drop after the dot, message taken: D, logged as in doubt, retried, may arrive twice; V then")
@pytest.mark.parametrize("end", [TakeThenClose(), Take(Reset())])
async def test_a36_a_connection_lost_after_the_dot_is_in_doubt(world, extensions, end, caplog):
    """Row A36: the second copy is the same, byte for byte."""
    exchanger = await world.exchanger({"end of data": [end]}, extensions=extensions)
    with caplog.at_level(logging.INFO, "mailstrom_async"):
        async with world.sent(A) as mail:
            assert await mail.attempted() == {A: deferred("outcome_unknown", "4.4.2")}
            assert await mail.attempted_again() == {A: delivered(attempts=2)}
            first, _ = await mail.attempts()

    assert first.outcome[A].cause == "outcome_unknown"
    assert "may arrive twice" in first.outcome[A].reason
    assert "may arrive twice" in caplog.text
    one, two = exchanger.messages
    assert one.content == two.content


@pytest.mark.rule("A37", "250 later than our timeout: as A36; connection aborted")
async def test_a37_a_reply_that_comes_too_late_is_in_doubt(world, extensions):
    """Row A37: and what comes late answers nothing else."""
    gate = Gate()
    exchanger = await world.exchanger({"end of data": [Take(gate)]}, extensions=extensions)
    async with world.sent(A, timeouts={"end_of_data": SHORT}) as mail:
        assert await mail.attempted() == {A: deferred("outcome_unknown", "4.4.2")}
        gate.open()
        assert await mail.attempted_again() == {A: delivered(attempts=2)}

    assert exchanger.connections == 2
    assert not exchanger.sessions[0].quit


@pytest.mark.rule("A38", "RST inside the body: D; no commit at the server")
@pytest.mark.parametrize("action", [Reset(), Close()])
async def test_a38_a_connection_lost_inside_the_content_delivers_nothing(world, action):
    """Row A38: it is not in doubt."""
    exchanger = await world.exchanger({"body": [action]})
    async with world.sent(A, email=BIG) as mail:
        assert await mail.attempted() == {A: deferred("network", "4.4.2")}
        assert exchanger.messages == []
        assert await mail.attempted_again() == {A: delivered(attempts=2)}

    assert exchanger.received == 1


@pytest.mark.rule("A38", "session lost before the dot, other MX: V there in the same attempt (our choice)")
@pytest.mark.parametrize("moment", ["MAIL", "RCPT", "DATA", "body"])
@pytest.mark.parametrize("action", [Reset(), Reply("421 4.3.2 going down", then=Close()), Raw(b"junk\r\n")])
async def test_a38_a_session_that_is_lost_leads_to_the_next_exchanger(world, moment, action):
    """Row A38: it can't have the mail, and said nothing of the recipients."""
    first, second = await world.exchangers({moment: action}, None)
    async with world.sent(A, email=BIG if moment == "body" else None) as mail:
        assert await mail.attempted() == {A: delivered()}
        assert (await mail.result()).host == second.name
        assert len(await mail.attempts()) == 1

    assert (first.received, second.received) == (0, 1)


@pytest.mark.rule("A36", "drop after the dot: no other MX in the same attempt")
async def test_a36_what_is_in_doubt_is_not_tried_elsewhere_at_once(world):
    """Row A36: the copy may be on its way."""
    first, second = await world.exchangers({"end of data": TakeThenClose()}, None)
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: deferred("outcome_unknown", "4.4.2")}

    assert (first.received, second.connections) == (1, 0)


async def taken_elsewhere(world, mailer) -> None:
    """A mail to another domain is delivered, whatever goes on at the first."""
    await world.internet.exchanger("mx.other.example.com")
    world.internet.domain("other.example.com", mx=["mx.other.example.com"])
    other = await world.send(mailer, "x@other.example.com")
    assert await other.attempted() == {"x@other.example.com": delivered()}


@pytest.mark.rule("A39", "dripped replies, a byte now and then: whole-reply deadline; others not delayed")
@pytest.mark.parametrize("moment", ["MAIL", "RCPT", "DATA"])
async def test_a39_a_dripped_reply_is_given_up(world, extensions, moment):
    """Row A39: the other domain's mail is there before."""
    dripped = Drip("250 " + 200 * "x", timedelta(milliseconds=20))
    exchanger = await world.exchanger({moment: dripped}, extensions=extensions)
    async with world.sent(A, timeouts={"command": 3 * SHORT, "data": 3 * SHORT}) as mail:
        await taken_elsewhere(world, mail.mailer)
        assert await mail.attempted() == {A: deferred("network", "4.4.2")}
        assert "gave no answer within 0.6 s" in (await mail.result()).reason

    assert exchanger.messages == []


@pytest.mark.rule("A39", "each reply in time, all of them drawn out: the envelope's deadline; D")
async def test_a39_replies_that_are_drawn_out_are_given_up(world):
    """Row A39: twenty recipients, each of whom takes a while."""
    addresses = [f"u{number}@{DOMAIN}" for number in range(20)]
    slowly = Delay(timedelta(milliseconds=50))
    exchanger = await world.exchanger({"RCPT": slowly}, extensions=OFFERS)
    async with world.sent(*addresses, timeouts={"envelope": 2 * SHORT}) as mail:
        assert await mail.attempted() == dict.fromkeys(addresses, deferred("network", "4.4.2"))
        assert "draws its answers out too long, at RCPT" in (await mail.result(addresses[0])).reason

    assert exchanger.messages == []


@pytest.mark.rule("A40", "server stops reading mid-body: no-progress timer; D")
async def test_a40_a_server_that_stops_reading_is_given_up(world):
    """Row A40: it can't have the message, so nothing is in doubt; others go on meanwhile."""
    exchanger = await world.exchanger({"body": [StopReading()]})
    async with world.sent(A, email=BIG, timeouts={"block": 3 * SHORT}) as mail:
        await taken_elsewhere(world, mail.mailer)
        assert await mail.attempted() == {A: deferred("network", "4.4.2")}
        assert "took nothing of the message for 0.6 s" in (await mail.result()).reason
        assert exchanger.messages == []
        assert await mail.attempted_again() == {A: delivered(attempts=2)}


@pytest.mark.rule("A40", "a slow but moving upload is never cut: V")
async def test_a40_a_slow_reader_is_not_cut_off(world):
    """Row A40: the upload takes much longer than may pass without progress."""
    exchanger = await world.exchanger({"body": ReadSlowly(timedelta(milliseconds=15))})
    async with world.sent(A, email=BIG, timeouts={"block": SHORT, "end_of_data": LONG}) as mail:
        assert await mail.attempted() == {A: delivered()}

    assert exchanger.messages[0].content.endswith(BIG[-100_000:])


@pytest.mark.rule("A64", "half-closed server side: no spin; D")
@pytest.mark.parametrize("moment", ["greeting", "EHLO", "MAIL", "RCPT", "DATA"])
async def test_a64_a_half_closed_connection_is_closed(world, extensions, moment):
    """Row A64: we close our side, too, rather than wait or spin."""
    exchanger = await world.exchanger({moment: HalfClose()}, extensions=extensions)
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: deferred("network", "4.4.2")}
        assert "closed the connection" in (await mail.result()).reason
        await world.until(lambda: exchanger.sessions[0].closed)

    assert exchanger.messages == []


@pytest.mark.rule("A64", "half-closed after the dot: D, in doubt")
@pytest.mark.parametrize("action", [HalfClose(), Hang()])
async def test_a64_a_half_closed_connection_after_the_dot_is_in_doubt(world, extensions, action):
    """Row A64: as row A36."""
    exchanger = await world.exchanger({"end of data": action}, extensions=extensions)
    async with world.sent(A, timeouts={"end_of_data": SHORT}) as mail:
        assert await mail.attempted() == {A: deferred("outcome_unknown", "4.4.2")}
        await world.until(lambda: exchanger.sessions[0].closed)
