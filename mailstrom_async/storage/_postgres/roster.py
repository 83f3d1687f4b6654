"""Who delivers from the queue now: a row for each, that it renews."""

from datetime import datetime, timedelta

from mailstrom_async._queue.portion import Portion
from mailstrom_async.storage._postgres.connection import Session

# Who was seen in the future is no more alive than who was seen long ago: a clock was set back since.
_ATTEND = """
    WITH gone AS (
        DELETE FROM mailstrom.engines WHERE owner IN (
            SELECT owner FROM mailstrom.engines WHERE owner <> $1 AND (seen_at <= $3 OR seen_at >= $4)
            FOR UPDATE SKIP LOCKED
        )
    ), seen AS (
        INSERT INTO mailstrom.engines (owner, seen_at) VALUES ($1, $2)
        ON CONFLICT (owner) DO UPDATE SET seen_at = excluded.seen_at
    )
    SELECT count(*) FILTER (WHERE owner < $1), count(*) + 1
    FROM mailstrom.engines WHERE owner <> $1 AND seen_at > $3 AND seen_at < $4
"""


async def attend(session: Session, owner: str, now: datetime, lease: timedelta) -> Portion:
    [(before, count)] = await session.fetch(_ATTEND, owner, now, now - lease, now + lease)
    return Portion(before, count)


async def leave(session: Session, owner: str) -> None:
    await session.execute("DELETE FROM mailstrom.engines WHERE owner = $1", owner)
