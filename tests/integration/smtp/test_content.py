"""The content on its way: slow readers, lost connections, and what is in doubt afterwards."""

import asyncio
import time
from datetime import timedelta

import pytest

from mailstrom_async._reply import Phase
from mailstrom_async.testing import (
    Close,
    Drip,
    Gate,
    HalfClose,
    Hang,
    ReadSlowly,
    Reply,
    Reset,
    SMTPServer,
    StopReading,
    Take,
    TakeThenClose,
)

A, B = "a@example.test", "b@example.test"
SHORT = timedelta(seconds=0.3)
LINE = b"x" * 76 + b"\r\n"
# More than all the buffers between us and the server hold together.
BIG = LINE * (20 * 1024 * 1024 // len(LINE))


def ended(result) -> tuple[Phase, str]:
    assert result.decided == {}
    assert result.breakdown is not None
    return result.breakdown.phase, result.breakdown.cause


@pytest.mark.parametrize("tls", [False, True])
async def test_a_big_message_arrives_whole(client, certificates, tls):
    """In plaintext and in TLS, dots and all."""
    content = BIG + b".\r\n" + 1_000 * LINE
    async with SMTPServer(tls=certificates.server() if tls else None) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(content), [A])

        assert result.decided[A].reply.code == 250
        assert server.messages[0].content == content


async def test_others_run_while_a_big_message_is_sent(client, raw_server):
    """The event loop has a turn for others after every 64 KiB."""

    async def serve(reader, writer):
        writer.write(b"220 mx\r\n")
        for reply in (b"250 mx\r\n", b"250 a\r\n", b"250 b\r\n", b"354 go\r\n"):
            await reader.readline()
            writer.write(reply)
        await reader.readuntil(b"\r\n.\r\n")
        writer.write(b"250 taken\r\n")
        await reader.read()

    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    content = LINE * (900 * 1024 // len(LINE))
    async with raw_server(serve).running() as server:
        session = await client.connect(server)
        counting = asyncio.create_task(count())
        result = await session.transact(client.message(content), [A])
        counting.cancel()

    assert result.decided[A].reply.code == 250
    assert turns >= len(content) // (64 * 1024)


async def test_a_slow_reader_is_not_cut_off_while_it_reads(client):
    """Row A40: the upload takes much longer than the time without progress that is allowed."""
    async with SMTPServer({"body": ReadSlowly(timedelta(milliseconds=15))}) as server:
        session = await client.connect(server, timeouts={"block": SHORT})
        begin = time.monotonic()
        result = await session.transact(client.message(BIG), [A])

        assert result.decided[A].reply.code == 250
        assert time.monotonic() - begin > SHORT.total_seconds()


async def test_the_time_for_the_final_reply_begins_with_the_last_byte(client):
    """Finding 3: a reader that paused in the middle does not lose it."""
    async with SMTPServer({"body": StopReading(timedelta(seconds=1))}) as server:
        session = await client.connect(server, timeouts={"end_of_data": timedelta(seconds=0.7)})
        result = await session.transact(client.message(BIG), [A])

        assert result.decided[A].reply.code == 250


@pytest.mark.parametrize("tls", [False, True])
async def test_a_server_that_stops_reading(client, certificates, tls):
    """Row A40: without any progress it is given up; the server can't have the message."""
    async with SMTPServer({"body": StopReading()}, tls=certificates.server() if tls else None) as server:
        session = await client.connect(server, timeouts={"block": SHORT})
        result = await session.transact(client.message(BIG), [A])

        assert ended(result) == (Phase.DATA, "network")
        assert "took nothing of the message for 0.3 s" in result.breakdown.reason
        assert not session.in_doubt
        assert not session.usable
    assert server.messages == []


@pytest.mark.parametrize("action", [Reset(), Close(), HalfClose()])
async def test_a_connection_that_is_lost_inside_the_content(client, action):
    """Rows A38 and A64: the server can't have the message."""
    async with SMTPServer({"body": action}) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(BIG), [A])

        assert ended(result) == (Phase.DATA, "network")
        assert not session.in_doubt
    assert server.messages == []


@pytest.mark.parametrize("code", [451, 552])
async def test_a_refusal_inside_the_content_decides(client, code):
    """Some servers do not wait for the end: what they say counts, and the rest is not sent."""
    async with SMTPServer({"body": Reply(f"{code} 5.3.4 enough", then=Hang())}) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(BIG), [A])

        assert [(phase, reply.code) for phase, reply in result.decided.values()] == [(Phase.END_OF_DATA, code)]
        assert result.breakdown is None
        assert not session.usable
    assert server.messages == []


async def test_a_yes_inside_the_content_delivers_nothing(client):
    """Row A49: the server can't have taken what it does not have."""
    async with SMTPServer({"body": Reply("250 2.0.0 fine already", then=Hang())}) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(BIG), [A])

        assert ended(result) == (Phase.DATA, "protocol")
        assert not session.usable


