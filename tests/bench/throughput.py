"""The whole way of many messages: accepted durably from a hundred callers, delivered, recorded.

    python tests/bench/throughput.py                               # ready bytes of 2 KiB, on asyncio
    python tests/bench/throughput.py --message small --uvloop      # ready, ready50, small or large, see messages.py
    python tests/bench/throughput.py --accept-only --count 20000

Prints the figures of one run as JSON: messages per second, microseconds of processor time for each, how long a call of
`send_email` took and how late a timer of one millisecond was (the hundredth that was slowest). `python tests/bench`
runs it beside its peers.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from messages import DOMAIN, Make, large, ready, small
from sink import sink

from mailstrom_async import Config, DirectDelivery, DKIMKey, Limits, Mailstrom, MessageCompleted, SQLiteStorage
from mailstrom_async.testing import DNSServer

CALLERS = 100
CONNECTIONS = 16
PATIENCE = timedelta(minutes=4)
MESSAGES: dict[str, Make] = {"ready": ready(2048), "ready50": ready(51_200), "small": small, "large": large}


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent, and how.

    Attributes:
        message: A name in MESSAGES.
        accept_only: Nothing is delivered.
        signed: With DKIM, RSA-2048.
    """

    message: str
    count: int
    uvloop: bool = False
    accept_only: bool = False
    signed: bool = False


def measure(load: Load) -> dict[str, float]:
    """One run, in this process."""
    if load.uvloop:
        import uvloop

        return uvloop.run(carry(load))
    return asyncio.run(carry(load))


async def carry(load: Load) -> dict[str, float]:
    make = MESSAGES[load.message]
    late: list[float] = []
    waits: list[float] = []
    numbers = iter(range(load.count))

    async def call(sender: Mailstrom) -> None:
        for number in numbers:
            begun = time.perf_counter()
            await sender.send_email(make(number))
            waits.append(time.perf_counter() - begun)

    with sink() as port, tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        async with (
            mailer(port, folder, deliver=not load.accept_only, signed=load.signed) as sender,
            asyncio.timeout(PATIENCE.total_seconds()),
            asyncio.TaskGroup() as group,
        ):
            listening = asyncio.Event()
            completed = group.create_task(count_completed(sender, load.count, listening))
            await listening.wait()
            ticker = group.create_task(lateness(late))
            begun, cpu = time.perf_counter(), time.process_time()
            async with asyncio.TaskGroup() as callers:
                for _ in range(CALLERS):
                    callers.create_task(call(sender))
            if not load.accept_only:
                await completed
            took, used = time.perf_counter() - begun, time.process_time() - cpu
            completed.cancel()
            ticker.cancel()
            if not load.accept_only:
                assert await sender.query_recent() == [], "a message was told as completed, and its status is not"
    return {
        "rate": load.count / took,
        "cpu_us": used / load.count * 1e6,
        "accept_p99_ms": percentile(waits, 0.99) * 1e3,
        "late_p99_ms": percentile(late, 0.99) * 1e3,
    }


@asynccontextmanager
async def mailer(
    port: int, folder: str, *, deliver: bool = True, signed: bool = False, queue_size: int | None = None
) -> AsyncIterator[Mailstrom]:
    """Direct delivery with real lookups, and a store on this machine's disk."""
    records = {DOMAIN: {"MX": ["10 mx.example.net"]}, "mx.example.net": {"A": ["127.0.0.1"]}}
    async with DNSServer(records, ttl=300) as dns:  # as real zones have it: a lookup now and then, not one a mail
        config = Config(
            helo_name="app.example.org",
            delivery=DirectDelivery(port=port, nameservers=(dns.address,), allowed_networks=("127.0.0.0/8",)),
            limits=Limits(connections_per_host=CONNECTIONS, messages_per_connection=10_000, queue_size=queue_size),
            dkim=(rsa_key(),) if signed else (),
        )
        async with Mailstrom(config, SQLiteStorage(Path(folder, "mail.db")), deliver=deliver) as sender:
            yield sender


def rsa_key() -> DKIMKey:
    from mailstrom_async._message.dkim_keys import new_key

    return DKIMKey(domain="example.org", selector="s", private_key=new_key("rsa").pem)


async def count_completed(sender: Mailstrom, count: int, listening: asyncio.Event) -> None:
    """Return when as many messages have all their statuses recorded."""
    async with sender.events(MessageCompleted) as events:
        listening.set()
        completed = 0
        async for event in events:
            assert isinstance(event, MessageCompleted), "events came faster than they were counted"
            completed += 1
            if completed == count:
                return


async def lateness(late: list[float]) -> None:
    """By how much a timer of one millisecond is late: what the application's own coroutines feel of us."""
    while True:
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - due)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--message", choices=list(MESSAGES), default="ready")
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--accept-only", action="store_true")
    parser.add_argument("--signed", action="store_true")
    print(json.dumps(measure(Load(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
