"""Ten minutes of accepting faster than delivering: does the memory stay flat?

    python tests/bench/flat.py                              # ten minutes
    python tests/bench/flat.py --minutes 1
    python tests/bench/flat.py --minutes 1 --queue-size 5000

A thousand messages a second are accepted, and the one exchanger takes its time over each, so that the queue grows all
the while. With --queue-size it does not grow beyond: callers get QueueFull. Prints JSON: by how many MiB the memory
grew from the second tenth of the time to the last, what was accepted, refused and delivered, and the memory as it went.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from messages import ready
from million import memory
from throughput import mailer

from mailstrom_async import Mailstrom, MessageCompleted, QueueFull

RATE = 1000
"""Accepted a second."""
PACE = 0.05
"""Seconds that the exchanger takes for each mail on a connection: with 16 of them 320 a second at most."""
TICK = 0.05
LOOKS = 40
SLOW_SINK = f"""
import asyncio
from datetime import timedelta
from mailstrom_async.testing import Delay, SMTPServer
async def main():
    async with SMTPServer({{"end of data": Delay(timedelta(seconds={PACE}))}}, keep=False) as server:
        print(server.port, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def measure(length: timedelta, queue_size: int | None = None) -> dict[str, float]:
    """The figures; what was the memory when is for `run` alone to tell."""
    with slow_sink() as port, tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        figures, _ = asyncio.run(run(port, folder, length, queue_size))
    return figures


async def run(
    port: int, folder: str, length: timedelta, queue_size: int | None
) -> tuple[dict[str, float], list[float]]:
    """Accept for so long; the figures, and the memory in MiB at regular moments."""
    make = ready(2048)
    course: list[float] = []
    accepted = refused = 0
    delivered = [0]
    async with mailer(port, folder, queue_size=queue_size) as sender:
        counting = asyncio.create_task(count_delivered(sender, delivered))

        async def send(number: int) -> None:
            nonlocal accepted, refused
            try:
                await sender.send_email(make(number))
            except QueueFull:
                refused += 1
            else:
                accepted += 1

        begun, number = time.monotonic(), 0
        while (passed := time.monotonic() - begun) < length.total_seconds():
            wanted = int(passed * RATE)
            await asyncio.gather(*(send(each) for each in range(number, wanted)))
            number = wanted
            if passed >= length.total_seconds() * len(course) / LOOKS:
                course.append(memory())
            await asyncio.sleep(TICK)
        counting.cancel()
        await sender.aclose(timedelta(0))
    tenth = LOOKS // 10
    grown = statistics.median(course[-tenth:]) - statistics.median(course[tenth : 2 * tenth])
    return {
        "grown_mib": grown,
        "accepted": accepted,
        "refused": refused,
        "delivered": delivered[0],
        "memory_mib": course[-1],
    }, course


async def count_delivered(sender: Mailstrom, delivered: list[int]) -> None:
    async with sender.events(MessageCompleted) as events:
        async for event in events:
            assert isinstance(event, MessageCompleted), "events came faster than they were counted"
            delivered[0] += 1


@contextmanager
def slow_sink() -> Iterator[int]:
    command = [sys.executable, "-c", SLOW_SINK]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--queue-size", type=int)
    options = parser.parse_args()
    with slow_sink() as port, tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        length = timedelta(minutes=options.minutes)
        figures, course = asyncio.run(run(port, folder, length, options.queue_size))
    print(json.dumps(figures | {"course_mib": [round(each, 1) for each in course]}))


if __name__ == "__main__":
    main()
