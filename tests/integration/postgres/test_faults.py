"""The server goes away, comes back, and cuts connections at the worst moment."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from _mailers import arrived, config, email, eventually, message_id, recipient, state
from _server import Server

from mailstrom_async import AlreadyQueued, Email, Mailstrom, MessageNotFound, StorageError
from mailstrom_async.storage._postgres import connection as connection_room
from mailstrom_async.storage.postgres import PostgresStorage
from mailstrom_async.testing import Gate, SMTPServer
from mailstrom_async.testing._contract.ground import email as acceptance

NOW = datetime(2030, 1, 1, tzinfo=UTC)
BLOCKED = """
    SELECT pid FROM pg_stat_activity WHERE application_name = 'mailstrom_async' AND wait_event_type = 'Lock'
    AND query LIKE '%' || $1 || '.messages%'
"""
OWN = "SELECT FROM pg_stat_activity WHERE application_name = 'mailstrom_async'"


async def send_until_known(mailer: Mailstrom, number: int) -> None:
    """As the documentation says: whoever gets a StorageError sends again with the same Message-ID."""
    while True:
        try:
            await mailer.send_email(email(number))
        except StorageError:
            continue
        except AlreadyQueued:
            pass
        return


async def test_a_restart_under_load_loses_nothing_and_needs_no_help(
    storage: PostgresStorage, own_server: Server
) -> None:
    """Row C11, I1, I6: `restart -m immediate` while mail is accepted and delivered."""
    async with SMTPServer() as sink, Mailstrom(config(sink), storage) as mailer, eventually():
        senders = [asyncio.create_task(send_until_known(mailer, number)) for number in range(50)]
        await sink.wait_for_messages(10)
        restart = asyncio.create_task(asyncio.to_thread(own_server.restart, "immediate"))
        number = 50
        while not restart.done():
            senders.append(asyncio.create_task(send_until_known(mailer, number)))
            number += 1
            await asyncio.wait([restart, senders[-1]], timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
        await restart
        await asyncio.gather(*senders)
        for each in range(number):
            assert (await mailer.wait(message_id(each))).succeeded

        assert set(arrived(sink)) == {recipient(each) for each in range(number)}
        assert set(arrived(sink).values()) == {1}
        await state(mailer, is_="running")


async def test_nobody_notices_a_restart_while_nothing_is_done(storage: PostgresStorage, own_server: Server) -> None:
    """Row C11: connections that broke while they were idle are not tried first."""
    async with SMTPServer() as sink, Mailstrom(config(sink), storage, deliver=False) as mailer:
        await asyncio.gather(*(mailer.send_email(email(number)) for number in range(10)))
        await asyncio.to_thread(own_server.restart, "fast")
        await asyncio.gather(*(mailer.send_email(email(number)) for number in range(10, 20)))

        assert len(await mailer.query_recent()) == 20


async def test_a_server_that_is_down_is_told_of_and_found_again(dsn: str, schema: str, own_server: Server) -> None:
    """Row C11: StorageError with the cause after `timeout`, the mailer "degraded", and all is well by itself later."""
    storage = PostgresStorage(dsn, schema=schema, timeout=timedelta(seconds=1))
    async with SMTPServer() as sink, Mailstrom(config(sink), storage) as mailer, eventually():
        await asyncio.to_thread(own_server.stop, "fast")
        try:
            with pytest.raises(StorageError, match=r"can't be reached.*nothing of this was stored"):
                await mailer.send_email(email(1))
            await state(mailer, is_="degraded")
        finally:
            await asyncio.to_thread(own_server.start)
        await state(mailer, is_="running")
        await mailer.send_email(email(1))

        assert (await mailer.wait(message_id(1))).succeeded


async def test_a_connection_that_is_terminated_during_an_accept(
    storage: PostgresStorage, dsn: str, schema: str
) -> None:
    """Row C12: whether it was stored is not known, so the caller hears of it, and may repeat it safely."""
    async with SMTPServer() as sink, Mailstrom(config(sink), storage) as mailer, eventually():
        other, watching = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
        try:
            blocking = other.transaction()
            await blocking.start()
            await other.execute(f"LOCK TABLE {schema}.messages IN EXCLUSIVE MODE")
            sending = asyncio.create_task(mailer.send_email(email(1)))
            while not (blocked := await watching.fetch(BLOCKED, schema)):
                await watching.execute("SELECT pg_sleep(0.01)")
            for (process,) in blocked:
                await watching.execute("SELECT pg_terminate_backend($1)", process)
            with pytest.raises(StorageError, match=r"ended the connection.*not known.*same Message-ID"):
                await sending
            await blocking.rollback()
        finally:
            await other.close()
            await watching.close()
        await send_until_known(mailer, 1)

        assert (await mailer.wait(message_id(1))).succeeded
        assert arrived(sink) == {recipient(1): 1}


async def test_an_accept_whose_answer_got_lost_is_found_by_its_message_id(dsn: str, schema: str) -> None:
    """Rows C2 and C12: stored, but the connection broke before the answer. The Message-ID makes a repeat safe."""
    async with SMTPServer() as sink, answers_cut(dsn) as cut, eventually():
        storage = PostgresStorage(cut.dsn, schema=schema)
        async with Mailstrom(config(sink), storage, deliver=False) as mailer:
            cut.at = b"INSERT INTO"
            with pytest.raises(StorageError, match="whether this was stored is not known"):
                await mailer.send_email(email(1))
            with pytest.raises(AlreadyQueued):
                await mailer.send_email(email(1))
            await mailer.start()

            assert (await mailer.wait(message_id(1))).succeeded
        assert arrived(sink) == {recipient(1): 1}


async def test_who_let_the_library_choose_the_message_id_is_told_it(dsn: str, schema: str) -> None:
    """Rows C2 and C12: or nobody could look whether it was stored."""
    mail = [Email(from_="app@example.org", to=recipient(number), text="Hello") for number in range(3)]
    async with SMTPServer() as sink, answers_cut(dsn) as cut, eventually():
        storage = PostgresStorage(cut.dsn, schema=schema)
        async with Mailstrom(config(sink), storage, deliver=False) as mailer:
            cut.at = b"INSERT INTO"
            with pytest.raises(StorageError, match=r"not known.*the same Message-ID '(\S+)'") as caught:
                await mailer.send_email(mail[0])
            assert (await mailer.query_status(named_in(caught.value))).recipients[0].address == recipient(0)

            cut.at = b"INSERT INTO"
            with pytest.raises(StorageError, match=r"not known.*Message-IDs, of which .* the first of 3") as caught:
                await mailer.send_emails(mail)
            with pytest.raises(MessageNotFound):  # this time it broke before the commit
                await mailer.query_status(named_in(caught.value))


def named_in(error: StorageError) -> str:
    named = re.search(r"'(\S+@app\.example\.org)'", str(error))
    assert named is not None
    return named[1]


@pytest.mark.parametrize("statement_cache_size", [100, 0])
async def test_what_waits_too_long_for_a_lock_is_not_done_later(
    dsn: str, schema: str, statement_cache_size: int
) -> None:
    """The caller is told of the lock, the server ends the statement, and its connection is used again."""
    storage = PostgresStorage(
        dsn, schema=schema, connections=2, timeout=timedelta(seconds=0.5), statement_cache_size=statement_cache_size
    )
    await storage.open(NOW)
    other = await asyncpg.connect(dsn)
    try:
        async with other.transaction():
            await other.execute(f"LOCK TABLE {schema}.messages IN ACCESS EXCLUSIVE MODE")
            for call in (storage.enqueue, storage.enqueue, storage.enqueue):
                with pytest.raises(StorageError, match="another transaction may hold a lock"):
                    await call([acceptance("1@example.org")])
            with pytest.raises(StorageError, match="another transaction may hold a lock"):
                await storage.status("1@example.org")

            assert await other.fetch(BLOCKED, schema) == []
            async with eventually():
                while len(await other.fetch(OWN)) > 2:
                    await other.execute("SELECT pg_sleep(0.01)")
        assert await storage.status("1@example.org") is None
    finally:
        await other.close()
        await storage.aclose()


async def test_a_statement_that_nobody_waits_for_is_cancelled(
    dsn: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When our patience ends before the server's: it hears of that before the connection is closed."""
    monkeypatch.setattr(connection_room, "LOCK_SHARE", 1000)
    monkeypatch.setattr(connection_room, "STATEMENT_SHARE", 1000)
    storage = PostgresStorage(dsn, schema=schema, connections=2, timeout=timedelta(seconds=0.5))
    await storage.open(NOW)
    other = await asyncpg.connect(dsn)
    try:
        async with other.transaction(), eventually():
            await other.execute(f"LOCK TABLE {schema}.messages IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StorageError, match=r"no answer in 0.5 s.*may hold a lock.*not known"):
                await storage.enqueue([acceptance("1@example.org")])
            with pytest.raises(StorageError, match=r"no answer in 0.5 s.*may hold a lock"):
                await storage.cancel("1@example.org", NOW)

            while await other.fetch(BLOCKED, schema):
                await other.execute("SELECT pg_sleep(0.01)")
        assert await storage.status("1@example.org") is None
    finally:
        await other.close()
        await storage.aclose()


async def test_a_connection_that_is_read_only_is_not_used_again(dsn: str, schema: str) -> None:
    """Some hosters make new sessions read-only while the disk is full: when it is not, the store is well at once."""
    role = f"role_{schema}"
    other = await asyncpg.connect(dsn)
    await other.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
    storage = PostgresStorage(f"postgresql://{role}@{dsn.rpartition('@')[2]}", schema=schema)
    try:
        await storage.open(NOW)
        await other.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
        await other.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = $1", role)
        await asyncio.gather(*(storage.status("1@example.org") for _ in range(3)))  # a few connections
        with pytest.raises(StorageError, match="25006"):
            await storage.enqueue([acceptance("1@example.org")])
        await other.execute(f"ALTER ROLE {role} RESET default_transaction_read_only")

        assert await storage.enqueue([acceptance("1@example.org")])
    finally:
        await storage.aclose()
        await other.execute(f"DROP OWNED BY {role} CASCADE")
        await other.execute(f"DROP ROLE {role}")
        await other.close()


@pytest.mark.parametrize("what", ["cancel", "enqueue", "status"])
async def test_what_the_server_said_is_told(storage: PostgresStorage, dsn: str, schema: str, what: str) -> None:
    """Row C12: in a transaction and without one, and not how the driver stumbled over it."""
    await storage.open(NOW)
    other, watching = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        async with other.transaction():
            await other.execute(f"LOCK TABLE {schema}.messages IN ACCESS EXCLUSIVE MODE")
            call = {
                "cancel": lambda: storage.cancel("1@example.org", NOW),
                "enqueue": lambda: storage.enqueue([acceptance("1@example.org")]),
                "status": lambda: storage.status("1@example.org"),
            }[what]
            calling = asyncio.create_task(call())
            for _ in range(2 if what == "status" else 1):  # what only reads is tried again
                while not (blocked := await watching.fetch(BLOCKED, schema)):
                    await watching.execute("SELECT pg_sleep(0.01)")
                for (process,) in blocked:
                    await watching.execute("SELECT pg_terminate_backend($1, 10000)", process)
            with pytest.raises(StorageError, match=r"ended the connection: terminating connection due to admin"):
                await calling
    finally:
        await other.close()
        await watching.close()
        await storage.aclose()


async def test_a_driver_that_is_out_of_step_is_not_quoted(storage: PostgresStorage) -> None:
    """As asyncpg is when the server ended the connection while nothing was asked."""
    await storage.open(NOW)
    try:

        async def stumble(session: connection_room.Session) -> None:
            raise asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")

        with pytest.raises(StorageError, match=r"postgres ended the connection; it is tried again"):
            await storage._usable().connections.transact(stumble)
    finally:
        await storage.aclose()


async def test_results_wait_until_the_server_is_back(dsn: str, schema: str, own_server: Server) -> None:
    """Row C6, as it is with PostgreSQL: the mail is delivered while the server is gone, and delivered once."""
    storage = PostgresStorage(dsn, schema=schema, timeout=timedelta(seconds=1))
    gate = Gate()
    async with (
        SMTPServer({"end of data": gate}) as sink,
        Mailstrom(config(sink), storage) as mailer,
        eventually(),
    ):
        await mailer.send_email(email(1))
        await gate.reached()
        await asyncio.to_thread(own_server.stop, "immediate")
        try:
            gate.open()
            await sink.wait_for_messages(1)
            await state(mailer, is_="degraded")
        finally:
            await asyncio.to_thread(own_server.start)

        assert (await mailer.wait(message_id(1))).succeeded
        assert arrived(sink) == {recipient(1): 1}


async def test_a_reader_that_gives_up_breaks_nothing(dsn: str, schema: str) -> None:
    """Row C20: a question that is cancelled in the middle costs no connection, and the next is answered."""
    storage = PostgresStorage(dsn, schema=schema, connections=2)
    await storage.open(NOW)
    try:
        for steps in range(30):
            asking = asyncio.create_task(storage.status("1@example.org"))
            for _ in range(steps % 10):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])

        assert await storage.status("1@example.org") is None
    finally:
        await storage.aclose()


