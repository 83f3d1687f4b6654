"""A queue in memory: for tests, and for mail that may be lost with the program."""

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count, islice

from mailstrom_async._envelope import Delivery, Lane, PendingRecipient, PreparedEmail, QueuedMessage
from mailstrom_async._errors import AlreadyQueued, MailerStateError, QueueFull
from mailstrom_async._queue.recipient import cancelled
from mailstrom_async._queue.retry import due_after_setback
from mailstrom_async._status import (
    FINAL_STATES,
    Attempt,
    DeliveryResult,
    MessageStatus,
    Queued,
    RecipientStatus,
)
from mailstrom_async.storage._rules import (
    Result,
    abandoned_attempt,
    abandoned_result,
    as_stored,
    destinations,
    final_at,
    shown,
)
from mailstrom_async.storage.base import Acceptance, Due, Record, Recorded

QUEUED = Queued()


@dataclass(slots=True)
class _Recipient:
    address: str
    written: str
    result: DeliveryResult = QUEUED
    attempts: int = 0

    @property
    def unfinished(self) -> bool:
        return self.result.state not in FINAL_STATES


@dataclass(slots=True, eq=False)
class _Delivery:
    """`due_at` is the end of the lease while it is claimed, and None when it is finished."""

    id: int
    message: "_Message"
    destination: str
    recipients: list[_Recipient]
    due_at: datetime | None
    owner: str | None = None
    attempt: int = 0
    claimed_at: datetime | None = None

    @property
    def unfinished(self) -> list[_Recipient]:
        return [recipient for recipient in self.recipients if recipient.unfinished]

    def held_by(self, claim: Delivery) -> bool:
        return self.owner == claim.owner and self.attempt == claim.attempt


@dataclass(slots=True, eq=False)
class _Message:
    shared: QueuedMessage
    size: int
    recipients: list[_Recipient]
    prepared: PreparedEmail | None
    deliveries: list[_Delivery] = field(default_factory=list["_Delivery"])
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    cancelled_at: datetime | None = None
    completed_at: datetime | None = None


