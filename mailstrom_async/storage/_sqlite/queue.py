"""What changes the queue, in SQL. Each function is one operation of a transaction, in the writer's thread."""

import logging
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from mailstrom_async._envelope import LANES, Delivery
from mailstrom_async._errors import AlreadyQueued, QueueFull
from mailstrom_async._immutable import immutable
from mailstrom_async._queue.recipient import cancelled
from mailstrom_async._queue.retry import SKEW
from mailstrom_async._status import MessageStatus
from mailstrom_async.storage._rules import as_stored, destinations
from mailstrom_async.storage._sqlite import bulk
from mailstrom_async.storage._sqlite.errors import Unreadable, Unusual
from mailstrom_async.storage._sqlite.reads import key_of, status
from mailstrom_async.storage._sqlite.recent import Fresh
from mailstrom_async.storage._sqlite.rows import (
    destination_of,
    due,
    pending_recipients,
    queued_message,
    to_integer,
)
from mailstrom_async.storage._sqlite.settle import (
    Row,
    abandon,
    end_claim,
    note_attempt,
    set_row_aside,
    settle,
    settle_all,
)
from mailstrom_async.storage._sqlite.steps import Content, Repeated, Statement, Steps, carry_out
from mailstrom_async.storage._sqlite.upcoming import destinations_in_line
from mailstrom_async.storage.base import Acceptance, Due, Record, Recorded

logger = logging.getLogger("mailstrom_async")

PURGED_AT_ONCE = 100
"""Messages that one operation forgets: some milliseconds, in which nothing is accepted."""

SPARE_PAGES = 1000
"""Unused pages that a file may keep, and that are given back at once."""


@immutable()
class Enqueue:
    """Accept messages, all or none."""

    acceptances: Sequence[Acceptance]
    queue_size: int | None

    def __call__(self, connection: sqlite3.Connection) -> list[Due]:
        return enqueue(connection, self.acceptances, self.queue_size)

    @staticmethod
    def merge(
        connection: sqlite3.Connection, operations: "Sequence[Enqueue | EnqueueClaimed]"
    ) -> "list[list[Due] | Delivery]":
        """Accept all of these, or raise, so that each is done by itself and hears what is wrong with it."""
        acceptances = [acceptance for operation in operations for acceptance in operation.acceptances]
        limits = [operation.queue_size for operation in operations if operation.queue_size is not None]
        try:
            stored = iter(bulk.enqueue(connection, acceptances, queue_size=min(limits, default=sys.maxsize)))
        except sqlite3.IntegrityError as error:
            raise Unusual("one of them is known already") from error
        made = [operation.outcome(stored) for operation in operations]
        _claim_those_of(connection, operations, made)
        return made

    def outcome(self, stored: Iterator[tuple[int, list[Due]]]) -> list[Due]:
        """Takes of each of its messages the key and the entries of its deliveries."""
        return [due for _, dues in islice(stored, len(self.acceptances)) for due in dues]


@dataclass(slots=True)
class EnqueueClaimed:
    """Accept a message to one destination, and claim its delivery.

    Attributes:
        delivery_id: Set when it is claimed; stale if that was rolled back.
    """

    acceptance: Acceptance
    queue_size: int | None
    owner: str
    lease_until: datetime
    delivery_id: int | None = None

    merge = staticmethod(Enqueue.merge)

    @property
    def acceptances(self) -> Sequence[Acceptance]:
        return (self.acceptance,)

    def __call__(self, connection: sqlite3.Connection) -> Delivery:
        [entry] = enqueue(connection, self.acceptances, self.queue_size)
        (key,) = connection.execute("SELECT message FROM deliveries WHERE id = ?", (entry.delivery_id,)).fetchone()
        claimed = self._claimed(key, entry)
        bulk.mark_claimed(connection, [claimed], self.owner, self.acceptance.queued_at, self.lease_until)
        return claimed

    def outcome(self, stored: Iterator[tuple[int, list[Due]]]) -> Delivery:
        """Takes of its message the key and the entry; the claim is still to be marked."""
        key, [entry] = next(stored)
        return self._claimed(key, entry)

    def _claimed(self, key: int, entry: Due) -> Delivery:
        self.delivery_id = entry.delivery_id
        fresh = Fresh(self.acceptance, entry.destination, range(len(self.acceptance.prepared.recipients)))
        return fresh.claimed(entry.delivery_id, self.owner, fresh.message(key))


