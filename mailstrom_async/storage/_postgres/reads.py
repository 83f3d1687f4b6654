"""What is asked of the queue, in SQL. Each function is one operation."""

import logging
from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import groupby

from pydantic import ValidationError

from mailstrom_async._envelope import LANES, Lane, PreparedEmail
from mailstrom_async._errors import StorageError
from mailstrom_async._status import Attempt, DeliveryResult, MessageStatus, RecipientStatus
from mailstrom_async.storage._postgres.connection import Row, Session
from mailstrom_async.storage._postgres.errors import Unreadable
from mailstrom_async.storage._postgres.rows import can_be_text, to_due, to_result
from mailstrom_async.storage._rules import lane_of, shown
from mailstrom_async.storage.base import Due

logger = logging.getLogger("mailstrom_async")

MERGED_AT_MOST = 100
"""Destinations and lanes that are read side by side: a part of the statement each."""

_NEAREST = "SELECT due_at, id, destination, size, lane FROM mailstrom.deliveries WHERE due_at IS NOT NULL"

_IN_ORDER = "ORDER BY due_at, id LIMIT $1"

_PLACES = """
    WITH RECURSIVE leap (destination, lane, n) AS (
        (SELECT destination, lane, 1 FROM mailstrom.deliveries WHERE due_at IS NOT NULL
            ORDER BY destination, lane LIMIT 1)
        UNION ALL
        SELECT next.destination, next.lane, n + 1 FROM leap CROSS JOIN LATERAL (
            SELECT d.destination, d.lane FROM mailstrom.deliveries AS d
            WHERE d.due_at IS NOT NULL AND (d.destination, d.lane) > (leap.destination, leap.lane)
            ORDER BY d.destination, d.lane LIMIT 1
        ) AS next WHERE n <= $1
    )
    SELECT destination, lane FROM leap
"""
"""The destinations and lanes of all unfinished deliveries, found by leaps over the index, at most $1 + 1."""

_STATUS = """
    SELECT m.message_id, m.queued_at, d.lane, coalesce(r.written, r.address), r.address, r.attempts, r.result,
        CASE WHEN d.owner IS NULL THEN d.due_at END
    FROM mailstrom.messages AS m
    JOIN mailstrom.deliveries AS d ON d.message = m.key
    JOIN mailstrom.recipients AS r ON r.delivery = d.id
"""

_RECENT = f"""
    {_STATUS}
    WHERE m.key IN (
        SELECT key FROM (
            (SELECT queued_at, key FROM mailstrom.messages WHERE completed_at IS NULL ORDER BY queued_at, key LIMIT $2)
            UNION ALL
            (SELECT queued_at, key FROM mailstrom.messages WHERE completed_at >= $1 ORDER BY queued_at, key LIMIT $2)
        ) AS wanted ORDER BY queued_at, key LIMIT $2
    )
    ORDER BY m.queued_at, m.key, r.position
"""  # noqa: S608 - no text from outside


async def upcoming(
    session: Session, limit: int, excluding: Collection[str] = (), lane: Lane | None = None
) -> list[Due]:
    lanes = range(len(LANES)) if lane is None else [LANES.index(lane)]
    lines, values = [f"{_NEAREST} AND lane = {number}" for number in lanes], list[object]()
    if excluding:
        places = await session.fetch(_PLACES, MERGED_AT_MOST)
        if len(places) <= MERGED_AT_MOST:
            # Side by side in the order of their due times: what is excluded is not even looked at.
            wanted = [place for place in places if place[0] not in excluding and place[1] in lanes]
            values += [destination for destination, _ in wanted]
            lines = [
                f"{_NEAREST} AND lane = {number} AND destination = ${mark}"
                for mark, (_, number) in enumerate(wanted, 2)
            ]
        else:
            # Passes over the excluded entries of the index, without touching the table.
            values.append(list(excluding))
            lines = [f"{line} AND destination <> ALL($2::text[])" for line in lines]
    if not lines:
        return []
    # Each in its order and no longer than needed: else poor statistics may have all of it read, and sorted.
    merged = " UNION ALL ".join(f"({line} {_IN_ORDER})" for line in lines)
    rows = await session.fetch(f"SELECT * FROM ({merged}) AS merged {_IN_ORDER}", limit, *values)  # noqa: S608
    return [to_due(row) for row in rows]


async def status(session: Session, message_id: str) -> MessageStatus | None:
    if not can_be_text(message_id):
        return None  # nothing that we ever stored
    rows = await session.fetch(f"{_STATUS} WHERE m.message_id = $1 ORDER BY r.position", message_id)
    try:
        return _status(rows) if rows else None
    except Unreadable as trouble:
        raise StorageError(f"the status of {message_id[:200]!r} is damaged in the store: {trouble}") from trouble


async def recent(session: Session, since: datetime | None, limit: int) -> list[MessageStatus]:
    statuses: list[MessageStatus] = []
    for message_id, rows in groupby(await session.fetch(_RECENT, since, limit), key=lambda row: str(row[0])):
        try:
            statuses.append(_status(list(rows)))
        except Unreadable as trouble:
            logger.error(  # noqa: TRY400 - the trouble is told whole, and a traceback may hold what the row holds
                "the status of %r is damaged in the store and left out of the list: %s", message_id[:200], trouble
            )
    return statuses


async def attempts(session: Session, message_id: str) -> list[Attempt] | None:
    if not can_be_text(message_id):
        return None
    rows = await session.fetch(
        "SELECT attempt FROM mailstrom.messages LEFT JOIN mailstrom.attempts ON message = key"
        " WHERE message_id = $1 ORDER BY started_at, id",
        message_id,
    )
    if not rows:
        return None
    try:
        return [Attempt.model_validate_json(text) for (text,) in rows if text is not None]
    except ValidationError as error:
        raise StorageError(f"the attempts of {message_id[:200]!r} are damaged in the store") from error


async def prepared(session: Session, message_id: str) -> PreparedEmail | None:
    if not can_be_text(message_id):
        return None
    rows = await session.fetch(
        "SELECT m.key, m.sender, c.content, m.smtputf8, m.eight_bit"
        " FROM mailstrom.messages AS m JOIN mailstrom.contents AS c ON c.message = m.key WHERE m.message_id = $1",
        message_id,
    )
    if not rows:
        return None
    [(key, sender, content, smtputf8, eight_bit)] = rows
    recipients = await session.fetch(
        "SELECT address, coalesce(written, address) FROM mailstrom.deliveries JOIN mailstrom.recipients"
        " ON delivery = id WHERE message = $1 ORDER BY position",
        key,
    )
    return PreparedEmail(
        message_id=message_id,
        sender=sender,
        recipients=tuple(address for address, _ in recipients),
        content=content,
        smtputf8=smtputf8,
        eight_bit=eight_bit,
        written=tuple(written for _, written in recipients),
    )


def _status(rows: Sequence[Row]) -> MessageStatus:
    results: dict[str | None, DeliveryResult] = {}  # many recipients often share one

    def result_of(text: str | None) -> DeliveryResult:
        if text not in results:
            results[text] = to_result(text)
        return results[text]

    try:
        return MessageStatus(
            message_id=rows[0][0],
            queued_at=rows[0][1],
            lane=lane_of(rows[0][2]),
            recipients=tuple(
                RecipientStatus(
                    recipient=written, address=address, attempts=attempted, result=shown(result_of(text), due_at)
                )
                for _, _, _, written, address, attempted, text, due_at in rows
            ),
        )
    except ValidationError as error:
        raise Unreadable(f"{error.error_count()} fields of a result") from error
