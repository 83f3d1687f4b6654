"""What a store must do. `mailstrom_async.testing.StorageContract` proves it for any implementation.

A store keeps messages, their recipients, and deliveries. A delivery is one message's unfinished recipients at one
destination (their domain); it is the unit that is due, claimed, attempted and recorded. Its due time lives in the
store, so a restart neither forgets nor hurries.

    due ──claim──▶ claimed ──record──▶ due again (deferred) or finished
     ▲                │
     └───release──────┘   given back unattempted; also what becomes of a claim whose lease ended
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from mailstrom_async._envelope import Delivery, Lane, PreparedEmail
from mailstrom_async._envelope import Due as Due
from mailstrom_async._immutable import immutable
from mailstrom_async._queue.portion import Portion as Portion
from mailstrom_async._status import Attempt, Deferred, Delivered, Failed, MessageStatus


@immutable()
class Acceptance:
    """A prepared email together with what the queue decided about it.

    Attributes:
        due_at: When it may first be attempted.
        expires_at: When a recipient that is still deferred fails.
        lane: How urgent it is; kept with its deliveries, and told with all their entries.
    """

    prepared: PreparedEmail
    queued_at: datetime
    due_at: datetime
    expires_at: datetime
    lane: Lane = "default"


@immutable()
class Record:
    """What an attempt did to a delivery, to be written only while the claim still holds.

    Attributes:
        results: The new result of each recipient of the delivery.
        due_at: When the deferred ones are to be attempted again; None if all are final.
        attempt: The attempt itself; None if there was none: it expired while it waited, or its hosts are throttled.
    """

    delivery: Delivery
    results: Mapping[str, Deferred | Delivered | Failed]
    due_at: datetime | None
    attempt: Attempt | None


@immutable()
class Recorded:
    """What the store made of a `Record`.

    Attributes:
        accepted: False: the claim was lost before, nothing of the record was written.
        results: As stored; differs from the record's where the message was cancelled during the attempt.
        due: The delivery's new entry in the due index, if it has one.
        completed: The message has no unfinished recipient left; its body is dropped.
    """

    accepted: bool
    results: Mapping[str, Deferred | Delivered | Failed]
    due: Due | None
    completed: bool


class Storage(Protocol):
    """**Protocol:** a durable queue.

    Every method is atomic: done whole and durably when it returns, or not at all when it raises `StorageError`, or is
    cancelled before the store began with it. (Cancelled later, it may still be done.) Times are aware and in UTC, exact
    to the microsecond. One instance belongs to one event loop at a time; it can be opened again after it was closed.
    """

    @property
    def shared(self) -> bool:
        """Other processes may have the same queue open: they accept, claim and record in it at any time.

        With a shared store the mailer looks for itself every few seconds, besides what `watch` tells it.
        """
        ...

    def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever deliveries may be due sooner than the mailer knows, by somebody else's doing.

        That is, when another process has accepted, released, recorded as deferred or hastened a delivery. Called once
        after each `open`, and in force until `aclose`. `wake` runs on the event loop of `open`, as often as it likes,
        but a few times a second are enough: each costs a look at the store. It may be missed: the mailer looks by
        itself, only later. A store that is not shared never calls it.
        """
        ...

    async def open(self, now: datetime) -> None:
        """Make the store ready; create or migrate it where needed.

        Claims that an earlier life of the owner left are over: their deliveries are due `now`, and an attempt with the
        outcome "outcome_unknown" is noted for them, because nobody knows how far it came. In a shared store claims may
        belong to somebody who lives: there they are over when their lease is, and `claim` notes the attempt.

        Raises:
            StorageInUse: Another process has it open and this store serves only one.
            StorageIncompatible: It is not ours, too new, or damaged. It is left as it is.
            StorageError: It can't be opened.
        """
        ...

    async def aclose(self) -> None:
        """Finish what was begun and close. A second call does nothing."""
        ...

    async def enqueue(self, acceptances: Sequence[Acceptance], *, queue_size: int | None = None) -> list[Due]:
        """Store messages, all or none, and return the entries of their deliveries.

        Raises:
            AlreadyQueued: One has the Message-ID of a stored message, or of another in this call.
            QueueFull: There would be more than `queue_size` messages with unfinished recipients.
        """
        ...

    async def upcoming(self, limit: int, *, excluding: Collection[str] = (), lane: Lane | None = None) -> list[Due]:
        """The nearest unclaimed deliveries by due time, whether due or not, at most `limit`; none at the destinations
        `excluding`, and only those of `lane` (None: of all lanes). Must not scan what it does not return, whatever the
        length of the queue: a million newsletters before it must not hide a login code.

        A shared store names claimed ones as well, due at the end of their lease: if it is not renewed until then, its
        owner is gone, and anybody may claim them."""
        ...

    async def claim(
        self, delivery_ids: Sequence[int], *, owner: str, now: datetime, lease_until: datetime
    ) -> list[Delivery]:
        """Claim those of the given deliveries that are due by `now` and not claimed; return them with their content.

        A claim counts as the begin of an attempt: it is on record before a socket is opened. A claim whose lease ended
        may be claimed anew by anybody. Deliveries of one message in the result share one `QueuedMessage`.
        """
        ...

    async def renew(self, deliveries: Sequence[Delivery], lease_until: datetime) -> list[Delivery]:
        """Move the end of the leases; return those whose claim was lost."""
        ...

    async def release(self, deliveries: Sequence[Delivery], due_at: datetime) -> list[Due]:
        """Give claims back unattempted: due at `due_at`, the attempt not counted. Lost claims are passed over."""
        ...

    async def record(self, records: Sequence[Record]) -> list[Recorded]:
        """Write what attempts did, each only if its claim (owner and attempt number) still holds; in the same order.

        If the message was cancelled meanwhile, a Deferred result is stored as Failed with the cause "cancelled".
        """
        ...

    async def status(self, message_id: str) -> MessageStatus | None:
        """The status of a message, or None."""
        ...

    async def recent(self, since: datetime | None, limit: int) -> list[MessageStatus]:
        """All incomplete messages, and those completed at or after `since` (None: none of them): oldest first, at most
        `limit`."""
        ...

    async def attempts(self, message_id: str) -> list[Attempt] | None:
        """Every attempt on a message, oldest first; None: no such message."""
        ...

    async def prepared(self, message_id: str) -> PreparedEmail | None:
        """The message as prepared, while its body is kept: until completion."""
        ...

    async def bring_forward(self, now: datetime, longest: timedelta) -> int:
        """The clock may have been set back: what the times in the store would keep from its turn must not wait for them
        to come again. Called once when delivery starts, and then whenever that is noticed.

        Unclaimed deliveries get the due time of `due_after_setback`, in which `longest` is the longest wait between two
        attempts. In a shared store a claim ends within `longest`, if it is not renewed. Must not scan the whole queue.

        Returns:
            How many due times were changed.
        """
        ...

    async def cancel(self, message_id: str, now: datetime) -> MessageStatus | None:
        """Fail all recipients that are not final with cause "cancelled". Those in a claimed delivery are settled when
        its attempt is recorded: delivered if it was too late, else failed. None: no such message."""
        ...

    async def hasten(self, message_id: str, now: datetime) -> list[Due] | None:
        """Make all unclaimed deliveries of a message due `now`. None: no such message."""
        ...

    async def purge(self, completed_before: datetime) -> int:
        """Forget messages that were completed before this time; return how many. Never an incomplete one."""
        ...


