"""Two processes that send and deliver, as the workers of a web server do.

    python tests/bench/processes.py             # each has a queue of its own
    python tests/bench/processes.py --shared    # both have one: a single one of them delivers

An interpreter runs one thread at a time; this shows how much more there is to be had from two of them. Prints the
figures of one run as JSON: messages per second of both together, and microseconds of processor time for each message.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from messages import ready
from sink import sink
from throughput import CALLERS, PATIENCE, mailer

PROCESSES = 2
LOOK_EVERY = 0.02


def measure(count: int, *, shared: bool) -> dict[str, float]:
    """So many messages, a part of them from each process."""
    with ExitStack() as stack:
        port = stack.enter_context(sink())
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp"))
        workers: list[subprocess.Popen[str]] = []
        for number in range(PROCESSES):
            home = Path(folder, "queue" if shared else str(number))
            home.mkdir(exist_ok=True)
            command = [sys.executable, __file__, "--worker", str(port), str(home), "--count", str(count // PROCESSES)]
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(worker)
            stack.callback(worker.kill)
            workers.append(worker)
            hear(worker)  # it is ready; one after another, as they would both like to have the queue
        for worker in workers:
            tell(worker)
        told = [json.loads(hear(worker)) for worker in workers]
        for worker in workers:
            tell(worker)
            worker.wait(PATIENCE.total_seconds())
    took = max(each["ended"] for each in told) - min(each["begun"] for each in told)
    return {"rate": count / took, "cpu_us": sum(each["cpu"] for each in told) / count * 1e6}


def tell(worker: "subprocess.Popen[str]") -> None:
    assert worker.stdin is not None
    worker.stdin.write("go on\n")
    worker.stdin.flush()


def hear(worker: "subprocess.Popen[str]") -> str:
    assert worker.stdout is not None
    return worker.stdout.readline()


async def work(port: int, folder: str, count: int) -> None:
    make = ready(2048)
    numbers = iter(range(count))
    async with mailer(port, folder) as sender, asyncio.timeout(PATIENCE.total_seconds()):

        async def call() -> None:
            for number in numbers:
                await sender.send_email(make(number))

        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        begun, cpu = time.time(), time.process_time()
        await asyncio.gather(*[call() for _ in range(CALLERS // PROCESSES)])
        # Of the whole queue, whoever delivers it; events tell only of what this process has queued.
        while await sender.query_recent(limit=1):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_EVERY)
        figures = {"begun": begun, "ended": time.time(), "cpu": time.process_time() - cpu}
        print(json.dumps(figures), flush=True)
        await asyncio.to_thread(sys.stdin.readline)  # it may be the one that answers the other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--worker", nargs=2, metavar=("PORT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        asyncio.run(work(int(options.worker[0]), options.worker[1], options.count))
    else:
        print(json.dumps(measure(options.count, shared=options.shared)))


if __name__ == "__main__":
    main()
