"""What is due next: in one index for all, and in lines of their own for destinations that are in the way of others.

New deliveries enter the index by their time, side by side with the others of their commit. An index by destinations
would have each of them written into a page of its own, and accepting would cost twice as much in a long queue. So only
when a long backlog is passed over, because its destinations take nothing more at the moment, is it moved to the lines.
There it is not even looked at.
"""

import heapq
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from mailstrom_async._envelope import LANES, Lane
from mailstrom_async.storage._sqlite_rows import due
from mailstrom_async.storage.base import Due

LINES_AT_MOST = 500
"""Destinations that have a line of their own: a statement each, whenever anything is left out."""

PASSED_AT_MOST = 4000
"""If most of so many entries are passed over, they are in the way: a millisecond each time."""

MOVED_AT_ONCE = 1000
"""Entries that one operation moves: some milliseconds, in which nothing is accepted."""

_WAITING = "due_at IS NOT NULL AND owner IS NULL"
_FOR_ALL = f"{_WAITING} AND lined_up = 0"
_IN_LINE = f"{_WAITING} AND lined_up = 1"
# As bytes: a destination that is no text must not hold up the others.
_ENTRY = "SELECT due_at, id, CAST(destination AS BLOB), size, lane FROM deliveries"
_NEAREST = "ORDER BY due_at, id"

_Entry = tuple[int, int, bytes, int, int]


def upcoming(
    connection: sqlite3.Connection, limit: int, excluding: Collection[str] = (), lane: Lane | None = None
) -> list[Due]:
    lanes = range(len(LANES)) if lane is None else [LANES.index(lane)]
    lines = [*_from_all(connection, limit, excluding, lanes), *_from_lines(connection, excluding, lanes)]
    return [due(row) for row in islice(heapq.merge(*lines), limit)]


def is_obstructed(connection: sqlite3.Connection, excluding: Collection[str]) -> bool:
    """Whether most of the nearest deliveries are at these destinations, and may be moved to lines."""
    if not (movable := _movable(connection, excluding)):
        return False
    for lane in range(len(LANES)):
        (passed,) = connection.execute(
            f"SELECT count(*) FROM ({_nearest_at(movable)})",  # noqa: S608 - no text from outside
            (lane, PASSED_AT_MOST, *movable),
        ).fetchone()
        if passed > PASSED_AT_MOST // 2:
            return True
    return False


def line_up(connection: sqlite3.Connection, destinations: Collection[str]) -> int:
    """Move the nearest deliveries at these destinations to lines of their own; how many. To be repeated."""
    if not (movable := _movable(connection, destinations)):
        return 0
    return sum(
        connection.execute(
            f"UPDATE deliveries SET lined_up = 1 WHERE id IN ({_nearest_at(movable)})",  # noqa: S608 - ours
            (lane, MOVED_AT_ONCE, *movable),
        ).rowcount
        for lane in range(len(LANES))
    )


def _from_all(
    connection: sqlite3.Connection, limit: int, excluding: Collection[str], lanes: Iterable[int]
) -> Iterator[Iterator[_Entry]]:
    # Passes over excluded entries of the index, without touching the table: 0.1 s for a million of them, once.
    for lane in lanes:
        yield connection.execute(
            f"{_ENTRY} WHERE {_FOR_ALL} AND lane = ? AND destination NOT IN ({_marks(excluding)}) {_NEAREST} LIMIT ?",
            (lane, *excluding, limit),
        )


def _from_lines(
    connection: sqlite3.Connection, excluding: Collection[str], lanes: Iterable[int]
) -> Iterator[Iterator[_Entry]]:
    left_out = {destination.encode("utf-8", "replace") for destination in excluding}
    for destination in destinations_in_line(connection):
        if destination not in left_out:
            for lane in lanes:
                yield connection.execute(
                    f"{_ENTRY} WHERE {_IN_LINE} AND destination = CAST(? AS TEXT) AND lane = ? {_NEAREST}",
                    (destination, lane),
                )


def _movable(connection: sqlite3.Connection, destinations: Collection[str]) -> list[str]:
    """Those that have a line already, or may still get one."""
    in_line = destinations_in_line(connection)
    if len(in_line) + len(destinations) <= LINES_AT_MOST:
        return list(destinations)
    known = set(in_line)
    return [destination for destination in destinations if destination.encode("utf-8", "replace") in known]


def destinations_in_line(connection: sqlite3.Connection) -> list[bytes]:
    """The destinations that have a line, found by leaps over the index."""
    found: list[bytes] = []
    after = b""
    while True:
        (destination,) = connection.execute(
            f"SELECT CAST(min(destination) AS BLOB) FROM deliveries"  # noqa: S608 - no text from outside
            f" WHERE {_IN_LINE} AND destination > CAST(? AS TEXT)",
            (after,),
        ).fetchone()
        if destination is None:
            return found
        found.append(destination)
        after = destination


def _nearest_at(destinations: Collection[str]) -> str:
    nearest = f"SELECT id, destination FROM deliveries WHERE {_FOR_ALL} AND lane = ? {_NEAREST} LIMIT ?"  # noqa: S608
    return f"SELECT id FROM ({nearest}) WHERE destination IN ({_marks(destinations)})"  # noqa: S608 - ours


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))
