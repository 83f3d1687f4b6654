"""Many rows in a few statements.

What a batch has to write goes to SQLite as one JSON text for each table, in one statement for all of them: why, and
what that does, is told in batches.py. What it has to read comes back as one JSON text, too. What is in any way
unusual here is left to the operations of queue.py, which do the same row by row and say what is wrong where.
"""

import json
import sqlite3
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, get_args

from pydantic_core import PydanticSerializationError, to_json

from mailstrom_async._envelope import LANES, Delivery, PendingRecipient, QueuedMessage, RecipientState
from mailstrom_async._model import Frozen
from mailstrom_async.storage._rules import destinations, final_times, lane_of
from mailstrom_async.storage._sqlite.errors import Unusual
from mailstrom_async.storage._sqlite.recent import Fresh
from mailstrom_async.storage._sqlite.rows import LARGE, to_integer, to_time
from mailstrom_async.storage.base import Acceptance, Due, Record, Recorded

FEW = 100
"""Recipients of a delivery up to which a result finds its row by the address."""

_STATES = frozenset(get_args(RecipientState))


class _Texts:
    """JSON of models, one behind another in one blob."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._next = 1

    def add(self, model: Frozen) -> tuple[int, int]:
        """Where it begins, counted from 1, and its size. Raises PydanticSerializationError."""
        # `to_json` would have to find out first what it is.
        part, start = model.__pydantic_serializer__.to_json(model), self._next
        self._parts.append(part)
        self._next += len(part)
        return start, len(part)

    @property
    def joined(self) -> bytes:
        return b"".join(self._parts)


def enqueue(
    connection: sqlite3.Connection, acceptances: Sequence[Acceptance], *, queue_size: int = sys.maxsize
) -> list[tuple[int, list[Due]]]:
    """Insert messages that nobody knows yet; for each its key and the entries of its deliveries.

    Raises:
        Unusual: There would be more than `queue_size`, a content is large, or a text has no JSON.
        sqlite3.IntegrityError: A Message-ID is known. In any case nothing was written.
    """
    contents = [acceptance.prepared.content for acceptance in acceptances]
    if max(map(len, contents), default=0) > LARGE:
        raise Unusual
    unfinished, next_message, next_delivery = connection.execute(
        "SELECT unfinished, next_message, next_delivery FROM counters"
    ).fetchone()
    if unfinished + len(acceptances) > queue_size:
        raise Unusual
    rows = rows_of(acceptances, next_message, next_delivery)
    connection.execute(
        "INSERT INTO accepted VALUES (?, ?, ?, ?, ?)",
        (
            _json(rows.messages),
            b"".join(contents),
            _json(rows.deliveries),
            _json(rows.recipients),
            rows.next_delivery,
        ),
    )
    return list(enumerate(rows.dues, next_message))


class Rows(NamedTuple):
    """What is to be inserted for messages, as the view `accepted` takes it, and what their deliveries are known by."""

    messages: list[tuple[object, ...]]
    deliveries: list[tuple[object, ...]]
    recipients: list[tuple[object, ...]]
    next_delivery: int
    dues: list[list[Due]]


def rows_of(acceptances: Sequence[Acceptance], next_message: int, next_delivery: int) -> Rows:
    """Number messages and their deliveries, one for each destination."""
    messages: list[tuple[object, ...]] = []
    deliveries: list[tuple[object, ...]] = []
    recipients: list[tuple[object, ...]] = []
    dues: list[list[Due]] = []
    start = 1
    for key, acceptance in enumerate(acceptances, next_message):
        prepared, lane = acceptance.prepared, acceptance.lane
        size, place = len(prepared.content), LANES.index(lane)
        queued_at = to_integer(acceptance.queued_at)
        due_at = queued_at if acceptance.due_at is acceptance.queued_at else to_integer(acceptance.due_at)
        messages.append(
            (
                key,
                prepared.message_id,
                prepared.sender,
                prepared.smtputf8,
                prepared.eight_bit,
                queued_at,
                to_integer(acceptance.expires_at),
                len(prepared.recipients),
                start,
                size,
            )
        )
        start += size
        own: list[Due] = []
        for destination, positions in destinations(prepared).items():
            deliveries.append((next_delivery, key, destination, size, due_at, place))
            recipients += [
                (next_delivery, position, prepared.recipients[position], prepared.written[position])
                for position in positions
            ]
            own.append(Due(acceptance.due_at, next_delivery, destination, size, lane))
            next_delivery += 1
        dues.append(own)
    return Rows(messages, deliveries, recipients, next_delivery, dues)


def claim(
    connection: sqlite3.Connection, delivery_ids: Sequence[int], owner: str, now: datetime, lease_until: datetime
) -> list[Delivery]:
    """Claim those of the deliveries that are due and nobody's, and whose rows are in order."""
    rows = _read(
        connection,
        "SELECT json_group_array(json_array(d.id, d.message, d.attempt, d.destination, d.lane, m.message_id, m.sender,"
        " m.smtputf8, m.eight_bit, m.queued_at, m.expires_at))"
        " FROM json_each(?) AS j CROSS JOIN deliveries AS d ON d.id = j.value CROSS JOIN messages AS m"
        " ON m.key = d.message WHERE d.owner IS NULL AND d.due_at <= ?",
        _json(list(dict.fromkeys(delivery_ids))),
        to_integer(now),
    )
    pending: dict[int, list[PendingRecipient]] = {}
    for delivery_id, address, state, attempts in _read(
        connection,
        "SELECT json_group_array(json_array(delivery, address, state, attempts)) FROM (SELECT delivery, address, state,"
        " attempts FROM json_each(?) AS j CROSS JOIN recipients ON delivery = j.value"
        " WHERE state NOT IN ('delivered', 'failed') ORDER BY j.key, position)",
        _json([row[0] for row in rows]),
    ):
        if state not in _STATES:
            raise Unusual
        pending.setdefault(delivery_id, []).append(PendingRecipient(address, state, attempts))
    contents: dict[int, bytes] = dict(
        connection.execute(
            "SELECT message, content FROM contents WHERE message IN (SELECT value FROM json_each(?))"
            " AND length(content) <= ?",
            (_json([row[1] for row in rows]), LARGE),
        ).fetchall()
    )
    messages: dict[int, QueuedMessage] = {}
    claims: list[Delivery] = []
    for delivery_id, key, attempt, destination, lane, *told in rows:
        if key not in contents or delivery_id not in pending:
            continue
        if key not in messages:
            message_id, sender, smtputf8, eight_bit, queued_at, expires_at = told
            messages[key] = QueuedMessage(
                key,
                message_id,
                sender,
                contents[key],
                bool(smtputf8),
                bool(eight_bit),
                to_time(queued_at),
                to_time(expires_at),
                lane_of(lane),
            )
        claims.append(
            Delivery(delivery_id, destination, owner, attempt + 1, tuple(pending[delivery_id]), messages[key])
        )
    mark_claimed(connection, claims, owner, now, lease_until)
    return claims


