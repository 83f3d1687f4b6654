"""The process that owns a SQLite file: it holds the lock, and answers for the queue."""

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from datetime import datetime
from functools import partial
from pathlib import Path

from mailstrom_async._errors import MailstromError, StorageError
from mailstrom_async.storage._sqlite import queue
from mailstrom_async.storage._sqlite.batches import make_batches
from mailstrom_async.storage._sqlite.calls import Call
from mailstrom_async.storage._sqlite.door import Door
from mailstrom_async.storage._sqlite.errors import storage_error
from mailstrom_async.storage._sqlite.file import bring_up_to_date, open_file, open_for_reading, wal_of
from mailstrom_async.storage._sqlite.file_lock import Lock, locked
from mailstrom_async.storage._sqlite.follower import OwnerLost
from mailstrom_async.storage._sqlite.guard import Guard
from mailstrom_async.storage._sqlite.identity import Identity
from mailstrom_async.storage._sqlite.operations import LOOK_SECONDS, Operation, Operations, T

logger = logging.getLogger("mailstrom_async")

WAL_LIMIT = 64 * 1024 * 1024
"""Beyond this the log is moved into the file even though somebody waits: reading gets slower with its length."""

WAKE_SECONDS = 0.05
"""What other processes queue in this time is one call to the engine: each costs it a look at the store."""


