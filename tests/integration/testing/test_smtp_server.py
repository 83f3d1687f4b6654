"""The scripted SMTP server, as a client meets it that says what it likes."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from mailstrom_async.testing import Gate, SMTPServer

PATIENCE = 10
BEGIN = ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.net>")


@pytest.fixture
async def server():
    """One that knows CHUNKING."""
    async with SMTPServer(extensions=["PIPELINING", "8BITMIME", "SIZE 1000", "CHUNKING"]) as server:
        yield server


class Client:
    """Sends anything, and hears the replies' codes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, *lines: str) -> None:
        self._writer.write("".join(f"{line}\r\n" for line in lines).encode())

    async def hear(self, count: int = 1) -> list[int]:
        codes: list[int] = []
        async with asyncio.timeout(PATIENCE):
            while len(codes) < count:
                line = await self._reader.readuntil(b"\r\n")
                if line[3:4] == b" ":
                    codes.append(int(line[:3]))
        return codes

    async def say(self, *lines: str) -> list[int]:
        """Send a group of commands, each answered by one reply."""
        self.send(*lines)
        return await self.hear(len(lines))

    async def chunk(self, octets: str, last: str = "") -> int:
        self._writer.write(f"BDAT {len(octets)}{last}\r\n{octets}".encode())
        return (await self.hear())[0]


@asynccontextmanager
async def connect(server):
    """A client that was greeted and has said EHLO."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    client = Client(reader, writer)
    try:
        assert await client.hear() == [220]
        assert await client.say("EHLO app.example.org") == [250]
        yield client
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "command", ["RSET", "EHLO app.example.org", "HELO app.example.org", "MAIL FROM:<c@example.org>"]
)
async def test_what_ends_a_transaction_drops_the_chunks_that_had_come(server, command):
    """They are no part of the next content."""
    async with connect(server) as client:
        assert await client.say(*BEGIN) == [250, 250]
        assert await client.chunk("old\r\n") == 250
        await client.say(command)
        if command.startswith("HELO"):
            await client.say("EHLO app.example.org")
        assert await client.say(*BEGIN) == [250, 250]
        assert await client.chunk("new\r\n", " LAST") == 250

    assert [message.content for message in server.messages] == [b"new\r\n"]


async def test_a_refused_chunk_ends_its_transaction(server):
    """More of them may be on their way: refused as well, without blame (RFC 3030 section 2). The next begins anew."""
    server.script["BDAT"] = ["250 2.0.0 ok", "452 4.3.1 full"]
    async with connect(server) as client:
        assert await client.say(*BEGIN) == [250, 250]
        assert await client.chunk("one\r\n") == 250
        assert await client.chunk("two\r\n") == 452
        assert await client.chunk("three\r\n") == 503
        assert await client.chunk("four\r\n", " LAST") == 503
        assert await client.say(*BEGIN) == [250, 250]
        assert await client.chunk("new\r\n", " LAST") == 250

    assert [message.content for message in server.messages] == [b"new\r\n"]
    assert server.violations == []


async def test_a_chunk_of_unknown_length_ends_its_transaction(server):
    """Or the content would be taken with a gap in it."""
    async with connect(server) as client:
        assert await client.say(*BEGIN) == [250, 250]
        assert await client.chunk("one\r\n") == 250
        assert await client.say("BDAT many") == [501]
        assert await client.chunk("three\r\n", " LAST") == 503

    assert server.messages == []


async def test_an_empty_last_chunk_is_answered_after_a_slow_action(server):
    """Nothing more comes that would have it looked at."""
    server.script["body"] = gate = Gate()
    async with connect(server) as client:
        assert await client.say(*BEGIN) == [250, 250]
        client.send("BDAT 0 LAST")
        await gate.reached()
        gate.open()

        assert await client.hear() == [250]
        assert await client.say("NOOP") == [250]

    assert [message.content for message in server.messages] == [b""]


async def test_the_body_begins_once(server):
    """Though its first chunk has no octets."""
    begun: list[str] = []
    server.script["body"] = lambda context: begun.append(context.moment)
    async with connect(server) as client:
        assert await client.say(*BEGIN) == [250, 250]
        assert await client.chunk("") == 250
        assert await client.chunk("x\r\n") == 250
        assert await client.chunk("", " LAST") == 250

    assert begun == ["body"]
    assert [message.content for message in server.messages] == [b"x\r\n"]


async def test_a_content_that_is_far_too_big_is_refused(server):
    """Once its end has come; and the next one is taken."""
    async with connect(server) as client:
        assert await client.say(*BEGIN, "DATA") == [250, 250, 354]
        client.send(*["x" * 70] * 20_000, ".")
        assert await client.hear() == [552]
        assert await client.say(*BEGIN, "DATA") == [250, 250, 354]
        client.send("..", ".")
        assert await client.hear() == [250]

    assert [message.content for message in server.messages] == [b".\r\n"]
    assert server.violations == []
