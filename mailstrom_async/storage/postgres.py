"""A queue in PostgreSQL: for any number of processes on any number of machines. Needs the extra `postgres`."""

import asyncio
import os
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from mailstrom_async._envelope import Delivery, Due, Lane, PreparedEmail
from mailstrom_async._errors import MailerStateError
from mailstrom_async._status import Attempt, MessageStatus
from mailstrom_async.storage._postgres import outbox, queue, reads, roster
from mailstrom_async.storage._postgres.accept import Accepting
from mailstrom_async.storage._postgres.connection import Address, Connections
from mailstrom_async.storage._postgres.listener import Crier, Listener
from mailstrom_async.storage._postgres.schema import checked_name, make_ready
from mailstrom_async.storage.base import Acceptance, Portion, Record, Recorded


class PostgresStorage:
    """A `Storage` in a PostgreSQL database, which many mailers in many processes may share.

    Each of them accepts, delivers and answers for all. A delivery belongs to one mailer at a time, until its lease
    ends; what a mailer that died had claimed is taken over then. So the clocks of the machines must agree, to within a
    third of `Config.lease`.

    Those that deliver share `Limits.connections` and `connections_per_host`, but each has at least one connection. Each
    counts itself among them every few seconds, so together they keep to the limits from some seconds after one has
    started; and one that was killed counts until its lease would have ended.

    What others accept is heard of by LISTEN/NOTIFY, on a connection of its own; where that fails, within seconds.
    Connections that break are made again. Meanwhile operations wait up to `timeout`, then raise StorageError.

    Args:
        dsn: postgresql://user:password@host:port/database. What is left out comes from the environment as for every
            PostgreSQL client (PGHOST, PGPASSWORD, ...).
        schema: Where the tables lie; made, with them, when the store is first opened.
        connections: At most so many at a time, and one more to listen.
        timeout: How long to wait for a connection, and for the answer to a statement. The server itself ends a
            statement a little sooner (lock_timeout, statement_timeout): what raised an error is not done later. A
            pooler may not take these settings; then it is only asked to cancel what nobody waits for.
        listener_dsn: Where to listen, if `dsn` leads to a PgBouncer in transaction mode: the server itself.
        statement_cache_size: Statements kept prepared for each connection. 0 where a PgBouncer stands in between.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "mailstrom",
        connections: int = 8,
        timeout: timedelta = timedelta(seconds=10),
        listener_dsn: str | None = None,
        statement_cache_size: int = 100,
    ) -> None:
        if connections < 2:
            raise ValueError("PostgresStorage needs at least 2 connections: leases are kept while mail is accepted")
        if timeout <= timedelta(0):
            raise ValueError("timeout must be longer than nothing")
        self._address = Address(dsn, checked_name(schema), timeout.total_seconds(), statement_cache_size)
        self._listener_address = replace(self._address, dsn=listener_dsn or dsn)
        self._size = connections
        self._opened: _Opened | None = None

    def __repr__(self) -> str:
        state = "open" if self._opened else "closed"
        return f"<PostgresStorage {self._address.name} schema {self._address.schema} [{state}]>"

    @property
    def shared(self) -> bool:
        return True

    def watch(self, wake: Callable[[], None]) -> None:
        self._usable().listener.start(wake)

    async def open(self, now: datetime) -> None:
        if self._opened is not None and self._opened.process == os.getpid():
            raise MailerStateError(f"{self!r} is open already; aclose() it first")
        # What a parent process has opened stays as it is in this one: its connections must not be touched.
        opened = _Opened(self._address, self._listener_address, self._size)
        try:
            opened.identity = await opened.connections.transact(make_ready)
        except BaseException:
            await opened.aclose()
            raise
        self._opened = opened

    async def aclose(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None and opened.process == os.getpid():
            await opened.aclose()

    async def enqueue(self, acceptances: Sequence[Acceptance], *, queue_size: int | None = None) -> list[Due]:
        return await self._usable().accepting.accept(acceptances, queue_size)

    async def enqueue_within(
        self, connection: object, acceptances: Sequence[Acceptance], *, queue_size: int | None = None
    ) -> None:
        """Store messages in a transaction of the caller's, see `Outbox`.

        Args:
            connection: One of asyncpg's, psycopg's AsyncConnection, SQLAlchemy's AsyncConnection or AsyncSession.
            acceptances: What is to be stored.
            queue_size: See `enqueue`.
        """
        opened = self._usable()
        await outbox.enqueue(
            outbox.transaction_of(connection),
            acceptances,
            queue_size,
            address=self._address,
            identity=opened.identity,
            channel=opened.channel,
        )

    async def upcoming(self, limit: int, *, excluding: Collection[str] = (), lane: Lane | None = None) -> list[Due]:
        return await self._usable().connections.read(lambda session: reads.upcoming(session, limit, excluding, lane))

    async def claim(
        self, delivery_ids: Sequence[int], *, owner: str, now: datetime, lease_until: datetime
    ) -> list[Delivery]:
        return await self._usable().connections.transact(
            lambda session: queue.claim(session, delivery_ids, owner, now, lease_until)
        )

    async def renew(self, deliveries: Sequence[Delivery], lease_until: datetime) -> list[Delivery]:
        return await self._usable().connections.run(lambda session: queue.renew(session, deliveries, lease_until))

    async def release(self, deliveries: Sequence[Delivery], due_at: datetime) -> list[Due]:
        opened = self._usable()
        dues = await opened.connections.transact(lambda session: queue.release(session, deliveries, due_at))
        if dues:
            opened.crier.tell()
        return dues

    async def record(self, records: Sequence[Record]) -> list[Recorded]:
        # Nobody is told: what is deferred is in our own delay heap, and others find it when they next look.
        return await self._usable().connections.transact(lambda session: queue.record(session, records))

    async def attend(self, owner: str, *, now: datetime, lease: timedelta) -> Portion:
        return await self._usable().connections.run(lambda session: roster.attend(session, owner, now, lease))

    async def leave(self, owner: str) -> None:
        await self._usable().connections.run(lambda session: roster.leave(session, owner))

    async def status(self, message_id: str) -> MessageStatus | None:
        return await self._usable().connections.read(lambda session: reads.status(session, message_id))

    async def recent(self, since: datetime | None, limit: int) -> list[MessageStatus]:
        return await self._usable().connections.read(lambda session: reads.recent(session, since, limit))

    async def attempts(self, message_id: str) -> list[Attempt] | None:
        return await self._usable().connections.read(lambda session: reads.attempts(session, message_id))

    async def prepared(self, message_id: str) -> PreparedEmail | None:
        return await self._usable().connections.read(lambda session: reads.prepared(session, message_id))

    async def bring_forward(self, now: datetime, longest: timedelta) -> int:
        return await self._usable().connections.transact(lambda session: queue.bring_forward(session, now, longest))

    async def cancel(self, message_id: str, now: datetime) -> MessageStatus | None:
        return await self._usable().connections.transact(lambda session: queue.cancel(session, message_id, now))

    async def hasten(self, message_id: str, now: datetime) -> list[Due] | None:
        opened = self._usable()
        dues = await opened.connections.transact(lambda session: queue.hasten(session, message_id, now))
        if dues:
            opened.crier.tell()
        return dues

    async def purge(self, completed_before: datetime) -> int:
        # In pieces, each of them whole: no lock is held for long.
        purged = 0
        while piece := await self._usable().connections.run(lambda session: queue.purge(session, completed_before)):
            purged += piece
        return purged

    def _usable(self) -> "_Opened":
        opened = self._opened
        if opened is None:
            raise MailerStateError(f"{self!r} is not open; open() it first, or enter the mailer it belongs to")
        if opened.process != os.getpid():
            raise MailerStateError(
                f"{self!r} was opened by process {opened.process}, of which this one is a fork: "
                "open stores, or enter the mailer, after the fork"
            )
        if opened.loop is not asyncio.get_running_loop():
            raise MailerStateError(
                f"{self!r} was opened in another event loop; use it there, or aclose() it and open it in this one"
            )
        return opened


class _Opened:
    """What is there while the store is open."""

    def __init__(self, address: Address, listener_address: Address, size: int) -> None:
        self.process = os.getpid()
        self.loop = asyncio.get_running_loop()
        self.identity = ""
        self.channel = f"mailstrom_{address.schema}"
        self.connections = Connections(address, size)
        token = secrets.token_hex(8)
        self.listener = Listener(listener_address, self.channel, token)
        self.crier = Crier(self.connections, self.channel, token)
        self.accepting = Accepting(self.connections, on_stored=self.crier.tell)

    async def aclose(self) -> None:
        try:
            await self.listener.aclose()
            await self.accepting.finish()
            await self.crier.finish()
            await self.connections.aclose()
        finally:
            self.connections.break_off()
