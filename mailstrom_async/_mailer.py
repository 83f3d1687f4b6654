"""The mailer: what an application holds."""

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from email.message import EmailMessage
from random import Random
from types import TracebackType
from typing import Literal, Self, TypeVar, overload

import anyio

from mailstrom_async._arguments import check_class, check_moment, check_span, check_type
from mailstrom_async._clock import Clock, SystemClock
from mailstrom_async._config import Config
from mailstrom_async._email import Email
from mailstrom_async._engine.broadcast import Broadcast
from mailstrom_async._engine.composer import AnyEmail, Composer
from mailstrom_async._engine.engine import Engine
from mailstrom_async._engine.health import Health
from mailstrom_async._envelope import Delivery, Lane, PreparedEmail
from mailstrom_async._errors import MailerStateError, MessageNotFound, StorageError, UnusableConnection
from mailstrom_async._events import (
    Event,
    EventsLost,
    MessageCompleted,
    MessageQueued,
    RecipientFailed,
    WorkerStatusChanged,
)
from mailstrom_async._message.compose import Envelope
from mailstrom_async._status import Attempt, Failed, MessageStatus, SiteStatus, WorkerStatus
from mailstrom_async.dns import AiodnsResolver, Resolver
from mailstrom_async.smtp import SMTPConnector
from mailstrom_async.storage.base import Acceptance, Outbox, Storage

logger = logging.getLogger("mailstrom_async")

PURGE_EVERY = timedelta(hours=1)
LOOK_EVERY = timedelta(seconds=1)
"""How often `wait` reads the status in a store where another process may have recorded it."""

T = TypeVar("T")
E = TypeVar("E", bound=Event)
E2 = TypeVar("E2", bound=Event)
E3 = TypeVar("E3", bound=Event)


