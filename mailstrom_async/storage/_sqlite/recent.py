"""What was accepted a moment ago, kept in memory: most of it is claimed in the next one, and need not be read again."""

from collections.abc import Sequence
from typing import NamedTuple

from mailstrom_async._envelope import Delivery, Due, PendingRecipient, QueuedMessage
from mailstrom_async.storage._rules import destinations
from mailstrom_async.storage.base import Acceptance

ROOM = 32 * 1024 * 1024
"""Bytes of content that may be kept."""
LARGE = 256 * 1024
"""Bytes of a content from which on reading it again costs little beside sending it."""
KEPT_SECONDS = 60.0
"""What is not claimed by then waits for something, and is read when its time comes: it is kept for no more than twice
as long."""


class Fresh(NamedTuple):
    """A delivery as it was accepted, so as it is in the store as long as nobody has attempted or cancelled it."""

    acceptance: Acceptance
    destination: str
    positions: Sequence[int]

    def claimed(self, delivery_id: int, owner: str, message: QueuedMessage) -> Delivery:
        recipients = self.acceptance.prepared.recipients
        pending = tuple([PendingRecipient(recipients[position], "queued", 0) for position in self.positions])
        return Delivery(delivery_id, self.destination, owner, 1, pending, message)

    def message(self, key: int) -> QueuedMessage:
        prepared = self.acceptance.prepared
        return QueuedMessage(
            key,
            prepared.message_id,
            prepared.sender,
            prepared.content,
            prepared.smtputf8,
            prepared.eight_bit,
            self.acceptance.queued_at,
            self.acceptance.expires_at,
            self.acceptance.lane,
        )


class Recent:
    """Deliveries by id. What finds no room is not kept: it is read from the store then, as all else is.

    For the event loop's thread, and filled only with what is committed: an id that was rolled back is given anew.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._new: dict[int, Fresh] = {}
        self._old: dict[int, Fresh] = {}  # what was there already when it was last looked for what is too old
        self._look_at = 0.0
        self._room = ROOM

    def add(self, acceptances: Sequence[Acceptance], dues: Sequence[Due], now: float) -> None:
        """Keep what is due at once.

        Args:
            dues: What the store made of the acceptances: an entry for each of their destinations, in order.
            now: On the event loop's clock.
        """
        if now >= self._look_at:
            self._forget_old()
            self._look_at = now + KEPT_SECONDS
        entries = iter(dues)
        for acceptance in acceptances:
            prepared = acceptance.prepared
            places = [(0,)] if len(prepared.recipients) == 1 else destinations(prepared).values()
            # As the first of the two runs out, nothing is lost of the other one.
            for positions, entry in zip(places, entries, strict=False):
                if entry.size <= LARGE and entry.size <= self._room and acceptance.due_at <= acceptance.queued_at:
                    self._room -= entry.size
                    self._new[entry.delivery_id] = Fresh(acceptance, entry.destination, positions)

    def take(self, delivery_ids: Sequence[int]) -> dict[int, Fresh]:
        """Those of these that are known; they are not kept any more."""
        taken: dict[int, Fresh] = {}
        for delivery_id in delivery_ids:
            if (fresh := self._new.pop(delivery_id, None) or self._old.pop(delivery_id, None)) is not None:
                self._room += len(fresh.acceptance.prepared.content)
                taken[delivery_id] = fresh
        return taken

    def _forget_old(self) -> None:
        self.take(list(self._old))
        self._old, self._new = self._new, {}
