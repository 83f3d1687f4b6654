"""Mail on its way into the store, while this mailer delivers from it."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from mailstrom_async._engine.claims import Claims
from mailstrom_async._engine.health import Health
from mailstrom_async._envelope import Delivery, Due, domain_of
from mailstrom_async._queue.backlog import Backlogs
from mailstrom_async.storage.base import Acceptance, Storage

logger = logging.getLogger("mailstrom_async")


class Acceptor:
    """Stores mail. A mail before which nothing waits is claimed as it is accepted, if the store can do that: it is on
    its way a commit sooner.

    Args:
        storage: Where it goes.
        claims: This engine's.
        backlogs: What waits, and the windows.
        health: Whether results can be recorded.
        dispatch: Takes what is claimed.
        wake: Called when room that was kept for a claim is free again.
    """

    def __init__(
        self,
        storage: Storage,
        claims: Claims,
        backlogs: Backlogs,
        health: Health,
        dispatch: Callable[[Sequence[Delivery]], None],
        wake: Callable[[], None],
    ) -> None:
        self._storage = storage
        self._claims = claims
        self._backlogs = backlogs
        self._health = health
        self._dispatch = dispatch
        self._wake = wake
        self._closed = False
        self._claiming = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def enqueue(self, acceptances: Sequence[Acceptance], queue_size: int | None) -> list[Due]:
        """Store messages.

        Returns:
            The entries of what was not claimed, for whoever delivers now: perhaps another engine than at the start.

        Raises what `Storage.enqueue` does.
        """
        if len(acceptances) == 1 and (destination := self._reserve(acceptances[0])) is not None:
            return await self._enqueue_claimed(acceptances[0], destination, queue_size)
        return await self._storage.enqueue(acceptances, queue_size=queue_size)

    def close(self) -> None:
        """Claim nothing more. What is claimed all the same is not passed on, and is given back with all others."""
        self._closed = True

    async def wait_closed(self) -> None:
        """Return when no claim is under way."""
        await self._idle.wait()

    def _reserve(self, acceptance: Acceptance) -> str | None:
        """Count new mail as claimed, if it may be claimed as it is accepted; its destination."""
        if self._closed or self._health.ails("store") or not self._claims.can_claim_at_once:
            return None
        if acceptance.due_at > acceptance.queued_at:
            return None
        recipients, size = acceptance.prepared.recipients, len(acceptance.prepared.content)
        destination = domain_of(recipients[0])
        if any(domain_of(recipient) != destination for recipient in recipients):
            return None
        free, memory = self._claims.free, self._claims.bytes_free
        reserved = self._backlogs.reserve(acceptance.lane, destination, size, claims=free, memory=memory)
        return destination if reserved else None

    async def _enqueue_claimed(self, acceptance: Acceptance, destination: str, queue_size: int | None) -> list[Due]:
        claimed = False
        self._claiming += 1
        self._idle.clear()
        try:
            stored = await self._claims.enqueue_claimed(acceptance, queue_size)
            if not isinstance(stored, Delivery):
                return stored
            claimed = True
            if not self._closed:
                self._pass_on(stored)
            return []
        finally:
            self._claiming -= 1
            if not self._claiming:
                self._idle.set()
            if not claimed:
                self._backlogs.lanes[acceptance.lane].lines.finished(destination, well=None)
                self._wake()

    def _pass_on(self, delivery: Delivery) -> None:
        try:
            self._dispatch([delivery])
        except Exception:
            # Whoever sends must not take it for refused: it is in the store.
            logger.exception("%r could not be passed on; it goes back when delivery is stopped", delivery)
