"""Messages per second, ours beside what people use instead.

    python tests/bench/throughput.py                   # every row, the peers where they are installed
    python tests/bench/throughput.py --only "2 KiB"    # rows whose name has this in it
    python tests/bench/throughput.py --runs 5 --json results.json

Each run is a process of its own, rows take turns, and each figure is the median of the runs: machines have quiet and
busy minutes, so only ratios of one call mean anything. The sink is Postfix's smtp-sink where it is installed (Debian:
postfix), else our own scripted server, which is slower. A message counts as delivered when its status is recorded.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiosmtplib

from mailstrom_async import (
    Attachment,
    Config,
    DirectDelivery,
    Email,
    Limits,
    Mailstrom,
    MessageCompleted,
    SQLiteStorage,
)
from mailstrom_async.testing import DNSServer, SMTPServer

sys.path.insert(0, str(Path(__file__).parent))
import postfix

CALLERS = 100
CONNECTIONS = 16
LINE = "The quick brown fox jumps over the lazy dog and runs on for a bit.\n"
DOMAIN = "example.net"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: how many messages of which kind, and who sends them."""

    name: str
    count: int
    run: Callable[["Row"], dict[str, float]]
    uvloop: bool = False


def text(size: int) -> str:
    return LINE * (size // len(LINE))


def ready(size: int) -> Callable[[int], bytes]:
    """Messages that are composed already, each with a Message-ID of its own."""
    body = text(size - 200).replace("\n", "\r\n").encode()

    def message(number: int) -> bytes:
        return (
            f"From: App <app@example.org>\r\nTo: <ada@{DOMAIN}>\r\nSubject: benchmark\r\n"
            f"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMessage-ID: <{number}.{os.getpid()}@bench.example.org>\r\n\r\n"
        ).encode() + body

    return message


def small(number: int) -> Email:
    return Email(from_="App <app@example.org>", to=f"ada@{DOMAIN}", subject=f"Number {number}", text=text(2048))


PDF = Attachment(filename="report.pdf", content=os.urandom(36 * 1024), content_type="application/pdf")


def large(number: int) -> Email:
    return Email(
        from_="App <app@example.org>",
        to=f"ada@{DOMAIN}",
        subject=f"Number {number}",
        text=text(1024),
        html=f"<p>{text(1024)}</p>",
        attachments=(PDF,),
    )


@contextmanager
def sink():
    """An SMTP server in another process; its port."""
    program = shutil.which("smtp-sink") or "/usr/sbin/smtp-sink"
    if Path(program).exists():
        port = free_port()
        command = [
            program,
            "-4",
            "-m",
            "2000",
            *(["-u", "nobody"] if os.getuid() == 0 else []),
            f"127.0.0.1:{port}",
            "1000",
        ]
    else:
        port = free_port()
        command = [sys.executable, __file__, "--sink", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int) -> None:
    for _ in range(400):
        try:
            socket.create_connection(("127.0.0.1", port), 0.5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nothing listens on port {port}")


@asynccontextmanager
async def mailer(port: int, folder: str, *, deliver: bool = True) -> AsyncIterator[Mailstrom]:
    """Direct delivery with real lookups, and a store on this machine's disk."""
    records = {DOMAIN: {"MX": ["10 mx.example.net"]}, "mx.example.net": {"A": ["127.0.0.1"]}}
    async with DNSServer(records, ttl=300) as dns:  # as real zones have it: a lookup now and then, not one a mail
        config = Config(
            helo_name="app.example.org",
            delivery=DirectDelivery(port=port, nameservers=(dns.address,), allowed_networks=("127.0.0.0/8",)),
            limits=Limits(connections_per_host=CONNECTIONS, messages_per_connection=10_000),
        )
        async with Mailstrom(config, SQLiteStorage(Path(folder, "mail.db")), deliver=deliver) as sender:
            yield sender


async def lateness(late: list[float]) -> None:
    """By how much a timer of one millisecond is late: what the application's own coroutines feel of us."""
    while True:
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - due)


def ours(make: Callable[[int], Email | bytes], *, deliver: bool = True) -> Callable[[Row], dict[str, float]]:
    """Through a whole Mailstrom: accepted durably by many callers, delivered, recorded."""

    async def measure(row: Row) -> dict[str, float]:
        late: list[float] = []
        waits: list[float] = []
        numbers = iter(range(row.count))

        async def call(sender: Mailstrom) -> None:
            for number in numbers:
                begun = time.perf_counter()
                await sender.send_email(make(number))
                waits.append(time.perf_counter() - begun)

        async def count_completed(sender: Mailstrom, ready: asyncio.Event) -> None:
            async with sender.events(MessageCompleted) as events:
                ready.set()
                completed = 0
                async for _ in events:
                    completed += 1
                    if completed == row.count:
                        return

        with sink() as port, tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            async with mailer(port, folder, deliver=deliver) as sender, asyncio.TaskGroup() as group:
                listening = asyncio.Event()
                done = group.create_task(count_completed(sender, listening))
                await listening.wait()
                ticker = group.create_task(lateness(late))
                begun, cpu = time.perf_counter(), time.process_time()
                async with asyncio.TaskGroup() as callers:
                    for _ in range(CALLERS):
                        callers.create_task(call(sender))
                if deliver:
                    await done
                took, used = time.perf_counter() - begun, time.process_time() - cpu
                done.cancel()
                ticker.cancel()
        return {
            "rate": row.count / took,
            "cpu_us": used / row.count * 1e6,
            "accept_p99_ms": percentile(waits, 0.99) * 1e3,
            "late_p99_ms": percentile(late, 0.99) * 1e3,
        }

    def run(row: Row) -> dict[str, float]:
        if row.uvloop:
            import uvloop

            return uvloop.run(measure(row))
        return asyncio.run(measure(row))

    return run


def bare_aiosmtplib(row: Row) -> dict[str, float]:
    """A loop that stores nothing and retries nothing, over persistent connections."""

    async def measure() -> dict[str, float]:
        message = ready(2048)
        numbers = iter(range(row.count))

        async def send(port: int) -> None:
            async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) as client:
                for number in numbers:
                    await client.sendmail("app@example.org", [f"ada@{DOMAIN}"], message(number))

        with sink() as port:
            begun, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*(send(port) for _ in range(CONNECTIONS)))
            took, used = time.perf_counter() - begun, time.process_time() - cpu
        return {"rate": row.count / took, "cpu_us": used / row.count * 1e6}

    return asyncio.run(measure())


