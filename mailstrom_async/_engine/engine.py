"""Delivery as a whole: its parts wired together, started and stopped."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Sequence
from datetime import timedelta
from functools import partial
from random import Random

import anyio
from anyio.abc import TaskGroup

from mailstrom_async._clock import Clock
from mailstrom_async._config import Config
from mailstrom_async._engine.attendance import Attendance
from mailstrom_async._engine.broadcast import Broadcast
from mailstrom_async._engine.claims import Claims
from mailstrom_async._engine.health import Health
from mailstrom_async._engine.recorder import Recorder
from mailstrom_async._engine.routing import Router
from mailstrom_async._engine.scheduler import Scheduler
from mailstrom_async._engine.settlement import Settlement
from mailstrom_async._engine.sites import Sites
from mailstrom_async._engine.upstream import Upstream
from mailstrom_async._envelope import Delivery, Due
from mailstrom_async._errors import StorageError
from mailstrom_async._events import Event, MessageCompleted, RecipientDeferred, RecipientDelivered, RecipientFailed
from mailstrom_async._policy.verdict import judge_breakdown
from mailstrom_async._queue.retry import has_expired, longest_wait
from mailstrom_async._reply import Phase
from mailstrom_async._status import Failed, SiteStatus
from mailstrom_async.dns.base import Resolver
from mailstrom_async.smtp.base import Connector
from mailstrom_async.storage.base import Acceptance, Record, Recorded, Storage

logger = logging.getLogger("mailstrom_async")

LOST = judge_breakdown(Phase.CONNECT, "local", "the lease ended before it was this delivery's turn")
PATIENCE = timedelta(seconds=1)
"""Between two tries to give back to a store that does not answer."""
LAST_WORDS = timedelta(seconds=10)
"""How long a stopping engine waits for a store that does not answer, or does not take results."""


class Engine:
    """Delivers what the store holds, from `start` to `stop`; it can be started again.

    It lives in a task of its own, so that whoever starts it and whoever stops it need not be the same task.
    """

    def __init__(
        self,
        config: Config,
        storage: Storage,
        resolver: Resolver,
        connector: Connector,
        *,
        clock: Clock,
        chance: Random,
        owner: str,
        broadcast: Broadcast,
        health: Health,
        left_over: Sequence[Delivery] = (),
    ) -> None:
        """
        Args:
            left_over: What an earlier engine of this process could not give back.
        """
        self._left_over = left_over
        self._config = config
        self._storage = storage
        self._clock = clock
        self._chance = chance
        self._broadcast = broadcast
        self._health = health
        self._router = Router(resolver, config, clock, chance, on_trouble=lambda why: health.report("resolver", why))
        self._connector = connector
        self._recorder = Recorder(storage, clock, health, self._recorded)
        self._settlement = Settlement(clock, config.retry, chance, self._recorder.submit)
        self._claims = Claims(
            storage, clock, owner=owner, lease=config.lease, bytes_in_flight=config.limits.bytes_in_flight
        )
        self._attendance = Attendance(storage, clock, owner=owner, lease=config.lease, on_change=self._portion_changed)
        self._scheduler: Scheduler | None = None
        self._sites: Sites | None = None
        self._group: TaskGroup | None = None
        self._stop_asked: asyncio.Event = asyncio.Event()
        self._grace = config.shutdown_grace
        self._draining = anyio.CancelScope()
        self._life: asyncio.Task[None] | None = None

    @property
    def not_given_back(self) -> list[Delivery]:
        """After its end, the claims that the store did not take back. Nobody else knows of them."""
        return [*self._left_over, *self._claims.held()]

    def start(self) -> None:
        """Begin to deliver. A second call does nothing."""
        if self._life is None:
            self._stop_asked = asyncio.Event()
            self._life = asyncio.create_task(self._live(), name="mailstrom_async delivery")

    async def stop(self, grace: timedelta | None = None) -> None:
        """Attempt nothing more; let what runs finish for `grace` (None: the configured one), abort the rest, and give
        every claim back that has no result.

        Cancelled, nobody gets any more grace, but the end is waited for: the store must stay open until then.
        """
        if self._life is None:
            return
        life = self._life
        self._grace = self._config.shutdown_grace if grace is None else grace
        self._stop_asked.set()
        try:
            await asyncio.wait([life])
        except asyncio.CancelledError:
            self.hurry(timedelta(0))
            with anyio.CancelScope(shield=True):
                await asyncio.wait([life], timeout=3 * LAST_WORDS.total_seconds())
            raise
        finally:
            if life.done():
                self._life = None

    def hurry(self, grace: timedelta) -> None:
        """A stop that is under way gets no more grace than this, from now on."""
        self._grace = min(self._grace, grace)
        self._draining.deadline = min(self._draining.deadline, anyio.current_time() + grace.total_seconds())

    async def enqueue(self, acceptances: Sequence[Acceptance], *, queue_size: int | None) -> list[Due]:
        """Store messages. Returns the entries that `queued` is to be told of; raises what `Storage.enqueue` does."""
        if self._scheduler is not None:
            return await self._scheduler.acceptor.enqueue(acceptances, queue_size)
        return await self._storage.enqueue(acceptances, queue_size=queue_size)

    def queued(self, entries: Sequence[Due]) -> None:
        """Deliveries are in the store, due then."""
        if self._scheduler is not None:
            self._scheduler.push(entries)

    def look(self) -> None:
        """Somebody else has changed the store: deliveries may be due sooner than we know."""
        if self._scheduler is not None:
            self._scheduler.look()

    def sites(self) -> list[SiteStatus]:
        """How it goes with each site."""
        return self._sites.status() if self._sites is not None else []

    def hastened(self, entries: Sequence[Due]) -> None:
        """Deliveries are due now because somebody asked for it, who wants to see attempts."""
        if self._sites is not None:
            self._sites.resume()
        self.queued(entries)

    async def cancelled(self, message_id: str) -> None:
        """Somebody cancelled a message: what waits of it with us, and is not being attempted, is not attempted."""
        if self._sites is None or self._group is None:
            return
        if withdrawn := self._sites.withdraw_message(message_id):
            # In a task of its own: who cancelled it may give up.
            returned = anyio.Event()
            self._group.start_soon(_run, partial(self._return_or_keep, withdrawn), returned)
            await returned.wait()

    async def _live(self) -> None:
        # What is claimed must not stay with us after a fault either: another life would not know of it.
        for part in (self._work, self._give_back):
            try:
                await part()
            except Exception as fault:
                # It must not end delivery silently.
                logger.critical(
                    "delivery ended by a fault in this library; pause() and start() begin it anew", exc_info=fault
                )
                self._health.report("delivery", f"ended by a fault in this library, see the log: {fault!r}")

    async def _work(self) -> None:
        async with anyio.create_task_group() as outer:
            outer.start_soon(self._claims.keep_leases)
            outer.start_soon(self._router.watch)
            outer.start_soon(self._attendance.keep)
            recorded = anyio.Event()
            outer.start_soon(_run, self._recorder.run, recorded)
            await self._deliver_until_stopped()
            self._recorder.stop()
            with anyio.move_on_after(LAST_WORDS.total_seconds()):
                await recorded.wait()
            outer.cancel_scope.cancel()

    async def _deliver_until_stopped(self) -> None:
        async with anyio.create_task_group() as group:
            self._group = group
            self._scheduler = Scheduler(
                self._storage,
                self._clock,
                self._claims,
                self._health,
                self._dispatch,
                longest_wait=longest_wait(self._config.retry),
            )
            self._sites = Sites(
                self._config,
                self._router,
                self._connector,
                self._settlement,
                self._health,
                group,
                self._chance,
                Upstream(self._wanted, self._scheduler.hold, self._scheduler.let_go, self._return),
            )
            self._portion_changed()
            scheduled = anyio.Event()
            group.start_soon(_run, self._scheduler.run, scheduled)
            if self._left_over:
                group.start_soon(self._give_left_over_back)
            try:
                await self._stop_asked.wait()
                self._scheduler.stop()
                self._sites.close()  # at once: the store may take its time
                await scheduled.wait()
                await self._drain(self._sites, group)
            finally:
                self._sites.withdraw()  # or, after a fault, each session that ends would begin another one

    async def _drain(self, sites: Sites, group: TaskGroup) -> None:
        sites.withdraw()
        drained = asyncio.Event()
        sites.on_drained = drained.set
        if sites.busy:
            with anyio.move_on_after(self._grace.total_seconds()) as self._draining:
                await drained.wait()
        group.cancel_scope.cancel()

    async def _give_back(self) -> None:
        """The last words of a life: results written, claims released."""
        with anyio.CancelScope(shield=True):
            if self._scheduler is not None:
                self._scheduler.stop()  # which a fault may have ended
                with anyio.move_on_after(LAST_WORDS.total_seconds()) as waiting:
                    await self._scheduler.acceptor.wait_closed()
                if waiting.cancelled_caught:
                    logger.error("the store does not answer; what it claims for us now waits until it is opened anew")
                self._scheduler = self._group = None
            await self._router.aclose()
            with anyio.move_on_after(LAST_WORDS.total_seconds()):
                await self._flush()
        unwritten = {record.delivery.id for record in self._recorder.unwritten}
        for record in self._recorder.unwritten:
            logger.error("%r: its result could not be stored; it will be attempted again", record.delivery)
        given_back = [delivery for delivery in self._claims.held() if delivery.id not in unwritten]
        try:
            dues = await self._claims.release(given_back, self._clock.now())
            due_again = {due.delivery_id for due in dues}
            await self._tell_of_cancelled([delivery for delivery in given_back if delivery.id not in due_again])
        except StorageError as error:
            logger.error(  # noqa: TRY400
                "claims could not be given back; that is tried again when delivery starts again, and they end with"
                " their lease, or when their store is opened anew: %s",
                error,
            )
        try:
            await self._attendance.leave()
        except StorageError as error:
            logger.warning("those who share our limits count us until our lease would have ended: %s", error)
        self._sites = None

    async def _give_left_over_back(self) -> None:
        never = asyncio.Event()
        while True:
            try:
                dues = await self._storage.release(self._left_over, self._clock.now())
            except Exception as error:  # noqa: BLE001 - whatever a store raises, delivery goes on
                logger.warning("claims of before a pause could still not be given back: %s", error)
                await self._clock.wait(never, self._clock.now() + PATIENCE)
            else:
                left_over, self._left_over = self._left_over, ()
                self.queued(dues)
                due_again = {due.delivery_id for due in dues}
                await self._tell_of_cancelled([one for one in left_over if one.id not in due_again])
                return

    async def _flush(self) -> None:
        try:
            await self._recorder.flush()
        except Exception:
            logger.exception("results could not be written; they will be attempted again")

    async def _return(self, deliveries: Sequence[Delivery]) -> None:
        """Claims for which there is no room go back to the queue."""
        dues = await self._claims.release(deliveries, self._clock.now())
        if self._scheduler is not None:
            for delivery in deliveries:
                self._scheduler.ended(delivery, well=None)
            self._scheduler.push(dues)
        due_again = {due.delivery_id for due in dues}
        await self._tell_of_cancelled([delivery for delivery in deliveries if delivery.id not in due_again])

    async def _return_or_keep(self, deliveries: Sequence[Delivery]) -> None:
        try:
            await self._return(deliveries)
        except Exception as error:  # noqa: BLE001 - whatever a store raises, delivery goes on
            logger.warning("claims could not be given back, they wait for their turn: %s", error)
            kept = [delivery for delivery in deliveries if delivery.id in self._claims]
            if self._sites is not None:
                self._sites.assign(kept)

    async def _tell_of_cancelled(self, deliveries: Sequence[Delivery]) -> None:
        """What is given back and not due again belongs to a message that was cancelled while we had it."""
        last = {delivery.message.message_id: delivery for delivery in deliveries}
        for delivery in deliveries:
            message_id = delivery.message.message_id
            try:
                status = await self._storage.status(message_id)
            except Exception:
                # It is given back all the same, and must not be taken for ours.
                logger.exception("%r was given back, and whether its message was cancelled is not told", delivery)
                continue
            mine = {recipient.address for recipient in delivery.recipients}
            results = {r.address: r.result for r in status.recipients if r.address in mine} if status else {}
            failed = {address: result for address, result in results.items() if isinstance(result, Failed)}
            completed = status is not None and status.completed and last[message_id] is delivery
            self._tell(message_id, Recorded(accepted=True, results=failed, due=None, completed=completed))

    def _tell(self, message_id: str, recorded: Recorded) -> None:
        if wanted := self._broadcast.wanted:
            self._broadcast.publish(events_of(message_id, recorded, wanted))
        self._broadcast.touch(message_id)

    def _portion_changed(self) -> None:
        if self._sites is not None:
            self._sites.share(self._attendance.portion)

    def _dispatch(self, deliveries: Sequence[Delivery]) -> None:
        if self._sites is not None:
            self._sites.assign(self._wanted(deliveries))

    def _wanted(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those that may still be attempted. The others end here: whose time is over, and what is not ours any more."""
        now, lifetime = self._clock.now(), self._config.retry.lifetime
        wanted: list[Delivery] = []
        expired: list[Delivery] = []
        for delivery in deliveries:
            if delivery.id in self._claims.lost:
                self._settlement.settle_all(delivery, LOST)  # which the store will refuse
            elif has_expired(delivery, now, lifetime):
                expired.append(delivery)
            else:
                wanted.append(delivery)
        if expired and self._group is not None:
            self._group.start_soon(self._expire, expired)
        return wanted

    async def _expire(self, deliveries: Sequence[Delivery]) -> None:
        """Fail what waited to its end, with what was said last: a claim does not bring that."""
        for delivery in deliveries:
            try:
                status = await self._storage.status(delivery.message.message_id)
            except Exception:
                logger.exception("%r expired, and what was said last is not known", delivery)
                status = None
            self._settlement.expire(delivery, status)

    def _recorded(self, record: Record, recorded: Recorded) -> None:
        delivery = record.delivery
        if self._scheduler is not None:
            well = None if record.attempt is None else record.due_at is None
            self._scheduler.ended(delivery, well=well)
            if recorded.due is not None:
                self._scheduler.push([recorded.due])
        else:
            self._claims.end(delivery)
        if recorded.accepted:
            self._tell(delivery.message.message_id, recorded)


async def _run(run: Callable[[], Awaitable[None]], done: anyio.Event) -> None:
    try:
        await run()
    finally:
        done.set()


def events_of(message_id: str, recorded: Recorded, wanted: Container[type[Event]]) -> list[Event]:
    """What to tell of a record, as far as somebody wants to know."""
    events: list[Event] = []
    for address, result in recorded.results.items():
        if result.state == "delivered":
            if RecipientDelivered in wanted:
                events.append(RecipientDelivered(message_id=message_id, address=address, result=result))
        elif result.state == "deferred":
            if RecipientDeferred in wanted:
                events.append(RecipientDeferred(message_id=message_id, address=address, result=result))
        elif RecipientFailed in wanted:
            events.append(RecipientFailed(message_id=message_id, address=address, result=result))
    if recorded.completed and MessageCompleted in wanted:
        events.append(MessageCompleted(message_id=message_id))
    return events
