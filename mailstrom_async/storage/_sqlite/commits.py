"""Finds out when callers commit transactions in which mail is queued: SQLite tells nobody.

Somebody looks, soon and often at first, for most transactions are short, and then less often. A look reads one number
in the process that owns the file, whose engine hears of it there. The connection itself is not watched: who holds it
would keep it, and its lock on the file, after the caller has dropped it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from mailstrom_async._errors import MailstromError

logger = logging.getLogger("mailstrom_async")

SOONEST = 0.002
LATEST = 0.2
"""Seconds between two looks, at first and at last; in between a quarter of the time that it has lasted already."""

PATIENCE = 600.0
"""Then it was most likely rolled back. If not, it is found when the engine looks by itself, some seconds later."""


class Commits:
    """The mail that waits for the commit of its transaction.

    Args:
        arrived: Asked with the lowest number of a delivery that is waited for: the number that the next delivery gets,
            if that is higher, so that this one is there or never will be; else 0. It is awaited, and wakes the engine.
    """

    def __init__(self, arrived: Callable[[int], Awaitable[int]]) -> None:
        self._arrived = arrived
        self._expected: set[int] = set()
        self._since = 0.0
        self._more = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._closed = False

    def expect(self, delivery_id: int) -> None:
        """Watch out for a delivery that is written into a transaction of somebody's; not once this is closed."""
        if self._closed:
            return
        self._expected.add(delivery_id)
        self._since = asyncio.get_running_loop().time()
        self._more.set()
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="commits of callers")

    async def aclose(self) -> None:
        """Watch no longer."""
        self._closed = True
        if self._watching is not None and not self._watching.done():
            self._watching.cancel()
            await asyncio.wait([self._watching])

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while self._expected:
            lasted = loop.time() - self._since
            if lasted > PATIENCE:
                self._expected.clear()
                return
            self._more.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(max(lasted / 4, SOONEST), LATEST)):
                    await self._more.wait()
            try:
                reached = await self._arrived(min(self._expected))
            except MailstromError as error:
                logger.debug("whether a transaction was committed is not known now: %s", error)
            else:
                self._expected = {delivery_id for delivery_id in self._expected if delivery_id >= reached}
