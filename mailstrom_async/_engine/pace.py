"""The rate of a site: what is over it waits, and nobody else waits with it."""

import asyncio
from typing import TYPE_CHECKING, Protocol

from mailstrom_async._policy.bucket import Bucket

if TYPE_CHECKING:
    from mailstrom_async._engine.sites import Sites


class Paced(Protocol):
    """**Protocol:** a site that has a rate."""

    @property
    def waiting(self) -> int:
        """How much waits there."""
        ...

    @property
    def connections(self) -> int:
        """How many sessions there are."""
        ...

    def call(self) -> None:
        """Find somebody who carries it."""
        ...


class Pace:
    """Lets the mail of a site go when there are tokens for it.

    While there are none, a session of the site idles, and may be dismissed like any other that does; if it takes longer
    than sessions idle, it ends at once.
    """

    def __init__(self, site: Paced, sites: "Sites", bucket: Bucket) -> None:
        self._site = site
        self._sites = sites
        self._bucket = bucket
        self._waits = False
        self._changed = asyncio.Event()

    @property
    def left(self) -> int:
        """How many messages may go now."""
        return self._bucket.left(self._sites.settlement.now())

    @property
    def burst(self) -> int:
        """How many may go at once at most."""
        return self._bucket.burst

    @property
    def soon(self) -> bool:
        """A session may wait for the next token."""
        now = self._sites.settlement.now()
        return self._bucket.ready_at(now) - now < self._sites.config.timeouts.idle

    def take(self, transactions: int) -> None:
        """A message goes, in so many transactions."""
        self._bucket.take(self._sites.settlement.now(), transactions)

    def give_back(self, transactions: int) -> None:
        """It did not go."""
        self._bucket.give_back(transactions)

    def adapt(self) -> None:
        """The rate has changed."""
        self._changed.set()

    def wait(self) -> None:
        """Call the site when the next message may go."""
        if not self._waits:
            self._waits = True
            self._sites.group.start_soon(self._wait)

    async def _wait(self) -> None:
        clock = self._sites.clock
        try:
            while self._site.waiting and (at := self._bucket.ready_at(now := clock.now())) > now:
                self._changed.clear()
                await clock.wait(self._changed, at)
        finally:
            self._waits = False
        if not self._sites.closed:
            for _ in range(min(self.left, max(1, self._site.connections))):
                self._site.call()