def claim_fresh(
    connection: sqlite3.Connection, fresh: Mapping[int, Fresh], owner: str, now: datetime, lease_until: datetime
) -> list[Delivery]:
    """Claim those of the deliveries that are due and nobody's, and still as they were accepted."""
    rows = _read(
        connection,
        "SELECT json_group_array(json_array(d.id, d.message, m.message_id)) FROM json_each(?) AS j"
        " CROSS JOIN deliveries AS d ON d.id = j.value CROSS JOIN messages AS m ON m.key = d.message"
        " WHERE d.owner IS NULL AND d.due_at <= ? AND d.attempt = 0",
        _json(list(fresh)),
        to_integer(now),
    )
    messages: dict[int, QueuedMessage] = {}
    claims: list[Delivery] = []
    for delivery_id, key, message_id in rows:
        known = fresh[delivery_id]
        if known.acceptance.prepared.message_id != message_id:
            continue  # the file is another one than it was
        if key not in messages:
            messages[key] = known.message(key)
        claims.append(known.claimed(delivery_id, owner, messages[key]))
    mark_claimed(connection, claims, owner, now, lease_until)
    return claims


def mark_claimed(
    connection: sqlite3.Connection, claims: Sequence[Delivery], owner: str, now: datetime, lease_until: datetime
) -> None:
    """Note whose these are from now on."""
    connection.execute(
        "UPDATE deliveries SET owner = ?, claimed_at = ?, due_at = ?, attempt = attempt + 1"
        " WHERE id IN (SELECT value FROM json_each(?))",
        (owner, to_integer(now), to_integer(lease_until), _json([claimed.id for claimed in claims])),
    )