def _claim_those_of(
    connection: sqlite3.Connection,
    operations: Sequence[Enqueue | EnqueueClaimed],
    made: Sequence[list[Due] | Delivery],
) -> None:
    by_owner: dict[str, list[tuple[EnqueueClaimed, Delivery]]] = {}
    for operation, outcome in zip(operations, made, strict=True):
        if isinstance(operation, EnqueueClaimed) and isinstance(outcome, Delivery):
            by_owner.setdefault(operation.owner, []).append((operation, outcome))
    for owner, own in by_owner.items():
        # Accepted within milliseconds: they get the same times, so that it is one statement.
        since, until = max(one.acceptance.queued_at for one, _ in own), min(one.lease_until for one, _ in own)
        bulk.mark_claimed(connection, [claimed for _, claimed in own], owner, since, until)


def enqueue(connection: sqlite3.Connection, acceptances: Sequence[Acceptance], queue_size: int | None) -> list[Due]:
    return carry_out(connection, accepting(acceptances, queue_size))


def accepting(acceptances: Sequence[Acceptance], queue_size: int | None) -> Steps[list[Due]]:
    """Accept messages one by one, within a transaction. It is the caller's to undo if this raises."""
    [[unfinished, next_message, next_delivery]] = yield Statement(
        "SELECT unfinished, next_message, next_delivery FROM counters"
    )
    dues: list[Due] = []
    for key, acceptance in enumerate(acceptances, next_message):
        yield from _insert_message(key, acceptance)
        dues += yield from _insert_deliveries(key, next_delivery + len(dues), acceptance)
    # Asked last, so that a repeated message is told that it is known, and not to come again later.
    if queue_size is not None and unfinished + len(acceptances) > queue_size:
        raise QueueFull(queue_size)
    yield Statement(
        "UPDATE counters SET unfinished = unfinished + ?, next_message = next_message + ?,"
        " next_delivery = next_delivery + ?",
        (len(acceptances), len(acceptances), len(dues)),
    )
    return dues