def through_postfix(size: int, *, hold: bool = False) -> Callable[[Row], dict[str, float]]:
    """Accepted into Postfix's queue over SMTP and delivered from there, with its default settings."""

    def run(row: Row) -> dict[str, float]:
        with sink() as port, postfix.running(port, hold=hold) as server:
            took = server.carry(row.count, size, wait=not hold)
        return {"rate": row.count / took}

    return run


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


ROWS = [
    Row("Postfix default, 2 KiB", 3000, through_postfix(2048)),
    Row("bare aiosmtplib, 16 connections, nothing stored, 2 KiB", 4000, bare_aiosmtplib),
    Row("mailstrom_async, ready bytes, 2 KiB, asyncio", 8000, ours(ready(2048))),
    Row("mailstrom_async, ready bytes, 2 KiB, uvloop", 8000, ours(ready(2048)), uvloop=True),
    Row("mailstrom_async, Email, 2 KiB, asyncio", 8000, ours(small)),
    Row("Postfix default, 50 KiB", 1500, through_postfix(51_200)),
    Row("mailstrom_async, Email with attachment, 50 KiB, asyncio", 2000, ours(large)),
    Row("Postfix accepting into HOLD, 2 KiB", 3000, through_postfix(2048, hold=True)),
    Row("mailstrom_async, accepting only, 2 KiB, asyncio", 10_000, ours(ready(2048), deliver=False)),
]


def measured(row: Row) -> dict[str, float]:
    """One run, in a process of its own."""
    command = [sys.executable, __file__, "--one", row.name]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if result.returncode:
        raise RuntimeError(f"{row.name}: {result.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Each row with its median rate and spread, and the ratio to the peer above it."""
    lines = [
        "| what | messages/s | spread | to the peer | CPU us | accept p99 ms | 1 ms timer late by p99 ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    postfix_rate: float | None = None
    loop_rate: float | None = None
    for name, runs in results.items():
        rates = [run["rate"] for run in runs]
        rate = statistics.median(rates)
        ratios: list[str] = []
        if name.startswith("Postfix"):
            postfix_rate = rate
        elif name.startswith("bare"):
            loop_rate = rate
        else:
            if postfix_rate:
                ratios.append(f"{rate / postfix_rate:.1f}x Postfix")
            if loop_rate and "ready bytes" in name:
                ratios.append(f"{rate / loop_rate:.1f}x bare loop")
        figures = [
            f"{statistics.median(run[figure] for run in runs):.{digits}f}" if figure in runs[0] else ""
            for figure, digits in (("cpu_us", 0), ("accept_p99_ms", 1), ("late_p99_ms", 1))
        ]
        cells = [name, f"{rate:,.0f}", f"{min(rates):,.0f}-{max(rates):,.0f}", ", ".join(ratios), *figures]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--sink", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sink is not None:
        asyncio.run(serve_for_ever(options.sink))
    if options.one is not None:
        row = next(row for row in ROWS if row.name == options.one)
        print(json.dumps(row.run(row)))
        return
    rows = [row for row in ROWS if options.only in row.name and (postfix.available() or "Postfix" not in row.name)]
    results: dict[str, list[dict[str, float]]] = {row.name: [] for row in rows}
    for number in range(options.runs):
        for row in rows:
            results[row.name].append(measured(row))
            print(f"run {number + 1}: {row.name}: {results[row.name][-1]['rate']:,.0f}/s", file=sys.stderr)
    print(table(results))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1))


async def serve_for_ever(port: int) -> None:
    async with SMTPServer(port=port, keep=False):
        await asyncio.Event().wait()


if __name__ == "__main__":
    main()
