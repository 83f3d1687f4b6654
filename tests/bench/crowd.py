"""One message to 10,000 recipients in 50 domains: how long `send_email` and `query_status` take.

    python tests/bench/crowd.py
    python tests/bench/crowd.py --recipients 1000

Prints JSON: seconds until it is accepted, milliseconds of `query_status` while all are queued and when all are
delivered, seconds until then, and the longest block of the event loop in the two calls.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from messages import text
from sink import sink
from throughput import lateness

from mailstrom_async import Config, DirectDelivery, Email, Mailstrom, SQLiteStorage
from mailstrom_async.testing import DNSServer

DOMAINS = 50
LOOKS = 5


async def measure(recipients: int) -> dict[str, float]:
    domains = [f"d{number}.example.net" for number in range(DOMAINS)]
    records = {name: {"MX": [f"10 mx.{name}"]} for name in domains}
    records |= {f"mx.{name}": {"A": ["127.0.0.1"]} for name in domains}
    email = Email(
        from_="App <app@example.org>",
        to="undisclosed-recipients:;",
        bcc=[f"Reader {number} <reader{number}@{domains[number % DOMAINS]}>" for number in range(recipients)],
        subject="To all of you",
        text=text(2048),
    )
    late: list[float] = []
    with sink() as port, tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        async with DNSServer(records, ttl=300) as dns:  # as real zones have it: a lookup now and then, not one a mail
            config = Config(
                helo_name="app.example.org",
                # smtp-sink listens on one address, so that all domains have one and the same site.
                delivery=DirectDelivery(port=port, nameservers=(dns.address,), allowed_networks=("127.0.0.0/8",)),
            )
            async with Mailstrom(config, SQLiteStorage(Path(folder, "mail.db")), deliver=False) as mailer:
                ticker = asyncio.create_task(lateness(late))
                await asyncio.sleep(0.05)
                late.clear()
                begun = time.perf_counter()
                message_id = await mailer.send_email(email)
                accepted = time.perf_counter() - begun
                queued = await looks(mailer, message_id)
                await asyncio.sleep(0.005)
                blocked = max(late)
                ticker.cancel()
                begun = time.perf_counter()
                await mailer.start()
                status = await mailer.wait(message_id, timeout=timedelta(minutes=4))
                delivered = time.perf_counter() - begun
                assert status.succeeded
                assert len(status.recipients) == recipients
                final = await looks(mailer, message_id)
    return {
        "accept_s": accepted,
        "status_ms": max(queued, final) * 1e3,
        "status_queued_ms": queued * 1e3,
        "status_delivered_ms": final * 1e3,
        "delivered_s": delivered,
        "blocked_ms": blocked * 1e3,
    }


async def looks(mailer: Mailstrom, message_id: str) -> float:
    """Seconds that a status query takes."""
    took: list[float] = []
    for _ in range(LOOKS):
        begun = time.perf_counter()
        await mailer.query_status(message_id)
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipients", type=int, default=10_000)
    print(json.dumps(asyncio.run(measure(parser.parse_args().recipients))))


if __name__ == "__main__":
    main()
