"""A queue in one SQLite file: durable, without a server, for any number of processes on one machine."""

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from mailstrom_async._envelope import Delivery, Due, Lane, PreparedEmail
from mailstrom_async._errors import MailerStateError, MailstromError, StorageError
from mailstrom_async._status import Attempt, MessageStatus
from mailstrom_async.storage._sqlite import calls, outbox, queue
from mailstrom_async.storage._sqlite import upcoming as due_next
from mailstrom_async.storage._sqlite.calls import Call
from mailstrom_async.storage._sqlite.commits import Commits
from mailstrom_async.storage._sqlite.follower import Follower, OwnerLost
from mailstrom_async.storage._sqlite.operations import Operation, T
from mailstrom_async.storage._sqlite.owner import Owner
from mailstrom_async.storage._sqlite.recent import Recent
from mailstrom_async.storage._sqlite.share import Share
from mailstrom_async.storage.base import Acceptance, Record, Recorded

logger = logging.getLogger("mailstrom_async")

CLEARED_AT_ONCE = 10
"""Operations that one look at what is upcoming may take to clear the way of the next one."""


class SQLiteStorage:
    """A `Storage` in a SQLite file. When it says that something is done, it is on disk (WAL, synchronous=FULL).

    One thread writes, and what came while it committed shares its next commit; another one reads.

    Several processes of one machine may open the same file, such as the workers of a web server. One of them owns it:
    it alone reads and writes the queue (but for mail in callers' transactions), and it alone delivers. The others hand
    their mail and their questions to it over a Unix socket beside the file, and share its commits. When it ends or
    dies, another one takes over, in less than two seconds. Give all of them the same `Config`, for whichever delivers
    does it by its own. A process that does not deliver (`deliver=False`, or paused) leaves the file to one that does.
    What the others do is seen in `query_status` and `wait`; `events` tells only of what this process itself queued,
    delivered or cancelled.

    Connections of callers may write into the file as well: tables of their own, and, with `send_email(connection=...)`,
    mail into their own transactions. While one of those is open, everybody else who writes waits, for five seconds,
    and then gets a StorageError. The fault in SQLite up to 3.51.2 that can damage a file which several connections
    write (sqlite.org/wal.html#walresetbug) has no occasion while a store has it open: see _sqlite/guard.py.

    While the file changes hands, calls wait. A call whose answer was lost is made again, and stores nothing twice. If
    nobody answers for about fifteen seconds it raises StorageError, which says so if it may have been done.

    Beside the file lie `<path>.lock`, which stays, `<path>.sock`, and while it is open `<path>-wal` and `<path>-shm`,
    which belong to it: copy a store only while it is closed, or with SQLite's own backup. When the file or its log is
    replaced or removed while it is open, nothing more is accepted, with a StorageError, until it is put back or the
    application is restarted.

    Args:
        path: The file, on a local disk; made when the store is first opened, readable for its owner only. Whoever may
            write it may share it. Nothing is touched before, so an instance may be built at import time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if os.fspath(path) in ("", ":memory:"):
            raise ValueError("SQLiteStorage needs the path of a file; use MemoryStorage() for a queue in memory")
        self._path = Path(path)
        self._share: Share | None = None
        self._recent = Recent()
        self._commits = Commits(self._arrived)
        self._clearing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<SQLiteStorage {str(self._path)!r} [{self._share.role if self._share else 'closed'}]>"

    @property
    def shared(self) -> bool:
        return True

    def watch(self, wake: Callable[[], None]) -> None:
        self._usable().wake = wake

    async def open(self, now: datetime) -> None:
        while (earlier := self._share) is not None and earlier.process == os.getpid():
            if not earlier.closing:
                raise MailerStateError(f"{self._path} is open already in this SQLiteStorage; aclose() it first")
            await self.aclose()  # whoever closed it did not wait for the end
        # What a parent process has opened stays as it is in this one: its threads are not here, its connections must
        # not be touched.
        self._recent.clear()
        self._share = share = Share(self._path, now)
        self._commits = Commits(self._arrived)
        try:
            await share.open()
        except BaseException:
            self._share = None
            raise

    async def aclose(self) -> None:
        self._recent.clear()
        share = self._share
        if share is None:
            return
        if share.process == os.getpid():
            await self._commits.aclose()
            if self._clearing is not None and not self._clearing.done():
                self._clearing.cancel()
                await asyncio.wait([self._clearing])
            await share.aclose()
        if self._share is share:
            self._share = None

    async def enqueue(self, acceptances: Sequence[Acceptance], *, queue_size: int | None = None) -> list[Due]:
        dues = await self._do(calls.Enqueue(acceptances, queue_size))
        share = self._share
        if share is not None and share.delivers:
            self._recent.add(acceptances, dues, share.loop.time())
        else:
            self._recent.clear()  # what an engine that runs no more has left there
        return dues

    async def enqueue_claimed(
        self, acceptance: Acceptance, *, owner: str, lease_until: datetime, queue_size: int | None = None
    ) -> Delivery | list[Due]:
        share = self._usable()
        share.engine_seen()
        side = share.settled or await share.side()
        if isinstance(side, Follower) or type(self).enqueue is not SQLiteStorage.enqueue:
            return await self.enqueue([acceptance], queue_size=queue_size)
        operation = queue.EnqueueClaimed(acceptance, queue_size, owner, lease_until)
        try:
            return await side.run(operation, writes=True, size=len(acceptance.prepared.content))
        except asyncio.CancelledError:
            _disown(share, side, operation)
            raise
        except OwnerLost:  # it was not begun
            return await self.enqueue([acceptance], queue_size=queue_size)

    async def enqueue_within(
        self, connection: object, acceptances: Sequence[Acceptance], *, queue_size: int | None = None
    ) -> None:
        """Store messages in a transaction of the caller's, see `Outbox`.

        Args:
            connection: To the file of this store: a sqlite3.Connection, an aiosqlite.Connection, or SQLAlchemy's
                AsyncConnection or AsyncSession on aiosqlite. One of sqlite3's is used in the thread of the event loop,
                which stands still while it waits for somebody else's transaction, and while it writes: some 50 ms for
                a thousand messages, or for one of 15 MB. For many or large ones take aiosqlite, whose connections have
                a thread.
            acceptances: What is to be stored.
            queue_size: See `enqueue`.
        """
        self._usable()
        await outbox.enqueue(
            await outbox.transaction_of(connection),
            acceptances,
            queue_size,
            path=self._path,
            expect=self._commits.expect,
        )

    async def _arrived(self, delivery_id: int) -> int:
        reached = await self._do(calls.Arrived(delivery_id))
        if reached:
            self._usable().hastened()
        return reached

    async def status(self, message_id: str) -> MessageStatus | None:
        return await self._do(calls.Status(message_id)) if _is_text(message_id) else None

    async def recent(self, since: datetime | None, limit: int) -> list[MessageStatus]:
        return await self._do(calls.Recent(since, limit))

    async def attempts(self, message_id: str) -> list[Attempt] | None:
        return await self._do(calls.Attempts(message_id)) if _is_text(message_id) else None

    async def prepared(self, message_id: str) -> PreparedEmail | None:
        return await self._do(calls.Prepared(message_id)) if _is_text(message_id) else None

    async def cancel(self, message_id: str, now: datetime) -> MessageStatus | None:
        return await self._do(calls.Cancel(message_id, now)) if _is_text(message_id) else None

    async def hasten(self, message_id: str, now: datetime) -> list[Due] | None:
        return await self._do(calls.Hasten(message_id, now)) if _is_text(message_id) else None

    async def purge(self, completed_before: datetime) -> int:
        # In pieces, each of them whole: nobody who wants to send waits for a million deletions.
        purged = 0
        while piece := await self._do(calls.Purge(completed_before)):
            purged += piece
        while await self._do(calls.GiveSpaceBack()):
            pass
        return purged

    # What an engine asks for. Only the owner's has something to do; the others' have no claims, and get none.

    async def upcoming(self, limit: int, *, excluding: Collection[str] = (), lane: Lane | None = None) -> list[Due]:
        left_out = frozenset(excluding)
        nothing: list[Due] = []
        dues = await self._deliver(lambda db: due_next.upcoming(db, limit, left_out, lane), nothing, writes=False)
        if left_out and (self._clearing is None or self._clearing.done()):
            # Whoever asked goes on meanwhile.
            self._clearing = asyncio.create_task(self._clear_the_way(left_out), name=f"clearing {self._path.name}")
        return dues

    async def _clear_the_way(self, left_out: Collection[str]) -> None:
        """So that what has just been passed over is not passed over again, if it is much."""
        try:
            for _ in range(CLEARED_AT_ONCE):
                if not await self._deliver(lambda db: due_next.is_obstructed(db, left_out), False, writes=False):
                    return
                await self._deliver(lambda db: due_next.line_up(db, left_out), 0)
        except MailstromError as error:
            # If nothing can be written, that shows elsewhere.
            logger.debug("%s: what is in the way of others stays there for now: %s", self._path, error)

    async def claim(
        self, delivery_ids: Sequence[int], *, owner: str, now: datetime, lease_until: datetime
    ) -> list[Delivery]:
        fresh = self._recent.take(delivery_ids)
        return await self._deliver(queue.Claim(delivery_ids, owner, now, lease_until, fresh), [])

    async def renew(self, deliveries: Sequence[Delivery], lease_until: datetime) -> list[Delivery]:
        return await self._deliver(lambda db: queue.renew(db, deliveries, lease_until), list(deliveries))

    async def release(self, deliveries: Sequence[Delivery], due_at: datetime) -> list[Due]:
        return await self._deliver(lambda db: queue.release(db, deliveries, due_at), [])

    async def record(self, records: Sequence[Record]) -> list[Recorded]:
        lost = [Recorded(accepted=False, results={}, due=None, completed=False)] * len(records)
        return await self._deliver(queue.Recording(records), lost)

    async def bring_forward(self, now: datetime, longest: timedelta) -> int:
        return await self._deliver(lambda db: queue.bring_forward(db, now, longest), 0)

    async def _deliver(self, operation: Operation[T], otherwise: T, *, writes: bool = True) -> T:
        share = self._usable()
        share.engine_seen()
        side = share.settled or await share.side()
        try:
            if not isinstance(side, Follower):
                return await side.run(operation, writes=writes)
            if not writes:  # it looks for something to do
                await side.do(calls.Offer())
        except OwnerLost:
            pass  # a new owner takes our claims for abandoned, and wakes its engine, which may be ours
        return otherwise

    async def _do(self, call: Call[T]) -> T:
        share = self._usable()
        asked = False
        while True:
            try:
                side = share.settled or await share.side()
            except StorageError as error:
                if asked:
                    raise StorageError(
                        f"{error}; the process that owned the file ended meanwhile, and whether it did this is not "
                        "known: repeat it with the same Message-ID, and AlreadyQueued means that it did"
                    ) from error
                raise
            try:
                return await side.do(call)
            except OwnerLost:
                # It may have been done, or not: ask the next owner.
                share.lost(side)
                asked = True
                call = call.again()

    def _usable(self) -> Share:
        share = self._share
        if share is None or share.closing:
            raise MailerStateError(f"{self._path} is not open; open() it first, or enter the mailer it belongs to")
        if share.process != os.getpid():
            raise MailerStateError(
                f"{self._path} was opened by process {share.process}, of which this one is a fork: "
                "open stores, or enter the mailer, after the fork"
            )
        if share.loop is not asyncio.get_running_loop():
            raise MailerStateError(
                f"{self._path} was opened in another event loop; use it there, or aclose() it and open it in this one"
            )
        return share


def _disown(share: Share, side: Owner, operation: queue.EnqueueClaimed) -> None:
    """Nobody waits for this any more: if it is done all the same, the engine is to find the mail due."""

    def tell(done: asyncio.Future[bool]) -> None:
        if (error := done.exception()) is not None:
            prepared = operation.acceptance.prepared
            logger.error("%r could not be given back, and waits until its store is opened anew: %s", prepared, error)
        elif done.result():
            share.hastened()

    with suppress(OwnerLost, StorageError):  # whoever owns the file next ends all claims
        side.run(lambda db: queue.disown(db, operation), writes=True).add_done_callback(tell)


def _is_text(message_id: str) -> bool:
    """Whether it can be written as UTF-8; what can't is nothing that we ever stored."""
    try:
        message_id.encode()
    except UnicodeEncodeError:
        return False
    return True
