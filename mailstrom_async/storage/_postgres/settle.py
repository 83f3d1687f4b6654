"""What ends a delivery's wait or claim: its recipients get results, and it is due again or finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from mailstrom_async._status import FINAL_STATES, Attempt
from mailstrom_async.storage._postgres.connection import Session
from mailstrom_async.storage._postgres.rows import UNFINISHED
from mailstrom_async.storage._rules import Result, final_at

HELD = """
    (d.id, d.owner, d.attempt) IN (SELECT * FROM unnest($1::bigint[], $2::text[], $3::integer[]))
"""
"""Fencing: of these claims, those that still hold."""


@dataclass(frozen=True, slots=True)
class Locked:
    """A delivery whose row and whose message's row are locked until the transaction ends."""

    id: int
    message: int
    destination: str
    size: int
    due_at: datetime | None
    owner: str | None
    attempt: int
    claimed_at: datetime | None
    lane: int
    cancelled_at: datetime | None
    waiting: dict[str, int] = field(default_factory=dict[str, int])
    """The recipients that are not final: their addresses, and their positions in the envelope."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a delivery's wait or claim ends.

    Attributes:
        results: Of the recipients that get a new one.
        due_at: When it is due again, if a recipient is left that is not final.
        attempt: What is added to the history, and counted.
        counted: By how much the number of the next claim changes: -1 takes a claim back that led to no attempt.
    """

    row: Locked
    results: Mapping[str, Result]
    due_at: datetime | None
    attempt: Attempt | None = None
    counted: int = 0

    @property
    def final(self) -> list[Result]:
        return [
            result
            for address, result in self.results.items()
            if address in self.row.waiting and result.state in FINAL_STATES
        ]

    @property
    def due_again_at(self) -> datetime | None:
        if len(self.final) == len(self.row.waiting):
            return None
        # Without a due time it stays where its lease would have ended: late, but not forgotten.
        return self.due_at or self.row.due_at


async def lock(session: Session, condition: str, *values: object, skip: bool = False) -> list[Locked]:
    """Lock deliveries together with their messages, and read them with their unfinished recipients.

    Args:
        condition: Over `d`, a delivery, with `values` as its parameters.
        skip: Leave out what somebody else has locked; else wait for it.
    """
    rows = await session.fetch(
        "SELECT d.id, d.message, d.destination, d.size, d.due_at, d.owner, d.attempt, d.claimed_at, d.lane,"  # noqa: S608
        " m.cancelled_at"
        " FROM mailstrom.deliveries AS d JOIN mailstrom.messages AS m ON m.key = d.message"
        f" WHERE {condition} ORDER BY m.key, d.id FOR NO KEY UPDATE OF m, d {'SKIP LOCKED' if skip else ''}",
        *values,
    )
    locked = {row[0]: Locked(*row) for row in rows}
    # Read by a statement of its own: it sees all that was committed before the locks were ours.
    recipients = await session.fetch(
        "SELECT delivery, address, position FROM mailstrom.recipients"  # noqa: S608 - no text from outside
        f" WHERE delivery = ANY($1::bigint[]) AND {UNFINISHED} ORDER BY delivery, position",
        list(locked),
    )
    for delivery, address, position in recipients:
        locked[delivery].waiting[address] = position
    return list(locked.values())


_SETTLE = """
    WITH new AS (
        UPDATE mailstrom.recipients AS r SET state = x.state, result = CAST(x.result AS json)
        FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::text[]) AS x (delivery, position, state, result)
        WHERE r.delivery = x.delivery AND r.position = x.position
    ), free AS (
        UPDATE mailstrom.deliveries AS d
        SET owner = NULL, claimed_at = NULL, due_at = x.due_at, attempt = d.attempt + x.counted
        FROM unnest($5::bigint[], $6::timestamptz[], $7::integer[]) AS x (id, due_at, counted)
        WHERE d.id = x.id
    ), history AS (
        INSERT INTO mailstrom.attempts (message, started_at, attempt)
        SELECT message, started_at, CAST(attempt AS json)
        FROM unnest($8::bigint[], $9::timestamptz[], $10::text[]) AS x (message, started_at, attempt)
    ), counted AS (
        UPDATE mailstrom.messages AS m
        SET unfinished = m.unfinished - x.final, completed_at = CASE WHEN m.unfinished <= x.final THEN x.at END
        FROM unnest($11::bigint[], $12::integer[], $13::timestamptz[]) AS x (key, final, at)
        WHERE m.key = x.key AND m.completed_at IS NULL
        RETURNING m.key, m.completed_at
    ), bodies AS (
        DELETE FROM mailstrom.contents AS c USING counted WHERE c.message = counted.key AND completed_at IS NOT NULL
    )
    SELECT key FROM counted WHERE completed_at IS NOT NULL
"""

_COUNT_ATTEMPT = """
    UPDATE mailstrom.recipients SET attempts = attempts + 1
    WHERE (delivery, position) IN (SELECT * FROM unnest($1::bigint[], $2::integer[]))
"""


async def settle(session: Session, endings: Sequence[Ending]) -> set[int]:
    """Write how deliveries end, each of them at most once here; returns the messages that are completed by it."""
    if not endings:
        return set()
    tried = [
        (ending.row.id, position)
        for ending in endings
        if ending.attempt is not None
        for position in ending.row.waiting.values()
    ]
    if tried:
        await session.execute(_COUNT_ATTEMPT, *_columns(tried, 2))
    results = [
        (ending.row.id, ending.row.waiting[address], result.state, result.model_dump_json())
        for ending in endings
        for address, result in ending.results.items()
        if address in ending.row.waiting
    ]
    attempts = [
        (ending.row.message, ending.attempt.started_at, ending.attempt.model_dump_json())
        for ending in endings
        if ending.attempt is not None
    ]
    finals: dict[int, list[Result]] = {}
    for ending in endings:
        finals.setdefault(ending.row.message, []).extend(ending.final)
    completed = await session.fetch(
        _SETTLE,
        *_columns(results, 4),
        *_columns([(ending.row.id, ending.due_again_at, ending.counted) for ending in endings], 3),
        *_columns(attempts, 3),
        *_columns([(key, len(final), final_at(final)) for key, final in finals.items() if final], 3),
    )
    return {row[0] for row in completed}


def _columns(rows: Sequence[tuple[object, ...]], count: int) -> list[list[object]]:
    return [[row[column] for row in rows] for column in range(count)]