class MemoryStorage:
    """A `Storage` in memory. What it holds outlives `aclose`, so a restart can be tested with it, but not the program.

    Nothing in it waits: every operation is done when it is called, and shown whole to whoever comes next.
    """

    def __init__(self) -> None:
        self._messages: dict[str, _Message] = {}
        self._deliveries: dict[int, _Delivery] = {}
        self._due = _DueIndex()
        self._claimed: dict[int, _Delivery] = {}
        self._unfinished = 0
        self._keys = count(1)
        self._delivery_ids = count(1)
        self._is_open = False

    def __repr__(self) -> str:
        return f"<MemoryStorage [{len(self._messages)} messages, {self._unfinished} unfinished]>"

    @property
    def shared(self) -> bool:
        return False

    def watch(self, wake: Callable[[], None]) -> None:
        """Nobody else can change what is here."""

    async def open(self, now: datetime) -> None:
        if self._is_open:
            raise MailerStateError("this MemoryStorage is open already; aclose() it first")
        self._is_open = True
        for delivery in list(self._claimed.values()):
            self._abandon(delivery, now)

    async def aclose(self) -> None:
        self._is_open = False

    async def enqueue(self, acceptances: Sequence[Acceptance], *, queue_size: int | None = None) -> list[Due]:
        self._check_open()
        seen: set[str] = set()
        for acceptance in acceptances:
            message_id = acceptance.prepared.message_id
            if message_id in self._messages or message_id in seen:
                raise AlreadyQueued(message_id)
            seen.add(message_id)
        if queue_size is not None and self._unfinished + len(acceptances) > queue_size:
            raise QueueFull(queue_size)
        return [due for acceptance in acceptances for due in self._accept(acceptance)]

    async def enqueue_claimed(
        self, acceptance: Acceptance, *, owner: str, lease_until: datetime, queue_size: int | None = None
    ) -> Delivery | list[Due]:
        [due] = await self.enqueue([acceptance], queue_size=queue_size)
        return self._claim(self._deliveries[due.delivery_id], owner, due.due_at, lease_until)

    async def upcoming(self, limit: int, *, excluding: Collection[str] = (), lane: Lane | None = None) -> list[Due]:
        self._check_open()
        nearest = islice(self._due.nearest(frozenset(excluding), lane), limit)
        return [_entry(self._deliveries[delivery_id]) for delivery_id in nearest]

    async def claim(
        self, delivery_ids: Sequence[int], *, owner: str, now: datetime, lease_until: datetime
    ) -> list[Delivery]:
        self._check_open()
        claims: list[Delivery] = []
        for delivery_id in delivery_ids:
            delivery = self._deliveries.get(delivery_id)
            if delivery is None or delivery.due_at is None or delivery.due_at > now:
                continue
            if delivery.owner is not None:
                self._abandon(delivery, now)
                if not delivery.unfinished:
                    continue
            claims.append(self._claim(delivery, owner, now, lease_until))
        return claims

    async def renew(self, deliveries: Sequence[Delivery], lease_until: datetime) -> list[Delivery]:
        self._check_open()
        lost: list[Delivery] = []
        for claim in deliveries:
            delivery = self._held(claim)
            if delivery is None:
                lost.append(claim)
            else:
                delivery.due_at = lease_until
        return lost

    async def release(self, deliveries: Sequence[Delivery], due_at: datetime) -> list[Due]:
        self._check_open()
        dues: list[Due] = []
        for claim in deliveries:
            delivery = self._held(claim)
            if delivery is None:
                continue
            delivery.attempt -= 1
            cancelled_at = delivery.message.cancelled_at
            if cancelled_at is None:
                self._settle(delivery, {}, due_at)
                dues.append(_entry(delivery))
            else:
                final = cancelled(cancelled_at)
                self._settle(delivery, {recipient.address: final for recipient in delivery.unfinished}, None)
        return dues

    async def record(self, records: Sequence[Record]) -> list[Recorded]:
        self._check_open()
        return [self._record(record) for record in records]

    async def status(self, message_id: str) -> MessageStatus | None:
        self._check_open()
        message = self._messages.get(message_id)
        return None if message is None else _status(message)

    async def recent(self, since: datetime | None, limit: int) -> list[MessageStatus]:
        self._check_open()
        wanted = (
            message
            for message in self._messages.values()
            if message.completed_at is None or (since is not None and message.completed_at >= since)
        )
        oldest = heapq.nsmallest(limit, wanted, key=lambda message: (message.shared.queued_at, message.shared.key))
        return [_status(message) for message in oldest]

    async def attempts(self, message_id: str) -> list[Attempt] | None:
        self._check_open()
        message = self._messages.get(message_id)
        return None if message is None else sorted(message.attempts, key=lambda attempt: attempt.started_at)

    async def prepared(self, message_id: str) -> PreparedEmail | None:
        self._check_open()
        message = self._messages.get(message_id)
        return None if message is None else message.prepared

    async def bring_forward(self, now: datetime, longest: timedelta) -> int:
        self._check_open()
        changed = 0
        for delivery in [self._deliveries[delivery_id] for delivery_id in self._due.after(now)]:
            assert delivery.due_at is not None  # noqa: S101 - it is in the index
            due_at = due_after_setback(
                delivery.due_at,
                queued_at=delivery.message.shared.queued_at,
                attempted=delivery.attempt > 0,
                now=now,
                longest=longest,
            )
            if due_at != delivery.due_at:
                self._settle(delivery, {}, due_at)
                changed += 1
        return changed

    async def cancel(self, message_id: str, now: datetime) -> MessageStatus | None:
        self._check_open()
        message = self._messages.get(message_id)
        if message is None:
            return None
        if message.completed_at is None and message.cancelled_at is None:
            message.cancelled_at = now
            final = cancelled(now)
            for delivery in message.deliveries:
                if delivery.owner is None:
                    self._settle(delivery, {recipient.address: final for recipient in delivery.unfinished}, None)
        return _status(message)

    async def hasten(self, message_id: str, now: datetime) -> list[Due] | None:
        self._check_open()
        message = self._messages.get(message_id)
        if message is None:
            return None
        dues: list[Due] = []
        for delivery in message.deliveries:
            if delivery.owner is None and delivery.due_at is not None:
                self._settle(delivery, {}, min(delivery.due_at, now))
                dues.append(_entry(delivery))
        return dues

    async def purge(self, completed_before: datetime) -> int:
        self._check_open()
        gone = [
            message_id
            for message_id, message in self._messages.items()
            if message.completed_at is not None and message.completed_at < completed_before
        ]
        for message_id in gone:
            for delivery in self._messages.pop(message_id).deliveries:
                del self._deliveries[delivery.id]
        return len(gone)

    def _check_open(self) -> None:
        if not self._is_open:
            raise MailerStateError("this MemoryStorage is not open; open() it first, or enter the mailer it belongs to")

    def _held(self, claim: Delivery) -> _Delivery | None:
        delivery = self._claimed.get(claim.id)
        return delivery if delivery is not None and delivery.held_by(claim) else None

    def _accept(self, acceptance: Acceptance) -> Iterator[Due]:
        prepared = acceptance.prepared
        shared = QueuedMessage(
            key=next(self._keys),
            message_id=prepared.message_id,
            sender=prepared.sender,
            content=prepared.content,
            smtputf8=prepared.smtputf8,
            eight_bit=prepared.eight_bit,
            queued_at=acceptance.queued_at,
            expires_at=acceptance.expires_at,
            lane=acceptance.lane,
        )
        recipients = [_Recipient(*pair) for pair in zip(prepared.recipients, prepared.written, strict=True)]
        message = _Message(shared, len(prepared.content), recipients, prepared)
        self._messages[prepared.message_id] = message
        self._unfinished += 1
        for destination, positions in destinations(prepared).items():
            mine = [recipients[position] for position in positions]
            delivery = _Delivery(next(self._delivery_ids), message, destination, mine, acceptance.due_at)
            message.deliveries.append(delivery)
            self._deliveries[delivery.id] = delivery
            self._due.add(delivery)
            yield _entry(delivery)

    def _claim(self, delivery: _Delivery, owner: str, now: datetime, lease_until: datetime) -> Delivery:
        self._due.discard(delivery)
        self._claimed[delivery.id] = delivery
        delivery.owner, delivery.claimed_at, delivery.due_at = owner, now, lease_until
        delivery.attempt += 1
        pending = tuple(PendingRecipient(r.address, r.result.state, r.attempts) for r in delivery.unfinished)
        return Delivery(delivery.id, delivery.destination, owner, delivery.attempt, pending, delivery.message.shared)

    def _record(self, record: Record) -> Recorded:
        delivery = self._held(record.delivery)
        if delivery is None:
            return Recorded(accepted=False, results={}, due=None, completed=False)
        message = delivery.message
        results = as_stored(record, message.cancelled_at)
        if record.attempt is not None:
            message.attempts.append(record.attempt)
            for recipient in delivery.unfinished:
                recipient.attempts += 1
        self._settle(delivery, results, record.due_at)
        due = _entry(delivery) if delivery.due_at is not None else None
        return Recorded(accepted=True, results=results, due=due, completed=message.completed_at is not None)

    def _abandon(self, delivery: _Delivery, now: datetime) -> None:
        """End a claim that its owner will not record: note the attempt, and let what is unfinished be due."""
        message = delivery.message
        pending = delivery.unfinished
        assert delivery.claimed_at is not None and delivery.due_at is not None  # noqa: S101, PT018 - it is claimed
        message.attempts.append(
            abandoned_attempt(
                delivery.destination,
                (recipient.address for recipient in pending),
                started_at=delivery.claimed_at,
                lease_until=delivery.due_at,
                now=now,
            )
        )
        result = abandoned_result(now, is_cancelled=message.cancelled_at is not None)
        for recipient in pending:
            recipient.attempts += 1
        self._settle(delivery, {recipient.address: result for recipient in pending}, now)

    def _settle(self, delivery: _Delivery, results: Mapping[str, Result], due_at: datetime | None) -> None:
        """Give recipients their new results and end the claim, if there is one. A final result stays."""
        for recipient in delivery.unfinished:
            recipient.result = results.get(recipient.address, recipient.result)
        self._due.discard(delivery)
        self._claimed.pop(delivery.id, None)
        delivery.owner = delivery.claimed_at = None
        if delivery.unfinished:
            # Without a due time it stays where its lease would have ended: late, but not forgotten.
            delivery.due_at = due_at or delivery.due_at
            self._due.add(delivery)
            return
        delivery.due_at = None
        message = delivery.message
        if message.completed_at is None and not any(recipient.unfinished for recipient in message.recipients):
            message.completed_at = final_at(results.values())
            message.prepared = None
            message.shared = replace(message.shared, content=b"")
            self._unfinished -= 1


