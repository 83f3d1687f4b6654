"""One lane's way from the store's index to a claim: what is to come over the delay heap, what is due in ready lines.

Each lane has a way of its own, so that nothing of another one stands before it: neither in memory, which holds but a
part of what the store has, nor in the windows of its destinations.
"""

import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime

from mailstrom_async._envelope import LANES, Due, Lane
from mailstrom_async._queue.delay_heap import DelayHeap
from mailstrom_async._queue.fairness import SMALL, ReadyLines, Share
from mailstrom_async._queue.lanes import Turns

HEAP_CAPACITY = 10_000
READY_CAPACITY = 20_000
"""Due deliveries that wait here for their claim: a few hundred bytes each."""
TURN = 500
"""Deliveries lined up in one turn of the event loop."""
LINE = 256
"""Of them, so many of each destination, even if there are many."""
KEPT_CLAIMS = 100
KEPT_OF_MEMORY = 16
"""So many claims, and this part of the memory, are kept for "auth"."""
FEW_CLAIMS = 2 * KEPT_CLAIMS
LITTLE_MEMORY = 4
"""With fewer claims left, or less than this part of the memory, what waits goes before what comes."""


class Backlog:
    """What is known here of a lane's deliveries that are not claimed.

    Attributes:
        lines: What is due.
    """

    def __init__(self) -> None:
        self._heap = DelayHeap(HEAP_CAPACITY)
        self.lines = ReadyLines(Share(line=LINE, all=READY_CAPACITY))
        self._refill_asked = True
        self._pushed_while_refilling: set[int] | None = None

    def push(self, entries: Sequence[Due], now: datetime) -> None:
        """These deliveries are due then, whatever was known of them before."""
        if self._pushed_while_refilling is not None:
            self._pushed_while_refilling.update(entry.delivery_id for entry in entries)
        room = self.lines.room
        due: list[Due] = []  # as most mail is when it comes: it has no need of the heap
        later: list[Due] = []
        for entry in entries:
            if entry.due_at > now:
                later.append(entry)
            elif (self._heap.covers(entry) and len(due) < room) or self._is_news(entry, room - len(due)):
                self._heap.discard(entry.delivery_id)
                due.append(entry)
            else:
                later.append(entry)
        if due:
            self.lines.follow(due)
        if later:
            self._heap.push(later)

    def _is_news(self, entry: Due, room: int) -> bool:
        """New mail for a destination that nothing waits for does not wait behind the backlog of all others."""
        return room > -READY_CAPACITY and not self.lines.knows(entry.destination)

    def line_up(self, now: datetime, claimed: Container[int]) -> bool:
        """Move what is due into the lines, some of it at a time; whether there may be more."""
        # What a shared store named while it was somebody else's may be ours by now, and must not be claimed twice.
        due = self._heap.pop_due(now, max(0, min(self.lines.room, TURN)))
        self.lines.add(entry for entry in due if entry.delivery_id not in claimed)
        return len(due) == TURN

    @property
    def next_due_at(self) -> datetime | None:
        """When there is something to line up; None: nothing that is known here, or there is no room for it."""
        return self._heap.next_due_at if self.lines.room > 0 else None

    @property
    def is_used_up(self) -> bool:
        """The store has more to come than is known here."""
        return self._heap.wants_refill

    def wants_refill(self) -> bool:
        """The store should be asked; says so once where lines have room again."""
        return self.lines.take_left_out() or self._heap.wants_refill or self._refill_asked

    def ask_for_refill(self) -> None:
        """What is known here may not be all that is due."""
        self._refill_asked = True

    def forget_times(self) -> None:
        """What is known of what is to come is wrong; the store knows."""
        self._heap = DelayHeap(HEAP_CAPACITY)
        self._refill_asked = True

    def begin_refill(self) -> set[str]:
        """The store is about to be asked. The destinations of which it need not tell."""
        self._pushed_while_refilling = set()
        self._heap.begin_refill()
        return self.lines.leave_out_long()

    def refill(self, entries: Iterable[Due], claimed: Container[int], *, complete: bool) -> None:
        """Take over what the store named; `complete`: it has no more."""
        # What was pushed meanwhile is newer than what the store read.
        newer = self._pushed_while_refilling or ()
        self._heap.refill(
            (
                entry
                for entry in entries
                if entry.delivery_id not in newer
                and entry.delivery_id not in self.lines
                and entry.delivery_id not in claimed
            ),
            complete=complete,
        )
        self._refill_asked = False

    def end_refill(self) -> None:
        """Whether it succeeded or not."""
        self._pushed_while_refilling = None


