"""What ends a delivery's wait or claim: its recipients get results, and it is due again or finished."""

import logging
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from mailstrom_async._envelope import Delivery
from mailstrom_async._status import FINAL_STATES, Attempt
from mailstrom_async.storage._rules import Result, abandoned_attempt, abandoned_result, final_at, set_aside
from mailstrom_async.storage._sqlite.errors import Unreadable
from mailstrom_async.storage._sqlite.rows import (
    destination_of,
    pending_recipients,
    reading,
    to_integer,
    to_json,
    to_time,
)

logger = logging.getLogger("mailstrom_async")

UNFINISHED = "state NOT IN ('delivered', 'failed')"


@dataclass(frozen=True, slots=True)
class Row:
    """A delivery's row, and when its message was cancelled. No text from outside, so that it can always be read."""

    id: int
    message: int
    due_at: int | None
    owner: str | None
    attempt: int
    claimed_at: int | None
    size: int
    cancelled_at: int | None

    @property
    def was_cancelled_at(self) -> datetime | None:
        return None if self.cancelled_at is None else to_time(self.cancelled_at)

    @classmethod
    def read(cls, connection: sqlite3.Connection, delivery_id: int) -> "Row | None":
        return next(cls._select(connection, "id = ?", delivery_id), None)

    @classmethod
    def read_held(cls, connection: sqlite3.Connection, claim: Delivery) -> "Row | None":
        """The row, if this claim of it still holds."""
        condition = "id = ? AND owner = ? AND attempt = ?"
        return next(cls._select(connection, condition, claim.id, claim.owner, claim.attempt), None)

    @classmethod
    def unclaimed(cls, connection: sqlite3.Connection, message: int) -> "list[Row]":
        return list(cls._select(connection, "message = ? AND owner IS NULL AND due_at IS NOT NULL", message))

    @classmethod
    def _select(cls, connection: sqlite3.Connection, condition: str, *values: object) -> "Iterator[Row]":
        rows = connection.execute(
            "SELECT id, message, due_at, owner, attempt, claimed_at, size, cancelled_at"  # noqa: S608 - ours only
            f" FROM deliveries JOIN messages ON key = message WHERE {condition}",
            values,
        ).fetchall()
        return (cls(*row) for row in rows)


def settle(
    connection: sqlite3.Connection, row: Row, results: Mapping[str, Result], due_at: datetime | None
) -> tuple[datetime | None, bool]:
    """Give recipients their new results, each by its address, and end the claim. A final result stays.

    Returns:
        When the delivery is due again (None: it is finished), and whether the message is completed by this.
    """
    waiting: list[tuple[int, str]] = connection.execute(
        f"SELECT position, address FROM recipients WHERE delivery = ? AND {UNFINISHED}",  # noqa: S608
        (row.id,),
    ).fetchall()
    new = [(position, results[address]) for position, address in waiting if address in results]
    connection.executemany(
        "UPDATE recipients SET state = ?, result = ? WHERE delivery = ? AND position = ?",
        [(result.state, to_json(result), row.id, position) for position, result in new],
    )
    final = [result for _, result in new if result.state in FINAL_STATES]
    due_again = None
    if len(final) < len(waiting):
        # Without a due time it stays where its lease would have ended: late, but not forgotten.
        due_again = due_at or (None if row.due_at is None else to_time(row.due_at))
    end_claim(connection, row, due_again)
    return due_again, _count_down(connection, row.message, len(final), final_at(final))


def settle_all(connection: sqlite3.Connection, row: Row, result: Result, due_at: datetime | None) -> None:
    """Give all recipients that are not final the same result, and end the claim."""
    changed = connection.execute(
        f"UPDATE recipients SET state = ?, result = ? WHERE delivery = ? AND {UNFINISHED}",  # noqa: S608
        (result.state, to_json(result), row.id),
    ).rowcount
    if result.state == "deferred":
        end_claim(connection, row, due_at)
    else:
        end_claim(connection, row, None)
        _count_down(connection, row.message, changed, final_at([result]))


def end_claim(connection: sqlite3.Connection, row: Row, due_at: datetime | None) -> None:
    connection.execute(
        "UPDATE deliveries SET owner = NULL, claimed_at = NULL, due_at = ? WHERE id = ?",
        (None if due_at is None else to_integer(due_at), row.id),
    )


def note_attempt(connection: sqlite3.Connection, row: Row, attempt: Attempt) -> None:
    """Add to the history, and count it for the recipients that are not final."""
    connection.execute(
        "INSERT INTO attempts (message, started_at, attempt) VALUES (?, ?, ?)",
        (row.message, to_integer(attempt.started_at), to_json(attempt)),
    )
    connection.execute(
        f"UPDATE recipients SET attempts = attempts + 1 WHERE delivery = ? AND {UNFINISHED}",  # noqa: S608
        (row.id,),
    )


def abandon(connection: sqlite3.Connection, row: Row, now: datetime) -> bool:
    """End a claim that its owner will not record: note the attempt, and let what is unfinished be due.

    Returns:
        Whether anything is left to be attempted.

    Raises:
        Unreadable: A row of it can't be decoded.
    """
    pending = pending_recipients(connection, row.id)
    with reading("its claim"):
        started_at = now if row.claimed_at is None else to_time(row.claimed_at)
        attempt = abandoned_attempt(
            destination_of(connection, row.id),
            [recipient.address for recipient in pending],
            started_at=started_at,
            lease_until=now if row.due_at is None else to_time(row.due_at),
            now=now,
        )
    note_attempt(connection, row, attempt)
    result = abandoned_result(now, is_cancelled=row.cancelled_at is not None)
    settle_all(connection, row, result, now)
    return result.state == "deferred"


def set_row_aside(connection: sqlite3.Connection, row: Row, now: datetime, trouble: Unreadable) -> None:
    """Fail the recipients of a delivery that can't be read, so that it is not tried for ever and others go on."""
    logger.error("delivery %d is damaged in the store and was set aside: %s", row.id, trouble)
    settle_all(connection, row, set_aside(now, str(trouble)), None)
    # Rows may be missing, so what was counted at acceptance may never come down to nothing.
    (left,) = connection.execute(
        "SELECT count(*) FROM deliveries JOIN recipients ON delivery = id"  # noqa: S608
        f" WHERE message = ? AND due_at IS NOT NULL AND {UNFINISHED}",
        (row.message,),
    ).fetchone()
    connection.execute("UPDATE messages SET unfinished = ? WHERE key = ? AND completed_at IS NULL", (left, row.message))
    _complete_if_done(connection, row.message, now)


def _count_down(connection: sqlite3.Connection, message: int, final: int, at: datetime | None) -> bool:
    if final == 0 or at is None:
        return False
    connection.execute("UPDATE messages SET unfinished = unfinished - ? WHERE key = ?", (final, message))
    return _complete_if_done(connection, message, at)


def _complete_if_done(connection: sqlite3.Connection, message: int, at: datetime) -> bool:
    completed = connection.execute(
        "UPDATE messages SET completed_at = ? WHERE key = ? AND unfinished <= 0 AND completed_at IS NULL",
        (to_integer(at), message),
    ).rowcount
    if completed:
        connection.execute("DELETE FROM contents WHERE message = ?", (message,))
        connection.execute("UPDATE counters SET unfinished = unfinished - 1")
    return bool(completed)
