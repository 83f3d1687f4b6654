"""An application that reacts when a mail can't be delivered.

What it shows: events in a background task that lives as long as the mailer; a list of addresses not to write to again.
Requires: nothing more
To run:   python examples/watch_failures.py good@example.net bad@example.net       (settings: see examples/README.md)
It should print: "bad@example.net failed: HOST answered RCPT with: 550 ...; not to be written to again" for each address
that its server refuses for good, and at the end "1 of 2 addresses are good".
"""

import asyncio
import os
import sys

from mailstrom_async import Config, Email, EventsLost, Mailstrom, MemoryStorage, RecipientFailed


async def watch(mailer: Mailstrom, dead_addresses: set[str], listening: asyncio.Event) -> None:
    """Runs until it is cancelled, or the mailer closes."""
    async with mailer.events(RecipientFailed) as events:
        listening.set()
        async for event in events:
            if isinstance(event, EventsLost):  # we were too slow: catch up with mailer.query_recent(since=...)
                continue
            # 5.1.x: the address is bad. Anything else (a full queue, a message that is too big) says nothing of it.
            forever = event.result.enhanced.startswith("5.1.")
            print(f"{event.address} failed: {event.result.reason}" + "; not to be written to again" * forever)
            if forever:
                dead_addresses.add(event.address)


async def main(addresses: list[str]) -> None:
    """Send to each address and see which are good."""
    config = Config.model_validate_json(os.environ.get("MAIL_CONFIG", '{"helo_name": "app.example.org"}'))
    dead_addresses: set[str] = set()
    listening = asyncio.Event()
    async with Mailstrom(config, MemoryStorage()) as mailer:
        watching = asyncio.create_task(watch(mailer, dead_addresses, listening))
        await listening.wait()
        for message_id in await mailer.send_emails(
            [Email(from_="app@example.org", to=address, subject="News", text="News\n") for address in addresses]
        ):
            await mailer.wait(message_id, until="attempted")
    await watching  # its loop ended with the mailer
    print(f"{len(set(addresses) - dead_addresses)} of {len(addresses)} addresses are good")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
