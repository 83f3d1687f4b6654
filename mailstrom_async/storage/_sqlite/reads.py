"""What is asked of the queue, in SQL. Each function is one operation, in the reader's thread."""

import heapq
import logging
import sqlite3
from datetime import datetime

from pydantic import ConfigDict, TypeAdapter

from mailstrom_async._envelope import PreparedEmail
from mailstrom_async._errors import StorageError
from mailstrom_async._status import Attempt, DeliveryResult, MessageStatus, RecipientStatus
from mailstrom_async.storage._rules import lane_of, shown
from mailstrom_async.storage._sqlite.errors import Unreadable
from mailstrom_async.storage._sqlite.rows import reading, to_integer, to_result, to_time

logger = logging.getLogger("mailstrom_async")

PIECE = 500
"""Recipients made into words in one call: a third faster than one by one, and the event loop can't run meanwhile."""

_in_words = TypeAdapter(list[RecipientStatus], config=ConfigDict(defer_build=True))


def key_of(connection: sqlite3.Connection, message_id: str) -> int | None:
    """The key of the message with this Message-ID, or None."""
    try:
        message_id.encode()
    except UnicodeEncodeError:
        return None  # nothing that we ever stored
    found: tuple[int] | None = connection.execute(
        "SELECT key FROM messages WHERE message_id = ?", (message_id,)
    ).fetchone()
    return None if found is None else found[0]


def status(connection: sqlite3.Connection, message_id: str) -> MessageStatus | None:
    key = key_of(connection, message_id)
    if key is None:
        return None
    try:
        return _status(connection, key)
    except Unreadable as trouble:
        raise StorageError(f"the status of {message_id[:200]!r} is damaged in the store: {trouble}") from trouble


def recent(connection: sqlite3.Connection, since: datetime | None, limit: int) -> list[MessageStatus]:
    found: list[tuple[int, int]] = connection.execute(
        "SELECT queued_at, key FROM messages WHERE completed_at IS NULL ORDER BY queued_at, key LIMIT ?", (limit,)
    ).fetchall()
    if since is not None:
        found += connection.execute(
            "SELECT queued_at, key FROM messages WHERE completed_at >= ? ORDER BY queued_at, key LIMIT ?",
            (to_integer(since), limit),
        ).fetchall()
    statuses: list[MessageStatus] = []
    for _, key in heapq.nsmallest(limit, found):
        try:
            statuses.append(_status(connection, key))
        except Unreadable as trouble:
            logger.error(  # noqa: TRY400 - the trouble is told whole, and a traceback may hold what the row holds
                "message %d is damaged in the store and left out of the list: %s", key, trouble
            )
    return statuses


def attempts(connection: sqlite3.Connection, message_id: str) -> list[Attempt] | None:
    key = key_of(connection, message_id)
    if key is None:
        return None
    try:
        with reading("an attempt"):
            rows = connection.execute(
                "SELECT attempt FROM attempts WHERE message = ? ORDER BY started_at, id", (key,)
            ).fetchall()
            return [Attempt.model_validate_json(text) for (text,) in rows]
    except Unreadable as trouble:
        raise StorageError(f"the attempts of {message_id[:200]!r} are damaged in the store: {trouble}") from trouble


def prepared(connection: sqlite3.Connection, message_id: str) -> PreparedEmail | None:
    key = key_of(connection, message_id)
    if key is None:
        return None
    try:
        with reading("the message"):
            found = connection.execute(
                "SELECT sender, content, smtputf8, eight_bit"
                " FROM messages JOIN contents ON message = key WHERE key = ?",
                (key,),
            ).fetchone()
            if found is None:
                return None
            sender, content, smtputf8, eight_bit = found
            recipients = [(address, written) for address, written, *_ in _recipients(connection, key)]
            return PreparedEmail(
                message_id=message_id,
                sender=sender,
                recipients=tuple(address for address, _ in recipients),
                content=content,
                smtputf8=bool(smtputf8),
                eight_bit=bool(eight_bit),
                written=tuple(written for _, written in recipients),
            )
    except Unreadable as trouble:
        raise StorageError(f"the message {message_id[:200]!r} is damaged in the store: {trouble}") from trouble


def _status(connection: sqlite3.Connection, key: int) -> MessageStatus:
    with reading("its status"):
        message_id, queued_at, lane = connection.execute(
            "SELECT message_id, queued_at, (SELECT lane FROM deliveries WHERE message = key LIMIT 1)"
            " FROM messages WHERE key = ?",
            (key,),
        ).fetchone()
        results: dict[str | None, DeliveryResult] = {}  # many recipients often share one

        def result_of(text: str | None) -> DeliveryResult:
            if text not in results:
                results[text] = to_result(text)
            return results[text]

        recipients: list[RecipientStatus] = []
        rows = _recipients(connection, key)
        for start in range(0, len(rows), PIECE):
            recipients += _in_words.validate_python(
                [
                    {
                        "recipient": written,
                        "address": address,
                        "attempts": attempted,
                        "result": _now_due(result_of(text), due_at),
                    }
                    for address, written, attempted, text, due_at in rows[start : start + PIECE]
                ]
            )
        return MessageStatus(
            message_id=message_id,
            queued_at=to_time(queued_at),
            recipients=tuple(recipients),
            lane="default" if lane is None else lane_of(lane),
        )


def _now_due(result: DeliveryResult, due_at: int | None) -> DeliveryResult:
    return result if result.state != "deferred" or due_at is None else shown(result, to_time(due_at))


def _recipients(connection: sqlite3.Connection, key: int) -> list[tuple[str, str, int, str | None, int | None]]:
    """Address, as written, attempts, result, and when it is due if it is unclaimed; in the order of the envelope."""
    return connection.execute(
        "SELECT address, coalesce(written, address), attempts, result, iif(owner IS NULL, due_at, NULL)"
        " FROM deliveries JOIN recipients ON delivery = id WHERE message = ? ORDER BY position",
        (key,),
    ).fetchall()
