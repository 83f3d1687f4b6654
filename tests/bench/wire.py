"""CPU of the wire alone: sessions and transactions against smtp-sink, with ready messages and no store.

    python tests/bench/wire.py                     # 16 connections, 2 KiB, asyncio
    python tests/bench/wire.py --uvloop --connections 4 --count 40000
    python tests/bench/wire.py --profile           # where it goes, by cProfile

CPU of this process is what counts here; the rate is the sink's as much as ours.
"""

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import statistics
import time
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from messages import ready
from sink import sink

from mailstrom_async._config import Timeouts
from mailstrom_async._envelope import QueuedMessage
from mailstrom_async.smtp import SMTPConnector, Target

NOW = datetime(2030, 1, 1, tzinfo=UTC)
RECIPIENTS = ("ada@example.net",)


class Source:
    """Messages, each a new object as after a claim, until so many were given."""

    def __init__(self, count: int, size: int) -> None:
        self.left = count
        self._content = ready(size)(1)

    def next(self) -> QueuedMessage | None:
        if not self.left:
            return None
        self.left -= 1
        return QueuedMessage(self.left, "1@x", "app@example.org", self._content, False, False, NOW, NOW)


async def carry(source: Source, connector: SMTPConnector, target: Target) -> None:
    """One connection's share."""
    session = await connector.connect(target)
    ahead: QueuedMessage | None = None

    def following() -> tuple[QueuedMessage, tuple[str, ...]] | None:
        nonlocal ahead
        ahead = source.next()
        return (ahead, RECIPIENTS) if ahead is not None else None

    while (message := ahead or source.next()) is not None:
        ahead = None
        result = await session.transact(message, RECIPIENTS, following)
        if result.decided[RECIPIENTS[0]].reply.code != 250:
            raise AssertionError(result)
    await session.quit()


async def run(port: int, arguments: argparse.Namespace) -> tuple[float, float]:
    """Seconds, and seconds of CPU of this process."""
    source = Source(arguments.count, arguments.size)
    connector = SMTPConnector("app.example.org", Timeouts())
    target = Target("mx.example.net", ip_address("127.0.0.1"), port, "none")
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(carry(source, connector, target) for _ in range(arguments.connections)))
    return time.perf_counter() - began, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    factory = None
    if arguments.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with sink() as port:
        profile = cProfile.Profile() if arguments.profile else None
        figures = []
        for _ in range(1 if profile else arguments.runs):
            with asyncio.Runner(loop_factory=factory) as runner:
                if profile:
                    profile.enable()
                figures.append(runner.run(run(port, arguments)))
                if profile:
                    profile.disable()
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)
    micros = [1e6 * cpu / arguments.count for _, cpu in figures]
    rates = [arguments.count / seconds for seconds, _ in figures]
    row = {
        "connections": arguments.connections,
        "size": arguments.size,
        "loop": "uvloop" if arguments.uvloop else "asyncio",
        "cpu_us": round(statistics.median(micros), 1),
        "rate": round(statistics.median(rates)),
    }
    print(
        f"{row['connections']} connections, {row['size']} bytes, {row['loop']}: {row['cpu_us']} us of CPU a message "
        f"({min(micros):.1f}-{max(micros):.1f}), {row['rate']} messages/s"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": os.uname().nodename, "rows": [row]}, indent=1))


if __name__ == "__main__":
    main()
