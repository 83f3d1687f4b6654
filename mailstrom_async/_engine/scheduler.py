"""Decides when which delivery is claimed; sleeps until the next one is due."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta

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
REFILL = 2_000
"""Deliveries read at once. More would only be read again: a backlog of one destination does not fit into its line."""
READY_CAPACITY = 20_000
"""Due deliveries that wait here for their claim: a few hundred bytes each."""
CLAIMED_AT_MOST = 1_000
CLAIM_BATCH = 100
BUSY = 32
PACE = 0.01
"""Seconds between two claims while so many deliveries are under way: one claim of twenty costs little more than one of
one, and nobody runs dry meanwhile."""
STEP_BACK = timedelta(seconds=1)
"""What a clock may go back without notice: less harms nothing."""
PATIENCE = timedelta(seconds=1)
"""Between two tries to read a store that does not answer."""
LOOK_EVERY = timedelta(seconds=5)
"""How often a shared store is read without a call: the safety net for calls that got lost."""
LOOKED_AT = 1_000
"""Deliveries read in such a look. What others make due is due soon, and so among the nearest."""


class Scheduler:
    """What is due moves from the store's index over the delay heap and the ready lines into claims.

    It is told what is queued, recorded or released, and so never polls while it knows what is due next. Only of a store
    that other processes share it learns by looking: when it is called to, and every few seconds.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        claims: Claims,
        health: Health,
        dispatch: Callable[[Sequence[Delivery]], None],
        *,
        longest_wait: timedelta,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._claims = claims
        self._health = health
        self._dispatch = dispatch
        self._longest_wait = longest_wait
        self._heap = DelayHeap(HEAP_CAPACITY)
        self._lines = ReadyLines(Share(all=READY_CAPACITY))
        self._wake = asyncio.Event()
        self._stopping = False
        self._latest = datetime.max.replace(tzinfo=UTC)  # the clock may have been set back while nobody looked
        self._refill_wanted = True
        self._look_wanted = False
        self._look_at = clock.now() + LOOK_EVERY if storage.shared else None
        self._pushed_while_refilling: set[int] | None = None

    def push(self, entries: Iterable[Due]) -> None:
        """These deliveries are due then, whatever was known of them before."""
        entries = list(entries)
        if self._pushed_while_refilling is not None:
            self._pushed_while_refilling.update(entry.delivery_id for entry in entries)
        now = self._clock.now()
        room = READY_CAPACITY - len(self._lines)
        due: list[Due] = []  # as most mail is when it comes: it has no need of the heap
        later: list[Due] = []
        for entry in entries:
            if entry.due_at <= now and self._heap.covers(entry) and len(due) < room:
                self._heap.discard(entry.delivery_id)
                due.append(entry)
            else:
                later.append(entry)
        self._lines.follow(due)
        self._heap.push(later)
        self._wake.set()

    def ended(self, delivery: Delivery, *, well: bool | None) -> None:
        """A claim is over; `well` as in `ReadyLines.finished`."""
        self._claims.end(delivery)
        self._lines.finished(delivery.destination, well=well)
        self._wake.set()

    def look(self) -> None:
        """Somebody else has changed the store: see what is due now."""
        self._look_wanted = True
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
            if len(self._claims) >= BUSY:
                await asyncio.sleep(PACE)
            await self._clock.wait(self._wake, self._next_round_at())

    def _next_round_at(self) -> datetime | None:
        """When there may be something to do although nobody wakes us; None: never."""
        if self._health.ails("store"):
            # What is due stays where it is, so its time must not wake us again and again.
            return self._clock.now() + PATIENCE
        due_at = self._heap.next_due_at if len(self._lines) < READY_CAPACITY else None
        return min((at for at in (due_at, self._look_at) if at is not None), default=None)

    def _must_look(self, now: datetime) -> bool:
        # A look that is farther away than it was ever planned: the clock was set back.
        return self._look_at is not None and not self._look_at - LOOK_EVERY <= now < self._look_at

    async def _recover(self, trouble: str) -> None:
        self._health.report("scheduler", trouble)
        self._refill_wanted = True
        if not self._stopping:
            await self._clock.wait(self._wake, self._clock.now() + PATIENCE)

    async def _round(self) -> bool:
        """One step. Whether there may be more to do at once."""
        if self._stopping or self._health.ails("store"):
            return False
        now = self._clock.now()
        await self._mind_setback(now)
        if self._lines.take_left_out() or self._heap.wants_refill or self._refill_wanted:
            await self._refill(REFILL)
        elif self._look_wanted or self._must_look(now):
            await self._refill(LOOKED_AT)
        due = self._heap.pop_due(self._clock.now(), max(0, READY_CAPACITY - len(self._lines)))
        # What a shared store named while it was somebody else's may be ours by now, and must not be claimed twice.
        self._lines.add(entry for entry in due if entry.delivery_id not in self._claims)
        entries = self._lines.take(min(CLAIM_BATCH, CLAIMED_AT_MOST - len(self._claims)), self._claims.bytes_free)
        if not entries and not self._claims and (alone := self._lines.first()) is not None:
            entries = [alone]
        if not entries:
            return self._heap.wants_refill
        try:
            now = self._clock.now()
            deliveries = await self._claims.claim(entries, now)
        except BaseException:
            for entry in entries:
                self._lines.finished(entry.destination, well=None)
            raise
        claimed = {delivery.id for delivery in deliveries}
        for entry in entries:
            if entry.delivery_id not in claimed:
                self._lines.finished(entry.destination, well=None)
                if entry.due_at > now:  # the clock was set back while it waited for its turn: it may be due at any time
                    self._refill_wanted = True
        if deliveries:
            self._dispatch(deliveries)
        return True

    async def _mind_setback(self, now: datetime) -> None:
        """If the clock was set back, times that were to come soon are far away, and not to be waited for (row C16)."""
        if now >= self._latest - STEP_BACK:
            self._latest = now
            return
        changed = await self._storage.bring_forward(now, self._longest_wait)
        if changed:
            logger.warning("the clock was set back: %d deliveries need not wait until it is there again", changed)
        self._latest = now
        self._heap = DelayHeap(HEAP_CAPACITY)  # what was known here is older than that
        self._refill_wanted = True

    async def _refill(self, count: int) -> None:
        # What waits in the lines is unclaimed as well, so the store names it again: ask for so many more. A shared one
        # names what we have claimed, too.
        limit = count + len(self._lines) + (len(self._claims) if self._storage.shared else 0)
        full = self._lines.leave_out_full()
        self._look_wanted = False
        self._pushed_while_refilling = set()
        self._heap.begin_refill()
        try:
            entries = await self._storage.upcoming(limit, excluding=full)
            self._refill_wanted = False
            if self._storage.shared:
                self._look_at = self._clock.now() + LOOK_EVERY
            # What was pushed meanwhile is newer than what the store read.
            stale = self._pushed_while_refilling
            fresh = [
                entry
                for entry in entries
                if entry.delivery_id not in stale
                and entry.delivery_id not in self._lines
                and entry.delivery_id not in self._claims
            ]
            self._heap.refill(fresh, complete=len(entries) < limit)
        finally:
            self._pushed_while_refilling = None
