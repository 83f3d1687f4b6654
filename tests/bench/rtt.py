"""One connection to a server that is a hundred milliseconds away: messages per second.

    python tests/bench/rtt.py                        # aiosmtplib, and ours with PIPELINING and with CHUNKING
    python tests/bench/rtt.py --kind pipelining
    python tests/bench/rtt.py --rtt 20 --json rtt.json

A proxy in a process of its own holds everything back for half the round trip, in each direction. aiosmtplib waits four
round trips for each message. Ours needs one where the server offers PIPELINING, and where it offers CHUNKING, and
`Limits.bdat_window` asks for it, a window of messages is on its way at the same time. Counted from the end of the first
tenth on: connecting and greeting are no part of it.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import aiosmtplib
from messages import DOMAIN, ready
from sink import free_port, sink, wait_for_port

from mailstrom_async import Config, DirectDelivery, Limits, Mailstrom, MessageCompleted, SQLiteStorage
from mailstrom_async.testing import DNSServer, SMTPServer

RTT = 0.1
WINDOW = 16
PATIENCE = 120.0
COUNTS = {"aiosmtplib": 20, "pipelining": 60, "chunking": 1200}
CHUNKING = ("PIPELINING", "8BITMIME", "CHUNKING", "ENHANCEDSTATUSCODES", "SIZE 52428800")


def measure(kind: str, share: float = 1.0, *, rtt: float = RTT) -> dict[str, float]:
    """One run: "aiosmtplib", "pipelining" or "chunking"."""
    count = max(10, round(COUNTS[kind] * share))
    with ExitStack() as stack:
        server = stack.enter_context(another("--chunking-server") if kind == "chunking" else sink())
        port = stack.enter_context(another("--proxy", str(server), "--rtt", str(rtt * 1e3)))
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp"))
        moments = asyncio.run(theirs(port, count) if kind == "aiosmtplib" else ours(port, folder, count, kind))
    return {"rate": rate(moments)}


def rate(moments: Sequence[float]) -> float:
    """Messages a second, from the moments at which they were delivered."""
    first = len(moments) // 10
    return (len(moments) - 1 - first) / (moments[-1] - moments[first])


async def theirs(port: int, count: int) -> list[float]:
    message = ready(2048)
    moments: list[float] = []
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) as client:
        for number in range(count):
            await client.sendmail("app@example.org", [f"ada@{DOMAIN}"], message(number))
            moments.append(time.perf_counter())
    return moments


async def ours(port: int, folder: str, count: int, kind: str) -> list[float]:
    message = ready(2048)
    moments: list[float] = []
    records = {DOMAIN: {"MX": ["10 mx.example.net"]}, "mx.example.net": {"A": ["127.0.0.1"]}}
    async with DNSServer(records, ttl=300) as dns, asyncio.timeout(PATIENCE):
        config = Config(
            helo_name="app.example.org",
            delivery=DirectDelivery(port=port, nameservers=(dns.address,), allowed_networks=("127.0.0.0/8",)),
            limits=Limits(
                connections_per_host=1,
                messages_per_connection=count,
                **({"bdat_window": WINDOW} if kind == "chunking" else {}),
            ),
        )
        async with Mailstrom(config, SQLiteStorage(Path(folder, "mail.db")), deliver=False) as mailer:
            await mailer.send_emails([message(number) for number in range(count)])
            async with mailer.events(MessageCompleted) as events:
                await mailer.start()
                async for _ in events:
                    moments.append(time.perf_counter())
                    if len(moments) == count:
                        break
    return moments


# The other side.


@contextmanager
def another(*arguments: str) -> Iterator[int]:
    """This file as a server in another process; its port."""
    port = free_port()
    process = subprocess.Popen([sys.executable, __file__, *arguments, "--port", str(port)])
    try:
        wait_for_port(port)
        yield port
    finally:
        process.kill()
        process.wait()


class Late(asyncio.Protocol):
    """What comes in goes out at the other end, later and in the same order."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self.other: Late | None = None
        self.transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(self._delay, self._pass_on, data)

    def connection_lost(self, error: Exception | None) -> None:
        asyncio.get_running_loop().call_later(self._delay, self._end)

    def _pass_on(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def _end(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class Door(Late):
    """The side of the client: it connects to the server."""

    def __init__(self, delay: float, server: int) -> None:
        super().__init__(delay)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, behind = await loop.create_connection(lambda: Late(self._delay), "127.0.0.1", self._server)
        self.other, behind.other = behind, self


async def proxy(port: int, server: int, rtt: float) -> None:
    listening = await asyncio.get_running_loop().create_server(lambda: Door(rtt / 2, server), "127.0.0.1", port)
    await listening.serve_forever()


async def chunking_server(port: int) -> None:
    async with SMTPServer(port=port, extensions=CHUNKING, keep=False):
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(COUNTS))
    parser.add_argument("--rtt", type=float, default=RTT * 1e3, help="milliseconds")
    parser.add_argument("--json", type=Path, metavar="FILE")
    for name in ("--proxy", "--port"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--chunking-server", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rtt = options.rtt / 1e3
    if options.chunking_server:
        asyncio.run(chunking_server(options.port))
    elif options.proxy is not None:
        asyncio.run(proxy(options.port, options.proxy, rtt))
    else:
        kinds = [options.kind] if options.kind else list(COUNTS)
        rates = {kind: measure(kind, rtt=rtt)["rate"] for kind in kinds}
        for kind, each in rates.items():
            print(f"{kind:<12}{each:>9.2f} messages/s{each / rates.get('aiosmtplib', each):>8.2f}x")
        if options.json is not None:
            options.json.write_text(json.dumps(rates))


if __name__ == "__main__":
    main()
