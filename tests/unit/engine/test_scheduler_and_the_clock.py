"""The scheduler under a clock that is set back."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from mailstrom_async import MemoryStorage, PreparedEmail
from mailstrom_async._engine.claims import Claims
from mailstrom_async._engine.health import Health
from mailstrom_async._engine.scheduler import Scheduler
from mailstrom_async._envelope import Delivery
from mailstrom_async._queue.fairness import Share
from mailstrom_async.storage import Acceptance
from mailstrom_async.testing import ManualClock

HOUR = timedelta(hours=1)


@pytest.mark.rule("C16", "clock back: what is not due any more is claimed later")
async def test_what_is_not_due_any_more_when_it_is_claimed_is_claimed_later() -> None:
    """Row C16: it waited in its line while the clock was set back; the store refuses it, and it is not forgotten."""
    clock, storage = ManualClock(), MemoryStorage()
    await storage.open(clock.now())
    window = Share().least
    for number in range(window + 1):
        prepared = PreparedEmail(f"{number}", "a@example.org", ("b@example.net",), b"Subject: x\r\n\r\n")
        # To be sent at a certain time, which has come.
        await storage.enqueue([Acceptance(prepared, clock.now() - HOUR, clock.now(), clock.now() + 100 * HOUR)])
    dispatched: asyncio.Queue[Delivery] = asyncio.Queue()

    def dispatch(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            dispatched.put_nowait(delivery)

    claims = Claims(storage, clock, owner="we", lease=HOUR, bytes_in_flight=10_000)
    scheduler = Scheduler(storage, clock, claims, Health(lambda status: None), dispatch, longest_wait=HOUR)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(scheduler.run())
        first = [await dispatched.get() for _ in range(window)]
        clock.advance(-HOUR)
        scheduler.ended(first[0], well=None)
        await clock.until_waiting()
        clock.advance(HOUR)
        last = await dispatched.get()
        scheduler.stop()

    assert last.message.message_id == f"{window}"