@pytest.mark.parametrize("what", ["cancel", "enqueue"])
async def test_closing_that_is_given_up_leaves_no_connection(dsn: str, schema: str, what: str) -> None:
    """Row C20 for `aclose`: what it waited for breaks off when it ends, and the call that waits for it is answered."""
    storage = PostgresStorage(dsn, schema=schema)
    await storage.open(NOW)
    other, watching = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        async with other.transaction():
            await other.execute(f"LOCK TABLE {schema}.messages IN EXCLUSIVE MODE")
            call = (
                storage.cancel("1@example.org", NOW)
                if what == "cancel"
                else storage.enqueue([acceptance("1@example.org")])
            )
            calling = asyncio.create_task(call)
            while not await watching.fetch(BLOCKED, schema):
                await watching.execute("SELECT pg_sleep(0.01)")
            closing = asyncio.create_task(storage.aclose())
            await asyncio.wait([closing], timeout=0)
            closing.cancel()
            await asyncio.wait([closing])

        assert bool(await calling) == (what == "enqueue")
        async with eventually():
            while await watching.fetch(OWN):
                await watching.execute("SELECT pg_sleep(0.01)")
    finally:
        await other.close()
        await watching.close()


class Cut:
    """Between a store and its server: once the store says `at`, the connection ends when the server answers."""

    def __init__(self) -> None:
        self.dsn = ""
        self.at: bytes | None = None


@asynccontextmanager
async def answers_cut(dsn: str) -> AsyncIterator[Cut]:
    cut = Cut()
    target = dsn.rpartition("@")[2].partition("/")[0]
    host, _, port = target.partition(":")
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())
        there, back = await asyncio.open_connection(host, int(port))
        armed = False

        async def forward() -> None:
            nonlocal armed
            while said := await reader.read(65536):
                if cut.at is not None and cut.at in said:
                    armed, cut.at = True, None
                back.write(said)

        forwarding = asyncio.create_task(forward())
        try:
            while answer := await there.read(65536):
                # What was stored is answered after the commit, with the destination of its delivery.
                if armed and b"example.net" in answer:
                    break
                writer.write(answer)
        finally:
            forwarding.cancel()
            writer.transport.abort()
            back.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        cut.dsn = dsn.replace(target, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        yield cut
        for connection in connections:
            connection.cancel()
