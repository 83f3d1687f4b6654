"""Writes what attempts did, many in one commit, and never gives a result up."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta

from mailstrom_async._clock import Clock
from mailstrom_async._engine.health import Health
from mailstrom_async._errors import StorageError
from mailstrom_async.storage.base import Record, Recorded, Storage

logger = logging.getLogger("mailstrom_async")

BATCH = 256
PACE = 0.015
"""Seconds from one write to the next at the least: what is recorded together shares a commit and its statements. A
result that comes alone does not wait."""
TURN = 25
"""Results told in one turn of the event loop."""
PATIENCE = timedelta(seconds=1)
"""Between two tries to write to a store that does not take it."""


class Recorder:
    """Results wait here until the store has them. While it does not take them the store counts as unhealthy, and
    nothing more is claimed: a delivery whose result can't be recorded would become a duplicate."""

    def __init__(
        self, storage: Storage, clock: Clock, health: Health, on_recorded: Callable[[Record, Recorded], None]
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._health = health
        self._on_recorded = on_recorded
        self._waiting: list[Record] = []
        self._writing: Sequence[Record] = ()
        self._wake = asyncio.Event()
        self._stop_asked = asyncio.Event()

    @property
    def unwritten(self) -> list[Record]:
        """Results that the store does not have: a batch that it refused, and what came after it."""
        return [*self._writing, *self._waiting]

    def submit(self, record: Record) -> None:
        if not self._waiting:  # else `run` is awake, or about to be
            self._wake.set()
        self._waiting.append(record)

    def stop(self) -> None:
        """Begin no other batch; `run` ends when it has written the one it is at. Cut in half, it would be in the store,
        and nobody would be told."""
        self._stop_asked.set()
        self._wake.set()

    async def run(self) -> None:
        """Write until told to stop."""
        now = asyncio.get_running_loop().time
        next_at = now()
        while not self._stop_asked.is_set():
            if not self.unwritten:
                self._wake.clear()
                await self._wake.wait()
                continue
            if now() < next_at:
                await asyncio.sleep(next_at - now())
            next_at = now() + PACE
            if not await self._write_batch():
                await self._clock.wait(self._stop_asked, self._clock.now() + PATIENCE)

    async def flush(self) -> None:
        """Write all that waits, however long the store refuses; `run` must have ended."""
        while self.unwritten:
            if not await self._write_batch():
                await asyncio.sleep(PATIENCE.total_seconds())

    async def _write_batch(self) -> bool:
        if not self._writing:
            self._writing, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        try:
            # Cancelled here, the batch stays in _writing, and flush() writes it again: the store refuses what it has
            # already, because the claim is over then.
            recorded = await self._storage.record(self._writing)
        except StorageError as error:
            self._health.report("store", str(error))
            return False
        except Exception:
            # A fault in this library, or in a store, must not end the writing for good: it shows, and we go on.
            logger.exception("results could not be recorded; it is tried again in a moment")
            self._health.report("store", "failed unexpectedly, see the log")
            return False
        batch, self._writing = self._writing, ()
        self._health.report("store", None)
        left = zip(batch, recorded, strict=True)
        try:
            for number, (record, written) in enumerate(left, 1):
                self._tell(record, written)
                if number % TURN == 0:
                    await asyncio.sleep(0)  # others have their turn
        finally:
            for record, written in left:  # we were cancelled, and it is in the store all the same
                self._tell(record, written)
        return True

    def _tell(self, record: Record, written: Recorded) -> None:
        if not written.accepted:
            logger.warning("%r: its claim was lost, so its result was not recorded", record.delivery)
        self._on_recorded(record, written)
