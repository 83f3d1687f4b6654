"""Who is claimed next, so that a sick destination costs the healthy ones nothing.

What is due waits here in one line for each destination. Lines are served in turn. How many deliveries of a destination
may be claimed at a time is its window: it grows with every delivery that succeeds and halves when one is deferred, so a
destination that takes mail fast gets a deep pipeline, and one that is down holds only a few claims. But none may have
more than are still free: however many take their mail slowly, who comes next finds some.
"""

import sys
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from mailstrom_async._envelope import Due

PATIENCE = 100
"""How often smaller deliveries may go past one that finds no room in memory, before it is kept free for that one."""
SMALL = 64 * 1024
"""Bytes of a mail that may go on beside one that waits for its room: slow hosts may have the rest of it for long."""


@dataclass(frozen=True, slots=True)
class Share:
    """How much of the whole one destination may have.

    Attributes:
        least: The window of a destination that we know nothing good of.
        most: The window of one that takes everything.
        line: How many due deliveries of one destination wait here; further ones stay in the store.
        all: How many of all may wait here: as long as there is room, a line may be longer, up to a quarter of what is
            left, so that a few long ones do not take the room of all others. What a line has no room for was read in
            vain.
    """

    least: int = 8
    most: int = 256
    line: int = 512
    all: int = 0


class ReadyLines:
    """The due deliveries, one line for each destination, served in turn."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._lines: OrderedDict[str, deque[Due]] = OrderedDict()
        self._waiting: set[int] = set()
        self._claimed: dict[str, int] = {}
        self._windows: dict[str, int] = {}
        self._left_out: set[str] = set()
        self._held: set[str] = set()
        self._takes = 0
        self._large: Due | None = None  # the first that found no room
        self._large_since = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, delivery_id: int) -> bool:
        return delivery_id in self._waiting

    @property
    def room(self) -> int:
        """How many more should wait here; of new mail there may be more, and then it is negative."""
        return self._share.all - len(self._waiting)

    def add(self, entries: Iterable[Due]) -> None:
        """Line deliveries up. What finds its line full is left to the store."""
        for entry in entries:
            if entry.delivery_id in self._waiting:
                continue
            line = self._lines.get(entry.destination)
            if line is None:
                line = self._lines[entry.destination] = deque()
            if len(line) >= self._share.line and len(line) >= self.room // 4:
                self._left_out.add(entry.destination)
                continue
            line.append(entry)
            self._waiting.add(entry.delivery_id)

    def follow(self, entries: Iterable[Due]) -> None:
        """Line new deliveries up, behind all others of their destination: also behind those that the store has."""
        left_out = self._left_out
        self.add([entry for entry in entries if entry.destination not in left_out] if left_out else entries)

    def knows(self, destination: str) -> bool:
        """Whether anything waits for a destination, here or, left out, in the store."""
        return destination in self._lines or destination in self._left_out

    def take(
        self, count: int, size: int, free: int = sys.maxsize, *, most: int = sys.maxsize, beside: int = 0
    ) -> list[Due]:
        """Choose what to claim now: one of each line in turn, within the windows.

        Args:
            count: At most so many.
            size: At most so many bytes of content in all.
            free: So many claims more there may be, of all destinations.
            most: So many bytes in one of them.
            beside: So many bytes in all, and in small ones only, while a large one waits for its room.
        """
        taken: list[Due] = []
        idle = 0  # lines in a row that had nothing for us
        self._takes += 1
        if (large := self.impatient) is not None:
            self._lines.move_to_end(large.destination, last=False)
            if large.size > size:
                size, most = beside, SMALL  # until it has room, or goes alone as the `first`
        lines = self._lines
        left = min(count, free)
        while left > 0 and idle < len(lines):
            destination, line = next(iter(lines.items()))
            if len(lines) > 1:
                lines.move_to_end(destination)
            if not self._is_open(destination, free - len(taken)):
                idle += 1
                continue
            if line[0].size > min(size, most):
                self._note_large(line[0])
                idle += 1
                continue
            idle = 0
            left -= 1
            entry = self._claim_first(destination)
            size -= entry.size
            taken.append(entry)
        return taken

    def reserve(self, destination: str, free: int) -> bool:
        """Count mail that is not here yet as claimed, if nothing stands before it; `free` as in `take`."""
        if self.knows(destination) or not self._is_open(destination, free):
            return False
        self._claimed[destination] = self._claimed.get(destination, 0) + 1
        return True

    def first(self) -> Due | None:
        """The delivery whose turn it is, whatever its size; counted as claimed. For one too large for the memory set
        aside: it goes alone."""
        for destination in self._lines:
            if self._is_open(destination):
                self._lines.move_to_end(destination)
                return self._claim_first(destination)
        return None

    def finished(self, destination: str, *, well: bool | None) -> None:
        """A claim ended.

        Args:
            destination: Whose it was.
            well: Nobody was deferred; None: there was no attempt to judge by.
        """
        claimed = self._claimed.get(destination, 0) - 1
        if claimed > 0:
            self._claimed[destination] = claimed
        else:
            self._claimed.pop(destination, None)
        least = self._share.least
        window = self._windows.get(destination, least)
        if well:
            window = min(window + 1, self._share.most)
        elif well is not None:
            window = max(window // 2, least)
        if window > least and (claimed > 0 or destination in self._lines):
            self._windows[destination] = window
        else:
            # Also what a destination earned is forgotten when it has nothing more: nothing is kept for each domain.
            self._windows.pop(destination, None)

    def hold(self, destination: str) -> None:
        """Choose nothing of this destination until it is let go: where it goes there is no room. Its window begins
        anew."""
        self._held.add(destination)
        self._windows.pop(destination, None)

    def let_go(self, destination: str) -> None:
        """There is room again."""
        self._held.discard(destination)

    def window(self, destination: str) -> int:
        """How many deliveries of a destination may be claimed at a time."""
        return self._windows.get(destination, self._share.least)

    def leave_out_long(self) -> set[str]:
        """The destinations that have enough in their line for now. The store need not tell of more of theirs: they
        count as left out. Otherwise those that are nearly full would be told again and again, for the room of a few."""
        enough = self._longest // 4
        long = {destination for destination, line in self._lines.items() if len(line) > enough}
        self._left_out |= long
        return long

    def take_left_out(self) -> bool:
        """Whether deliveries were left to the store whose line has room again; asks for a refill, once."""
        roomy = {
            destination for destination in self._left_out if len(self._lines.get(destination, ())) <= self._longest // 4
        }
        self._left_out -= roomy
        return bool(roomy)

    @property
    def _longest(self) -> int:
        """How long a line may be."""
        return max(self._share.line, self.room // 4)

    def _is_open(self, destination: str, free: int = sys.maxsize) -> bool:
        if destination in self._held:
            return False
        claimed = self._claimed.get(destination, 0)
        return claimed < free and claimed < self._windows.get(destination, self._share.least)

    def _claim_first(self, destination: str) -> Due:
        line = self._lines[destination]
        entry = line.popleft()
        self._waiting.discard(entry.delivery_id)
        self._claimed[destination] = self._claimed.get(destination, 0) + 1
        if not line:
            del self._lines[destination]
        return entry

    def _note_large(self, entry: Due) -> None:
        if self._large is None or self._large.delivery_id not in self._waiting:
            self._large, self._large_since = entry, self._takes

    @property
    def impatient(self) -> Due | None:
        """A delivery that small ones went past for so long that they have to wait for it now."""
        large = self._large
        if large is None or self._takes - self._large_since < PATIENCE or large.delivery_id not in self._waiting:
            return None
        return large if self._is_open(large.destination) else None
