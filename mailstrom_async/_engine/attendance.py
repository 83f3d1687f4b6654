"""Where several mailers deliver from one store: that we are among them, and which portion of the limits is ours."""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

from mailstrom_async._clock import Clock
from mailstrom_async._errors import StorageError
from mailstrom_async._queue.portion import UNKNOWN, WHOLE, Portion
from mailstrom_async.storage.base import Roster, Storage

logger = logging.getLogger("mailstrom_async")

TELL_EVERY = timedelta(seconds=5)
"""How soon the others make room for a newcomer, and share what one has left that ended. One that was killed counts
until its lease would have ended."""
PATIENCE = timedelta(seconds=1)
LAST_ANSWER = timedelta(seconds=10)
"""How long to wait, before we leave, for a store that is still noting that we are here."""


class Attendance:
    """Tells a store with a `Roster` again and again that we deliver, and learns from it what our portion is."""

    def __init__(
        self, storage: Storage, clock: Clock, *, owner: str, lease: timedelta, on_change: Callable[[], None]
    ) -> None:
        self._roster = storage if isinstance(storage, Roster) else None
        self._clock = clock
        self._owner = owner
        self._lease = lease
        self._on_change = on_change
        self._attending: asyncio.Task[Portion] | None = None
        self.portion: Portion = WHOLE if self._roster is None else UNKNOWN

    async def keep(self) -> None:
        """Be counted as long as this runs."""
        never = asyncio.Event()
        while self._roster is not None:
            told_at = self._clock.now()
            pause = min(TELL_EVERY, self._lease / 3) if await self._tell(self._roster) else PATIENCE
            # A clock that was set back must not make us wait for the time that it lost.
            while told_at <= self._clock.now() < told_at + pause:
                await self._clock.wait(never, told_at + pause)

    async def leave(self) -> None:
        """Be counted no longer. Raises StorageError; then the others find out."""
        if self._roster is None:
            return
        self.portion = UNKNOWN  # a later life asks anew
        if self._attending is not None:
            # Or what it notes would come after what we say now, and count until the lease ends.
            _, still = await asyncio.wait([self._attending], timeout=LAST_ANSWER.total_seconds())
            for attending in still:
                attending.cancel()
        await self._roster.leave(self._owner)

    async def _tell(self, roster: Roster) -> bool:
        try:
            # A store may note it although whoever waits for it is gone; so it has its end, which `leave` waits for.
            attending = roster.attend(self._owner, now=self._clock.now(), lease=self._lease)
            self._attending = asyncio.ensure_future(attending)
            self._attending.add_done_callback(_seen)
            portion = await asyncio.shield(self._attending)
        except StorageError as error:
            logger.warning("who else delivers could not be asked, the portion of the limits stays: %s", error)
            return False
        except Exception:
            logger.exception("asking who else delivers failed; it is tried again")
            return False
        if portion != self.portion:
            logger.info("%d deliver from this queue; each has its portion of the limits", portion.count)
            self.portion = portion
            self._on_change()
        return True


def _seen(attending: asyncio.Future[Portion]) -> None:
    # Whoever waited may be gone, and then nobody else asks how it ended.
    if not attending.cancelled():
        attending.exception()
