"""Many rows in a few statements.

Each step of a statement lets go of the interpreter's lock and has to get it back from the event loop's thread: with a
dozen statements for a message the two threads spend their time on handing it over. So what a batch has to write goes to
SQLite as one JSON text for each table, and what it has to read comes back as one. What is in any way unusual here is
left to the functions of `_sqlite_queue`, which do the same row by row and say what is wrong with which.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import count
from typing import Any, get_args

from pydantic_core import PydanticSerializationError

from mailstrom_async._envelope import LANES, Delivery, PendingRecipient, QueuedMessage, RecipientState
from mailstrom_async._model import Frozen
from mailstrom_async._status import FINAL_STATES
from mailstrom_async.storage._rules import destinations, final_at, lane_of
from mailstrom_async.storage._sqlite_recent import Fresh
from mailstrom_async.storage._sqlite_rows import LARGE, to_integer, to_time
from mailstrom_async.storage.base import Acceptance, Due, Record, Recorded

FEW = 100
"""Recipients of a delivery up to which a result finds its row by the address."""

_STATES = frozenset(get_args(RecipientState))


class Unusual(Exception):
    """This batch is to be done row by row."""


def enqueue(connection: sqlite3.Connection, acceptances: Sequence[Acceptance]) -> list[list[Due]]:
    """Insert messages that nobody knows yet; for each the entries of its deliveries.

    Raises:
        Unusual: A Message-ID is known, a content is large, or a text has no JSON; nothing was written.
    """
    if any(len(acceptance.prepared.content) > LARGE for acceptance in acceptances):
        raise Unusual
    ids = [acceptance.prepared.message_id for acceptance in acceptances]
    known = connection.execute(
        "SELECT 1 FROM json_each(?) AS j JOIN messages ON message_id = j.value LIMIT 1", (_json(ids),)
    ).fetchone()
    if known is not None or len(set(ids)) != len(ids):
        raise Unusual
    next_message, next_delivery = connection.execute("SELECT next_message, next_delivery FROM counters").fetchone()
    messages: list[tuple[object, ...]] = []
    deliveries: list[tuple[object, ...]] = []
    recipients: list[tuple[object, ...]] = []
    dues: list[list[Due]] = []
    delivery_ids = count(next_delivery)
    start = 1
    for key, acceptance in enumerate(acceptances, next_message):
        prepared, due_at = acceptance.prepared, to_integer(acceptance.due_at)
        size, lane = len(prepared.content), LANES.index(acceptance.lane)
        messages.append(
            (
                key,
                prepared.message_id,
                prepared.sender,
                int(prepared.smtputf8),
                int(prepared.eight_bit),
                to_integer(acceptance.queued_at),
                to_integer(acceptance.expires_at),
                len(prepared.recipients),
                start,
                size,
            )
        )
        start += size
        own: list[Due] = []
        for destination, positions in destinations(prepared).items():
            delivery_id = next(delivery_ids)
            deliveries.append((delivery_id, key, destination, size, due_at, lane))
            recipients += [
                (delivery_id, position, prepared.recipients[position], prepared.written[position])
                for position in positions
            ]
            own.append(Due(acceptance.due_at, delivery_id, destination, size, acceptance.lane))
        dues.append(own)
    rows = _json(messages)
    connection.execute(f"INSERT INTO messages SELECT {_columns(8)}, NULL, NULL FROM json_each(?)", (rows,))
    connection.execute(
        f"INSERT INTO contents SELECT {_column(0)}, substr(?2, {_column(8)}, {_column(9)}) FROM json_each(?1)",
        (rows, b"".join(acceptance.prepared.content for acceptance in acceptances)),
    )
    connection.execute(
        f"INSERT INTO deliveries (id, message, destination, size, due_at, lane) SELECT {_columns(6)} FROM json_each(?)",
        (_json(deliveries),),
    )
    connection.execute(
        "INSERT INTO recipients (delivery, position, address, written)"
        f" SELECT {_columns(3)}, nullif({_column(3)}, {_column(2)}) FROM json_each(?)",
        (_json(recipients),),
    )
    connection.execute(
        "UPDATE counters SET unfinished = unfinished + ?1, next_message = next_message + ?1, next_delivery = ?2",
        (len(acceptances), next(delivery_ids)),
    )
    return dues


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
    _mark_claimed(connection, claims, owner, now, lease_until)
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
    _mark_claimed(connection, claims, owner, now, lease_until)
    return claims


def _mark_claimed(
    connection: sqlite3.Connection, claims: Sequence[Delivery], owner: str, now: datetime, lease_until: datetime
) -> None:
    connection.execute(
        "UPDATE deliveries SET owner = ?, claimed_at = ?, due_at = ?, attempt = attempt + 1"
        " WHERE id IN (SELECT value FROM json_each(?))",
        (owner, to_integer(now), to_integer(lease_until), _json([claimed.id for claimed in claims])),
    )


def record(connection: sqlite3.Connection, records: Sequence[Record]) -> dict[int, Recorded]:
    """Write the records whose claim holds and that are in order; what was made of each, by delivery."""
    named = Counter(one.delivery.id for one in records)  # of two records of one delivery the second comes too late
    usual = {one.delivery.id: one for one in records if named[one.delivery.id] == 1 and _is_usual(one)}
    if len(usual) < 2:
        return {}
    held = {
        delivery_id: (message, size)
        for delivery_id, message, size in _read(
            connection,
            "SELECT json_group_array(json_array(d.id, d.message, d.size)) FROM json_each(?) AS j"
            f" CROSS JOIN deliveries AS d ON d.id = {_column(0)} CROSS JOIN messages AS m ON m.key = d.message"
            f" WHERE d.owner = {_column(1)} AND d.attempt = {_column(2)} AND m.cancelled_at IS NULL",
            _json([(one.delivery.id, one.delivery.owner, one.delivery.attempt) for one in usual.values()]),
        )
    }
    done = [(one, *held[one.delivery.id]) for one in usual.values() if one.delivery.id in held]
    connection.execute(
        f"INSERT INTO attempts (message, started_at, attempt) SELECT {_columns(3)} FROM json_each(?)",
        (
            _json(
                [
                    (message, to_integer(one.attempt.started_at), _dump(one.attempt))
                    for one, message, _ in done
                    if one.attempt is not None
                ]
            ),
        ),
    )
    results = [
        (one.delivery.id, address, result.state, _dump(result), int(one.attempt is not None))
        for one, _, _ in done
        for address, result in one.results.items()
    ]
    changed = connection.execute(
        "UPDATE recipients SET state = new.state, result = new.result, attempts = attempts + new.counted"
        f" FROM (SELECT {_column(0)} AS delivery, {_column(1)} AS address, {_column(2)} AS state,"
        f" {_column(3)} AS result, {_column(4)} AS counted FROM json_each(?)) AS new"
        " WHERE recipients.delivery = new.delivery AND recipients.address = new.address"
        " AND recipients.state NOT IN ('delivered', 'failed')",
        (_json(results),),
    ).rowcount
    if changed != len(results):
        raise Unusual
    connection.execute(
        "UPDATE deliveries SET owner = NULL, claimed_at = NULL, due_at = new.due_at"
        f" FROM (SELECT {_column(0)} AS id, {_column(1)} AS due_at FROM json_each(?)) AS new"
        " WHERE deliveries.id = new.id",
        (_json([(one.delivery.id, None if one.due_at is None else to_integer(one.due_at)) for one, _, _ in done]),),
    )
    completed = _count_down(connection, [(message, one) for one, message, _ in done])
    recorded: dict[int, Recorded] = {}
    for one, message, size in done:
        delivery = one.delivery
        again = one.due_at
        entry = None if again is None else Due(again, delivery.id, delivery.destination, size, delivery.message.lane)
        recorded[delivery.id] = Recorded(
            accepted=True, results=one.results, due=entry, completed=completed.get(message) == delivery.id
        )
    return recorded


def _is_usual(one: Record) -> bool:
    """All of few recipients have a result, and it is clear whether they are attempted again."""
    deferred = any(result.state not in FINAL_STATES for result in one.results.values())
    return (
        len(one.results) == len(one.delivery.recipients) <= FEW
        and deferred == (one.due_at is not None)
        and all(recipient.address in one.results for recipient in one.delivery.recipients)
    )


def _count_down(connection: sqlite3.Connection, done: Iterable[tuple[int, Record]]) -> dict[int, int]:
    """Count final recipients; the messages that are completed by it, each with the delivery that was its last."""
    final: Counter[int] = Counter()
    ended: dict[int, datetime] = {}
    last: dict[int, int] = {}
    for message, one in done:
        results = [result for result in one.results.values() if result.state in FINAL_STATES]
        if (at := final_at(results)) is not None:
            final[message] += len(results)
            ended[message] = max(at, ended.get(message, at))
            last[message] = one.delivery.id
    connection.execute(
        "UPDATE messages SET unfinished = unfinished - new.final,"
        " completed_at = CASE WHEN unfinished <= new.final THEN new.at END"
        f" FROM (SELECT {_column(0)} AS key, {_column(1)} AS final, {_column(2)} AS at FROM json_each(?)) AS new"
        " WHERE messages.key = new.key AND completed_at IS NULL",
        (_json([(message, final[message], to_integer(at)) for message, at in ended.items()]),),
    )
    completed = _read(
        connection,
        "SELECT json_group_array(messages.key) FROM json_each(?) AS j CROSS JOIN messages ON messages.key = j.value"
        " WHERE completed_at IS NOT NULL AND EXISTS (SELECT 1 FROM contents WHERE message = messages.key)",
        _json(list(ended)),
    )
    connection.execute("DELETE FROM contents WHERE message IN (SELECT value FROM json_each(?))", (_json(completed),))
    connection.execute("UPDATE counters SET unfinished = unfinished - ?", (len(completed),))
    return {message: last[message] for message in completed}


def _column(index: int) -> str:
    return f"json_extract(value, '$[{index}]')"


def _columns(number: int) -> str:
    return ", ".join(_column(index) for index in range(number))


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # SQLite's JSON ends a text at a NUL, and lone surrogates have no UTF-8.
    if "\\u0000" in text or not _is_text(text):
        raise Unusual
    return text


def _dump(model: Frozen) -> str:
    try:
        return model.model_dump_json()
    except PydanticSerializationError:
        raise Unusual from None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(connection: sqlite3.Connection, statement: str, *values: object) -> list[Any]:
    rows: list[Any] = json.loads(connection.execute(statement, values).fetchone()[0])
    return rows
