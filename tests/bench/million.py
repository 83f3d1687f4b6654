"""A queue of a million messages: what it costs to fill, to open, to claim from, and to hold.

    python tests/bench/million.py                            # SQLite, 1,000,000 messages: some minutes
    python tests/bench/million.py --rows 100000
    python tests/bench/million.py --store postgres --dsn postgresql://...     # an empty database
    python tests/bench/million.py --json                     # the figures for a program

Prints a table: how much slower acceptances are at the end than at the beginning, the time from the start of a mailer to
its first delivery, how the memory grew in that mailer, and the time to claim a hundred; each with what it may be at
most. Ends with 1 if one is above that. On a busy machine the CPU that acceptances take tells more than their rate.
"""

import argparse
import asyncio
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from mailstrom_async import Config, Mailstrom, PreparedEmail, RelayDelivery, SQLiteStorage, Storage
from mailstrom_async._message.ids import Stamp
from mailstrom_async.storage import Acceptance
from mailstrom_async.testing import Gate, Hang, SMTPServer

BATCH = 1000
DESTINATIONS = 1000
MOST = {"slower": 1.5, "first_s": 2.0, "memory_mib": 50.0, "claim_ms": 10.0}
"""What the figures may be at most, with a million messages."""

BODY = b"Subject: one of a million\r\n\r\n" + b"Hello, this is a line of an ordinary mail.\r\n" * 10


def memory() -> float:
    """MiB of this program."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def acceptance(number: int, now: datetime) -> Acceptance:
    prepared = PreparedEmail(
        message_id=Stamp(datetime.now(UTC), secrets.token_hex(16), "app.example.org").message_id,
        sender="app@example.org",
        recipients=(f"r{number}@d{number % DESTINATIONS}.example.net",),
        content=BODY,
    )
    return Acceptance(prepared, now, now + timedelta(microseconds=number), now + timedelta(days=5))


class Cost(NamedTuple):
    """Of an acceptance, in microseconds: of the clock, and of the CPU."""

    wall: float
    cpu: float


async def fill(storage: Storage, messages: int) -> list[Cost]:
    """Accept them all; what one cost, batch by batch."""
    now = datetime.now(UTC) - timedelta(minutes=1)
    costs: list[Cost] = []
    await storage.open(now)
    for start in range(0, messages, BATCH):
        batch = [acceptance(number, now) for number in range(start, min(start + BATCH, messages))]
        begun, worked = time.perf_counter(), time.process_time()
        await storage.enqueue(batch)
        wall, cpu = time.perf_counter() - begun, time.process_time() - worked
        costs.append(Cost(wall / len(batch) * 1e6, cpu / len(batch) * 1e6))
    await storage.aclose()
    return costs


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


async def first_delivery_apart(*which: str) -> tuple[float, float]:
    """The same in a process of its own: what this one took to fill the store is no part of the mailer's memory."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--start", *which, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    started, grown = json.loads(told)
    return started, grown


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
        return asyncio.run(look("sqlite", f"{folder}/mail.db", messages))


def storage_at(store: str, place: str) -> Storage:
    """A path, or a DSN for PostgreSQL."""
    if store == "sqlite":
        return SQLiteStorage(place)
    from mailstrom_async.storage.postgres import PostgresStorage

    return PostgresStorage(place)


async def look(store: str, place: str, messages: int) -> dict[str, float]:
    storage = storage_at(store, place)
    costs = await fill(storage, messages)
    edge = max(len(costs) // 100, 1)
    started, grown = await first_delivery_apart(store, place)
    took = await claims(storage)

    def median(part: list[Cost], which: int) -> float:
        return statistics.median(cost[which] for cost in part)

    return {
        "messages": messages,
        "first_rate": 1e6 / median(costs[:edge], 0),
        "last_rate": 1e6 / median(costs[-edge:], 0),
        "slower": median(costs[-edge:], 0) / median(costs[:edge], 0),
        "first_cpu_us": median(costs[:edge], 1),
        "last_cpu_us": median(costs[-edge:], 1),
        "first_s": started,
        "memory_mib": grown,
        "claim_ms": statistics.median(took),
        "claim_worst_ms": max(took),
    }


def table(figures: dict[str, float]) -> str:
    first, last = figures["first_cpu_us"], figures["last_cpu_us"]
    worst = figures["claim_worst_ms"]
    rates = f"{figures['first_rate']:,.0f} to {figures['last_rate']:,.0f}"
    lines = [
        (f"with {figures['messages']:,.0f} messages", "figure", "at most", ""),
        ("---", "---", "---", "---"),
        ("accepting at the end, beside the beginning", f"{figures['slower']:.2f}x", *verdict(figures, "slower", "x")),
        (f"... accepted per second, in batches of {BATCH}", rates, "", ""),
        ("... CPU of one", f"{first:.0f} us to {last:.0f} us ({last / first:.2f}x)", "", ""),
        (
            "from a mailer's start to its first transaction",
            f"{figures['first_s']:.2f} s",
            *verdict(figures, "first_s", " s"),
        ),
        ("memory that it took until then", f"{figures['memory_mib']:.0f} MiB", *verdict(figures, "memory_mib", " MiB")),
        (
            f"claiming a hundred (longest {worst:.1f} ms)",
            f"{figures['claim_ms']:.1f} ms",
            *verdict(figures, "claim_ms", " ms"),
        ),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(figures: dict[str, float], name: str, unit: str) -> tuple[str, str]:
    """What the figure may be at most, and whether it keeps to that."""
    return f"{MOST[name]:g}{unit}", "pass" if figures[name] <= MOST[name] else "FAIL"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", "--messages", type=int, default=1_000_000)
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--dsn", help="of an empty database, for PostgreSQL")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--start", nargs=2, metavar=("STORE", "PLACE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start is not None:
        print(json.dumps(asyncio.run(first_delivery(storage_at(*options.start)))))
        return 0
    if options.dsn is not None:
        figures = asyncio.run(look("postgres", options.dsn, options.rows))
    elif options.store == "postgres":
        parser.error("--store postgres needs --dsn: say where an empty database is")
    else:
        figures = measure(options.rows)
    print(json.dumps(figures) if options.json else table(figures))
    return 0 if all(figures[name] <= most for name, most in MOST.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
