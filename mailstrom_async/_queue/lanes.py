"""Who goes first where several wait: lanes share by weight, so that "auth" hardly waits and "bulk" is never starved.

Under load 16 of "auth", 4 of "default" and 1 of "bulk" go in turn; a lane that has nothing leaves its turns to the
others. And one session is kept: mail that nobody waits for may not use all of those that there may be, or a login code
would wait until a slow host has taken a newsletter.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from mailstrom_async._envelope import LANES, Lane

T = TypeVar("T")

STEPS: Mapping[Lane, int] = {"auth": 1, "default": 4, "bulk": 16}
"""How far a turn puts a lane back: the weights are 16, 4 and 1."""


class Turns:
    """Whose turn it is among lanes. Who has nothing for a while saves nothing up, and owes nothing."""

    __slots__ = ("_next", "_now")

    def __init__(self) -> None:
        self._now = 0
        self._next: dict[Lane, int] = dict.fromkeys(LANES, 0)

    def take(self, waiting: Sequence[Lane]) -> Lane:
        """The lane whose turn it is, of those that have something, the most urgent first; it has had it then."""
        now, places = self._now, self._next
        lane = waiting[0] if len(waiting) == 1 else min(waiting, key=lambda lane: max(places[lane], now))
        if (place := places[lane]) > now:
            self._now = now = place
        places[lane] = now + STEPS[lane]
        return lane


class Room(NamedTuple):
    """What of the sessions that there may be is left for each lane: one is kept for "auth".

    "bulk" never has the one that is kept. "default" leaves it free from when the first mail of another lane was seen:
    lanes cost nothing where nobody uses them, and "bulk" finds as much room as "default" does.

    Attributes:
        allowed: How many there may be. Where there may be only one, none is kept.
        free: How many of them are not used by mail other than "auth".
        lanes_used: There was mail of another lane than "default".
    """

    allowed: int
    free: int
    lanes_used: bool

    def of(self, lane: Lane) -> int:
        """How many more sessions may be used by a lane."""
        kept = self.allowed > 1 and (lane == "bulk" or (lane == "default" and self.lanes_used))
        return self.free - kept


class Lanes(Generic[T]):
    """What waits in one place: within a lane in the order in which it came, the lanes by their weights.

    Attributes:
        count: How much that is, as `len` says it; asked for several times for each mail.
    """

    __slots__ = ("_auth", "_bulk", "_default", "_lines", "_turns", "count")

    def __init__(self) -> None:
        self.count = 0
        self._lines: dict[Lane, OrderedDict[Hashable, T]] = {lane: OrderedDict() for lane in LANES}
        self._auth, self._default, self._bulk = self._lines.values()
        self._turns = Turns()

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[T]:
        """All of it, the most urgent first."""
        for line in self._lines.values():
            yield from line.values()

    @property
    def most_urgent(self) -> Lane:
        """The first lane that has something; "bulk" if none has."""
        return "auth" if self._auth else "default" if self._default else "bulk"

    def get(self, lane: Lane, key: Hashable) -> T | None:
        return self._lines[lane].get(key)

    def add(self, lane: Lane, key: Hashable, one: T) -> None:
        """The last of its lane, unless it is in it already."""
        line = self._lines[lane]
        if key not in line:
            line[key] = one
            self.count += 1

    def put_back(self, lane: Lane, key: Hashable, one: T) -> None:
        """The first of its lane, because it was taken before and not served."""
        line = self._lines[lane]
        self.count += key not in line
        line[key] = one
        line.move_to_end(key, last=False)

    def discard(self, key: Hashable) -> None:
        """Take it out of all lanes."""
        for line in self._lines.values():
            if key in line:
                del line[key]
                self.count -= 1

    def clear(self) -> None:
        self.count = 0
        for line in self._lines.values():
            line.clear()

    def fitting(self, room: Room) -> int:
        """How many of those that wait there is room for."""
        default = bulk = 0
        if self._default:
            default = min(len(self._default), max(0, room.of("default")))
        if self._bulk:
            bulk = min(len(self._bulk), max(0, room.of("bulk") - default))
        return len(self._auth) + default + bulk

    def take(self, room: Room, *, urgent_first: bool = False) -> T | None:
        """The next one, of the lanes that have something and room; None: there is none. "auth" always has room.

        Args:
            room: What there is.
            urgent_first: Of the most urgent lane, whoever's turn it is.
        """
        waiting: list[Lane] = []
        if self._auth:
            waiting.append("auth")
        if self._default and room.of("default") > 0:
            waiting.append("default")
        if self._bulk and room.of("bulk") > 0:
            waiting.append("bulk")
        if not waiting:
            return None
        self.count -= 1
        return self._lines[self._turns.take(waiting[:1] if urgent_first else waiting)].popitem(last=False)[1]