class Backlogs:
    """Those of all lanes, and what to claim of them: the lanes share by weight.

    Args:
        memory: Bytes of content that claims may hold in all. Some of them, and some of the claims, are kept for "auth".
    """

    def __init__(self, memory: int) -> None:
        self.lanes: Mapping[Lane, Backlog] = {lane: Backlog() for lane in LANES}
        self._turns = Turns()
        self._kept = memory // KEPT_OF_MEMORY
        self._memory = memory - self._kept
        self._for_small = memory // KEPT_OF_MEMORY
        # As much as comes free although small ones go on; what is larger goes alone.
        self._largest = self._memory - self._for_small

    def push(self, entries: Sequence[Due], now: datetime) -> None:
        """As `Backlog.push`, each to its lane."""
        if len(entries) == 1:  # as when somebody sends one mail
            self.lanes[entries[0].lane].push(entries, now)
            return
        by_lane: dict[Lane, list[Due]] = {}
        for entry in entries:
            by_lane.setdefault(entry.lane, []).append(entry)
        for lane, own in by_lane.items():
            self.lanes[lane].push(own, now)

    def take(self, batch: int, claims: int, size: int, small: int = 0) -> list[Due]:
        """Choose what to claim now.

        Args:
            batch: At most so many.
            claims: So many more there may be.
            size: So many bytes more there may be.
            small: So many bytes are claimed in small mail.
        """
        taken: list[Due] = []
        waiting: list[Lane] = [lane for lane, backlog in self.lanes.items() if len(backlog.lines)]
        # Only small ones go on beside a large one that waits for its room, and "auth"; if it must go alone, none.
        large = self._held_up_by(size - self._kept)
        if large is not None and large.size > self._largest:
            return taken
        beside = max(0, min(size - self._kept, self._for_small - small))
        while waiting and batch > 0:
            alone = len(waiting) == 1
            lane = self._turns.take(waiting)
            kept, kept_size = (0, 0) if lane == "auth" else (KEPT_CLAIMS, self._kept)
            room: int = size - kept_size
            most = sys.maxsize
            if large is not None and lane not in ("auth", large.lane):
                room, most = min(room, beside), SMALL
            entries = self.lanes[lane].lines.take(batch if alone else 1, room, claims - kept, most=most, beside=beside)
            if alone or not entries:
                waiting.remove(lane)
            taken += entries
            batch -= len(entries)
            claims -= len(entries)
            taken_size: int = sum(entry.size for entry in entries)
            size -= taken_size
            beside = max(0, beside - taken_size)
        return taken

    def reserve(self, lane: Lane, destination: str, size: int, *, claims: int, memory: int) -> bool:
        """Count mail of so many bytes that is not here yet as claimed, if nothing that is known here stands before it.

        Args:
            claims: So many more there may be.
            memory: So many bytes more there may be.
        """
        is_scarce = claims < FEW_CLAIMS or memory < self._memory // LITTLE_MEMORY
        # Who waits may wait for these, and must not find them taken whenever it is its turn.
        if is_scarce and any(len(backlog.lines) for backlog in self.lanes.values()):
            return False
        if lane != "auth":
            claims, memory = claims - KEPT_CLAIMS, memory - self._kept
        if size > memory or self._held_up_by(0) is not None:
            return False
        return self.lanes[lane].lines.reserve(destination, claims)

    def first(self) -> Due | None:
        """What goes alone, whatever its size; counted as claimed. Only where nothing is claimed."""
        large = self._held_up_by(self._largest)
        order = LANES if large is None else (large.lane, *LANES)
        return next((one for lane in order if (one := self.lanes[lane].lines.first()) is not None), None)

    def _held_up_by(self, size: int) -> Due | None:
        """What waits so long for its room in memory that others have to wait for it."""
        for backlog in self.lanes.values():
            if (large := backlog.lines.impatient) is not None and large.size > size:
                return large
        return None
