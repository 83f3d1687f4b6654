"""A process that only delivers: `python _worker.py DSN SCHEMA PORT LEASE CONNECTIONS`. Says so, then goes on
until it is killed, or its standard input ends."""

import asyncio
import sys
from datetime import timedelta

from mailstrom_async import Config, Limits, Mailstrom, RelayDelivery
from mailstrom_async.storage.postgres import PostgresStorage


async def main(dsn: str, schema: str, port: int, lease: timedelta, connections: int) -> None:
    relay = RelayDelivery(host="127.0.0.1", port=port, security="none")
    limits = Limits(connections=connections, connections_per_host=connections)
    config = Config(helo_name="worker.example.org", delivery=relay, lease=lease, limits=limits)
    async with Mailstrom(config, PostgresStorage(dsn, schema=schema)):
        sys.stdout.write("delivering\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), timedelta(seconds=float(sys.argv[4])), int(sys.argv[5])))
