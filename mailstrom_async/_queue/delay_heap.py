"""What is due next, of a queue that may be far larger than memory."""

import heapq
from collections.abc import Iterable
from datetime import UTC, datetime

from mailstrom_async._envelope import Due

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class DelayHeap:
    """The nearest deliveries by due time, at most `capacity` of them.

    The store holds all of them. What lies at or beyond `horizon` may be missing here, and is fetched again from the
    store when the heap has come that far; while `horizon` is None the heap holds all that the store has. Nothing beyond
    the horizon is kept here: it would hide what only the store has before it.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a heap needs room for at least one delivery")
        self._capacity = capacity
        # (due_at, sequence, entry): the sequence keeps equal due times apart and in the order of their arrival.
        self._heap: list[tuple[datetime, int, Due]] = []
        self._sequence = 0
        self._current: dict[int, int] = {}  # delivery id -> sequence of its valid entry; others are stale
        self.horizon: datetime | None = None

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, delivery_id: int) -> bool:
        return delivery_id in self._current

    def push(self, entries: Iterable[Due]) -> None:
        """Add deliveries, or change the due times of those that are in. What lies beyond the horizon is left to the
        store."""
        for entry in entries:
            self._current.pop(entry.delivery_id, None)
            if not self.covers(entry):
                continue
            self._sequence += 1
            self._current[entry.delivery_id] = self._sequence
            heapq.heappush(self._heap, (entry.due_at, self._sequence, entry))
        if len(self._current) > 2 * self._capacity or len(self._heap) > 4 * self._capacity:
            self._shrink()

    def covers(self, entry: Due) -> bool:
        """Whether it lies before the horizon: all that is due sooner is known here, or was taken out already."""
        return self.horizon is None or entry.due_at < self.horizon

    def begin_refill(self) -> None:
        """The store is about to be asked: what is pushed from now on it may not have seen, so nothing is left to it."""
        self.horizon = None

    def refill(self, entries: Iterable[Due], *, complete: bool) -> None:
        """Take over what the store says is next; `begin_refill` came before.

        Args:
            entries: The nearest deliveries, in any order.
            complete: The store has no others.
        """
        entries = list(entries)
        self.push(entries)
        if not complete:
            farthest = max((entry.due_at for entry in entries), default=_LONG_AGO)
            self.horizon = farthest if self.horizon is None else min(farthest, self.horizon)
        self._shrink()

    def discard(self, delivery_id: int) -> None:
        """Forget a delivery, if it is in."""
        self._current.pop(delivery_id, None)

    def pop_due(self, now: datetime, limit: int) -> list[Due]:
        """Take out what is due, longest due first, at most `limit`."""
        due: list[Due] = []
        while len(due) < limit and (entry := self._peek()) is not None and entry.due_at <= now:
            heapq.heappop(self._heap)
            del self._current[entry.delivery_id]
            due.append(entry)
        return due

    @property
    def next_due_at(self) -> datetime | None:
        """When the next delivery is due; None: none is known here."""
        entry = self._peek()
        return entry.due_at if entry is not None else None

    @property
    def wants_refill(self) -> bool:
        """All that is here is used up, and the store has more."""
        return self.horizon is not None and not self._current

    def _peek(self) -> Due | None:
        while self._heap:
            _, sequence, entry = self._heap[0]
            if self._current.get(entry.delivery_id) == sequence:
                return entry
            heapq.heappop(self._heap)
        return None

    def _shrink(self) -> None:
        """Keep what lies up to the horizon, at most `capacity` of it, and move the horizon to the first that goes."""
        horizon = self.horizon
        valid = sorted(
            item
            for item in self._heap
            if self._current.get(item[2].delivery_id) == item[1] and (horizon is None or item[0] <= horizon)
        )
        if len(valid) > self._capacity:
            self.horizon = valid[self._capacity][0]
        self._heap = valid[: self._capacity]
        self._current = {item[2].delivery_id: item[1] for item in self._heap}
