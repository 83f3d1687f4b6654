"""What every store decides alike: pure functions over the words of the queue."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from mailstrom_async._envelope import LANES, Lane, PreparedEmail, domain_of
from mailstrom_async._queue.recipient import cancelled
from mailstrom_async._status import Attempt, Deferred, Delivered, DeliveryResult, Failed, Outcome
from mailstrom_async.storage.base import Record

Result = Deferred | Delivered | Failed

ABANDONED = "the program ended, or stalled beyond its lease, while it attempted this: it may or may not have arrived"


def lane_of(number: int) -> Lane:
    """The lane that a database knows by this number."""
    return LANES[number]


def destinations(prepared: PreparedEmail) -> dict[str, list[int]]:
    """The positions of the recipients at each destination, in the order of the envelope."""
    if len(prepared.recipients) == 1:  # as most mail has
        return {domain_of(prepared.recipients[0]): [0]}
    positions: dict[str, list[int]] = {}
    for position, address in enumerate(prepared.recipients):
        positions.setdefault(domain_of(address), []).append(position)
    return positions


def as_stored(record: Record, cancelled_at: datetime | None) -> Mapping[str, Result]:
    """The results of a record, once it is known whether the message was cancelled during the attempt."""
    if cancelled_at is None:
        return record.results
    ended = cancelled_at
    if record.attempt is not None:
        ended = max(ended, record.attempt.started_at + record.attempt.duration)
    final = cancelled(ended)
    return {address: final if result.state == "deferred" else result for address, result in record.results.items()}


def final_times(results: Iterable[Result]) -> list[datetime]:
    """When those of these that are final became it."""
    return [
        result.delivered_at if result.state == "delivered" else result.failed_at
        for result in results
        if result.state != "deferred"
    ]


def final_at(results: Iterable[Result]) -> datetime | None:
    """When the last of these became final; None: none of them is."""
    return max(final_times(results), default=None)


def abandoned_attempt(
    destination: str, recipients: Iterable[str], *, started_at: datetime, lease_until: datetime, now: datetime
) -> Attempt:
    """The attempt of a claim that nobody will record any more. It went on until the end of its lease, at the latest."""
    outcome = Outcome(state="deferred", cause="outcome_unknown", enhanced="4.4.2", reason=ABANDONED)
    addresses = tuple(recipients)
    return Attempt(
        started_at=started_at,
        duration=max(min(now, lease_until) - started_at, timedelta(0)),
        recipients=addresses,
        destination=destination,
        outcome=dict.fromkeys(addresses, outcome),
    )


def abandoned_result(now: datetime, *, is_cancelled: bool) -> Deferred | Failed:
    """The result of a recipient whose attempt was abandoned: it is attempted again, if it still is to be."""
    if is_cancelled:
        return cancelled(now)
    return Deferred(cause="outcome_unknown", enhanced="4.4.2", reason=ABANDONED, next_attempt_at=now)


def set_aside(now: datetime, trouble: str) -> Failed:
    """The result of recipients whose message can't be read from the store any more."""
    return Failed(
        cause="local",
        enhanced="5.3.0",
        reason=f"the stored message is damaged and was set aside: {trouble}",
        failed_at=now,
    )


def shown(result: DeliveryResult, due_at: datetime | None) -> DeliveryResult:
    """A result with the next attempt as it is planned now, which may be hastened or postponed since.

    Args:
        result: As recorded.
        due_at: When the delivery is due; None if it is claimed or finished.
    """
    if result.state != "deferred" or due_at is None or result.next_attempt_at == due_at:
        return result
    return result.model_copy(update={"next_attempt_at": due_at})
