"""Decides when which delivery is claimed; sleeps until the next one is due."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import anyio

from mailstrom_async._clock import Clock
from mailstrom_async._engine.acceptor import Acceptor
from mailstrom_async._engine.claims import Claims
from mailstrom_async._engine.health import Health
from mailstrom_async._envelope import Delivery, Due, Lane
from mailstrom_async._errors import StorageError
from mailstrom_async._queue.backlog import Backlog, Backlogs
from mailstrom_async.storage.base import Storage

logger = logging.getLogger("mailstrom_async")

REFILL = 4_000
"""Deliveries read at once: about what fits into the line of one destination. More would only be read again."""
CLAIM_BATCH = 100
BUSY = 32
PACE = 0.003
"""Seconds between two claims while so many deliveries are under way: one claim of ten costs little more than one of
one. Short, as they may be under way to a host that is slow, and nobody else is to wait for that."""
STEP_BACK = timedelta(seconds=1)
"""What a clock may go back without notice: less harms nothing."""
PATIENCE = timedelta(seconds=1)
"""Between two tries to read a store that does not answer."""
LOOK_EVERY = timedelta(seconds=5)
"""How often a shared store is read without a call: the safety net for calls that got lost."""
LOOKED_AT = 1_000
"""Deliveries read in such a look. What others make due is due soon, and so among the nearest."""


class Scheduler:
    """What is due moves from the store's index over the backlogs of its lanes into claims.

    It is told what is queued, recorded or released, and so never polls while it knows what is due next. Only of a store
    that other processes share it learns by looking: when it is called to, and every few seconds.

    Attributes:
        acceptor: Takes new mail; claims what need not wait for its turn.
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
        self._backlogs = Backlogs(claims.bytes_in_flight)
        self._wake = asyncio.Event()
        self.acceptor = Acceptor(storage, claims, self._backlogs, health, dispatch, self._wake.set)
        self._stopping = False
        self._latest = datetime.max.replace(tzinfo=UTC)  # the clock may have been set back while nobody looked
        self._look_wanted = False
        self._look_at = clock.now() + LOOK_EVERY if storage.shared else None

    def push(self, entries: Sequence[Due]) -> None:
        """These deliveries are due then, whatever was known of them before."""
        # One that we have lost, and that somebody gave back while we still attempt it, is not to be attempted twice at
        # a time. A shared store names it again.
        entries = [entry for entry in entries if entry.delivery_id not in self._claims]
        self._backlogs.push(entries, self._clock.now())
        self._wake.set()

    def ended(self, delivery: Delivery, *, well: bool | None) -> None:
        """A claim is over; `well` as in `ReadyLines.finished`."""
        self._claims.end(delivery)
        self._backlogs.lanes[delivery.message.lane].lines.finished(delivery.destination, well=well)
        self._wake.set()

    def hold(self, lane: Lane, destination: str) -> None:
        """Claim no more of these until they are let go."""
        self._backlogs.lanes[lane].lines.hold(destination)

    def let_go(self, lane: Lane, destination: str) -> None:
        """Claim them as others."""
        self._backlogs.lanes[lane].lines.let_go(destination)
        self._wake.set()

    def look(self) -> None:
        """Somebody else has changed the store: see what is due now."""
        self._look_wanted = True
        self._wake.set()

    def stop(self) -> None:
        """Claim nothing more; `run` ends when its step is done. A step is not cut in half, or claims that nobody knows
        of would be left in the store."""
        self._stopping = True
        self.acceptor.close()
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
        due_at = [backlog.next_due_at for backlog in self._backlogs.lanes.values()]
        return min((at for at in (*due_at, self._look_at) if at is not None), default=None)

    def _must_look(self, now: datetime) -> bool:
        # A look that is farther away than it was ever planned: the clock was set back.
        return self._look_at is not None and not self._look_at - LOOK_EVERY <= now < self._look_at

    async def _recover(self, trouble: str) -> None:
        self._health.report("scheduler", trouble)
        for backlog in self._backlogs.lanes.values():
            backlog.ask_for_refill()
        if not self._stopping:
            await self._clock.wait(self._wake, self._clock.now() + PATIENCE)

    async def _round(self) -> bool:
        """One step. Whether there may be more to do at once."""
        if self._stopping or self._health.ails("store"):
            return False
        now = self._clock.now()
        await self._mind_setback(now)
        await self._read(now)
        claims = self._claims
        entries = self._backlogs.take(CLAIM_BATCH, claims.free, claims.bytes_free, claims.small_bytes)
        if not entries and not claims and (alone := self._backlogs.first()) is not None:
            entries = [alone]
        if not entries:
            return any(backlog.is_used_up for backlog in self._backlogs.lanes.values())
        try:
            now = self._clock.now()
            deliveries: list[Delivery] = []
            # Cancelled, as after a fault, it may be done all the same, and nobody would know of these claims.
            with anyio.CancelScope(shield=True):
                deliveries = await self._claims.claim(entries, now)
        except BaseException:
            for entry in entries:
                self._backlogs.lanes[entry.lane].lines.finished(entry.destination, well=None)
            raise
        claimed = {delivery.id for delivery in deliveries}
        for entry in entries:
            if entry.delivery_id not in claimed:
                self._backlogs.lanes[entry.lane].lines.finished(entry.destination, well=None)
                if entry.due_at > now:  # the clock was set back while it waited for its turn: it may be due at any time
                    self._backlogs.lanes[entry.lane].ask_for_refill()
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
        for backlog in self._backlogs.lanes.values():
            backlog.forget_times()  # what was known here is older than that

    async def _read(self, now: datetime) -> None:
        """Ask the store for what is not known here, and line up what is due."""
        if look := self._look_wanted or self._must_look(now):
            self._look_wanted = False
        for lane, backlog in self._backlogs.lanes.items():
            if backlog.wants_refill():
                await self._refill(lane, backlog, REFILL)
            elif look:
                await self._refill(lane, backlog, LOOKED_AT)
            while backlog.line_up(self._clock.now(), self._claims):  # noqa: ASYNC110 - there is nothing to wait for
                await asyncio.sleep(0)  # others have their turn
        if look and self._storage.shared:
            self._look_at = self._clock.now() + LOOK_EVERY

    async def _refill(self, lane: Lane, backlog: Backlog, count: int) -> None:
        # What waits in the lines is unclaimed as well, so the store names it again: ask for so many more. A shared one
        # names what we have claimed, too.
        limit = count + len(backlog.lines) + (len(self._claims) if self._storage.shared else 0)
        full = backlog.begin_refill()
        try:
            entries = await self._storage.upcoming(limit, excluding=full, lane=lane)
            backlog.refill(entries, self._claims, complete=len(entries) < limit)
        finally:
            backlog.end_refill()