def record(connection: sqlite3.Connection, records: Sequence[Record]) -> dict[int, Recorded]:
    """Write the records whose claim holds and that are in order; what was made of each, by delivery."""
    usual = {one.delivery.id: one for one in records if _is_usual(one)}
    if not usual or len({one.delivery.id for one in records}) < len(records):
        return {}  # of two records of one delivery the second comes too late, which shows row by row
    told, attempts, results, texts = _rows_of_records(usual.values())
    connection.execute(
        "INSERT INTO recorded VALUES (?, ?, ?, ?)", (_json(told), _json(attempts), _json(results), texts.joined)
    )
    held, completing = _read(
        connection,
        "SELECT json_array(json_group_array(delivery), json_group_array(delivery) FILTER (WHERE completes)) FROM held",
    )
    # Of several deliveries the last one completes their message.
    last = {usual[delivery_id].delivery.message.key: delivery_id for delivery_id in completing}
    recorded: dict[int, Recorded] = {}
    for delivery_id in held:
        one = usual[delivery_id]
        due = None if one.due_at is None else _due_again(one.delivery, one.due_at)
        completed = last.get(one.delivery.message.key) == delivery_id
        recorded[delivery_id] = Recorded(accepted=True, results=one.results, due=due, completed=completed)
    return recorded


def _is_usual(one: Record) -> bool:
    """All of few recipients have a result, and it is clear whether they are attempted again."""
    deferred = len(final_times(one.results.values())) < len(one.results)
    return (
        len(one.results) <= FEW
        and deferred == (one.due_at is not None)
        and set(one.results) == {recipient.address for recipient in one.delivery.recipients}
    )


_Rows = list[tuple[object, ...]]


def _rows_of_records(records: Iterable[Record]) -> tuple[_Rows, _Rows, _Rows, _Texts]:
    """What the view `recorded` takes: of each record, of its attempt, and of its results, with their texts.

    Raises:
        Unusual: One of them has no JSON.
    """
    told: _Rows = []
    attempts: _Rows = []
    results: _Rows = []
    texts = _Texts()
    try:
        for one in records:
            delivery, attempt = one.delivery, one.attempt
            ended = final_times(one.results.values())
            due_at = None if one.due_at is None else to_integer(one.due_at)
            ended_at = to_integer(max(ended)) if ended else None
            told.append((delivery.id, delivery.owner, delivery.attempt, due_at, len(ended), ended_at))
            if attempt is not None:
                attempts.append((delivery.id, to_integer(attempt.started_at), *texts.add(attempt)))
            for address, result in one.results.items():
                results.append((delivery.id, address, result.state, *texts.add(result), attempt is not None))
    except PydanticSerializationError:  # lone surrogates have no UTF-8
        raise Unusual from None
    return told, attempts, results, texts


def _due_again(delivery: Delivery, due_at: datetime) -> Due:
    message = delivery.message
    return Due(due_at, delivery.id, delivery.destination, len(message.content), message.lane)


def _json(rows: Sequence[object]) -> str:
    try:
        text = to_json(rows).decode()
    except PydanticSerializationError:
        raise Unusual from None
    if "\\u0000" in text:  # SQLite's JSON ends a text at a NUL
        raise Unusual
    return text


def _read(connection: sqlite3.Connection, statement: str, *values: object) -> list[Any]:
    rows: list[Any] = json.loads(connection.execute(statement, values).fetchone()[0])
    return rows
