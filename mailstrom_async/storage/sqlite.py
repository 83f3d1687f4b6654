"""A queue in one SQLite file: durable, without a server, for one process."""

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import datetime
from pathlib import Path

from mailstrom_async._envelope import Delivery, Due, PreparedEmail
from mailstrom_async._errors import MailerStateError, MailstromError, StorageError
from mailstrom_async._status import Attempt, MessageStatus
from mailstrom_async.storage import _sqlite_queue as queue
from mailstrom_async.storage import _sqlite_reads as reads
from mailstrom_async.storage._file_lock import locked
from mailstrom_async.storage._sqlite_errors import storage_error
from mailstrom_async.storage._sqlite_file import checkpoint, open_file, open_for_reading, wal_of
from mailstrom_async.storage._sqlite_lane import Lane, Operation, T
from mailstrom_async.storage.base import Acceptance, Record, Recorded

logger = logging.getLogger("mailstrom_async")

WAL_LIMIT = 64 * 1024 * 1024
"""Beyond this the log is moved into the file even though somebody waits: reading gets slower with its length."""


class SQLiteStorage:
    """A `Storage` in a SQLite file. When it says that something is done, it is on disk (WAL, synchronous=FULL).

    One thread writes, and what came while it committed shares its next commit; another one reads. The file serves one
    process at a time, the others get `StorageInUse`; several processes need PostgresStorage, or a file each.

    Beside the file lie `<path>.lock`, which stays, and while it is open `<path>-wal` and `<path>-shm`, which belong to
    it: copy a store only while it is closed, or with SQLite's own backup.

    Args:
        path: The file; made when the store is first opened, readable for its owner only. Nothing is touched before, so
            an instance may be built at import time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if os.fspath(path) in ("", ":memory:"):
            raise ValueError("SQLiteStorage needs the path of a file; use MemoryStorage() for a queue in memory")
        self._path = Path(path)
        self._opened: _Opened | None = None

    def __repr__(self) -> str:
        return f"<SQLiteStorage {str(self._path)!r} [{'open' if self._opened else 'closed'}]>"

    @property
    def shared(self) -> bool:
        return False

    def watch(self, wake: Callable[[], None]) -> None:
        """Nobody else has the file open."""

    async def open(self, now: datetime) -> None:
        if self._opened is not None and self._opened.process == os.getpid():
            raise MailerStateError(f"{self._path} is open already in this SQLiteStorage; aclose() it first")
        # What a parent process has opened stays as it is in this one: its threads are not here, its connections must
        # not be touched.
        self._opened = opened = _Opened(self._path, now)
        try:
            await opened.ready
        except BaseException:
            opened.stop()
            self._opened = None
            raise

    async def aclose(self) -> None:
        opened = self._opened
        if opened is None:
            return
        if opened.process == os.getpid():
            opened.stop()
            await opened.wait_closed()
        if self._opened is opened:
            self._opened = None

    async def enqueue(self, acceptances: Sequence[Acceptance], *, queue_size: int | None = None) -> list[Due]:
        size = sum(len(acceptance.prepared.content) for acceptance in acceptances)
        return await self._write(lambda db: queue.enqueue(db, acceptances, queue_size), size=size)

    async def upcoming(self, limit: int, *, excluding: Collection[str] = ()) -> list[Due]:
        left_out = frozenset(excluding)
        return await self._read(lambda db: reads.upcoming(db, limit, left_out))

    async def claim(
        self, delivery_ids: Sequence[int], *, owner: str, now: datetime, lease_until: datetime
    ) -> list[Delivery]:
        return await self._write(lambda db: queue.claim(db, delivery_ids, owner, now, lease_until))

    async def renew(self, deliveries: Sequence[Delivery], lease_until: datetime) -> list[Delivery]:
        return await self._write(lambda db: queue.renew(db, deliveries, lease_until))

    async def release(self, deliveries: Sequence[Delivery], due_at: datetime) -> list[Due]:
        return await self._write(lambda db: queue.release(db, deliveries, due_at))

    async def record(self, records: Sequence[Record]) -> list[Recorded]:
        return await self._write(lambda db: queue.record(db, records))

    async def status(self, message_id: str) -> MessageStatus | None:
        return await self._read(lambda db: reads.status(db, message_id))

    async def recent(self, since: datetime | None, limit: int) -> list[MessageStatus]:
        return await self._read(lambda db: reads.recent(db, since, limit))

    async def attempts(self, message_id: str) -> list[Attempt] | None:
        return await self._read(lambda db: reads.attempts(db, message_id))

    async def prepared(self, message_id: str) -> PreparedEmail | None:
        return await self._read(lambda db: reads.prepared(db, message_id))

    async def cancel(self, message_id: str, now: datetime) -> MessageStatus | None:
        return await self._write(lambda db: queue.cancel(db, message_id, now))

    async def hasten(self, message_id: str, now: datetime) -> list[Due] | None:
        return await self._write(lambda db: queue.hasten(db, message_id, now))

    async def purge(self, completed_before: datetime) -> int:
        # In pieces, each of them whole: nobody who wants to send waits for a million deletions.
        purged = 0
        while piece := await self._write(lambda db: queue.purge(db, completed_before)):
            purged += piece
        while await self._write(queue.give_space_back):
            pass
        return purged

    async def _write(self, operation: Operation[T], *, size: int = 0) -> T:
        return await self._usable().writes.run(operation, size=size)

    async def _read(self, operation: Operation[T]) -> T:
        return await self._usable().reads.run(operation)

    def _usable(self) -> "_Opened":
        opened = self._opened
        if opened is None or opened.stopping:
            raise MailerStateError(f"{self._path} is not open; open() it first, or enter the mailer it belongs to")
        if opened.process != os.getpid():
            raise MailerStateError(
                f"{self._path} was opened by process {opened.process}, of which this one is a fork: "
                "open stores, or enter the mailer, after the fork, and give each process a file of its own"
            )
        if opened.loop is not asyncio.get_running_loop():
            raise MailerStateError(
                f"{self._path} was opened in another event loop; use it there, or aclose() it and open it in this one"
            )
        return opened


class _Opened:
    """What is there while the store is open: the lock, two connections and their threads, closed in reverse order."""

    def __init__(self, path: Path, now: datetime) -> None:
        # What the link leads to: two names of one file must not mean two locks, and a later chdir() changes nothing.
        self._path = path = path.resolve()
        self.process = os.getpid()
        self.loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self.loop.create_future()
        self.writes = Lane(path, "BEGIN IMMEDIATE", self.loop)
        self.reads = Lane(path, "BEGIN", self.loop)
        self.stopping = False
        self._now = now
        # Daemons: a program that forgot to close must not hang at its end. What was acknowledged is on disk.
        self._thread = threading.Thread(target=self._live, name=f"writer of {path.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let the threads finish what waits, and close everything."""
        self.stopping = True
        self.writes.stop()

    async def wait_closed(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _live(self) -> None:
        try:
            with ExitStack() as stack:
                writer = self._open(stack)
                self._tell(None)
                self.writes.serve(writer, after_batch=self._checkpoint_if_long, when_idle=checkpoint)
        except MailstromError as error:
            self._tell(error)
        except sqlite3.Error as error:
            self._tell(storage_error(self._path, error))
        except OSError as error:
            self._tell(StorageError(f"{self._path} can't be opened: {error}; it must be readable and writable"))

    def _open(self, stack: ExitStack) -> sqlite3.Connection:
        stack.enter_context(locked(self._path))
        writer = stack.enter_context(closing(open_file(self._path)))
        writer.execute("BEGIN IMMEDIATE")
        queue.take_up(writer, self._now)
        writer.execute("COMMIT")
        reader = stack.enter_context(closing(open_for_reading(self._path)))
        thread = threading.Thread(
            target=self.reads.serve, args=(reader,), name=f"reader of {self._path.name}", daemon=True
        )
        thread.start()
        stack.callback(thread.join)
        stack.callback(self.reads.stop)
        return writer

    def _tell(self, error: Exception | None) -> None:
        def settle() -> None:
            if self.ready.done():  # whoever opened it has given up, or it was open already
                if error is not None:
                    logger.warning("%s was not closed well: %s", self._path, error)
                return
            if error is None:
                self.ready.set_result(None)
            else:
                self.ready.set_exception(error)

        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self.loop.call_soon_threadsafe(settle)

    def _checkpoint_if_long(self, connection: sqlite3.Connection) -> None:
        if wal_of(self._path).stat().st_size > WAL_LIMIT:
            checkpoint(connection)
