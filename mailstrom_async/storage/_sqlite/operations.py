"""A queue of operations for one connection and its thread; many operations share one commit."""

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from mailstrom_async._errors import MailstromError, StorageError
from mailstrom_async.storage._sqlite.errors import Unusual, storage_error

logger = logging.getLogger("mailstrom_async")

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]

BATCH = 256
BATCH_BYTES = 16 * 1024 * 1024
GATHERING_SECONDS = 0.005
"""How long a busy event loop goes on before what it brought is committed."""
IDLE_TURN = 0.0003
"""Seconds of a turn of an event loop that has little to do."""
CROWD = 64
"""Operations that are worth a transaction, whoever is still to come."""
TURN = 5
"""Who waited for a commit and is told of it in one turn of the event loop."""
IDLE_SECONDS = 0.05
LOOK_SECONDS = 0.5
"""How often it is looked whether the files are still there, when nothing else is to be done."""


class _Waiting(NamedTuple):
    operation: Operation[object]
    size: int
    future: asyncio.Future[Any]


class Operations:
    """Operations wait here until the thread that serves them takes all of them into its next transaction.

    So one commit, the expensive part, is shared by all that came while the last one ran. At first all of them are done
    together, those of a kind as one where they know how. If anything about that fails it is undone, and each kind is
    tried with a savepoint of its own; those of a kind that fails then, one by one: so one that fails is undone alone,
    only its caller hears of it, and others of another kind are not slower for it.
    """

    def __init__(self, path: Path, begin: Literal["BEGIN", "BEGIN IMMEDIATE"]) -> None:
        self._path = path
        self._begin = begin
        self._waiting: deque[_Waiting] = deque()
        self._running: Sequence[_Waiting] = ()
        self._wake = threading.Event()
        self._waking: asyncio.AbstractEventLoop | None = None  # that which is about to wake the thread
        self._stopping = False
        self._over: str | None = None
        self._log_is_stuck = False

    async def run(self, operation: Operation[T], *, size: int = 0) -> T:
        """Run an operation in a transaction; returns after the commit.

        Args:
            operation: Called with the connection, in their thread; again, if what it was done together with failed. It
                may have a `merge`: called with the connection and operations of its kind in its place, it does all of
                them and returns their outcomes, or raises whatever keeps it from that.
            size: The bytes that it writes, about, if they are many.

        Raises:
            StorageError: The transaction failed, or nobody serves them any more.
        """
        return await self.submit(operation, size=size)

    def submit(self, operation: Operation[T], *, size: int = 0) -> asyncio.Future[T]:
        """As `run`, for whoever does not wait for the future yet. It belongs to the event loop that runs this."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append(_Waiting(operation, size, future))
        if len(self._waiting) >= CROWD:
            self._wake.set()
        elif self._waking is not loop:
            self._waking = loop
            now = loop.time()
            loop.call_soon(self._wake_up, loop, now + GATHERING_SECONDS, now)
        if self._over is not None:  # asked after the append: whoever ended it either saw this one, or is seen here
            future.cancel()
            raise StorageError(self._over)
        return future

    def _wake_up(self, loop: asyncio.AbstractEventLoop, until: float, turn_began: float) -> None:
        """Wake the thread when the event loop has nothing else to do, or in a few milliseconds.

        What comes until then shares the commit; and as long as the loop is busy, the thread would only take the
        interpreter's lock from it. Each statement hands it over and back, which costs more than the statement does.
        """
        now = loop.time()
        if now < until and now - turn_began > IDLE_TURN and len(self._waiting) < CROWD:
            loop.call_soon(self._wake_up, loop, until, now)
        else:
            self._waking = None
            self._wake.set()

    def stop(self) -> None:
        """End `serve` once all that waits is done. Nothing is to be run after this."""
        self._stopping = True
        self._wake.set()

    def serve(
        self,
        connection: sqlite3.Connection,
        *,
        look: Callable[[], None] | None = None,
        verify: Callable[[], None] | None = None,
        after_batch: Callable[[], bool] | None = None,
        when_idle: Callable[[], bool] | None = None,
    ) -> None:
        """Run what comes, until stopped. This is the life of their thread.

        Args:
            connection: What they run on.
            look: Called before each transaction, and now and then. If it raises, nothing is done, and that is the
                outcome of all.
            verify: Called after each transaction. If it raises, that is the outcome of all.
            after_batch: Moves the log into the file if it must be; whether it was moved.
            when_idle: Moves the log into the file if it can be; whether it was moved.
        """
        while True:
            self._wake.clear()
            if batch := self._take():
                self._report(batch, self._checked_outcomes(connection, batch, look, verify))
                self._running = ()
                self._tend(after_batch)
            elif self._stopping:
                return
            elif not self._wake.wait(IDLE_SECONDS):
                self._tend(when_idle)
                while not self._wake.wait(None if look is None else LOOK_SECONDS):
                    _objection(look)

    def end(self, why: str) -> None:
        """Nobody serves them any more, whatever the reason: who waits or comes later is told so, and does not wait
        for ever."""
        self._over = (
            f"{self._path}: {why}; whether this was done is not known: repeat it with the same Message-ID, and "
            "AlreadyQueued means that it was"
        )
        while left := [*self._running, *self._take()]:
            self._running = ()
            self._report(left, [StorageError(self._over)] * len(left))

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and len(batch) < BATCH and size < BATCH_BYTES:
            waiting = self._waiting.popleft()
            # Whoever gave up before this moment finds nothing done; later it is done all the same.
            if not waiting.future.cancelled():
                batch.append(waiting)
                size += waiting.size
        self._running = batch
        return batch

    def _checked_outcomes(
        self,
        connection: sqlite3.Connection,
        batch: Sequence[_Waiting],
        look: Callable[[], None] | None,
        verify: Callable[[], None] | None,
    ) -> list[object]:
        if (objection := _objection(look)) is not None:
            return [objection] * len(batch)
        outcomes = self._outcomes(connection, batch)
        return outcomes if (objection := _objection(verify)) is None else [objection] * len(batch)

    def _outcomes(self, connection: sqlite3.Connection, batch: Sequence[_Waiting]) -> list[object]:
        """For each operation what it returned, or the exception."""
        try:
            return self._transact(connection, batch)
        except Exception as error:
            logger.exception("%s: a transaction failed unexpectedly", self._path)
            trouble = StorageError(f"{self._path}: a transaction failed unexpectedly: {error!r}; see the log")
            return [trouble] * len(batch)

    def _transact(self, connection: sqlite3.Connection, batch: Sequence[_Waiting]) -> list[object]:
        """Run operations in one transaction."""
        operations = [waiting.operation for waiting in batch]
        for attempt_all in (_together, self._apart):
            try:
                if connection.in_transaction:  # the last one could not even be undone
                    connection.execute("ROLLBACK")
                connection.execute(self._begin)
            except sqlite3.Error as error:
                return [storage_error(self._path, error)] * len(batch)
            try:
                outcomes = attempt_all(connection, operations)
                connection.execute("COMMIT")
            except Exception as error:  # noqa: BLE001 - whatever it is, this thread goes on and the callers hear of it
                if connection.in_transaction:
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                if attempt_all is not _together and len(batch) == 1:
                    return [self._translated(error)]
                if not isinstance(error, (Unusual, MailstromError, sqlite3.OperationalError)):
                    logger.warning("%s: what failed together is done apart: %s", self._path, error)
            else:
                return outcomes
        # The transaction was lost with all that was in it, most likely for want of space: each for itself now.
        return [outcome for waiting in batch for outcome in self._transact(connection, [waiting])]

    def _apart(self, connection: sqlite3.Connection, operations: Sequence[Operation[object]]) -> list[object]:
        """For each operation what it returned, or the exception."""
        outcomes: dict[int, object] = {}
        for kind in _kinds(operations):
            made = self._attempt(connection, kind.run)
            if isinstance(made, Exception):
                made = [self._attempt(connection, operation) for operation in kind.operations]
            outcomes.update(zip(kind.places, made, strict=True))
        return [outcomes[place] for place in range(len(operations))]

    def _attempt(self, connection: sqlite3.Connection, operation: Operation[T]) -> T | Exception:
        connection.execute("SAVEPOINT operation")
        try:
            outcome = operation(connection)
        except Exception as error:
            if not connection.in_transaction:
                raise  # SQLite has rolled back everything, not only this operation
            connection.execute("ROLLBACK TO operation")
            connection.execute("RELEASE operation")
            # It is the caller's, and raised there. In a variable it would be part of its own traceback, and what it is
            # about, perhaps a large mail, would stay in memory until the garbage is collected.
            return self._translated(error)
        connection.execute("RELEASE operation")
        return outcome

    def _translated(self, error: Exception) -> Exception:
        return storage_error(self._path, error) if isinstance(error, sqlite3.Error) else error

    def _tend(self, care: Callable[[], bool] | None) -> None:
        if care is None:
            return
        try:
            moved = care()
        except Exception as error:  # noqa: BLE001 - what was committed stays so; it is tried again next time
            if not self._log_is_stuck:  # on a full disk it is so at each commit
                self._log_is_stuck = True
                logger.warning("%s: its log could not be moved into the file: %s", self._path, error)
        else:
            if moved and self._log_is_stuck:
                self._log_is_stuck = False
                logger.info("%s: its log could be moved into the file again", self._path)

    def _report(self, batch: Sequence[_Waiting], outcomes: Sequence[object]) -> None:
        # Most wait in the application's event loop, calls of other processes in that of their door.
        reports: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], object]]] = {}
        for (_, _, future), outcome in zip(batch, outcomes, strict=True):
            reports.setdefault(future.get_loop(), []).append((future, outcome))
        for loop, report in reports.items():
            try:
                loop.call_soon_threadsafe(_deliver, loop, report)
            except RuntimeError:
                logger.debug("%s: the event loop is closed, and nobody waits for %d results", self._path, len(report))


class _Kind(NamedTuple):
    """Operations of a batch that are done as one, or one that is not.

    Attributes:
        places: Theirs in the batch.
    """

    places: list[int]
    operations: list[Operation[object]]

    def run(self, connection: sqlite3.Connection) -> Sequence[object]:
        """What they returned. Raises what keeps any of them from it."""
        merge: Callable[[sqlite3.Connection, Sequence[Operation[object]]], Sequence[object]] | None
        merge = getattr(self.operations[0], "merge", None)
        return [self.operations[0](connection)] if merge is None else merge(connection, self.operations)


def _objection(check: Callable[[], None] | None) -> Exception | None:
    """What a check raises, which is for those who wait."""
    if check is not None:
        try:
            check()
        except Exception as error:  # noqa: BLE001 - whatever it is, this thread goes on
            return error
    return None


def _kinds(operations: Sequence[Operation[object]]) -> Iterable[_Kind]:
    """In the order in which the first of each stands."""
    kinds: dict[object, _Kind] = {}
    for place, operation in enumerate(operations):
        key = getattr(operation, "merge", place)
        if (kind := kinds.get(key)) is None:
            kind = kinds[key] = _Kind([], [])
        kind.places.append(place)
        kind.operations.append(operation)
    return kinds.values()


def _together(connection: sqlite3.Connection, operations: Sequence[Operation[object]]) -> list[object]:
    """What operations returned. Raises what any of them does."""
    outcomes: dict[int, object] = {}
    for kind in _kinds(operations):
        if not connection.in_transaction:  # what came next would be committed by itself
            raise sqlite3.OperationalError("an operation ended the transaction")
        outcomes.update(zip(kind.places, kind.run(connection), strict=True))
    return [outcomes[place] for place in range(len(operations))]


def _deliver(loop: asyncio.AbstractEventLoop, report: Sequence[tuple[asyncio.Future[Any], object]]) -> None:
    """Tell those who wait, some at a time: what they do next is to hold nobody else up."""
    if rest := report[TURN:]:
        loop.call_soon(_deliver, loop, rest)
    for future, outcome in report[:TURN]:
        if future.done():  # cancelled meanwhile
            if isinstance(outcome, Exception):
                logger.debug("a cancelled operation had failed: %s", outcome)
        elif isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
