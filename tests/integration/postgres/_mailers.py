"""What the tests of whole mailers over PostgreSQL share."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from mailstrom_async import Config, Email, Mailstrom, RelayDelivery
from mailstrom_async.testing import SMTPServer

LEASE = timedelta(seconds=10)


def config(sink: SMTPServer, *, lease: timedelta = LEASE) -> Config:
    """All mail goes to the sink."""
    relay = RelayDelivery(host=sink.host, port=sink.port, security="none")
    return Config(helo_name="app.example.org", delivery=relay, lease=lease, shutdown_grace=timedelta(seconds=1))


def email(number: int) -> Email:
    """A message with a recipient and a Message-ID of its own."""
    return Email(
        from_="app@example.org", to=recipient(number), subject="Hello", text="Hello", message_id=message_id(number)
    )


def message_id(number: int) -> str:
    return f"{number}@app.example.org"


def recipient(number: int) -> str:
    return f"user{number}@example.net"


def arrived(sink: SMTPServer) -> Counter[str]:
    """How often the sink took mail for each recipient."""
    return Counter(address for message in sink.messages for address in message.recipients)


async def state(mailer: Mailstrom, *, is_: str) -> None:
    """Return when the mailer's status is this."""
    async with mailer.events() as events, asyncio.timeout(30):
        while mailer.worker_status.state != is_:
            await anext(events)


@asynccontextmanager
async def eventually(seconds: float = 40) -> AsyncIterator[None]:
    """What is in here takes real time, but never that much."""
    async with asyncio.timeout(seconds):
        yield
