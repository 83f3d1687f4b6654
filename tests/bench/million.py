"""A queue of a million messages: what it costs to fill, to open, to claim from, and to hold.

    python tests/bench/million.py                            # SQLite, 1,000,000 messages
    python tests/bench/million.py --messages 100000
    python tests/bench/million.py --dsn postgresql://...     # an empty database
    python tests/bench/million.py --json                     # the figures for a program

Prints a table: acceptances per second at the beginning and at the end (must not grow with the queue), the time from the
start of a mailer to its first delivery, the time to claim a hundred, and how the memory grew in that mailer.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from mailstrom_async import Config, Mailstrom, PreparedEmail, RelayDelivery, SQLiteStorage, Storage
from mailstrom_async.storage import Acceptance
from mailstrom_async.testing import Gate, Hang, SMTPServer

BATCH = 1000
BODY = b"Subject: one of a million\r\n\r\n" + b"Hello, this is a line of an ordinary mail.\r\n" * 10


def memory() -> float:
    """MiB of this program."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def acceptance(number: int, now: datetime) -> Acceptance:
    prepared = PreparedEmail(
        message_id=f"{number}@bench.example.org",
        sender="app@example.org",
        recipients=(f"r{number}@d{number % 1000}.example.net",),
        content=BODY,
    )
    return Acceptance(prepared, now, now + timedelta(microseconds=number), now + timedelta(days=5))


async def fill(storage: Storage, messages: int) -> list[float]:
    """Accept them all; how many a second, batch by batch."""
    now = datetime.now(UTC) - timedelta(minutes=1)
    rates: list[float] = []
    await storage.open(now)
    for start in range(0, messages, BATCH):
        batch = [acceptance(number, now) for number in range(start, start + BATCH)]
        begun = time.perf_counter()
        await storage.enqueue(batch)
        rates.append(len(batch) / (time.perf_counter() - begun))
    await storage.aclose()
    return rates


async def first_delivery(storage: Storage) -> tuple[float, float]:
    """Seconds from the start of a mailer to the begin of its first transaction, and how its memory grew until then."""
    gate = Gate(Hang())
    async with SMTPServer({"MAIL": gate}) as server:
        relay = RelayDelivery(host="127.0.0.1", port=server.port, security="none")
        config = Config(helo_name="app.example.org", delivery=relay, shutdown_grace=timedelta(0))
        before, begun = memory(), time.perf_counter()
        async with Mailstrom(config, storage):
            await gate.reached(timeout=timedelta(minutes=5))
            return time.perf_counter() - begun, memory() - before


async def claims(storage: Storage) -> list[float]:
    """Milliseconds for a hundred, some times over."""
    now = datetime.now(UTC)
    await storage.open(now)
    took: list[float] = []
    for _ in range(20):
        dues = await storage.upcoming(100)
        begun = time.perf_counter()
        held = await storage.claim(
            [due.delivery_id for due in dues], owner="bench", now=now, lease_until=now + timedelta(minutes=1)
        )
        took.append((time.perf_counter() - begun) * 1e3)
        assert len(held) == 100
    await storage.aclose()
    return took


def measure(messages: int) -> dict[str, float]:
    """In SQLite."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        return asyncio.run(look(SQLiteStorage(Path(folder, "mail.db")), messages))


async def look(storage: Storage, messages: int) -> dict[str, float]:
    rates = await fill(storage, messages)
    edge = max(len(rates) // 100, 1)
    started, grown = await first_delivery(storage)
    took = await claims(storage)
    return {
        "first_rate": statistics.median(rates[:edge]),
        "last_rate": statistics.median(rates[-edge:]),
        "first_s": started,
        "memory_mib": grown,
        "claim_ms": statistics.median(took),
        "claim_worst_ms": max(took),
    }


def table(figures: dict[str, float]) -> str:
    first, last = figures["first_rate"], figures["last_rate"]
    return "\n".join(
        [
            "| what | figure |",
            "| --- | --- |",
            f"| accepted per second at the beginning, in batches of {BATCH} | {first:,.0f} |",
            f"| ... at the end | {last:,.0f} ({first / last:.2f}x slower) |",
            f"| from the start of a mailer to its first transaction | {figures['first_s']:.2f} s |",
            f"| memory that the mailer took until then | {figures['memory_mib']:.0f} MiB |",
            f"| claiming a hundred, median | {figures['claim_ms']:.1f} ms |",
            f"| ... and longest | {figures['claim_worst_ms']:.1f} ms |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--dsn")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.dsn is not None:
        from mailstrom_async.storage.postgres import PostgresStorage

        figures = asyncio.run(look(PostgresStorage(options.dsn), options.messages))
    else:
        figures = measure(options.messages)
    print(json.dumps(figures) if options.json else table(figures))


if __name__ == "__main__":
    main()