class Owner:
    """What is there while the file is open: the lock, two connections and their threads, and the door for the other
    processes; closed in reverse order.

    Args:
        path: The file, with no links left in it: two names of one file must not mean two locks.
        now: When what an earlier life left is taken up.
        wake: Called, in this event loop, when another process has made deliveries due.
        delivers: Whether there is an engine in this process that runs.
    """

    def __init__(self, path: Path, now: datetime, *, wake: Callable[[], None], delivers: Callable[[], bool]) -> None:
        self._path = path
        self._now = now
        self._wake = wake
        self._delivers = delivers
        self._waking = False
        self._woken_at = -WAKE_SECONDS
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._over = asyncio.Event()
        self._writes = Operations(path, "BEGIN IMMEDIATE")
        self._reads = Operations(path, "BEGIN")
        self._door: Door | None = None
        self._stopping = False
        self._misplaced = False
        self._log_emptied = False
        self._deposed = False
        self._door_seen_at = time.monotonic()
        # Daemons: a program that forgot to close must not hang at its end. What was acknowledged is on disk.
        self._thread = threading.Thread(target=self._live, name=f"writer of {path.name}", daemon=True)

    async def open(self) -> None:
        """Raises StorageError, StorageInUse if it is another process's."""
        self._thread.start()
        try:
            await self._ready
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Finish what was begun, own and others', and close."""
        self.stop()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    async def over(self) -> None:
        """Return when somebody else should have the file."""
        await self._over.wait()

    def do(self, call: Call[T]) -> asyncio.Future[T]:
        """Raises OwnerLost if this process gives the file up."""
        return self.run(call.operation, writes=call.writes, size=call.size)

    def run(self, operation: Operation[T], *, writes: bool, size: int = 0) -> asyncio.Future[T]:
        """As `do`, for what never comes from another process."""
        if self._over.is_set():
            raise OwnerLost
        return (self._writes if writes else self._reads).submit(operation, size=size)

    def hastened(self) -> None:
        """Somebody else has made deliveries due: the engine here is to know. May be called in any thread."""
        if not self._waking:
            self._waking = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._call_engine_soon)

    def stop(self) -> None:
        """Begin to close."""
        self._over.set()
        # In this order, here and in _open_door: one of the two sees what the other did.
        self._stopping = True
        if self._door is not None:
            self._door.shut()  # which stops the writer when nobody needs it any more
        else:
            self._writes.stop()

    # The writer's thread.

    def _live(self) -> None:
        try:
            with ExitStack() as stack:
                writer, guard, files, lock = self._open(stack)
                look = partial(self._look, guard, files, lock)
                self._tell(None)
                try:
                    self._writes.serve(
                        writer,
                        look=look,
                        verify=files.check,
                        after_batch=partial(self._checkpoint_if_long, guard, files),
                        when_idle=partial(self._checkpoint, guard, files),
                    )
                finally:
                    self._writes.end("its writer has ended")
                    with suppress(StorageError, OwnerLost, sqlite3.Error):
                        look()  # what has happened since the last time must not leave its log beside another file
        except MailstromError as error:
            self._tell(error)
        except sqlite3.Error as error:
            self._tell(storage_error(self._path, error))
        except OSError as error:
            self._tell(StorageError(f"{self._path} can't be opened: {error}; it must be readable and writable"))
        except Exception as error:
            logger.exception("%s: its writer ended unexpectedly", self._path)
            self._tell(StorageError(f"{self._path}: its writer ended unexpectedly: {error!r}; see the log"))
        finally:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                self._loop.call_soon_threadsafe(self._over.set)

    def _open(self, stack: ExitStack) -> tuple[sqlite3.Connection, Guard, Identity, Lock]:
        lock = stack.enter_context(locked(self._path))
        writer = stack.enter_context(closing(open_file(self._path)))
        guard = stack.enter_context(Guard(self._path, writer))
        files = Identity(self._path)
        bring_up_to_date(writer)
        make_batches(writer)
        writer.execute("BEGIN IMMEDIATE")
        queue.take_up(writer, self._now)
        writer.execute("COMMIT")
        reader = stack.enter_context(closing(open_for_reading(self._path)))
        thread = threading.Thread(
            target=self._read, args=(reader, files), name=f"reader of {self._path.name}", daemon=True
        )
        thread.start()
        stack.callback(thread.join)
        stack.callback(self._reads.stop)
        self._open_door(stack)
        return writer, guard, files, lock

    def _read(self, reader: sqlite3.Connection, files: Identity) -> None:
        try:
            # Those who ask what is due are to hear of it too, so that health shows it whatever is sent.
            self._reads.serve(reader, verify=files.check)
        finally:
            self._reads.end("its reader has ended")
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                self._loop.call_soon_threadsafe(self.stop)

    def _open_door(self, stack: ExitStack) -> None:
        try:
            door = Door(
                self._path,
                self._reads,
                self._writes,
                on_hastened=self.hastened,
                on_offer=self._on_offer,
                on_shut=self._writes.stop,
            )
        except OSError as error:
            logger.warning("%s can't be shared with other processes: no socket beside it: %s", self._path, error)
            return
        stack.callback(door.join)
        stack.callback(door.shut)
        self._door = door
        if self._stopping:
            door.shut()

    def _tell(self, error: Exception | None) -> None:
        def settle() -> None:
            if self._ready.done():  # whoever opened it has given up, or it was open already
                if error is not None:
                    logger.warning("%s was not closed well: %s", self._path, error)
                return
            if error is None:
                self._ready.set_result(None)
            else:
                self._ready.set_exception(error)

        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(settle)

    def _look(self, guard: Guard, files: Identity, lock: Lock) -> None:
        """Whether this process may still write.

        Raises:
            StorageError: Not into what is open.
            OwnerLost: Another one may.
        """
        if (trouble := files.trouble()) is not None:
            with suppress(OSError, sqlite3.Error):  # it is tried again at the next look
                if not self._log_emptied and files.log_lies_beside_another():
                    self._log_emptied = guard.empty_log()
            if not self._misplaced:
                self._misplaced = True
                logger.error("%s", trouble)
                self.hastened()  # the engine asks, and health shows it though nothing is due
            raise trouble
        if self._misplaced:
            self._misplaced = self._log_emptied = False
            logger.warning("%s is in its place again, and used on", self._path)
        if not lock.is_held():
            if not self._deposed:
                self._deposed = True
                logger.error("%s: its lock file was removed, and another process has taken the file over", self._path)
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                self._loop.call_soon_threadsafe(self.stop)
            raise OwnerLost
        # Nobody is harmed without a socket, and one look more would be felt in each commit.
        if self._door is not None and (now := time.monotonic()) - self._door_seen_at > LOOK_SECONDS / 2:
            self._door_seen_at = now
            self._door.look()

    def _checkpoint_if_long(self, guard: Guard, files: Identity) -> bool:
        try:
            size = wal_of(self._path).stat().st_size
        except FileNotFoundError:  # which is told to all who ask for something
            return False
        return size > WAL_LIMIT and self._checkpoint(guard, files)

    def _checkpoint(self, guard: Guard, files: Identity) -> bool:
        return files.trouble() is None and guard.checkpoint()

    # The door's thread.

    def _on_offer(self) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._offered)

    # The event loop again.

    def _call_engine_soon(self) -> None:
        self._loop.call_at(self._woken_at + WAKE_SECONDS, self._call_engine)

    def _call_engine(self) -> None:
        self._woken_at = self._loop.time()
        self._waking = False
        if not self._over.is_set():
            self._wake()

    def _offered(self) -> None:
        # Nothing was claimed when that was asked; an engine that claimed since was seen since.
        if not self._delivers() and not self._over.is_set():
            logger.info(
                "%s: process %d does not deliver, and leaves the file to one that does", self._path, os.getpid()
            )
            self._over.set()
