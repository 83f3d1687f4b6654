"""The scheduler over a store that other processes change."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from mailstrom_async import MemoryStorage, PreparedEmail
from mailstrom_async._engine.claims import Claims
from mailstrom_async._engine.health import Health
from mailstrom_async._engine.scheduler import LOOK_EVERY, Scheduler
from mailstrom_async._envelope import Delivery, Due, Lane
from mailstrom_async.storage import Acceptance
from mailstrom_async.testing import ManualClock

LEASE = timedelta(seconds=60)


class SharedStorage(MemoryStorage):
    """A queue in memory that says it is shared, as one of several processes sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.wake: Callable[[], None] = lambda: None

    @property
    def shared(self) -> bool:
        return True

    def watch(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    async def upcoming(self, limit: int, *, excluding: Collection[str] = (), lane: Lane | None = None) -> list[Due]:
        unclaimed = await super().upcoming(limit, excluding=excluding, lane=lane)
        claimed = [
            Due(delivery.due_at, delivery.id, delivery.destination, delivery.message.size)
            for delivery in self._claimed.values()
            if delivery.due_at is not None and lane in (None, delivery.message.shared.lane)
        ]
        return sorted([*unclaimed, *claimed])[:limit]


def accepted(message_id: str, at: datetime) -> Acceptance:
    prepared = PreparedEmail(message_id, "a@example.org", ("b@example.net",), b"Subject: x\r\n\r\n")
    return Acceptance(prepared, at, at, at + timedelta(days=5))


class Life:
    """A running scheduler, and what it dispatched."""

    def __init__(self, storage: SharedStorage, clock: ManualClock, owner: str) -> None:
        self.dispatched: asyncio.Queue[Delivery] = asyncio.Queue()
        self.claims = Claims(storage, clock, owner=owner, lease=LEASE, bytes_in_flight=10_000)
        self.scheduler = Scheduler(
            storage, clock, self.claims, Health(lambda status: None), self._dispatch, longest_wait=LEASE
        )

    def _dispatch(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.dispatched.put_nowait(delivery)


@asynccontextmanager
async def running(storage: SharedStorage, clock: ManualClock, owner: str) -> AsyncIterator[Life]:
    life = Life(storage, clock, owner)
    storage.watch(life.scheduler.look)
    async with asyncio.TaskGroup() as group:
        group.create_task(life.scheduler.run())
        await clock.until_waiting()
        yield life
        life.scheduler.stop()


async def test_mail_that_somebody_else_accepted_is_claimed_when_the_store_calls() -> None:
    """What `watch` promises: one call, and what is due is claimed without any time passing."""
    clock, storage = ManualClock(), SharedStorage()
    await storage.open(clock.now())
    async with running(storage, clock, "we") as life:
        await storage.enqueue([accepted("one@example.org", clock.now())])
        storage.wake()

        assert (await life.dispatched.get()).message.message_id == "one@example.org"


async def test_mail_is_found_within_seconds_though_the_call_got_lost() -> None:
    """The safety net: a shared store is read every few seconds."""
    clock, storage = ManualClock(), SharedStorage()
    await storage.open(clock.now())
    async with running(storage, clock, "we") as life:
        await storage.enqueue([accepted("one@example.org", clock.now())])
        clock.advance(LOOK_EVERY)

        assert (await life.dispatched.get()).message.message_id == "one@example.org"


async def test_what_a_dead_process_had_claimed_is_claimed_at_the_end_of_its_lease() -> None:
    """Row C14: the owner is gone, so its lease runs out; nothing but time is needed to take its deliveries over."""
    clock, storage = ManualClock(), SharedStorage()
    await storage.open(clock.now())
    dues = await storage.enqueue([accepted("one@example.org", clock.now())])
    await storage.claim(
        [due.delivery_id for due in dues], owner="dead", now=clock.now(), lease_until=clock.now() + LEASE
    )
    async with running(storage, clock, "we") as life:
        clock.advance(LEASE)
        delivery = await life.dispatched.get()

        assert (delivery.owner, delivery.attempt) == ("we", 2)


async def test_our_own_claims_are_never_claimed_a_second_time() -> None:
    """I15: a shared store names our own claims as well, and a lease that we failed to renew must not make us attempt
    twice at once."""
    clock, storage = ManualClock(), SharedStorage()
    await storage.open(clock.now())
    await storage.enqueue([accepted("one@example.org", clock.now())])
    async with running(storage, clock, "we") as life:
        mine = await life.dispatched.get()
        clock.advance(2 * LEASE)
        await storage.enqueue([accepted("two@example.org", clock.now())])
        storage.wake()
        other = await life.dispatched.get()

        assert (mine.message.message_id, other.message.message_id) == ("one@example.org", "two@example.org")
        assert life.dispatched.empty()


async def test_what_we_lost_and_still_attempt_is_not_claimed_beside_that() -> None:
    """I15: another process took it over and gave it back, and somebody asks for it to be retried now."""
    clock, storage = ManualClock(), SharedStorage()
    await storage.open(clock.now())
    [due] = await storage.enqueue([accepted("one@example.org", clock.now())])
    async with running(storage, clock, "we") as life:
        mine = await life.dispatched.get()
        clock.advance(2 * LEASE)
        [theirs] = await storage.claim(
            [due.delivery_id], owner="they", now=clock.now(), lease_until=clock.now() + LEASE
        )
        dues = await storage.release([theirs], clock.now())
        life.scheduler.push(dues)
        await storage.enqueue([accepted("two@example.org", clock.now())])
        storage.wake()
        assert (await life.dispatched.get()).message.message_id == "two@example.org"
        assert life.dispatched.empty()
        life.scheduler.ended(mine, well=None)
        clock.advance(LOOK_EVERY)

        assert (await life.dispatched.get()).message.message_id == "one@example.org"
