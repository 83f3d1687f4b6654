"""Processes that deliver from one PostgreSQL keep to the limits together."""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

import asyncpg
from _mailers import config, email, eventually
from test_several_mailers import worker

from mailstrom_async import Mailstrom
from mailstrom_async.storage.postgres import PostgresStorage
from mailstrom_async.testing import Delay, Gate, SMTPServer


async def settled(connection: asyncpg.Connection, schema: str, count: int) -> None:
    """Return when so many deliver and each of them has looked twice since: at the second time it knew for sure."""
    for _ in range(3):
        while (await connection.fetchval(f"SELECT count(*) FROM {schema}.engines")) != count:
            await connection.execute("SELECT pg_sleep(0.02)")
        last = await connection.fetchval(f"SELECT max(seen_at) FROM {schema}.engines")
        while (await connection.fetchval(f"SELECT min(seen_at) FROM {schema}.engines")) <= last:
            await connection.execute("SELECT pg_sleep(0.02)")


async def send(web: Mailstrom, numbers: range) -> None:
    """Each to be delivered by whoever is first."""
    await asyncio.gather(*(web.send_email(email(number)) for number in numbers))


async def test_three_processes_have_the_connections_of_one_and_what_a_killed_one_had(dsn: str, schema: str) -> None:
    """Six connections are two for each of three processes; when two of them were killed, the third one has all six
    as soon as their leases would have ended."""
    busy, gate = Delay(timedelta(milliseconds=10)), Gate()
    async with (
        SMTPServer({"end of data": busy}) as sink,
        Mailstrom(config(sink), PostgresStorage(dsn, schema=schema), deliver=False) as web,
        AsyncExitStack() as stack,
        eventually(),
    ):
        connection = await asyncpg.connect(dsn)
        stack.push_async_callback(connection.close)
        workers = [await stack.enter_async_context(worker(dsn, schema, sink.port, connections=6)) for _ in range(3)]
        await settled(connection, schema, 3)
        await send(web, range(120))
        await sink.wait_for_messages(120)

        assert sink.max_concurrent_sessions <= 6

        for process in workers[:2]:
            process.kill()
            await process.wait()
        await settled(connection, schema, 1)
        await send(web, range(120, 240))
        await sink.wait_for_messages(240)
        sink.script["end of data"] = gate
        await send(web, range(240, 260))
        await gate.reached(6)
        gate.open()
        await sink.wait_for_messages(260)

        assert sink.max_concurrent_sessions == 6