async def test_a_farewell_inside_the_content(client):
    """421 concerns all who were accepted."""
    async with SMTPServer({"body": Reply("421 4.3.2 going down", then=Hang())}) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(BIG), [A])

        assert ended(result) == (Phase.DATA, "network")
        assert result.breakdown.reply.code == 421


@pytest.mark.parametrize("action", [TakeThenClose(), Take(Reset()), Take(HalfClose()), Close()])
async def test_a_connection_that_is_lost_after_the_dot(client, extensions, action):
    """Row A36: the message may have been taken; who was refused before stays refused."""
    script = {f"RCPT TO:<{B}>": "550 5.1.1 no", "end of data": action}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B])

        assert {r: refusal.reply.code for r, refusal in result.decided.items()} == {B: 550}
        assert (result.breakdown.phase, result.breakdown.cause) == (Phase.END_OF_DATA, "outcome_unknown")
        assert "may arrive twice" in result.breakdown.reason
        assert session.in_doubt
        assert not result.untouched


async def test_a_reply_to_the_dot_that_does_not_come(client):
    """Row A37: in doubt; and the connection is aborted, so that nothing more happens on it."""
    async with SMTPServer({"end of data": Take(Hang())}) as server:
        session = await client.connect(server, timeouts={"end_of_data": SHORT})
        result = await session.transact(client.message(), [A])

        assert ended(result) == (Phase.END_OF_DATA, "outcome_unknown")
        assert "gave no answer within 0.3 s" in result.breakdown.reason
        assert session.in_doubt
        assert not session.usable


@pytest.mark.parametrize(
    ("moment", "timeout", "phase"),
    [("MAIL", "command", Phase.MAIL), ("RCPT", "command", Phase.RCPT), ("DATA", "data", Phase.DATA)],
)
@pytest.mark.parametrize("action", [Hang(), Drip(b"250-" + b"x" * 500, interval=timedelta(milliseconds=10))])
async def test_a_reply_that_does_not_come_in_time(client, extensions, moment, timeout, phase, action):
    """Row A39: each phase has its time, for the whole of the reply however it drips in."""
    async with SMTPServer({moment: action}, extensions=extensions) as server:
        session = await client.connect(server, timeouts={timeout: SHORT})
        result = await session.transact(client.message(), [A])

        assert ended(result) == (phase, "network")
        assert not session.usable
    assert server.messages == []


@pytest.mark.parametrize("moment", ["MAIL", "RCPT", "DATA", "body", "end of data"])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_cancelled_transaction_sends_nothing_more(client, certificates, extensions, moment, tls):
    """Finding 2, row C21: what is buffered is dropped. Only after the dot the outcome is in doubt."""
    gate = Gate()
    async with SMTPServer({moment: gate}, extensions=extensions, tls=certificates.server() if tls else None) as server:
        session = await client.connect(server)
        content = BIG if moment == "body" else LINE
        transaction = asyncio.create_task(session.transact(client.message(content), [A]))
        await gate.reached()
        transaction.cancel()
        with pytest.raises(asyncio.CancelledError):
            await transaction

        assert not session.usable
        assert session.in_doubt is (moment == "end of data")
        gate.open()
        while not server.sessions[0].closed:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0)
        assert server.received == (1 if moment == "end of data" else 0)


async def test_an_aborted_session_sends_nothing_more(client):
    """Finding 2: `abort` in the middle of the content, and the transaction ends."""
    gate = Gate()
    async with SMTPServer({"body": gate}) as server:
        session = await client.connect(server)
        transaction = asyncio.create_task(session.transact(client.message(BIG), [A]))
        await gate.reached()
        session.abort()
        result = await transaction
        gate.open()

        assert ended(result) == (Phase.DATA, "network")
    assert server.messages == []


@pytest.mark.parametrize("moment", [2, 3, 4, 5])
async def test_a_stalled_event_loop_is_not_taken_for_a_slow_server(client, raw_server, moment):
    """Row C18: the reply was here in time, and only we were late to read it."""

    async def serve(reader, writer):
        writer.write(b"220 mx\r\n")
        for number, reply in enumerate((b"250 mx\r\n", b"250 a\r\n", b"250 b\r\n", b"354 go\r\n", b"250 taken\r\n"), 1):
            await (reader.readuntil(b"\r\n.\r\n") if number == 5 else reader.readline())
            writer.write(reply)
            if number == moment:
                time.sleep(0.3)  # noqa: ASYNC251 - that is the fault
        await reader.read()

    timeouts = dict.fromkeys(("command", "data", "end_of_data"), timedelta(seconds=0.2))
    async with raw_server(serve).running() as server:
        session = await client.connect(server, timeouts=timeouts)
        result = await session.transact(client.message(), [A])

        assert result.breakdown is None
        assert result.decided[A].reply.code == 250
