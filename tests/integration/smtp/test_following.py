"""The end of a content is the begin of another group (RFC 2920 section 3.1): the next envelope goes out with it."""

import asyncio
from datetime import timedelta

import pytest

from mailstrom_async._reply import Phase
from mailstrom_async.testing import SMTPServer

A, B = "a@example.test", "b@example.test"
END = b"\r\n.\r\n"


async def open_up(reader, writer) -> None:
    """The server's side until it has the content of the first message, to which it has not replied."""
    writer.write(b"220 mx.example.test ESMTP\r\n")
    await reader.readline()
    writer.write(b"250-mx.example.test\r\n250 PIPELINING\r\n")
    await reader.readuntil(b"DATA\r\n")
    writer.write(b"250 yes\r\n250 yes\r\n354 go on\r\n")
    await reader.readuntil(END)


async def test_the_next_envelope_is_sent_before_the_reply_to_the_dot(client, raw_server):
    """It saves a round trip, and each reply finds its own command."""

    async def serve(reader, writer):
        await open_up(reader, writer)
        envelope = await reader.readuntil(b"DATA\r\n")
        writer.write(
            b"250 taken\r\n250 yes\r\n550 unknown\r\n503 nobody is left\r\n" if B.encode() in envelope else b""
        )
        await reader.read()

    async with raw_server(serve).running() as server:
        session = await client.connect(server, "none")
        message = client.message()
        first = await session.transact(message, [A], lambda: (message, [B]))
        second = await session.transact(message, [B])

    assert (first.decided[A].phase, first.decided[A].reply.code) == (Phase.END_OF_DATA, 250)
    assert (second.decided[B].phase, second.decided[B].reply.code) == (Phase.RCPT, 550)


async def test_an_envelope_that_can_not_be_written_does_not_harm_the_message_before_it(client):
    """Its own transaction raises, as it would have without the other."""
    async with SMTPServer() as server:
        session = await client.connect(server, "none")
        message = client.message()
        result = await session.transact(message, [A], lambda: (message, ["no address"]))
        with pytest.raises(ValueError, match="can't stand in an SMTP command"):
            await session.transact(message, ["no address"])

        assert result.decided[A].reply.code == 250
        assert server.received == 1


@pytest.mark.rule("A36", expected="the outcome is unknown")
@pytest.mark.parametrize("end", ["closed", "silent", "cancelled"])
async def test_a_message_is_in_doubt_although_the_envelope_behind_it_is_stuck(client, raw_server, end):
    """Row A36: the server has all of the message. What it does not read any more is no part of that."""
    has_all = asyncio.Event()
    done = asyncio.Event()

    async def serve(reader, writer):
        await open_up(reader, writer)
        writer.transport.pause_reading()
        has_all.set()
        if end == "closed":
            writer.transport.abort()
        await done.wait()

    many = [f"{'x' * 60}{number}@{'y' * 200}.example.test" for number in range(40_000)]
    timeouts = {"block": timedelta(seconds=0.2), "end_of_data": timedelta(seconds=20 if end == "cancelled" else 0.4)}
    async with raw_server(serve).running() as server:
        session = await client.connect(server, "none", timeouts=timeouts)
        message = client.message()
        sending = asyncio.create_task(session.transact(message, [A], lambda: (message, many)))
        await has_all.wait()
        if end == "cancelled":
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert session.in_doubt
        else:
            result = await sending
            assert result.breakdown.cause == "outcome_unknown"
        done.set()


async def test_a_slow_end_of_a_large_envelope_does_not_cost_the_message_before_it_its_acknowledgement(
    client, raw_server
):
    """The reply to the dot may come while the envelope behind it still waits to be sent."""

    async def serve(reader, writer):
        await open_up(reader, writer)
        writer.write(b"250 taken\r\n")
        writer.transport.pause_reading()
        await done.wait()

    done = asyncio.Event()
    many = [f"{'x' * 60}{number}@{'y' * 200}.example.test" for number in range(40_000)]
    async with raw_server(serve).running() as server:
        session = await client.connect(server, "none")
        message = client.message()
        result = await session.transact(message, [A], lambda: (message, many))
        done.set()

    assert result.breakdown is None
    assert result.decided[A].reply.code == 250
