"""What the tests of the engine share: a clock, a relay on loopback, and mailers that deliver to it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from mailstrom_async import Config, Email, Mailstrom, MemoryStorage, MessageStatus, RelayDelivery, Storage
from mailstrom_async.testing import ManualClock, SMTPServer

SECOND, MINUTE, HOUR, DAY = (timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days"))


@pytest.fixture
def clock() -> ManualClock:
    """The queue's clock; stands still until a test moves it."""
    return ManualClock()


@pytest.fixture
async def server() -> AsyncIterator[SMTPServer]:
    """The relay that everything goes to."""
    async with SMTPServer() as server:
        yield server


@pytest.fixture
def storage() -> MemoryStorage:
    """The store, which outlives mailers."""
    return MemoryStorage()


Build = Callable[..., Mailstrom]


@pytest.fixture
def build(server: SMTPServer, storage: MemoryStorage, clock: ManualClock) -> Build:
    """Makes a mailer that delivers to the server; keyword arguments are settings of `Config`."""

    def build(store: Storage | None = None, *, deliver: bool = True, port: int | None = None, **settings: Any):
        relay = RelayDelivery(host="127.0.0.1", port=port or server.port, security="none")
        config = Config(**{"helo_name": "app.example.org", "delivery": relay, **settings})
        return Mailstrom(config, store or storage, deliver=deliver, clock=clock)

    return build


def email(to: str = "ada@example.net", **fields: Any) -> Email:
    return Email(**{"from_": "app@example.org", "to": to, "subject": "Hello", "text": "Hello", **fields})


async def completed(mailer: Mailstrom, message_id: str, clock: ManualClock, step: timedelta) -> MessageStatus:
    """The status of a message once it is completed, while the clock goes on in steps.

    What is due may be under way, over sockets and in threads that know no such clock: then a step takes 5 ms, or days
    would pass meanwhile and the message expire.
    """
    passed_at = 0.0
    async with asyncio.timeout(20):
        while not (status := await mailer.query_status(message_id)).completed:
            results = [recipient.result for recipient in status.recipients]
            under_way = any(
                result.state == "queued" or (result.state == "deferred" and result.next_attempt_at <= clock.now())
                for result in results
            )
            if not under_way or time.monotonic() - passed_at > 0.005:
                clock.advance(step)
                passed_at = time.monotonic()
            await asyncio.sleep(0)
    return status