class Mailstrom:
    """Sends mail: accepts it durably, delivers it, retries, and tells what became of it.

    May be built at import time; it touches nothing before it is entered.

        async with Mailstrom(config, storage) as mailer:
            message_id = await mailer.send_email(Email(from_="a@example.org", to="b@example.net", text="Hello"))

    Args:
        config: The settings.
        storage: Where the queue is kept.
        deliver: False: only queue and answer, until `start` is called.
        clock: Tells the time; a test puts a `mailstrom_async.testing.ManualClock` here.
        resolver: Looks names up; None: aiodns, with the nameservers of `config.delivery`.
    """

    def __init__(
        self,
        config: Config,
        storage: Storage,
        *,
        deliver: bool = True,
        clock: Clock | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        check_type("config", config, Config, "a Config")
        if not hasattr(storage, "enqueue"):  # looked at no closer: it may be of anybody's making
            raise TypeError(
                f'storage must be a Storage such as SQLiteStorage("mail.db"), and is a {type(storage).__name__}'
            )
        self._config = config
        self._storage = storage
        self._deliver = deliver
        self._clock: Clock = clock or SystemClock()
        self._resolver: Resolver = resolver or AiodnsResolver(config.delivery.nameservers, timeout=config.timeouts.dns)
        self._broadcast = Broadcast()
        self._health = Health(lambda status: self._broadcast.publish([WorkerStatusChanged(status=status)]))
        self._home: tuple[asyncio.AbstractEventLoop, int] | None = None
        self._engine: Engine | None = None
        self._left_over: Sequence[Delivery] = ()  # what an engine could not give back
        self._switch = asyncio.Lock()
        self._composer = Composer(config)
        self._purging: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Mailstrom {self._config.helo_name} [{self.worker_status.state}]>"

    # Life.

    async def __aenter__(self) -> Self:
        """Open the store, take up what an earlier life left, and deliver.

        Raises:
            MailerStateError: It is open already.
            StorageError: The store can't be opened; the message says what to do.
            ResolverError: The resolver can't be used as configured.
            DKIMKeyError: A key of `Config.dkim` can't sign.
        """
        if self._home is not None:
            if self._home[0].is_closed() or self._home[1] != os.getpid():
                self._check_home()
            raise MailerStateError("the mailer is already open; leave it before entering it again")
        self._home = (asyncio.get_running_loop(), os.getpid())
        self._switch = asyncio.Lock()  # that of an earlier life may belong to another event loop
        self._health.enter("starting")
        async with self._switch:
            await self._open()
        return self

    async def _open(self) -> None:
        try:
            async with AsyncExitStack() as opened:
                opened.push_async_callback(self._composer.aclose)
                await self._composer.open()
                await self._storage.open(self._clock.now())
                opened.push_async_callback(self._storage.aclose)
                self._storage.watch(self._changed_elsewhere)
                await self._resolver.open()
                opened.pop_all()
        except BaseException:
            self._home = None
            self._health.enter("stopped")
            raise
        if self._config.retention is not None:
            self._purging = asyncio.create_task(self._purge_regularly(self._config.retention))
        if self._deliver:
            self._start_engine()
        else:
            self._health.enter("paused")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self, grace: timedelta | None = None) -> None:
        """Stop: no new attempt, running ones get `grace` (None: `Config.shutdown_grace`), the rest is aborted and stays
        queued. A second call does nothing."""
        if grace is not None:
            check_span("grace", grace)
        if self._home is None:
            return
        self._check_home()
        if self._engine is not None and grace is not None:
            self._engine.hurry(grace)  # somebody else may be stopping it already, and more patient than we are
        async with self._switch:
            if not self._is_open:
                return  # somebody else has closed it meanwhile
            try:
                await self._stop_engine(grace)
            finally:
                # However often we are cancelled: what stayed open could not be opened again.
                with anyio.CancelScope(shield=True):
                    await self._close_everything()

    def _changed_elsewhere(self) -> None:
        if self._engine is not None:
            self._engine.look()

    async def _close_everything(self) -> None:
        self._health.enter("stopped")
        async with AsyncExitStack() as closing:
            # Last, so that those who wait for a status find the mailer closed when they look again.
            closing.callback(self._broadcast.end)
            closing.callback(self._forget_home)
            closing.push_async_callback(self._storage.aclose)
            closing.push_async_callback(self._resolver.aclose)
            closing.push_async_callback(self._composer.aclose)
            if self._purging is not None:
                closing.push_async_callback(asyncio.wait, [self._purging])
                self._purging.cancel()
                self._purging = None

    @property
    def _is_open(self) -> bool:
        return self._home is not None

    def _forget_home(self) -> None:
        self._home = None

    def lifespan(self, app: object) -> AbstractAsyncContextManager[None]:
        """For FastAPI, Starlette and Litestar: open while the application runs.

        FastAPI and Starlette take it as `lifespan=mailer.lifespan`, Litestar as `lifespan=[mailer.lifespan]`.
        """
        return self._open_for_app()

    async def cleanup_ctx(self, app: object) -> AsyncIterator[None]:
        """For aiohttp: `app.cleanup_ctx.append(mailer.cleanup_ctx)`."""
        async with self:
            yield

    @asynccontextmanager
    async def _open_for_app(self) -> AsyncGenerator[None]:
        async with self:
            yield

    async def start(self) -> None:
        """Deliver. Does nothing if it does already."""
        self._check_home()
        async with self._switch:
            self._check_home()  # it may have been closed meanwhile
            self._start_engine()

    async def pause(self) -> None:
        """Begin no new attempt; returns when the running ones have ended. Mail is accepted as before. Other processes
        with the same queue go on; where one of them has to take a SQLite file over, some twenty seconds later."""
        self._check_home()
        async with self._switch:
            self._check_home()
            try:
                await self._stop_engine(None)
            finally:
                self._health.enter("paused")

    def _start_engine(self) -> None:
        if self._engine is None:
            self._engine = Engine(
                self._config,
                self._storage,
                self._resolver,
                SMTPConnector(
                    self._config.helo_name,
                    self._config.timeouts,
                    ca_file=self._config.ca_file,
                    bdat_window=self._config.limits.bdat_window,
                ),
                clock=self._clock,
                chance=Random(),  # noqa: S311 - spreads load, keeps no secret
                owner=f"{os.getpid()}-{secrets.token_hex(4)}",
                broadcast=self._broadcast,
                health=self._health,
                left_over=self._left_over,
            )
            self._engine.start()
        self._health.enter("running")

    async def _stop_engine(self, grace: timedelta | None) -> None:
        if self._engine is not None:
            try:
                await self._engine.stop(grace)
            finally:
                self._left_over = self._engine.not_given_back
                self._engine = None

    @property
    def worker_status(self) -> WorkerStatus:
        """How delivery itself is doing."""
        return self._health.status

    # Accepting.

    async def send_email(
        self,
        email: AnyEmail,
        *,
        sender: str | None = None,
        recipients: Sequence[str] | None = None,
        not_before: datetime | None = None,
        expires_after: timedelta | None = None,
        lane: Lane = "default",
        connection: object | None = None,
    ) -> str:
        """Accept an email; when this returns, it is safe in the store and will be delivered.

        If you cancel it, it may be stored all the same; with a Message-ID of your own you can safely send it again.

        Args:
            email: An `Email`, a stdlib `EmailMessage`, or the bytes of an RFC 5322 message.
            sender: The reverse-path; "" is the null sender; None: the Sender or the first From address.
            recipients: The forward-paths; None: To, Cc and Bcc.
            not_before: Attempt it no sooner (aware).
            expires_after: Its lifetime, in place of `RetryPolicy.lifetime`; counted from `not_before` if that is later.
                If its end comes sooner than that lifetime counted from now, the mail fails then even if there was no
                attempt yet; else it is attempted once.
            lane: "auth" for what somebody waits for at a screen, a login code or a new password: a connection is kept
                for it. "bulk" for the same mail to many. Under load 16 of auth, 4 of default and 1 of bulk go in turn.
            connection: Write it into the transaction that this connection is in: it is queued when that commits, and
                never was if that is rolled back. For SQLiteStorage, to the same file: a connection of sqlite3's or
                aiosqlite's; for PostgresStorage, to the same database: a connection of asyncpg's or psycopg's
                AsyncConnection; for both, SQLAlchemy's AsyncConnection or AsyncSession. There is no MessageQueued
                event for it.

        Returns:
            The Message-ID, without angle brackets.

        Raises:
            InvalidEmail: It can't be sent as it is; mend the named field. Nothing was stored.
            AlreadyQueued: Its Message-ID was accepted before: who repeats a call may take that for success.
            QueueFull: `Limits.queue_size` is reached. Nothing was stored.
            StorageError: The store can't take it now. Nothing was stored, unless the message says that this is unknown.
            UnusableConnection: `connection` can't take it; the message says why. Nothing was stored.
            MailerStateError: The mailer is not open.
        """
        self._check_home()
        envelope = Envelope(sender, recipients)
        prepared = self._composer.prepare(
            email, envelope, self._clock.now(), not_before=not_before, expires_after=expires_after, lane=lane
        )
        # Not kept here: while a large mail is signed and stored, no other copy of it than need be is to be held.
        return (await self._accept([await prepared], connection))[0]

    async def send_emails(
        self, emails: Sequence[AnyEmail], *, lane: Lane = "default", connection: object | None = None
    ) -> list[str]:
        """Accept many emails in one commit: all or none. Arguments and errors are those of `send_email`. If one of them
        is AlreadyQueued the others are not stored, either: its `message_id` tells which one to leave out."""
        self._check_home()
        if isinstance(emails, (Email, EmailMessage, bytes)):
            raise TypeError("emails must be a list, and is a single one; use send_email for that")
        return await self._accept(await self._composer.prepare_all(emails, self._clock.now(), lane), connection)

    async def _accept(self, acceptances: list[Acceptance], connection: object | None) -> list[str]:
        if not acceptances:
            return []
        if self._composer.signs:
            acceptances = await self._composer.sign(acceptances)
        message_ids = [acceptance.prepared.message_id for acceptance in acceptances]
        if connection is not None:
            # Whether it is queued will be known when the transaction ends; then the store calls `watch`'s wake.
            await self._outbox().enqueue_within(connection, acceptances, queue_size=self._config.limits.queue_size)
            return message_ids
        into = self._engine or self._storage
        dues = await into.enqueue(acceptances, queue_size=self._config.limits.queue_size)
        if self._engine is not None:
            self._engine.queued(dues)
        if self._broadcast.wants(MessageQueued):
            self._broadcast.publish(
                MessageQueued(message_id=acceptance.prepared.message_id, queued_at=acceptance.queued_at)
                for acceptance in acceptances
            )
        return message_ids

    def _outbox(self) -> Outbox:
        if not isinstance(self._storage, Outbox):
            raise UnusableConnection(
                f"{type(self._storage).__name__} can't write into a transaction of yours: use SQLiteStorage or "
                "PostgresStorage, with a connection to the same file or database, or leave `connection` out"
            )
        return self._storage

    # Asking.

    async def query_status(self, message_id: str) -> MessageStatus:
        """What became of a message, recipient by recipient. Raises MessageNotFound."""
        self._check_id(message_id)
        return _found(await self._storage.status(message_id), message_id)

    async def query_recent(self, *, since: datetime | None = None, limit: int = 1000) -> list[MessageStatus]:
        """All messages that are incomplete, and those completed since (None: none of them), at most `limit`.

        A message is completed when the outcome of its last recipient was known. The store has that a moment later, or
        when it takes writes again: so who asks every now and then goes back a minute behind the last time, or to before
        `worker_status` was "degraded", and tells by the Message-ID what was seen already.
        """
        self._check_home()
        if since is not None:
            check_moment("since", since)
        check_type("limit", limit, int, "a number")
        return await self._storage.recent(since, limit)

    async def query_attempts(self, message_id: str) -> list[Attempt]:
        """Every attempt on a message, oldest first. Raises MessageNotFound."""
        self._check_id(message_id)
        return _found(await self._storage.attempts(message_id), message_id)

    def sites(self) -> tuple[SiteStatus, ...]:
        """How it goes with each group of hosts that this process delivers to just now: connections, what waits, who is
        throttled and why. Those with the most waiting come first. For operators; it costs little."""
        sites = self._engine.sites() if self._engine is not None else []
        return tuple(sorted(sites, key=lambda site: (-site.waiting, site.hosts)))

    async def query_prepared(self, message_id: str) -> PreparedEmail:
        """The message as it goes on the wire, while its body is kept: until completion. Raises MessageNotFound."""
        self._check_id(message_id)
        prepared = await self._storage.prepared(message_id)
        if prepared is None and (await self._storage.status(message_id)) is not None:
            raise MessageNotFound(message_id, "body of the message", "it was dropped when the message was completed")
        return _found(prepared, message_id)

    async def wait(
        self,
        message_id: str,
        *,
        until: Literal["completed", "attempted"] = "completed",
        timeout: timedelta | None = None,
    ) -> MessageStatus:
        """Wait until every recipient is final, or has at least been attempted.

        Raises:
            MessageNotFound: There is no such message.
            TimeoutError: Not within `timeout`; the message is still being delivered.
            MailerStateError: The mailer was closed meanwhile.
        """
        self._check_id(message_id)
        if until not in ("completed", "attempted"):
            raise ValueError(f'until must be "completed" or "attempted", and is {until!r}')
        if timeout is not None:
            check_span("timeout", timeout)
        seconds = None if timeout is None else timeout.total_seconds()
        limit = asyncio.timeout(seconds if seconds is None or seconds > 0 else None)
        with self._broadcast.watch(message_id) as changed:
            try:
                async with limit:
                    while True:
                        changed.clear()
                        status = await self.query_status(message_id)
                        if status.completed or (until == "attempted" and status.attempted):
                            return status
                        if seconds is not None and seconds <= 0:  # one look there is all the same
                            limit.reschedule(0)
                        look_at = self._clock.now() + LOOK_EVERY if self._storage.shared else None
                        await self._clock.wait(changed, look_at)
            except TimeoutError:
                if not limit.expired():
                    raise  # somebody else's
                trouble = f"{message_id!r} is not {until} after {timeout}; it is still being delivered"
                raise TimeoutError(trouble) from None

    @overload
    def events(self) -> AbstractAsyncContextManager[AsyncIterator[Event]]: ...
    # mypy would make one common base of several types.
    @overload
    def events(self, kind: type[E], /) -> AbstractAsyncContextManager[AsyncIterator[E | EventsLost]]: ...
    @overload
    def events(
        self, kind: type[E], kind_2: type[E2], /
    ) -> AbstractAsyncContextManager[AsyncIterator[E | E2 | EventsLost]]: ...
    @overload
    def events(
        self, kind: type[E], kind_2: type[E2], kind_3: type[E3], /
    ) -> AbstractAsyncContextManager[AsyncIterator[E | E2 | E3 | EventsLost]]: ...
    @overload
    def events(
        self, kind: type[E], /, *kinds: type[E]
    ) -> AbstractAsyncContextManager[AsyncIterator[E | EventsLost]]: ...
    def events(self, *types: type[Event]) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """What is recorded from now on, of these types (none: of all), as an async iterator.

            async with mailer.events(RecipientFailed) as events:
                async for event in events: ...

        A reader that falls far behind loses the oldest events and gets an `EventsLost` in their place.
        """
        for kind in types:
            check_class("each argument of events", kind, Event, "a type of events such as RecipientFailed")
        return self._subscribed(types)

    @asynccontextmanager
    async def _subscribed(self, types: tuple[type[Event], ...]) -> AsyncGenerator[AsyncIterator[Event]]:
        self._check_home()
        with self._broadcast.subscribe(types) as subscription:
            yield subscription

    # Intervening.

    async def cancel(self, message_id: str) -> MessageStatus:
        """Fail every recipient that is not final with cause "cancelled". One that is being attempted right now may
        still be delivered, and so may one that waits for its turn in another process that delivers; its result tells.
        Raises MessageNotFound."""
        before = await self.query_status(message_id)
        status = _found(await self._storage.cancel(message_id, self._clock.now()), message_id)
        final = {recipient.address for recipient in before.recipients if recipient.result.state == "failed"}
        self._broadcast.publish(
            RecipientFailed(message_id=message_id, address=recipient.address, result=recipient.result)
            for recipient in status.recipients
            if isinstance(recipient.result, Failed) and recipient.address not in final
        )
        if status.completed and not before.completed:
            self._broadcast.publish([MessageCompleted(message_id=message_id)])
        self._broadcast.touch(message_id)
        if self._engine is None or status.completed:
            return status
        await self._engine.cancelled(message_id)
        return await self.query_status(message_id)

    async def retry_now(self, message_id: str) -> None:
        """Make everything of a message due now that waits for its retry. Raises MessageNotFound."""
        self._check_id(message_id)
        dues = _found(await self._storage.hasten(message_id, self._clock.now()), message_id)
        if self._engine is not None:
            self._engine.hastened(dues)

    async def purge(self, completed_before: datetime) -> int:
        """Forget messages that were completed before this time (aware); how many. Never an incomplete one."""
        self._check_home()
        check_moment("completed_before", completed_before)
        return await self._storage.purge(completed_before)

    async def _purge_regularly(self, retention: timedelta) -> None:
        never = asyncio.Event()
        while True:
            try:
                await self._storage.purge(self._clock.now() - retention)
            except StorageError as error:
                self._health.report("purge", str(error))
            except Exception:
                logger.exception("old messages could not be forgotten; it is tried again later")
                self._health.report("purge", "failed unexpectedly, see the log")
            else:
                self._health.report("purge", None)
            next_at = self._clock.now() + min(PURGE_EVERY, retention)
            while self._clock.now() < next_at:
                await self._clock.wait(never, next_at)

    def _check_id(self, message_id: str) -> None:
        self._check_home()
        check_type("message_id", message_id, str, "a str")

    def _check_home(self) -> None:
        if self._home is None:
            raise MailerStateError("the mailer is not open; use `async with mailer:` or its lifespan hook")
        loop, process = self._home
        if process != os.getpid():
            raise MailerStateError("the mailer was opened before a fork; make one, with its storage, in each process")
        if loop.is_closed():
            raise MailerStateError(
                "the mailer was opened on an event loop that is closed; make a new one, with its storage, on this one"
            )
        if loop is not asyncio.get_running_loop():
            raise MailerStateError("the mailer was opened on another event loop; use it there, or leave it there first")


def _found(value: T | None, message_id: str) -> T:
    if value is None:
        raise MessageNotFound(message_id)
    return value
