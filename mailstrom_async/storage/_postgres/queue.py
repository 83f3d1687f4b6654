"""What changes the queue, in SQL. Each function is one operation; but for `renew` and `purge`, a transaction."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from mailstrom_async._envelope import Delivery
from mailstrom_async._queue.recipient import cancelled
from mailstrom_async._queue.retry import SKEW
from mailstrom_async._status import MessageStatus
from mailstrom_async.storage._postgres.connection import Session
from mailstrom_async.storage._postgres.reads import status
from mailstrom_async.storage._postgres.rows import can_be_text, pending_recipients, queued_messages, to_due
from mailstrom_async.storage._postgres.settle import HELD, Ending, Locked, lock, settle
from mailstrom_async.storage._rules import abandoned_attempt, abandoned_result, as_stored, lane_of, set_aside
from mailstrom_async.storage.base import Due, Record, Recorded

logger = logging.getLogger("mailstrom_async")

PURGED_AT_ONCE = 500

_CLAIM = """
    WITH free AS MATERIALIZED (
        SELECT id FROM mailstrom.deliveries
        WHERE id = ANY($1::bigint[]) AND due_at <= $3 AND owner IS NULL
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE mailstrom.deliveries AS d SET owner = $2, claimed_at = $3, due_at = $4, attempt = attempt + 1
    FROM free WHERE d.id = free.id
    RETURNING d.id, d.message, d.destination, d.attempt, d.lane
"""
"""What somebody else is about to claim is passed over, not waited for."""

_ENDED = "d.id = ANY($1::bigint[]) AND d.owner IS NOT NULL AND d.due_at <= $2"

_RENEW = f"""
    WITH held AS MATERIALIZED (
        SELECT id FROM mailstrom.deliveries AS d WHERE {HELD} ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE mailstrom.deliveries AS d SET due_at = $4 FROM held WHERE d.id = held.id
    RETURNING d.id
"""  # noqa: S608 - no text from outside

_HASTEN = """
    WITH waiting AS MATERIALIZED (
        SELECT id FROM mailstrom.deliveries WHERE message = $1 AND owner IS NULL AND due_at IS NOT NULL
        ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE mailstrom.deliveries AS d SET due_at = least(due_at, $2) FROM waiting WHERE d.id = waiting.id
    RETURNING d.due_at, d.id, d.destination, d.size, d.lane
"""

# What `due_after_setback` says. Both look only at what lies in the future of that clock, over an index each.
_BRING_FRESH_FORWARD = """
    WITH late AS MATERIALIZED (
        SELECT d.id FROM mailstrom.messages AS m JOIN mailstrom.deliveries AS d ON d.message = m.key
        WHERE m.completed_at IS NULL AND m.queued_at > $2
            AND d.due_at = m.queued_at AND d.owner IS NULL AND d.attempt = 0
        ORDER BY d.id FOR NO KEY UPDATE OF d
    ), changed AS (UPDATE mailstrom.deliveries AS d SET due_at = $1 FROM late WHERE d.id = late.id RETURNING d.id)
    SELECT count(*) FROM changed
"""
_BRING_REST_FORWARD = """
    WITH late AS MATERIALIZED (
        SELECT id, owner FROM mailstrom.deliveries
        WHERE lane IN (0, 1, 2) AND due_at > $1::timestamptz + $2::interval AND (attempt > 0 OR owner IS NOT NULL)
        ORDER BY id FOR NO KEY UPDATE
    ), changed AS (
        UPDATE mailstrom.deliveries AS d
        SET due_at = CASE WHEN late.owner IS NULL
            THEN $1 + interval '1 second' * mod(
                extract(epoch FROM d.due_at - $1)::numeric, extract(epoch FROM $2)::numeric)
            ELSE $1 + $2 END
        FROM late WHERE d.id = late.id RETURNING d.id
    )
    SELECT count(*) FROM changed
"""

_CANCEL = """
    UPDATE mailstrom.messages SET cancelled_at = $2
    WHERE message_id = $1 AND completed_at IS NULL AND cancelled_at IS NULL RETURNING key
"""

_PURGE = """
    WITH gone AS MATERIALIZED (
        SELECT key FROM mailstrom.messages WHERE completed_at < $1 ORDER BY completed_at LIMIT $2
        FOR UPDATE SKIP LOCKED
    ), deleted AS (DELETE FROM mailstrom.messages AS m USING gone WHERE m.key = gone.key RETURNING m.key)
    SELECT count(*) FROM deleted
"""

# Rows may be missing, so what was counted at acceptance may never come down to nothing.
_COUNT_AGAIN = """
    WITH counted AS (
        UPDATE mailstrom.messages AS m
        SET unfinished = (
            SELECT count(*) FROM mailstrom.deliveries AS d JOIN mailstrom.recipients AS r ON r.delivery = d.id
            WHERE d.message = m.key AND d.due_at IS NOT NULL AND r.state NOT IN ('delivered', 'failed')
        )
        WHERE key = ANY($1::bigint[]) AND completed_at IS NULL RETURNING key, unfinished
    )
    SELECT key FROM counted WHERE unfinished = 0
"""
_COMPLETE = "UPDATE mailstrom.messages SET completed_at = $2 WHERE key = ANY($1::bigint[])"


async def claim(
    session: Session, delivery_ids: Sequence[int], owner: str, now: datetime, lease_until: datetime
) -> list[Delivery]:
    rows = list(await session.fetch(_CLAIM, delivery_ids, owner, now, lease_until))
    others = list(set(delivery_ids) - {row[0] for row in rows})
    if others and (abandoned := await _abandon(session, others, now)):
        rows += await session.fetch(_CLAIM, abandoned, owner, now, lease_until)
    messages = await queued_messages(session, {message: lane for _, message, _, _, lane in rows})
    pending = await pending_recipients(session, [delivery_id for delivery_id, *_ in rows])
    claims = {
        delivery_id: Delivery(delivery_id, destination, owner, attempt, pending.get(delivery_id, ()), messages[message])
        for delivery_id, message, destination, attempt, _ in rows
        if message in messages
    }
    troubles = {row[0]: "its content is missing" for row in rows if row[1] not in messages}
    troubles |= {claim.id: "it has no recipients" for claim in claims.values() if not claim.recipients}
    if troubles:
        await _set_aside(session, troubles, now)
    return [claims[one] for one in dict.fromkeys(delivery_ids) if one in claims and one not in troubles]


async def renew(session: Session, deliveries: Sequence[Delivery], lease_until: datetime) -> list[Delivery]:
    renewed = {row[0] for row in await session.fetch(_RENEW, *_fences(deliveries), lease_until)}
    return [delivery for delivery in deliveries if delivery.id not in renewed]


async def release(session: Session, deliveries: Sequence[Delivery], due_at: datetime) -> list[Due]:
    held = {row.id: row for row in await lock(session, HELD, *_fences(deliveries))}
    endings = [_given_back(row, due_at) for row in held.values()]
    await settle(session, endings)
    again = {ending.row.id for ending in endings if ending.due_again_at is not None}
    return [
        Due(due_at, delivery.id, delivery.destination, held[delivery.id].size, delivery.message.lane)
        for delivery in deliveries
        if delivery.id in again
    ]


async def record(session: Session, records: Sequence[Record]) -> list[Recorded]:
    held = {row.id: row for row in await lock(session, HELD, *_fences([one.delivery for one in records]))}
    endings: list[Ending | None] = []
    for one in records:
        # Taken out: a second record of the same claim comes too late.
        row = held.pop(one.delivery.id, None) if _is_held(held, one.delivery) else None
        endings.append(None if row is None else Ending(row, as_stored(one, row.cancelled_at), one.due_at, one.attempt))
    completed = await settle(session, [ending for ending in endings if ending is not None])
    recorded = [_recorded(ending) for ending in endings]
    # Told of a message once, with the last of its deliveries.
    for place in reversed(range(len(records))):
        ending = endings[place]
        if ending is not None and ending.row.message in completed:
            completed.discard(ending.row.message)
            recorded[place] = replace(recorded[place], completed=True)
    return recorded


async def bring_forward(session: Session, now: datetime, longest: timedelta) -> int:
    [(fresh,)] = await session.fetch(_BRING_FRESH_FORWARD, now, now + SKEW)
    [(rest,)] = await session.fetch(_BRING_REST_FORWARD, now, longest)
    return int(fresh) + int(rest)


async def cancel(session: Session, message_id: str, now: datetime) -> MessageStatus | None:
    if not can_be_text(message_id):
        return None
    for (key,) in await session.fetch(_CANCEL, message_id, now):
        rows = await lock(session, "d.message = $1 AND d.owner IS NULL AND d.due_at IS NOT NULL", key)
        final = cancelled(now)
        await settle(session, [Ending(row, dict.fromkeys(row.waiting, final), None) for row in rows])
    return await status(session, message_id)


async def hasten(session: Session, message_id: str, now: datetime) -> list[Due] | None:
    if not can_be_text(message_id):
        return None
    found = await session.fetch("SELECT key FROM mailstrom.messages WHERE message_id = $1", message_id)
    if not found:
        return None
    return sorted((to_due(row) for row in await session.fetch(_HASTEN, found[0][0], now)), key=lambda due: due[1])


async def purge(session: Session, completed_before: datetime) -> int:
    """Forget some; to be repeated until there are none."""
    [(count,)] = await session.fetch(_PURGE, completed_before, PURGED_AT_ONCE)
    return int(count)


async def _abandon(session: Session, delivery_ids: Sequence[int], now: datetime) -> list[int]:
    """End the claims whose lease is over: note the attempt, and let what is unfinished be due. What is due then."""
    # Seldom there are any, and looking is cheaper than locking.
    if not await session.fetch(f"SELECT FROM mailstrom.deliveries AS d WHERE {_ENDED} LIMIT 1", delivery_ids, now):
        return []
    endings: list[Ending] = []
    rows = await lock(session, _ENDED, delivery_ids, now, skip=True)
    if damaged := {row.id: "it has no recipients" for row in rows if not row.waiting}:
        await _set_aside(session, damaged, now)
    for row in rows:
        if row.id in damaged:
            continue
        attempt = abandoned_attempt(
            row.destination,
            row.waiting,
            started_at=row.claimed_at or now,
            lease_until=row.due_at or now,
            now=now,
        )
        result = abandoned_result(now, is_cancelled=row.cancelled_at is not None)
        endings.append(Ending(row, dict.fromkeys(row.waiting, result), now, attempt))
    await settle(session, endings)
    return [ending.row.id for ending in endings if ending.due_again_at is not None]


async def _set_aside(session: Session, troubles: dict[int, str], now: datetime) -> None:
    """Fail the recipients of deliveries that can't be read, so that they are not tried for ever and others go on."""
    endings: list[Ending] = []
    for row in await lock(session, "d.id = ANY($1::bigint[])", list(troubles)):
        logger.error("delivery %d is damaged in the store and was set aside: %s", row.id, troubles[row.id])
        final = set_aside(now, troubles[row.id])
        endings.append(Ending(row, dict.fromkeys(row.waiting, final), None))
    await settle(session, endings)
    keys = list({ending.row.message for ending in endings})
    done = [row[0] for row in await session.fetch(_COUNT_AGAIN, keys)]
    await session.execute(_COMPLETE, done, now)


def _given_back(row: Locked, due_at: datetime) -> Ending:
    if row.cancelled_at is None:
        return Ending(row, {}, due_at, counted=-1)
    return Ending(row, dict.fromkeys(row.waiting, cancelled(row.cancelled_at)), None, counted=-1)


def _recorded(ending: Ending | None) -> Recorded:
    if ending is None:
        return Recorded(accepted=False, results={}, due=None, completed=False)
    row, due_at = ending.row, ending.due_again_at
    due = None if due_at is None else Due(due_at, row.id, row.destination, row.size, lane_of(row.lane))
    return Recorded(accepted=True, results=ending.results, due=due, completed=False)


def _is_held(held: dict[int, Locked], claim: Delivery) -> bool:
    row = held.get(claim.id)
    return row is not None and (row.owner, row.attempt) == (claim.owner, claim.attempt)


def _fences(deliveries: Sequence[Delivery]) -> tuple[list[int], list[str], list[int]]:
    return (
        [delivery.id for delivery in deliveries],
        [delivery.owner for delivery in deliveries],
        [delivery.attempt for delivery in deliveries],
    )