def take_up(connection: sqlite3.Connection, now: datetime) -> None:
    """End the claims of an earlier life."""
    for (delivery_id,) in connection.execute("SELECT id FROM deliveries WHERE owner IS NOT NULL").fetchall():
        row = Row.read(connection, delivery_id)
        if row is None:
            continue
        try:
            abandon(connection, row, now)
        except Unreadable as trouble:
            set_row_aside(connection, row, now, trouble)


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim deliveries, as `Storage.claim`.

    Attributes:
        fresh: Those of them that are known as they were accepted.
    """

    delivery_ids: Sequence[int]
    owner: str
    now: datetime
    lease_until: datetime
    fresh: Mapping[int, Fresh] = field(default_factory=dict[int, Fresh])

    def __call__(self, connection: sqlite3.Connection) -> list[Delivery]:
        return self._row_by_row(connection, [])

    @staticmethod
    def merge(connection: sqlite3.Connection, operations: Sequence["Claim"]) -> list[list[Delivery]]:
        return [operation._in_bulk(connection) for operation in operations]

    def _in_bulk(self, connection: sqlite3.Connection) -> list[Delivery]:
        claims: list[Delivery] = []
        if self.fresh:
            claims = bulk.claim_fresh(connection, self.fresh, self.owner, self.now, self.lease_until)
        if left := self._left(claims):
            claims += bulk.claim(connection, left, self.owner, self.now, self.lease_until)
            return self._row_by_row(connection, claims)
        return claims

    def _left(self, claims: Sequence[Delivery]) -> list[int]:
        claimed = {delivery.id for delivery in claims}
        return [delivery_id for delivery_id in self.delivery_ids if delivery_id not in claimed]

    def _row_by_row(self, connection: sqlite3.Connection, claims: list[Delivery]) -> list[Delivery]:
        """Claim what is left after `claims`."""
        messages = {delivery.message.key: delivery.message for delivery in claims}
        now, lease_until = to_integer(self.now), to_integer(self.lease_until)
        for delivery_id in self._left(claims):
            row = Row.read(connection, delivery_id)
            if row is None or row.due_at is None or row.due_at > now:
                continue
            try:
                if row.owner is not None and not abandon(connection, row, self.now):
                    continue
                if row.message not in messages:
                    messages[row.message] = queued_message(connection, row.message)
                pending = pending_recipients(connection, row.id)
                destination = destination_of(connection, row.id)
            except Unreadable as trouble:
                set_row_aside(connection, row, self.now, trouble)
                continue
            connection.execute(
                "UPDATE deliveries SET owner = ?, claimed_at = ?, due_at = ?, attempt = attempt + 1 WHERE id = ?",
                (self.owner, now, lease_until, row.id),
            )
            claims.append(Delivery(row.id, destination, self.owner, row.attempt + 1, pending, messages[row.message]))
        return claims


def bring_forward(connection: sqlite3.Connection, now: datetime, longest: timedelta) -> int:
    """In SQL what `due_after_setback` says; over the indexes of what lies in the future of that clock."""
    instant = timedelta(microseconds=1)
    times = {"now": to_integer(now), "longest": longest // instant, "skew": SKEW // instant}
    fresh = connection.execute(
        "UPDATE deliveries SET due_at = :now WHERE id IN ("
        " SELECT d.id FROM messages AS m CROSS JOIN deliveries AS d ON d.message = m.key"  # in this order
        " WHERE m.completed_at IS NULL AND m.queued_at > :now + :skew"
        " AND d.due_at = m.queued_at AND d.owner IS NULL AND d.attempt = 0)",
        times,
    )
    retries = (
        "UPDATE deliveries SET due_at = :now + (due_at - :now) % :longest"
        " WHERE lane IN (0, 1, 2) AND due_at > :now + :longest AND owner IS NULL AND attempt > 0"
    )
    changed = fresh.rowcount + connection.execute(f"{retries} AND lined_up = 0", times).rowcount
    for destination in destinations_in_line(connection):
        in_line = f"{retries} AND lined_up = 1 AND destination = CAST(:destination AS TEXT)"
        changed += connection.execute(in_line, {**times, "destination": destination}).rowcount
    return changed


def renew(connection: sqlite3.Connection, deliveries: Sequence[Delivery], lease_until: datetime) -> list[Delivery]:
    until = to_integer(lease_until)
    return [
        delivery
        for delivery in deliveries
        if not connection.execute(
            "UPDATE deliveries SET due_at = ? WHERE id = ? AND owner = ? AND attempt = ?",
            (until, delivery.id, delivery.owner, delivery.attempt),
        ).rowcount
    ]


def release(connection: sqlite3.Connection, deliveries: Sequence[Delivery], due_at: datetime) -> list[Due]:
    return [
        Due(due_at, row.id, delivery.destination, row.size, delivery.message.lane)
        for delivery in deliveries
        if (row := Row.read_held(connection, delivery)) is not None and _give_back(connection, row, due_at)
    ]


def disown(connection: sqlite3.Connection, operation: EnqueueClaimed) -> bool:
    """Give back what was claimed by this, if it was: nobody heard of it. Whether it is due now.

    If it was cancelled in that moment, it fails, and there is no event for it.
    """
    if operation.delivery_id is None:  # not begun, or refused: the message may be another call's, and under way
        return False
    acceptance = operation.acceptance
    # If it was undone, another message may have got its number.
    is_there = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM messages JOIN deliveries ON message = key"
        " WHERE id = ? AND message_id = ? AND queued_at = ? AND owner = ? AND attempt = 1)",
        (
            operation.delivery_id,
            acceptance.prepared.message_id,
            to_integer(acceptance.queued_at),
            operation.owner,
        ),
    ).fetchone()[0]
    row = Row.read(connection, operation.delivery_id) if is_there else None
    return row is not None and _give_back(connection, row, acceptance.due_at)


def _give_back(connection: sqlite3.Connection, row: Row, due_at: datetime) -> bool:
    """End a claim that came to no attempt; whether there is still to be one."""
    connection.execute("UPDATE deliveries SET attempt = attempt - 1 WHERE id = ?", (row.id,))
    if row.was_cancelled_at is not None:
        settle_all(connection, row, cancelled(row.was_cancelled_at), None)
        return False
    end_claim(connection, row, due_at)
    return True


@dataclass(frozen=True, slots=True)
class Recording:
    """Write what attempts did, as `Storage.record`."""

    records: Sequence[Record]

    def __call__(self, connection: sqlite3.Connection) -> list[Recorded]:
        return [_record(connection, one) for one in self.records]

    @staticmethod
    def merge(connection: sqlite3.Connection, operations: Sequence["Recording"]) -> list[list[Recorded]]:
        return [operation._in_bulk(connection) for operation in operations]

    def _in_bulk(self, connection: sqlite3.Connection) -> list[Recorded]:
        done = bulk.record(connection, self.records)
        return [done.get(one.delivery.id) or _record(connection, one) for one in self.records]


def cancel(connection: sqlite3.Connection, message_id: str, now: datetime) -> MessageStatus | None:
    key = key_of(connection, message_id)
    if key is None:
        return None
    changed = connection.execute(
        "UPDATE messages SET cancelled_at = ? WHERE key = ? AND completed_at IS NULL AND cancelled_at IS NULL",
        (to_integer(now), key),
    ).rowcount
    if changed:
        for row in Row.unclaimed(connection, key):
            settle_all(connection, row, cancelled(now), None)
    return status(connection, message_id)


def hasten(connection: sqlite3.Connection, message_id: str, now: datetime) -> list[Due] | None:
    key = key_of(connection, message_id)
    if key is None:
        return None
    unclaimed = "message = ? AND owner IS NULL AND due_at IS NOT NULL"
    connection.execute(
        f"UPDATE deliveries SET due_at = min(due_at, ?) WHERE {unclaimed}",  # noqa: S608 - no text from outside
        (to_integer(now), key),
    )
    rows: list[tuple[int, int, bytes, int, int]] = connection.execute(
        f"SELECT due_at, id, CAST(destination AS BLOB), size, lane FROM deliveries WHERE {unclaimed} ORDER BY id",  # noqa: S608
        (key,),
    ).fetchall()
    return [due(row) for row in rows]


def purge(connection: sqlite3.Connection, completed_before: datetime) -> int:
    """Forget some; to be repeated until there are none."""
    return connection.execute(
        "DELETE FROM messages WHERE key IN"
        " (SELECT key FROM messages WHERE completed_at < ? ORDER BY completed_at LIMIT ?)",
        (to_integer(completed_before), PURGED_AT_ONCE),
    ).rowcount


def give_space_back(connection: sqlite3.Connection) -> bool:
    """Let the file shrink a bit if most of it is unused; whether there is more to give back."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    if free <= pages // 2 or free <= SPARE_PAGES:
        return False
    for _ in range(SPARE_PAGES):
        connection.execute("PRAGMA incremental_vacuum(1)")  # of a larger number Python's module would do one step only
    (left,) = connection.execute("PRAGMA freelist_count").fetchone()
    return bool(left < free)


