"""Between rows and words: times, results, recipients, attempts."""

import json
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import cast, get_args

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

from mailstrom_async._envelope import PendingRecipient, QueuedMessage, RecipientState
from mailstrom_async._model import Frozen
from mailstrom_async._status import Attempt, DeliveryResult, Queued
from mailstrom_async.storage._rules import lane_of
from mailstrom_async.storage._sqlite.errors import Unreadable, primary_code
from mailstrom_async.storage.base import Due

LARGE = 1024 * 1024
"""Bytes of a content from which on it is worth to save a copy of it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_STATES = frozenset(get_args(RecipientState))
_QUEUED = Queued()
_result: TypeAdapter[DeliveryResult] = TypeAdapter(DeliveryResult)


@contextmanager
def reading(what: str) -> Generator[None, None, None]:
    """Turn what comes of a row that can't be decoded into `Unreadable`; a failing disk stays SQLite's error."""
    try:
        yield
    except sqlite3.OperationalError as error:
        # Text that is not UTF-8 has no code of SQLite's: the Python module refuses it.
        if primary_code(error) is not None:
            raise
        raise Unreadable(f"{what}: {error}") from error
    except (ValueError, OverflowError) as error:
        raise Unreadable(f"{what}: {type(error).__name__}") from error


def to_integer(time: datetime) -> int:
    """A time as the database holds it: microseconds since 1970, UTC."""
    return (time - _EPOCH) // _MICROSECOND


def to_time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def due(row: tuple[int, int, bytes, int, int]) -> Due:
    """An entry from (due_at, id, destination as bytes, size, lane).

    One that can't be decoded is shown as well as it goes: if it failed, the others could not be shown either. It is set
    aside when it is claimed.
    """
    due_at, delivery_id, destination, size, lane = row
    time = _EPOCH if due_at < 0 else to_time(due_at)
    return Due(time, delivery_id, destination.decode("utf-8", "replace"), size, lane_of(lane))


def to_json(model: Frozen) -> str:
    """The JSON of a result or an attempt."""
    try:
        return model.model_dump_json()
    except PydanticSerializationError:
        # Lone surrogates, which are no text to a database. What was tried must be recorded all the same.
        return json.dumps(model.model_dump(mode="json"), ensure_ascii=False).encode("utf-8", "replace").decode()


def to_result(text: str | None) -> DeliveryResult:
    return _QUEUED if text is None else _result.validate_json(text)


def pending_recipients(connection: sqlite3.Connection, delivery_id: int) -> tuple[PendingRecipient, ...]:
    """The recipients of a delivery that are not final, in the order of the envelope."""
    with reading("a recipient"):
        rows: list[tuple[str, str, int]] = connection.execute(
            "SELECT address, state, attempts FROM recipients"
            " WHERE delivery = ? AND state NOT IN ('delivered', 'failed') ORDER BY position",
            (delivery_id,),
        ).fetchall()
        if not rows:
            raise Unreadable("it has no recipients")
        for _, state, _ in rows:
            if state not in _STATES:
                raise Unreadable("a recipient has an unknown state")
        return tuple(PendingRecipient(address, cast(RecipientState, state), n) for address, state, n in rows)


def queued_message(connection: sqlite3.Connection, key: int) -> QueuedMessage:
    """A message with its content."""
    with reading("the message"):
        row = connection.execute(
            "SELECT message_id, sender, length(content), smtputf8, eight_bit, queued_at, expires_at,"
            " (SELECT lane FROM deliveries WHERE deliveries.message = key LIMIT 1)"
            " FROM messages LEFT JOIN contents ON contents.message = key WHERE key = ?",
            (key,),
        ).fetchone()
        if row is None or row[2] is None:
            raise Unreadable("its content is missing")
        message_id, sender, _, smtputf8, eight_bit, queued_at, expires_at, lane = row
        content = read_content(connection, key)
        return QueuedMessage(
            key=key,
            message_id=message_id,
            sender=sender,
            content=content,
            smtputf8=bool(smtputf8),
            eight_bit=bool(eight_bit),
            queued_at=to_time(queued_at),
            expires_at=to_time(expires_at),
            lane=lane_of(lane),
        )


def write_content(connection: sqlite3.Connection, key: int, content: bytes) -> None:
    """Store the content of a message. A large one goes in piece by piece: a statement would have it copied whole."""
    if len(content) <= LARGE:
        connection.execute("INSERT INTO contents VALUES (?, ?)", (key, content))
        return
    connection.execute("INSERT INTO contents VALUES (?, zeroblob(?))", (key, len(content)))
    view = memoryview(content)
    with connection.blobopen("contents", "content", key) as blob:
        for start in range(0, len(view), LARGE):
            blob.write(view[start : start + LARGE])


def read_content(connection: sqlite3.Connection, key: int) -> bytes:
    """The content of a message, in one copy. Raises sqlite3.OperationalError if it is not there."""
    with connection.blobopen("contents", "content", key, readonly=True) as blob:
        return blob.read()


def destination_of(connection: sqlite3.Connection, delivery_id: int) -> str:
    with reading("the destination"):
        row: tuple[str] = connection.execute(
            "SELECT destination FROM deliveries WHERE id = ?", (delivery_id,)
        ).fetchone()
        return row[0]


def to_attempt(text: str) -> Attempt:
    return Attempt.model_validate_json(text)
