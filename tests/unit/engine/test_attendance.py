"""Being counted among those who deliver from one store, and being counted no longer."""

import asyncio
import gc
from collections.abc import Callable
from datetime import datetime, timedelta

from mailstrom_async import MemoryStorage, StorageError
from mailstrom_async._engine.attendance import Attendance
from mailstrom_async._queue.portion import UNKNOWN
from mailstrom_async.storage import Portion
from mailstrom_async.testing import ManualClock

LEASE = timedelta(seconds=60)


class Unhurried(MemoryStorage):
    """Notes who delivers when the test lets it, even if whoever asked has given up, as PostgresStorage does."""

    def __init__(self) -> None:
        super().__init__()
        self.present: set[str] = set()
        self.asked, self.may_note, self.noted = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.noting: asyncio.Task[Portion] | None = None
        self.trouble: StorageError | None = None

    async def attend(self, owner: str, *, now: datetime, lease: timedelta) -> Portion:
        self.noting = asyncio.create_task(self._note(owner))
        self.asked.set()
        return await asyncio.shield(self.noting)

    async def leave(self, owner: str) -> None:
        self.present.discard(owner)

    async def _note(self, owner: str) -> Portion:
        await self.may_note.wait()
        if self.trouble is not None:
            raise self.trouble
        self.present.add(owner)
        self.noted.set()
        return Portion(0, 2)


def attendance_in(storage: Unhurried, changed: Callable[[], None] = lambda: None) -> Attendance:
    return Attendance(storage, ManualClock(), owner="one", lease=LEASE, on_change=changed)


async def test_what_is_noted_late_does_not_count_after_we_left():
    """A stop cuts the question off, and the store notes it all the same: leaving comes after that."""
    storage = Unhurried()
    attendance = attendance_in(storage)
    keeping = asyncio.create_task(attendance.keep())
    await asyncio.wait_for(storage.asked.wait(), 10)
    keeping.cancel()
    await asyncio.wait([keeping], timeout=10)
    leaving = asyncio.create_task(attendance.leave())
    await asyncio.sleep(0)  # it has begun
    storage.may_note.set()
    await asyncio.wait_for(storage.noted.wait(), 10)
    await asyncio.wait_for(leaving, 10)

    assert storage.present == set()


async def test_who_comes_back_does_not_know_what_it_was_told_before():
    """Others may have come since."""
    storage, changed = Unhurried(), asyncio.Event()
    storage.may_note.set()
    attendance = attendance_in(storage, changed.set)
    keeping = asyncio.create_task(attendance.keep())
    await asyncio.wait_for(changed.wait(), 10)
    keeping.cancel()
    await asyncio.wait([keeping], timeout=10)
    told = attendance.portion
    await attendance.leave()

    assert (told, attendance.portion) == (Portion(0, 2), UNKNOWN)


async def test_who_never_came_may_leave():
    """Stopped before the store was asked."""
    storage = Unhurried()
    await attendance_in(storage).leave()

    assert storage.present == set()


async def test_what_fails_late_does_not_complain_after_we_left():
    """The store is gone, and a stop cuts the question off: nobody is told by asyncio that it was never answered."""
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    storage = Unhurried()
    storage.trouble = StorageError("gone")
    attendance = attendance_in(storage)
    keeping = asyncio.create_task(attendance.keep())
    await asyncio.wait_for(storage.asked.wait(), 10)
    keeping.cancel()
    await asyncio.wait([keeping], timeout=10)
    storage.may_note.set()
    await asyncio.wait_for(attendance.leave(), 10)
    del attendance, keeping, storage
    gc.collect()

    assert complaints == []
