"""The deliveries that are ours now, and the keeping of their leases."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from mailstrom_async._clock import Clock
from mailstrom_async._envelope import Delivery, Due
from mailstrom_async._errors import StorageError
from mailstrom_async._queue.fairness import SMALL
from mailstrom_async.storage.base import Acceptance, Express, Storage

logger = logging.getLogger("mailstrom_async")

CLAIMED_AT_MOST = 1_000
"""Deliveries that an engine has at a time."""


class Claims:
    """What is claimed and not yet recorded or released: bounded by count and by bytes of content. What the store is
    being asked for counts already, and so there may be more than are `held`.

    Attributes:
        small_bytes: How many bytes are held in small mail.
        lost: The ids of those whose lease ended: somebody else may be attempting them. Who has not begun with one must
            not.
    """

    def __init__(self, storage: Storage, clock: Clock, *, owner: str, lease: timedelta, bytes_in_flight: int) -> None:
        self._storage = storage
        self._express = storage if isinstance(storage, Express) else None
        self._clock = clock
        self._owner = owner
        self._lease = lease
        self.bytes_in_flight = bytes_in_flight
        self._bytes_free = bytes_in_flight
        self.small_bytes = 0
        self._held: dict[int, Delivery] = {}
        self._promised = 0
        self.lost: set[int] = set()

    def __len__(self) -> int:
        return len(self._held) + self._promised

    def __contains__(self, delivery_id: object) -> bool:
        return delivery_id in self._held

    @property
    def free(self) -> int:
        """How many more there may be."""
        return CLAIMED_AT_MOST - len(self)

    @property
    def bytes_free(self) -> int:
        """How many bytes more they may have."""
        return self._bytes_free

    @property
    def can_claim_at_once(self) -> bool:
        """The store can claim mail as it accepts it."""
        return self._express is not None

    async def claim(self, entries: Sequence[Due], now: datetime) -> list[Delivery]:
        """Claim what of these is still to be had."""
        size = sum(entry.size for entry in entries)
        self._promise(len(entries), size)
        try:
            deliveries = await self._storage.claim(
                [entry.delivery_id for entry in entries], owner=self._owner, now=now, lease_until=now + self._lease
            )
        finally:
            self._promise(-len(entries), -size)
        for delivery in deliveries:
            self._hold(delivery)
        return deliveries

    async def enqueue_claimed(self, acceptance: Acceptance, queue_size: int | None) -> Delivery | list[Due]:
        """As `Express.enqueue_claimed`."""
        assert self._express is not None  # noqa: S101 - see `can_claim_at_once`
        size = len(acceptance.prepared.content)
        self._promise(1, size)
        try:
            stored = await self._express.enqueue_claimed(
                acceptance, owner=self._owner, lease_until=self._clock.now() + self._lease, queue_size=queue_size
            )
        finally:
            self._promise(-1, -size)
        if isinstance(stored, Delivery):
            self._hold(stored)
        return stored

    def _promise(self, count: int, size: int) -> None:
        """Count what the store is asked for; negative: it has answered."""
        self._promised += count
        self._bytes_free -= size

    def _hold(self, delivery: Delivery) -> None:
        self._held[delivery.id] = delivery
        self._count(len(delivery.message.content))

    def end(self, delivery: Delivery) -> None:
        """It is recorded, released, or lost."""
        self.lost.discard(delivery.id)
        if self._held.pop(delivery.id, None) is not None:
            self._count(-len(delivery.message.content))

    def _count(self, size: int) -> None:
        self._bytes_free -= size
        if abs(size) <= SMALL:
            self.small_bytes += size

    def held(self) -> list[Delivery]:
        return list(self._held.values())

    async def release(self, deliveries: Iterable[Delivery], due_at: datetime) -> list[Due]:
        """Give deliveries back unattempted."""
        deliveries = list(deliveries)
        if not deliveries:
            return []
        dues = await self._storage.release(deliveries, due_at)
        for delivery in deliveries:
            self.end(delivery)
        return dues

    async def keep_leases(self) -> None:
        """Renew the leases as long as this runs. An attempt whose claim is lost all the same is not stopped: what it
        records will be refused by the store."""
        never = asyncio.Event()
        while True:
            renewed_at = self._clock.now()
            # A clock that was set back must not make us wait for the time that it lost.
            while renewed_at <= (now := self._clock.now()) < renewed_at + self._lease / 3:
                await self._clock.wait(never, renewed_at + self._lease / 3)
            if not self._held:
                continue
            try:
                lost = await self._storage.renew(self.held(), now + self._lease)
            except StorageError as error:
                logger.warning("leases could not be renewed, deliveries may be attempted twice: %s", error)
                continue
            except Exception:
                logger.exception("the renewal of leases failed; it is tried again")
                continue
            for delivery in lost:
                if self._held.get(delivery.id) is delivery:  # else it was recorded meanwhile
                    self.lost.add(delivery.id)
                    logger.warning("%r: its lease ended while it was attempted; its result will not count", delivery)
