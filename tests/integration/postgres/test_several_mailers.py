"""Several mailers, in one process and in several, over one queue in PostgreSQL."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import asyncpg
from _mailers import arrived, config, email, eventually, message_id, recipient

from mailstrom_async import Mailstrom
from mailstrom_async._engine.scheduler import LOOK_EVERY
from mailstrom_async.storage.postgres import PostgresStorage
from mailstrom_async.testing import Delay, Gate, ManualClock, SMTPServer

ROOT = Path(__file__).parents[3]


async def test_three_mailers_deliver_every_message_once(dsn: str, schema: str) -> None:
    """I15: whoever accepted it, one of them delivers it, and all of them know."""
    count = 120
    async with SMTPServer() as sink, AsyncExitStack() as stack, eventually():
        mailers = [
            await stack.enter_async_context(Mailstrom(config(sink), PostgresStorage(dsn, schema=schema)))
            for _ in range(3)
        ]
        await asyncio.gather(*(mailers[number % 3].send_email(email(number)) for number in range(count)))
        for number in range(count):
            assert (await mailers[(number + 1) % 3].wait(message_id(number))).succeeded

        assert arrived(sink) == {recipient(number): 1 for number in range(count)}


async def test_mail_that_another_process_accepted_is_delivered_at_once(dsn: str, schema: str) -> None:
    """LISTEN/NOTIFY alone does it: the clock of the one that delivers stands still."""
    clock = ManualClock()
    async with (
        SMTPServer() as sink,
        Mailstrom(config(sink), PostgresStorage(dsn, schema=schema), clock=clock),
        Mailstrom(config(sink), PostgresStorage(dsn, schema=schema), clock=clock, deliver=False) as web,
        eventually(),
    ):
        await clock.until_waiting()
        await web.send_email(email(1))
        await sink.wait_for_messages(1)


async def test_mail_is_delivered_within_seconds_where_nobody_can_listen(dsn: str, schema: str) -> None:
    """The safety net: as through a PgBouncer without `listener_dsn`, the store is looked at every few seconds."""
    clock = ManualClock()
    deaf = PostgresStorage(dsn, schema=schema, listener_dsn="postgresql://nobody@127.0.0.1:1/postgres")
    async with (
        SMTPServer() as sink,
        Mailstrom(config(sink), deaf, clock=clock),
        Mailstrom(config(sink), PostgresStorage(dsn, schema=schema), clock=clock, deliver=False) as web,
        eventually(),
    ):
        await clock.until_waiting()
        await web.send_email(email(1))
        clock.advance(LOOK_EVERY)
        await sink.wait_for_messages(1)


async def test_a_listener_that_is_cut_off_listens_again(dsn: str, schema: str) -> None:
    """Row C11 for the listener: it comes back by itself, and hears the next one."""
    clock = ManualClock()
    async with (
        SMTPServer() as sink,
        Mailstrom(config(sink), PostgresStorage(dsn, schema=schema), clock=clock),
        Mailstrom(config(sink), PostgresStorage(dsn, schema=schema), clock=clock, deliver=False) as web,
        eventually(),
    ):
        watching = await asyncpg.connect(dsn)
        try:
            query = "SELECT pid FROM pg_stat_activity WHERE query = $1"
            listen = f'LISTEN "mailstrom_{schema}"'
            while not (listeners := {row[0] for row in await watching.fetch(query, listen)}):
                await watching.execute("SELECT pg_sleep(0.01)")
            for process in listeners:
                await watching.execute("SELECT pg_terminate_backend($1)", process)
            while {row[0] for row in await watching.fetch(query, listen)} <= listeners:
                await watching.execute("SELECT pg_sleep(0.01)")
        finally:
            await watching.close()
        await web.send_email(email(1))
        await sink.wait_for_messages(1)


async def test_the_result_of_a_mailer_that_stalled_does_not_count(dsn: str, schema: str) -> None:
    """Row C15, I11: another took the delivery over; what the first says later is refused, and no state is lost."""
    clock = ManualClock()
    gate = Gate()
    async with (
        SMTPServer({"end of data": gate}) as sink,
        Mailstrom(config(sink), PostgresStorage(dsn, schema=schema), clock=clock, deliver=False) as web,
        eventually(),
    ):
        # Its own clock stands still, so it never renews its lease: it has stalled.
        async with Mailstrom(config(sink), PostgresStorage(dsn, schema=schema), clock=ManualClock()):
            await web.send_email(email(1))
            await gate.reached()
            sink.script["end of data"] = None
            clock.advance(timedelta(minutes=2))
            async with Mailstrom(config(sink), PostgresStorage(dsn, schema=schema), clock=clock) as other:
                delivered = await other.wait(message_id(1))
                gate.open()
                await sink.wait_for_messages(2)

        assert delivered.succeeded
        assert await web.query_status(message_id(1)) == delivered
        causes = [attempt.outcome[recipient(1)].cause for attempt in await web.query_attempts(message_id(1))]
        assert causes == ["outcome_unknown", None]


async def test_killed_workers_lose_nothing_and_their_mail_is_taken_over(dsn: str, schema: str) -> None:
    """Row C14, I1, I6, I15: of three processes that deliver, two are killed in the middle of it. All mail arrives, and
    twice only where the acknowledgement was not yet recorded, which its attempts tell."""
    count = 60
    async with (
        SMTPServer({"end of data": Delay(timedelta(milliseconds=20))}) as sink,
        Mailstrom(config(sink), PostgresStorage(dsn, schema=schema), deliver=False) as web,
        AsyncExitStack() as workers,
        eventually(),
    ):
        processes = [await workers.enter_async_context(worker(dsn, schema, sink.port)) for _ in range(3)]
        await asyncio.gather(*(web.send_email(email(number)) for number in range(count)))
        for killed, already in enumerate([5, 20]):
            await sink.wait_for_messages(already)
            processes[killed].kill()
            await processes[killed].wait()
        statuses = [await web.wait(message_id(number)) for number in range(count)]
        copies = arrived(sink)
        for number, status in enumerate(statuses):
            attempts = await web.query_attempts(message_id(number))
            unknown = [one for one in attempts if one.outcome[recipient(number)].cause == "outcome_unknown"]

            assert status.succeeded
            assert 1 <= copies[recipient(number)] <= 1 + len(unknown)


@asynccontextmanager
async def worker(dsn: str, schema: str, port: int, connections: int = 8) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that delivers to the sink at this port, with a lease of two seconds."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("_worker.py")),
        *[dsn, schema, str(port), "2", str(connections)],
        stdin=asyncio.subprocess.PIPE,  # ends with this process, and then so does the worker
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"delivering\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
