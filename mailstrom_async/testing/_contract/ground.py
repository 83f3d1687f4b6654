"""What the rooms of the contract share: how a store is made, and the words to speak to it with."""

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from mailstrom_async._envelope import Delivery, Due, Lane, PreparedEmail
from mailstrom_async._reply import Reply
from mailstrom_async._status import Attempt, Deferred, Delivered, Failed, MessageStatus, Outcome
from mailstrom_async.storage.base import Acceptance, Record, Storage

NOW = datetime(2030, 1, 1, 12, 0, 0, 123_457, tzinfo=UTC)
INSTANT = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
LEASE = MINUTE

Result = Deferred | Delivered | Failed

ID = "1@example.org"
ADA = "ada@example.net"
BOB = "bob@example.net"
EVE = "eve@example.com"


class Ground:
    """Says how to make the store; see `StorageContract`."""

    several_processes: ClassVar[bool] = False
    """True: other processes may have the store open as well, so `open` must leave claims alone whose lease goes on."""

    def make_storage(self) -> Storage:
        """A store that is not yet open: empty at the first call in a test, later with what is in there already."""
        raise NotImplementedError("a StorageContract needs a make_storage() of yours")

    @asynccontextmanager
    async def opened(self, now: datetime = NOW) -> AsyncGenerator[Storage]:
        """The store, open; after a second call within one test it is as after a restart of the program."""
        storage = self.make_storage()
        await storage.open(now)
        try:
            yield storage
        finally:
            await storage.aclose()


@contextmanager
def raises(kind: type[Exception]) -> Generator[None, None, None]:
    """What is in here must raise this. (Not pytest's: the servers of this package are used without it, too.)"""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


def email(
    message_id: str = ID,
    recipients: Sequence[str] = (ADA,),
    *,
    written: Sequence[str] = (),
    sender: str = "app@example.org",
    content: bytes = b"Subject: Hello\r\n\r\nHello\r\n",
    queued_at: datetime = NOW,
    due_at: datetime | None = None,
    lane: Lane = "default",
) -> Acceptance:
    """A message to be accepted."""
    prepared = PreparedEmail(message_id, sender, tuple(recipients), content, written=tuple(written))
    due_at = due_at or queued_at
    return Acceptance(prepared, queued_at=queued_at, due_at=due_at, expires_at=due_at + 120 * HOUR, lane=lane)


def reply(code: int = 250, text: str = "OK") -> Reply:
    return Reply(code=code, enhanced=f"{code // 100}.0.0", text=text, command="end of data", host="mx.example.net")


def delivered(at: datetime = NOW, text: str = "OK") -> Delivered:
    return Delivered(reply=reply(text=text), host="mx.example.net", tls="TLSv1.3", delivered_at=at)


def deferred(until: datetime, text: str = "try later") -> Deferred:
    return Deferred(cause="smtp", enhanced="4.0.0", reason=text, reply=reply(451, text), next_attempt_at=until)


def failed(at: datetime = NOW, text: str = "no such user") -> Failed:
    return Failed(cause="smtp", enhanced="5.0.0", reason=text, reply=reply(550, text), failed_at=at)


def attempt_of(delivery: Delivery, results: Mapping[str, Result], started_at: datetime = NOW) -> Attempt:
    """The attempt that led to these results."""
    outcome = {
        address: Outcome(
            state=result.state,
            cause=None if result.state == "delivered" else result.cause,
            enhanced="2.0.0" if result.state == "delivered" else result.enhanced,
            reason="OK" if result.state == "delivered" else result.reason,
            reply=result.reply,
        )
        for address, result in results.items()
    }
    return Attempt(
        started_at=started_at,
        duration=SECOND,
        recipients=tuple(recipient.address for recipient in delivery.recipients),
        destination=delivery.destination,
        host="mx.example.net",
        address="192.0.2.1",
        outcome=outcome,
    )


def record_of(
    delivery: Delivery,
    results: Result | Mapping[str, Result],
    due_at: datetime | None = None,
    *,
    started_at: datetime = NOW,
) -> Record:
    """The record of an attempt.

    Args:
        delivery: What was attempted.
        results: Of each recipient, or one for all.
        due_at: When the deferred ones are attempted again.
        started_at: When the attempt began.
    """
    if not isinstance(results, Mapping):
        results = {recipient.address: results for recipient in delivery.recipients}
    return Record(delivery, results, due_at, attempt_of(delivery, results, started_at))


def ids_of(entries: Iterable[Due | Delivery]) -> list[int]:
    return [entry.delivery_id if isinstance(entry, Due) else entry.id for entry in entries]


def states_of(status: MessageStatus | None) -> dict[str, str]:
    """The state of each recipient by its address."""
    assert status is not None
    return {recipient.address: recipient.result.state for recipient in status.recipients}


def counts_of(status: MessageStatus | None) -> list[int]:
    """How often each recipient was attempted."""
    assert status is not None
    return [recipient.attempts for recipient in status.recipients]


async def claim(
    storage: Storage,
    ids: Iterable[int] | None = None,
    *,
    owner: str = "one",
    now: datetime = NOW,
    lease: timedelta = LEASE,
) -> list[Delivery]:
    """Claim these deliveries (None: all that wait), as far as they are to be had; by Message-ID and destination."""
    if ids is None:
        ids = ids_of(await storage.upcoming(1000))
    deliveries = await storage.claim(list(ids), owner=owner, now=now, lease_until=now + lease)
    return sorted(deliveries, key=lambda delivery: (delivery.message.message_id, delivery.destination))


async def unclaimed(storage: Storage) -> list[Due]:
    """What is upcoming soon. A store that several processes share names claims as well, at the end of their lease."""
    return [entry for entry in await storage.upcoming(1000) if entry.due_at < NOW + LEASE]


async def claim_one(storage: Storage, *, owner: str = "one", now: datetime = NOW) -> Delivery:
    """Claim the only delivery that is waiting."""
    deliveries = await claim(storage, owner=owner, now=now)
    assert len(deliveries) == 1, f"one delivery should have been due at {now}, not {deliveries}"
    return deliveries[0]