@runtime_checkable
class Outbox(Protocol):
    """**Protocol:** what a store may do besides: write into a transaction that its caller has begun.

    The mail is then queued together with what else the transaction does, or not at all.
    """

    async def enqueue_within(
        self, connection: object, acceptances: Sequence[Acceptance], *, queue_size: int | None = None
    ) -> None:
        """Store messages, all or none, in the transaction that `connection` is in; it is the caller's to end.

        When it commits, the watchers of all processes are called, this one's included.

        Raises:
            UnusableConnection: It is no connection that this store knows, in no transaction, or to another database.
            AlreadyQueued: One has the Message-ID of a stored message, or of another in this call.
            QueueFull: There would be more than `queue_size` messages with unfinished recipients.
        """
        ...


@runtime_checkable
class Express(Protocol):
    """**Protocol:** what a store may do besides: claim mail in the transaction that accepts it.

    It is on its way a commit sooner then. All other mail is enqueued and claimed as ever. A subclass of one of our
    stores with an `enqueue` of its own gets all mail there.
    """

    async def enqueue_claimed(
        self, acceptance: Acceptance, *, owner: str, lease_until: datetime, queue_size: int | None = None
    ) -> Delivery | list[Due]:
        """As `enqueue` and `claim` of one message, due at once, whose recipients are all at one destination.

        Cancelled, it leaves no claim: if the message was stored all the same, it is due, and `watch`'s wake is called.

        Returns:
            The delivery; its entry, as `enqueue` has it, if it could not be claimed by us.

        Raises:
            AlreadyQueued: It has the Message-ID of a stored message.
            QueueFull: There would be more than `queue_size` messages with unfinished recipients.
        """
        ...


@runtime_checkable
class Roster(Protocol):
    """**Protocol:** what a store must do besides, if several mailers deliver from it at the same time: count them.

    Then each keeps to its portion of `Limits`. From a store without it only one delivers at a time (from a SQLite file,
    too, the process that owns it), and that one has the limits whole.
    """

    async def attend(self, owner: str, *, now: datetime, lease: timedelta) -> Portion:
        """Note that this mailer delivers; it is counted for as long as `lease`, and comes again before that is over.

        Returns:
            Its place among those that are counted now. All of them are numbered in one order.
        """
        ...

    async def leave(self, owner: str) -> None:
        """Count this mailer no longer."""
        ...
