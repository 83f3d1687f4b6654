"""How long mail to healthy domains takes while another destination is sick.

    python tests/bench/sick.py                       # every kind of sickness, in turn
    python tests/bench/sick.py --only hanging        # kinds whose name has this in it
    python tests/bench/sick.py --runs 5 --json sick.json

Nine tenths of the queue are for the sick destination and due before the rest; one tenth is spread over fifty healthy
domains and comes evenly. The latency of a mail is the time from the return of `send_email` to its recorded delivery, in
seconds; SQLite with synchronous=FULL. Servers and nameserver are another process. Each kind is measured beside the
healthy domains alone, in turns, so that ratios mean something on a busy machine.

The JSON has for each kind the list of all latencies, and percentiles.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from mailstrom_async import Config, DirectDelivery, Email, EventsLost, Mailstrom, RecipientDelivered, SQLiteStorage
from mailstrom_async.testing import Close, Delay, FakeInternet, Hang, Reply

DOMAINS = 50
HEALTHY = 400
SICK = 9 * HEALTHY
PER_SECOND = 80
PATIENCE = timedelta(seconds=60)
ALONE = "healthy alone"


def flapping(context: object) -> Close | None:
    """Half a second up, half a second down."""
    return Close() if time.monotonic() % 1 < 0.5 else None


def three_mails(context: object) -> Reply | None:
    """The fourth mail of a session hears 421."""
    transaction: int = context.transaction  # type: ignore[attr-defined]
    return Reply("421 4.7.0 that is enough", then=Close()) if transaction > 3 else None


KINDS: dict[str, dict[str, object] | None] = {
    ALONE: None,
    "as healthy, only full": {},
    "hanging": {"MAIL": Hang()},
    "slow (0.4 s a mail)": {"end of data": Delay(timedelta(seconds=0.4))},
    "flapping": {"greeting": flapping, "MAIL": flapping},
    "421 after three mails": {"MAIL": three_mails},
}


async def serve(kind: str) -> None:
    """The other side: prints where it is, and runs until its input ends."""
    async with FakeInternet(ttl=300) as internet:
        for number in range(DOMAINS):
            await internet.exchanger(f"mx.well{number}.example.org")
            internet.domain(f"well{number}.example.org", mx=[f"mx.well{number}.example.org"])
        await internet.exchanger("mx.sick.example.net", KINDS[kind])  # type: ignore[arg-type]
        internet.domain("sick.example.net", mx=["mx.sick.example.net"])
        for server in internet.exchangers.values():
            server._ledger._keep = False
        print(internet.delivery.model_dump_json(), flush=True)
        await asyncio.to_thread(sys.stdin.read)


def email(domain: str, number: int) -> Email:
    return Email(from_="app@example.org", to=f"r{number}@{domain}", subject=f"Number {number}", text="Hello\n" * 300)


async def measure(kind: str, delivery: DirectDelivery, directory: str) -> list[float]:
    """The latencies of the healthy mail."""
    config = Config(helo_name="bench.example.org", delivery=delivery, shutdown_grace=timedelta(0))
    sent: dict[str, float] = {}
    latencies: list[float] = []
    async with Mailstrom(config, SQLiteStorage(Path(directory) / "mail.db")) as mailer:
        # Routes and connections as they are after a while of work.
        warm = [await mailer.send_email(email(f"well{number}.example.org", number)) for number in range(DOMAINS)]
        for message_id in warm:
            await mailer.wait(message_id, timeout=PATIENCE)
        if KINDS[kind] is not None:
            await mailer.send_emails([email("sick.example.net", number) for number in range(SICK)])
        async with mailer.events(RecipientDelivered) as events:

            async def send() -> None:
                begin = time.perf_counter()
                for number in range(HEALTHY):
                    await asyncio.sleep(max(0.0, begin + number / PER_SECOND - time.perf_counter()))
                    message_id = await mailer.send_email(email(f"well{number % DOMAINS}.example.org", number))
                    sent[message_id] = time.perf_counter()

            sending = asyncio.create_task(send())
            async with asyncio.timeout(PATIENCE.total_seconds() + HEALTHY / PER_SECOND):
                async for event in events:
                    if isinstance(event, EventsLost):
                        raise SystemExit("events were lost, so the latencies would be wrong: take fewer messages")
                    if event.address.endswith("example.net"):
                        continue
                    # Delivered before send_email's caller had its turn: no time at all.
                    now = time.perf_counter()
                    latencies.append(now - sent.get(event.message_id, now))
                    if len(latencies) == HEALTHY:
                        break
            await sending
    return latencies


def run(kind: str) -> list[float]:
    """One run, with a fresh queue and fresh servers."""
    command = [sys.executable, __file__, "--serve", kind]
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as servers,
    ):
        assert servers.stdout is not None
        try:
            delivery = DirectDelivery.model_validate_json(servers.stdout.readline())
            return asyncio.run(measure(kind, delivery, directory))
        finally:
            servers.kill()


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def summary(runs: list[list[float]]) -> dict[str, object]:
    """The median over the runs of each percentile, and every latency."""

    def median(share: float) -> float:
        return statistics.median(percentile(latencies, share) for latencies in runs)

    return {"p50": median(0.5), "p99": median(0.99), "latencies": [latency for run in runs for latency in run]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
        return
    kinds = [kind for kind in KINDS if kind == ALONE or options.only in kind]
    runs: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for _ in range(options.runs):
        for kind in kinds:
            runs[kind].append(run(kind))
    results = {kind: summary(seen) for kind, seen in runs.items()}
    number: Callable[[str, str], float] = lambda kind, name: results[kind][name]  # type: ignore[assignment,return-value] # noqa: E731
    print(f"{'the other destination is':<28}{'p50 ms':>9}{'p99 ms':>9}{'p99 ratio':>11}")
    for kind in kinds:
        ratio = number(kind, "p99") / number(ALONE, "p99")
        print(f"{kind:<28}{1000 * number(kind, 'p50'):>9.1f}{1000 * number(kind, 'p99'):>9.1f}{ratio:>11.2f}")
    if options.json:
        options.json.write_text(json.dumps({"unit": "s", "runs": options.runs, "scenarios": results}, indent=1))


if __name__ == "__main__":
    main()
