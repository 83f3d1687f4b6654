"""Through a real PgBouncer in transaction mode, where it is installed (Debian: apt-get install pgbouncer)."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest
from _mailers import arrived, config, email, eventually, message_id, recipient
from _server import NOBODY, free_port, on_one_server

from mailstrom_async import Mailstrom, StorageError
from mailstrom_async.storage.postgres import PostgresStorage
from mailstrom_async.testing import SMTPServer
from mailstrom_async.testing._contract.ground import email as acceptance

pytestmark = on_one_server

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

SETTINGS = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {connections}
"""


@pytest.fixture
async def bouncer(dsn: str) -> AsyncIterator[str]:
    """The DSN of the same database, through two connections that all its clients share."""
    async with bouncing(dsn, "transaction", 2) as through:
        yield through


@asynccontextmanager
async def bouncing(dsn: str, mode: str, connections: int) -> AsyncIterator[str]:
    """A PgBouncer before a server, with so many connections to it."""
    if PROGRAM is None:
        pytest.skip("no pgbouncer here: apt-get install pgbouncer")
    own_port = free_port()
    user = NOBODY if os.getuid() == 0 else None
    with TemporaryDirectory() as place:
        settings = write_settings(Path(place), dsn, own_port=own_port, mode=mode, connections=connections)
        process = await asyncio.create_subprocess_exec(
            PROGRAM, settings, user=user, group=user, stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(20):
                while b"process up" not in await process.stderr.readline():
                    assert process.returncode is None
            yield dsn.replace(server_of(dsn), f"127.0.0.1:{own_port}")
        finally:
            process.kill()
            await process.communicate()


def write_settings(place: Path, dsn: str, **options: object) -> str:
    host, _, port = server_of(dsn).partition(":")
    user = dsn.partition("//")[2].partition("@")[0]
    settings = place / "pgbouncer.ini"
    settings.write_text(SETTINGS.format(host=host, port=port, user=user, **options), "utf-8")
    place.chmod(0o755)  # nobody reads it
    return str(settings)


def server_of(dsn: str) -> str:
    return dsn.rpartition("@")[2].partition("/")[0]


async def test_mailers_share_a_queue_through_pgbouncer(bouncer: str, dsn: str, schema: str) -> None:
    """Six connections of three mailers over two to the server: nothing is kept there between two transactions."""
    count = 40

    def storage() -> PostgresStorage:
        return PostgresStorage(bouncer, schema=schema, listener_dsn=dsn, statement_cache_size=0)

    async with SMTPServer() as sink, AsyncExitStack() as stack, eventually():
        mailers = [await stack.enter_async_context(Mailstrom(config(sink), storage())) for _ in range(3)]
        await asyncio.gather(*(mailers[number % 3].send_email(email(number)) for number in range(count)))
        for number in range(count):
            assert (await mailers[number % 3].wait(message_id(number))).succeeded

        assert arrived(sink) == {recipient(number): 1 for number in range(count)}


async def test_the_outbox_works_through_pgbouncer(bouncer: str, dsn: str, schema: str) -> None:
    """The caller's connection is through it, too."""
    storage = PostgresStorage(bouncer, schema=schema, listener_dsn=dsn, statement_cache_size=0)
    async with SMTPServer() as sink, Mailstrom(config(sink), storage) as mailer, eventually():
        connection = await asyncpg.connect(bouncer, statement_cache_size=0)
        try:
            async with connection.transaction():
                await mailer.send_email(email(1), connection=connection)
        finally:
            await connection.close()

        assert (await mailer.wait(message_id(1))).succeeded


async def test_sessions_of_our_own_through_pgbouncer_need_no_other_setting(dsn: str, schema: str) -> None:
    """It takes none of the parameters that the server itself would: then we do without."""
    async with (
        bouncing(dsn, "session", 12) as through,
        SMTPServer() as sink,
        eventually(),
        Mailstrom(config(sink), PostgresStorage(through, schema=schema)) as mailer,
    ):
        await mailer.send_email(email(1))
        assert (await mailer.wait(message_id(1))).succeeded


async def test_a_lock_is_told_of_through_pgbouncer(bouncer: str, dsn: str, schema: str) -> None:
    """And what the transaction set is gone with it: the next one on that connection has what the server gives."""
    storage = PostgresStorage(
        bouncer, schema=schema, listener_dsn=dsn, timeout=timedelta(seconds=0.5), statement_cache_size=0
    )
    await storage.open(datetime(2030, 1, 1, tzinfo=UTC))
    other, through = await asyncpg.connect(dsn), await asyncpg.connect(bouncer, statement_cache_size=0)
    try:
        async with other.transaction():
            await other.execute(f"LOCK TABLE {schema}.messages IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StorageError, match=r"lock timeout.*another transaction may hold a lock"):
                await storage.enqueue([acceptance("1@example.org")])
        async with through.transaction():
            assert await through.fetchval("SELECT current_setting('lock_timeout')") == "0"
    finally:
        await through.close()
        await other.close()
        await storage.aclose()
