"""What is due next: in one index for all, and in lines of their own for destinations that are in the way of others.

New deliveries enter the index by their time, side by side with the others of their commit. An index by destinations
would have each of them written into a page of its own, and accepting would cost twice as much in a long queue. So only
when a long backlog is passed over, because its destinations take nothing more at the moment, is it moved to the lines.
There it is not even looked at.
"""

import heapq
import json
import sqlite3
from collections.abc import Collection
from itertools import islice
from typing import Any

from mailstrom_async._envelope import LANES, Lane
from mailstrom_async.storage._sqlite.rows import due
from mailstrom_async.storage.base import Due

LINES_AT_MOST = 500
"""Destinations that have a line of their own: each costs some microseconds whenever somebody looks what is next, left
out or not."""

PASSED_AT_MOST = 4000
"""If most of so many entries are passed over, they are in the way: a millisecond each time."""

MOVED_AT_ONCE = 1000
"""Entries that one operation moves: some milliseconds, in which nothing is accepted."""

_WAITING = "due_at IS NOT NULL AND owner IS NULL"
_FOR_ALL = f"{_WAITING} AND lined_up = 0"
_IN_LINE = f"{_WAITING} AND lined_up = 1"
# As bytes: a destination that is no text must not hold up the others.
_ENTRIES = "json_group_array(json_array(due_at, id, hex(destination), size, lane))"
_NEAREST = "ORDER BY due_at, id"

# The destinations that have a line, found by leaps over the index.
_LINES = f"""
    leap (destination) AS (
        SELECT min(destination) FROM deliveries WHERE {_IN_LINE}
        UNION ALL
        SELECT (SELECT min(b.destination) FROM deliveries AS b WHERE {_IN_LINE} AND b.destination > leap.destination)
        FROM leap WHERE destination IS NOT NULL
    ),
    line (destination) AS (SELECT destination FROM leap WHERE destination IS NOT NULL)
"""  # noqa: S608 - no text from outside

_Entry = tuple[int, int, bytes, int, int]


def upcoming(
    connection: sqlite3.Connection, limit: int, excluding: Collection[str] = (), lane: Lane | None = None
) -> list[Due]:
    lanes = range(len(LANES)) if lane is None else [LANES.index(lane)]
    sources = [*(_from_all(connection, limit, excluding, one) for one in lanes)]
    sources.append(_from_lines(connection, limit, excluding, lanes))
    return [due(row) for row in islice(heapq.merge(*sources), limit)]


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


def _from_all(connection: sqlite3.Connection, limit: int, excluding: Collection[str], lane: int) -> list[_Entry]:
    # Passes over excluded entries of the index, without touching the table: 0.1 s for a million of them, once.
    nearest = (
        "SELECT due_at, id, destination, size, lane FROM deliveries"  # noqa: S608 - no text from outside
        f" WHERE {_FOR_ALL} AND lane = ? AND destination NOT IN ({_marks(excluding)}) {_NEAREST} LIMIT ?"
    )
    return _entries(connection, f"SELECT {_ENTRIES} FROM ({nearest})", lane, *excluding, limit)  # noqa: S608


def _from_lines(
    connection: sqlite3.Connection, limit: int, excluding: Collection[str], lanes: Collection[int]
) -> list[_Entry]:
    return _entries(connection, _nearest_in_lines(len(excluding), len(lanes)), *lanes, *excluding, limit)


def _entries(connection: sqlite3.Connection, statement: str, *values: object) -> list[_Entry]:
    rows = _read(connection, statement, *values)
    return [(due_at, id_, bytes.fromhex(destination), size, lane) for due_at, id_, destination, size, lane in rows]


def _nearest_in_lines(excluded: int, lanes: int) -> str:
    """A statement for the nearest of all lines, in order.

    It begins with the first entry of each, and whenever it has taken the nearest of those that it knows, the one behind
    that one steps forward.
    """
    of_line = f"SELECT b.id FROM deliveries AS b WHERE {_IN_LINE} AND b.destination = l.destination AND b.lane = l.lane"  # noqa: S608
    return f"""
        WITH RECURSIVE
            {_LINES},
            first (destination, lane) AS (
                SELECT destination, column1 FROM line CROSS JOIN (VALUES {", ".join(["(?)"] * lanes)})
                WHERE destination NOT IN ({_marks(range(excluded))})
            ),
            nearest (due_at, id, destination, size, lane) AS (
                SELECT d.due_at, d.id, d.destination, d.size, d.lane
                FROM first AS l CROSS JOIN deliveries AS d ON d.id = ({of_line} ORDER BY b.due_at, b.id LIMIT 1)
                UNION ALL
                SELECT d.due_at, d.id, d.destination, d.size, d.lane
                FROM nearest AS l CROSS JOIN deliveries AS d ON d.id = coalesce(
                    ({of_line} AND b.due_at = l.due_at AND b.id > l.id ORDER BY b.id LIMIT 1),
                    ({of_line} AND b.due_at > l.due_at ORDER BY b.due_at, b.id LIMIT 1)
                )
                ORDER BY 1, 2
                LIMIT ?
            )
        SELECT {_ENTRIES} FROM nearest
    """  # noqa: S608 - no text from outside


def _movable(connection: sqlite3.Connection, destinations: Collection[str]) -> list[str]:
    """Those that have a line already, or may still get one."""
    in_line = destinations_in_line(connection)
    if len(in_line) + len(destinations) <= LINES_AT_MOST:
        return list(destinations)
    known = set(in_line)
    return [destination for destination in destinations if destination.encode("utf-8", "replace") in known]


def destinations_in_line(connection: sqlite3.Connection) -> list[bytes]:
    """The destinations that have a line."""
    statement = f"WITH RECURSIVE {_LINES} SELECT json_group_array(hex(destination)) FROM line"  # noqa: S608 - ours
    return [bytes.fromhex(destination) for destination in _read(connection, statement)]


def _read(connection: sqlite3.Connection, statement: str, *values: object) -> list[Any]:
    """The rows of a statement that gives them as one JSON, in one step: see bulk.py."""
    rows: list[Any] = json.loads(connection.execute(statement, values).fetchone()[0])
    return rows


def _nearest_at(destinations: Collection[str]) -> str:
    nearest = f"SELECT id, destination FROM deliveries WHERE {_FOR_ALL} AND lane = ? {_NEAREST} LIMIT ?"  # noqa: S608
    return f"SELECT id FROM ({nearest}) WHERE destination IN ({_marks(destinations)})"  # noqa: S608 - ours


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))
