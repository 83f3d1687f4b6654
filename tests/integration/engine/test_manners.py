"""Hosts that offer more than they can take: they are found out, and their mail arrives all the same."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from mailstrom_async import Limits, RetryPolicy

from .conftest import SECOND, completed, email


class Touchy:
    """A server that offers PIPELINING and CHUNKING, and breaks off when it gets too much at once.

    Attributes:
        taken: The messages that it said yes to.
        connections: How many were made.
        wrong: How many of them it broke off.
    """

    def __init__(self, limit: str, way: bytes) -> None:
        self.taken = 0
        self.connections = 0
        self.wrong = 0
        self.port = 0
        self._limit = limit
        self._way = way  # what it says when it breaks off

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Touchy"]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"220 touchy\r\n")
        in_content = False
        buffer = b""
        transactions = 0
        while octets := await reader.read(65536):
            buffer += octets
            while buffer:
                end = b"\r\n.\r\n" if in_content else b"\r\n"
                if end not in buffer:
                    break
                command, _, buffer = buffer.partition(end)
                verb = b"dot" if in_content else command[:4]
                if verb == b"BDAT":
                    size = int(command.split()[1])
                    while len(buffer) < size:
                        buffer += await reader.readexactly(size - len(buffer))
                    buffer = buffer[size:]
                in_content = verb == b"DATA"
                transactions += verb in (b"dot", b"BDAT")
                self.taken += verb in (b"dot", b"BDAT")
                replies = {b"EHLO": b"250-touchy\r\n250-CHUNKING\r\n250 PIPELINING\r\n", b"DATA": b"354 go\r\n"}
                writer.write(replies.get(verb, b"250 2.0.0 ok\r\n"))
                too_much = {
                    "group": verb in (b"MAIL", b"RCPT"),
                    "ahead": verb == b"dot",
                    "window": verb == b"BDAT" and transactions > 1,
                }
                if buffer and too_much[self._limit]:
                    self.wrong += 1
                    writer.write(self._way)
                    writer.close()
                    return
        writer.close()


@pytest.mark.parametrize("way", [b"", b"500 what is that?\r\n" * 9], ids=["closed", "out of step"])
@pytest.mark.parametrize(("limit", "steps"), [("window", 1), ("ahead", 2), ("group", 3)])
async def test_a_host_that_can_not_take_so_much_is_sent_less_from_then_on(build, clock, limit, steps, way):
    """From the window to one round trip, to two, to four: each is tried once in its time, and not for each mail."""
    async with Touchy(limit, way).running() as server:
        limits = Limits(connections=1, connections_per_host=1, bdat_window=8 if limit == "window" else 0)
        retry = RetryPolicy(jitter=0, base_delay=timedelta(seconds=10))
        async with build(port=server.port, limits=limits, retry=retry) as mailer:
            for _ in range(3):
                ids = await mailer.send_emails([email(f"r{n}@example.net") for n in range(10)])
                statuses = [await completed(mailer, message_id, clock, 5 * SECOND) for message_id in ids]

                assert all(status.succeeded for status in statuses)

    assert 1 <= server.wrong <= steps
    assert server.taken >= 30