def _insert_message(key: int, acceptance: Acceptance) -> Steps[None]:
    prepared = acceptance.prepared
    # No other constraint's failure may be taken for this: the caller would think that the message was accepted.
    inserted = yield Statement(
        "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL) ON CONFLICT (message_id) DO NOTHING"
        " RETURNING key",
        (
            key,
            prepared.message_id,
            prepared.sender,
            prepared.smtputf8,
            prepared.eight_bit,
            to_integer(acceptance.queued_at),
            to_integer(acceptance.expires_at),
            len(prepared.recipients),
        ),
    )
    if not inserted:
        raise AlreadyQueued(prepared.message_id)
    yield Content(key, prepared.content)


def _insert_deliveries(key: int, first_id: int, acceptance: Acceptance) -> Steps[list[Due]]:
    prepared = acceptance.prepared
    size = len(prepared.content)
    dues: list[Due] = []
    for delivery_id, (destination, positions) in enumerate(destinations(prepared).items(), first_id):
        yield Statement(
            "INSERT INTO deliveries (id, message, destination, size, due_at, lane) VALUES (?, ?, ?, ?, ?, ?)",
            (delivery_id, key, destination, size, to_integer(acceptance.due_at), LANES.index(acceptance.lane)),
        )
        yield Repeated(
            "INSERT INTO recipients (delivery, position, address, written) VALUES (?, ?, ?, nullif(?, ?))",
            [
                (delivery_id, position, address := prepared.recipients[position], prepared.written[position], address)
                for position in positions
            ],
        )
        dues.append(Due(acceptance.due_at, delivery_id, destination, size, acceptance.lane))
    return dues


def _record(connection: sqlite3.Connection, one: Record) -> Recorded:
    row = Row.read_held(connection, one.delivery)
    if row is None:
        return Recorded(accepted=False, results={}, due=None, completed=False)
    results = as_stored(one, row.was_cancelled_at)
    if one.attempt is not None:
        note_attempt(connection, row, one.attempt)
    due_at, completed = settle(connection, row, results, one.due_at)
    lane = one.delivery.message.lane
    entry = None if due_at is None else Due(due_at, row.id, one.delivery.destination, row.size, lane)
    return Recorded(accepted=True, results=results, due=entry, completed=completed)
