"""From outcomes to records."""

import logging
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from random import Random

from mailstrom_async._clock import Clock
from mailstrom_async._config import RetryPolicy
from mailstrom_async._engine.attempt import Contact
from mailstrom_async._envelope import Delivery
from mailstrom_async._model import trusted
from mailstrom_async._policy.congestion import held_back_until
from mailstrom_async._queue.recipient import Circumstances, RecipientResult, expired, settle
from mailstrom_async._queue.retry import next_due
from mailstrom_async._status import Attempt, Deferred, MessageStatus, Outcome
from mailstrom_async.storage.base import Record

logger = logging.getLogger("mailstrom_async")

NOBODY = Contact()
_BETWEEN = r"\s<>()\[\]{},:;\""
# Servers like to say of whom they speak. It begins only where a word does, or a long one would be gone through again
# from each of its characters.
ADDRESS = re.compile(rf'("[^"]*"|(?<![^{_BETWEEN}])[^{_BETWEEN}@]+)@(\[[^\s\]]*\]|[^{_BETWEEN}]+)')


class Settlement:
    """Turns what an attempt did to a delivery into the record of it, and hands that on to be written.

    Attributes:
        now: What the clock shows.
    """

    def __init__(self, clock: Clock, retry: RetryPolicy, chance: Random, submit: Callable[[Record], None]) -> None:
        self.clock = clock
        self.now = clock.now
        self._retry = retry
        self._chance = chance
        self._submit = submit

    def settle(
        self, delivery: Delivery, outcomes: Mapping[str, Outcome], *, started_at: datetime, contact: Contact = NOBODY
    ) -> None:
        """Record an attempt.

        Args:
            delivery: What was attempted.
            outcomes: At least those of the delivery's recipients.
            started_at: When it began.
            contact: With whom we spoke.
        """
        try:
            record = self._record(delivery, outcomes, started_at, contact)
        except Exception as error:
            # Not recorded it would stay claimed for ever.
            logger.exception("%r: what its attempt did can't be recorded", delivery)
            record = self._fault(delivery, error)
        log_attempt(record)
        self._submit(record)

    def _record(
        self, delivery: Delivery, outcomes: Mapping[str, Outcome], started_at: datetime, contact: Contact
    ) -> Record:
        now = self.now()
        started_at = min(started_at, now)  # the clock may have been set back meanwhile
        own = {recipient.address: outcomes[recipient.address] for recipient in delivery.recipients}
        well = all(outcome.state == "delivered" for outcome in own.values())
        expires_at = delivery.message.expires_at
        due_at = now if well else self._next_due(delivery, now)
        given = Circumstances(now, due_at, expires_at, contact.host or "", contact.tls.version)
        results: dict[str, RecipientResult] = {
            recipient.address: settle(recipient, own[recipient.address], given) for recipient in delivery.recipients
        }
        deferred = not well and any(result.state == "deferred" for result in results.values())
        attempt = trusted(
            Attempt,
            started_at=started_at,
            duration=now - started_at,
            recipients=tuple(own),
            destination=delivery.destination,
            host=contact.host,
            address=contact.address,
            tls=contact.tls,
            outcome=own,
            transcript=() if well else contact.transcript,
        )
        return Record(delivery, results, due_at if deferred else None, attempt)

    def _next_due(self, delivery: Delivery, now: datetime) -> datetime:
        # Not the number of the claim: one that was held back is no attempt, and must not slow the schedule down.
        attempts = max(recipient.attempts for recipient in delivery.recipients)
        return next_due(
            self._retry,
            attempt=attempts + 1,
            now=now,
            expires_at=delivery.message.expires_at,
            chance=self._chance.random(),
        )

    def _fault(self, delivery: Delivery, error: Exception) -> Record:
        due_at = self.now() + self._retry.base_delay
        reason = f"a fault in this library: {error!r}"
        deferred = Deferred(cause="local", enhanced="4.3.0", reason=reason, next_attempt_at=due_at)
        return Record(delivery, {recipient.address: deferred for recipient in delivery.recipients}, due_at, None)

    def settle_all(
        self,
        delivery: Delivery,
        outcome: Outcome,
        *,
        started_at: datetime | None = None,
        contact: Contact = NOBODY,
    ) -> None:
        """Record an attempt that ended the same for all recipients."""
        self.settle(
            delivery,
            {recipient.address: outcome for recipient in delivery.recipients},
            started_at=started_at or self.now(),
            contact=contact,
        )

    def hold_back(self, delivery: Delivery, why: Outcome, until: datetime) -> None:
        """Record that a delivery was not attempted, because its site is throttled; that counts as no attempt.

        Args:
            delivery: Its time may be over, if it was never attempted.
            why: How the last attempt at the site ended.
            until: When the site is probed.
        """
        message = delivery.message
        now = self.now()
        if message.expires_at > now:
            due_at = held_back_until(now, until, message.queued_at, self._retry.max_delay)
            due_at = min(due_at, message.expires_at)
        else:
            due_at = until  # its last chance
        deferred = Deferred(
            cause=why.cause or "local",
            enhanced=why.enhanced,
            reason=f"held back with all mail for its hosts, since an attempt there ended so: {why.reason}",
            reply=why.reply,
            next_attempt_at=due_at,
        )
        self._submit(Record(delivery, {recipient.address: deferred for recipient in delivery.recipients}, due_at, None))

    def expire(self, delivery: Delivery, status: MessageStatus | None) -> None:
        """Record that a delivery's lifetime ended while it waited; `status`, if known, tells what was said last."""
        now = self.now()
        last = {} if status is None else {recipient.address: recipient.result for recipient in status.recipients}
        results: dict[str, RecipientResult] = {}
        for recipient in delivery.recipients:
            result = last.get(recipient.address)
            if isinstance(result, Deferred):
                results[recipient.address] = expired(result.reason, result.reply, now)
            else:
                last_reason = "see its attempts" if recipient.attempts else "there was none"
                results[recipient.address] = expired(last_reason, None, now)
        self._submit(Record(delivery, results, None, None))


def log_attempt(record: Record) -> None:
    """One line for each attempt: who, where to, with what outcome, and when again.

    Counts, not addresses: some of the recipients are hidden ones, and `query_attempts` names them to whoever may ask.
    """
    attempt = record.attempt
    if attempt is None or not logger.isEnabledFor(logging.INFO):
        return
    outcomes = list(attempt.outcome.values())
    count = {
        state: sum(outcome.state == state for outcome in outcomes) for state in ("delivered", "deferred", "failed")
    }
    telling = next((outcome for outcome in outcomes if outcome.state != "delivered"), outcomes[0])
    logger.info(
        "%s to %s: %d delivered, %d deferred, %d failed; host=%s[%s] tls=%s attempt=%d seconds=%.3f next=%s; %s %.512s",
        record.delivery.message.message_id,
        attempt.destination,
        count["delivered"],
        count["deferred"],
        count["failed"],
        attempt.host,
        attempt.address,
        attempt.tls.version or "no",
        record.delivery.attempt,
        attempt.duration.total_seconds(),
        record.due_at.isoformat(timespec="seconds") if record.due_at else "never",
        telling.enhanced,
        "" if telling.state == "delivered" else ADDRESS.sub("(address)", telling.reason.replace("\n", " ")),
    )
