"""Messages per second that are on disk when `enqueue` returns: in one process, and in several at once.

    python tests/bench/accept.py                         # 1, 10, 100 and 1000 callers, 2 KiB each
    python tests/bench/accept.py --callers 100 --seconds 10
    python tests/bench/accept.py --dsn postgresql://...  # a database that may be filled

Rows for a SQLite file: one process that owns it; one that hands everything to an idle owner; four processes, the owner
among them, that accept at the same time. For PostgreSQL: one process, and four. Compare rows of one call only: machines
have quiet and busy minutes.
"""

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from mailstrom_async._envelope import PreparedEmail
from mailstrom_async.storage import Acceptance, SQLiteStorage, Storage

CONTENT = b"Subject: benchmark\r\n\r\n" + b"x" * 2048
ROWS = {"owner": 1, "one follower": 2, "four at once": 4}
POSTGRES_ROWS = {"one process": 1, "four at once": 4}
"""How many processes each row takes. In "one follower" the owner does nothing of its own."""


def storage_at(place: str) -> Storage:
    """A path, or a DSN."""
    if "://" not in place:
        return SQLiteStorage(place)
    from mailstrom_async.storage.postgres import PostgresStorage

    return PostgresStorage(place)


async def accept(place: str, callers: int, seconds: float, *, idle: bool) -> None:
    """One process: opens the queue, waits for a line, accepts as fast as it can, tells how many, waits for the end."""
    loop = asyncio.get_running_loop()
    storage = storage_at(place)
    await storage.open(datetime.now(UTC))
    _say("open")
    await loop.run_in_executor(None, sys.stdin.readline)
    numbers = itertools.count()
    end = time.monotonic() + seconds
    latencies: list[float] = []

    async def call() -> None:
        while (began := time.monotonic()) < end:
            await storage.enqueue([_acceptance(next(numbers))])
            latencies.append(time.monotonic() - began)

    began = time.monotonic()
    await asyncio.gather(*(call() for _ in range(0 if idle else callers)))
    latencies.sort()
    slow = latencies[len(latencies) * 99 // 100] if latencies else 0.0
    _say({"rate": len(latencies) / max(time.monotonic() - began, seconds), "p99": slow})
    await loop.run_in_executor(None, sys.stdin.readline)
    await storage.aclose()


def _acceptance(number: int) -> Acceptance:
    now = datetime.now(UTC)
    prepared = PreparedEmail(f"{number}.{os.getpid()}@example.org", "app@example.org", ("ada@example.net",), CONTENT)
    return Acceptance(prepared, now, now + timedelta(days=1), now + timedelta(days=5))


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


def measure(row: str, callers: int, seconds: float, dsn: str | None = None) -> tuple[float, float]:
    """Accepted per second by all processes together, and the slowest hundredth of the calls, in seconds."""
    count = (POSTGRES_ROWS if dsn else ROWS)[row]
    with tempfile.TemporaryDirectory() as folder:
        processes: list[subprocess.Popen[str]] = []
        try:
            for number in range(count):
                idle = row == "one follower" and number == 0
                each = callers if count < 4 else max(1, callers // count)
                command = [sys.executable, __file__, "--worker", dsn or f"{folder}/mail.db", str(each), str(seconds)]
                processes.append(
                    subprocess.Popen(
                        [*command, "idle" if idle else "busy"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                    )
                )
                _hear(processes[-1])  # so that the first one is the owner
            for process in processes:
                _tell(process)
            heard = [_hear(process) for process in processes]
            for process in processes:
                _tell(process)
                process.wait()
        finally:
            for process in processes:
                process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()
    return sum(one["rate"] for one in heard), max(one["p99"] for one in heard)


def _tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def table(callers: Sequence[int], seconds: float, dsn: str | None) -> None:
    print(f"{'callers':>12}" + "".join(f"{count:>22}" for count in callers))
    for row in POSTGRES_ROWS if dsn else ROWS:
        cells: list[str] = []
        for count in callers:
            rate, slow = measure(row, count, seconds, dsn)
            cells.append(f"{rate:9,.0f}/s p99 {slow * 1000:5.1f} ms")
        print(f"{row:>12}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--dsn")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        place, callers, seconds, idle = options.worker
        asyncio.run(accept(place, int(callers), float(seconds), idle=idle == "idle"))
    else:
        table(options.callers, options.seconds, options.dsn)


if __name__ == "__main__":
    main()
