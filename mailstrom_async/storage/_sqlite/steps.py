"""What is to be done on a connection, as steps: one text for our own connections and for those of callers.

Whoever has steps to offer is a generator: it yields one, is sent the rows that came of it, and returns its result.
"""

import sqlite3
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from mailstrom_async.storage._sqlite.rows import write_content

T = TypeVar("T")


class Statement(NamedTuple):
    """One statement, with its values."""

    sql: str
    values: Sequence[object] = ()


class Repeated(NamedTuple):
    """One statement, for each of several rows of values; nothing comes of it."""

    sql: str
    rows: Sequence[Sequence[object]]


class Content(NamedTuple):
    """The content of a message is to be stored, large or not; nothing comes of it."""

    key: int
    content: bytes


Step = Statement | Repeated | Content
Rows = Sequence[Sequence[Any]]
Steps = Generator[Step, Rows, T]


def carry_out(connection: sqlite3.Connection, steps: Steps[T]) -> T:
    """Do all of it. Raises what the steps raise, and sqlite3.Error."""
    cursor = connection.cursor()
    rows: Rows | None = None
    try:
        while True:
            step = next(steps) if rows is None else steps.send(rows)
            rows = do(connection, cursor, step)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        cursor.close()


def do(connection: sqlite3.Connection, cursor: sqlite3.Cursor, step: Step) -> Rows:
    """Do one step; the rows that come of it."""
    if isinstance(step, Content):
        write_content(connection, step.key, step.content)
        return []
    if isinstance(step, Repeated):
        cursor.executemany(step.sql, step.rows)
        return []
    return cursor.execute(step.sql, step.values).fetchall()
