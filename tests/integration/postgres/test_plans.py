"""What PostgreSQL reads to answer the scheduler: not the whole queue."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from mailstrom_async.storage._postgres import queue, reads
from mailstrom_async.storage._postgres import schema as schema_room
from mailstrom_async.storage._postgres.connection import Address, Row, Session, in_schema
from mailstrom_async.storage.postgres import PostgresStorage
from mailstrom_async.testing._contract.ground import INSTANT, NOW, email

COUNT = 2000
FEW, MANY = 20, 200
"""Destinations: read side by side, and too many for that."""


class Explaining(Session):
    """Notes how many rows each step of each statement looked at: what it gave, and what it left out."""

    def __init__(self, connection: Any, schema: str) -> None:
        super().__init__(connection, Address("", schema, 10, 0))
        self.connection = connection
        self.rows: list[tuple[float, str]] = []

    async def fetch(self, statement: str, *values: object) -> Sequence[Row]:
        explained = f"EXPLAIN (ANALYZE, FORMAT JSON) {in_schema(statement, self.schema)}"
        transaction = self.connection.transaction()
        await transaction.start()
        [(text,)] = await self.connection.fetch(explained, *values)
        await transaction.rollback()
        self.rows += [(looked_at(step), step["Node Type"]) for step in steps(json.loads(text)[0]["Plan"])]
        return await super().fetch(statement, *values)


def steps(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A step, and all below."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from steps(below)


def looked_at(step: dict[str, Any]) -> float:
    """The server tells of one loop, on the average."""
    left_out = sum(rows for name, rows in step.items() if name.startswith("Rows Removed by"))
    return (step["Actual Rows"] + left_out) * step["Actual Loops"]


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """On which small tables are not read from end to end, as large ones are not."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("SET enable_seqscan = off")
    yield connection
    await connection.close()


@pytest.mark.parametrize("destinations", [FEW, MANY])
@pytest.mark.rule("E1", "every statement of the queue uses an index")
async def test_the_nearest_are_found_without_reading_the_others(
    storage: PostgresStorage, connection: asyncpg.Connection, schema: str, destinations: int
) -> None:
    """Row E1: some are left out, or none; all are in one lane, so that the server may think of reading it whole."""
    await storage.open(NOW)
    await storage.enqueue(
        [email(f"{one}", [f"a@{one % destinations}.example"], due_at=NOW + one * INSTANT) for one in range(COUNT)]
    )
    await storage.aclose()
    await connection.execute(f"ANALYZE {schema}.deliveries, {schema}.messages")
    session = Explaining(connection, schema)
    await reads.upcoming(session, 10, ())
    await reads.upcoming(session, 10, {"1.example", "2.example"})
    await reads.upcoming(session, 10, {"1.example"}, "default")
    await queue.bring_forward(session, NOW + timedelta(hours=1), timedelta(hours=4))
    most = max(session.rows)

    assert len(session.rows) > 20
    assert most[0] <= reads.MERGED_AT_MOST + 1, most


async def test_a_migration_leaves_the_server_with_statistics(
    storage: PostgresStorage, connection: asyncpg.Connection, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would guess about the new columns of a long queue, wrongly, until it looks by itself."""
    with monkeypatch.context() as patch:
        patch.setattr(schema_room, "MIGRATIONS", schema_room.MIGRATIONS[:1])
        await storage.open(NOW)
        await storage.aclose()
    await connection.execute(
        f"""
        INSERT INTO {schema}.messages (message_id, sender, smtputf8, eight_bit, queued_at, expires_at, unfinished)
        VALUES ('old', '', false, false, now(), now(), 1)
        """
    )
    await connection.execute(
        f"INSERT INTO {schema}.deliveries (message, destination, size, due_at) SELECT key, 'd', 1, now()"
        f" FROM {schema}.messages"
    )
    await storage.open(NOW)
    await storage.aclose()
    known = "SELECT attname FROM pg_stats WHERE schemaname = $1 AND tablename = 'deliveries'"

    assert "lane" in {row[0] for row in await connection.fetch(known, schema)}