class _DueIndex:
    """Unclaimed deliveries by due time, a sorted line for each destination and lane: one that is left out costs
    nothing."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, Lane], list[tuple[datetime, int]]] = {}

    def add(self, delivery: _Delivery) -> None:
        assert delivery.due_at is not None  # noqa: S101 - only what is due has a place here
        insort(self._lines.setdefault(_place(delivery), []), (delivery.due_at, delivery.id))

    def discard(self, delivery: _Delivery) -> None:
        line = self._lines.get(_place(delivery))
        if line is None or delivery.due_at is None:
            return
        entry = (delivery.due_at, delivery.id)
        place = bisect_left(line, entry)
        if place < len(line) and line[place] == entry:
            del line[place]
            if not line:
                del self._lines[_place(delivery)]

    def after(self, time: datetime) -> list[int]:
        """The ids of all that is due later."""
        return [
            delivery_id
            for line in self._lines.values()
            for _, delivery_id in line[bisect_right(line, time, key=lambda entry: entry[0]) :]
        ]

    def nearest(self, excluding: Collection[str], wanted: Lane | None) -> Iterator[int]:
        """The ids of all deliveries, the nearest first, found as far as the caller goes."""
        lines: Iterable[list[tuple[datetime, int]]] = (
            line
            for (destination, lane), line in self._lines.items()
            if destination not in excluding and wanted in (None, lane)
        )
        return (delivery_id for _, delivery_id in heapq.merge(*lines))


def _place(delivery: _Delivery) -> tuple[str, Lane]:
    return delivery.destination, delivery.message.shared.lane


def _entry(delivery: _Delivery) -> Due:
    assert delivery.due_at is not None  # noqa: S101 - finished ones have no entry
    message = delivery.message
    return Due(delivery.due_at, delivery.id, delivery.destination, message.size, message.shared.lane)


def _status(message: _Message) -> MessageStatus:
    return MessageStatus(
        message_id=message.shared.message_id,
        queued_at=message.shared.queued_at,
        recipients=tuple(
            RecipientStatus(
                recipient=recipient.written,
                address=recipient.address,
                attempts=recipient.attempts,
                result=shown(recipient.result, planned),
            )
            for recipient, planned in _with_plans(message)
        ),
        lane=message.shared.lane,
    )


def _with_plans(message: _Message) -> Iterator[tuple[_Recipient, datetime | None]]:
    """The recipients in the order of the envelope, each with the time when its delivery is due."""
    plans = {
        id(recipient): delivery.due_at if delivery.owner is None else None
        for delivery in message.deliveries
        for recipient in delivery.recipients
    }
    return ((recipient, plans[id(recipient)]) for recipient in message.recipients)
