"""Decides when which delivery is claimed; sleeps until the next one is due."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from mailstrom_async._clock import Clock
from mailstrom_async._engine.claims import Claims
from mailstrom_async._engine.health import Health
from mailstrom_async._envelope import Delivery, Due
from mailstrom_async._errors import StorageError
from mailstrom_async._queue.delay_heap import DelayHeap
from mailstrom_async._queue.fairness import ReadyLines, Share
from mailstrom_async.storage.base import Storage

logger = logging.getLogger("mailstrom_async")

HEAP_CAPACITY = 10_000
READY_CAPACITY = 10_000
CLAIMED_AT_MOST = 1_000
CLAIM_BATCH = 100
PATIENCE = timedelta(seconds=1)
"""Between two tries to read a store that does not answer."""


class Scheduler:
    """What is due moves from the store's index over the delay heap and the ready lines into claims.

    It is told what is queued, recorded or released, and so never polls while it knows what is due next.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        claims: Claims,
        health: Health,
        dispatch: Callable[[Sequence[Delivery]], None],
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._claims = claims
        self._health = health
        self._dispatch = dispatch
        self._heap = DelayHeap(HEAP_CAPACITY)
        self._lines = ReadyLines(Share())
        self._wake = asyncio.Event()
        self._stopping = False
        self._refill_wanted = True
        self._pushed_while_refilling: set[int] | None = None

    def push(self, entries: Iterable[Due]) -> None:
        """These deliveries are due then, whatever was known of them before."""
        entries = list(entries)
        if self._pushed_while_refilling is not None:
            self._pushed_while_refilling.update(entry.delivery_id for entry in entries)
        self._heap.push(entries)
        self._wake.set()

    def ended(self, delivery: Delivery, *, well: bool | None) -> None:
        """A claim is over; `well` as in `ReadyLines.finished`."""
        self._claims.end(delivery)
        self._lines.finished(delivery.destination, well=well)
        self._wake.set()

    def stop(self) -> None:
        """Claim nothing more; `run` ends when its step is done. A step is not cut in half, or claims that nobody knows
        of would be left in the store."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Claim and dispatch until told to stop."""
        while not self._stopping:
            self._wake.clear()
            try:
                while await self._round():
                    pass
            except StorageError as error:
                await self._recover(str(error))
                continue
            except Exception:
                # A fault in this library must not end delivery for good and silently: it shows, and we go on.
                logger.exception("the scheduler failed; it goes on in a moment")
                await self._recover("failed unexpectedly, see the log")
                continue
            self._health.report("scheduler", None)
            await self._clock.wait(self._wake, self._next_look())

    def _next_look(self) -> datetime | None:
        """When there may be something to do although nobody wakes us; None: never."""
        if self._health.ails("store"):
            # What is due stays where it is, so its time must not wake us again and again.
            return self._clock.now() + PATIENCE
        return self._heap.next_due_at if len(self._lines) < READY_CAPACITY else None

    async def _recover(self, trouble: str) -> None:
        self._health.report("scheduler", trouble)
        self._refill_wanted = True
        if not self._stopping:
            await self._clock.wait(self._wake, self._clock.now() + PATIENCE)

    async def _round(self) -> bool:
        """One step. Whether there may be more to do at once."""
        if self._stopping or self._health.ails("store"):
            return False
        if self._lines.take_left_out() or self._heap.wants_refill or self._refill_wanted:
            await self._refill()
        self._lines.add(self._heap.pop_due(self._clock.now(), max(0, READY_CAPACITY - len(self._lines))))
        entries = self._lines.take(min(CLAIM_BATCH, CLAIMED_AT_MOST - len(self._claims)), self._claims.bytes_free)
        if not entries and not self._claims and (alone := self._lines.first()) is not None:
            entries = [alone]
        if not entries:
            return self._heap.wants_refill
        try:
            deliveries = await self._claims.claim(entries, self._clock.now())
        except BaseException:
            for entry in entries:
                self._lines.finished(entry.destination, well=None)
            raise
        claimed = {delivery.id for delivery in deliveries}
        for entry in entries:
            if entry.delivery_id not in claimed:
                self._lines.finished(entry.destination, well=None)
        if deliveries:
            self._dispatch(deliveries)
        return True

    async def _refill(self) -> None:
        # What waits in the lines is unclaimed as well, so the store names it again: ask for so many more.
        limit = HEAP_CAPACITY + len(self._lines)
        full = self._lines.full()
        self._pushed_while_refilling = set()
        self._heap.begin_refill()
        try:
            entries = await self._storage.upcoming(limit, excluding=full)
            self._refill_wanted = False
            # What was pushed meanwhile is newer than what the store read.
            stale = self._pushed_while_refilling
            fresh = [
                entry for entry in entries if entry.delivery_id not in stale and entry.delivery_id not in self._lines
            ]
            self._heap.refill(fresh, complete=len(entries) < limit)
        finally:
            self._pushed_while_refilling = None
