"""When to try again."""

from datetime import datetime, timedelta

from mailstrom_async._config import RetryPolicy
from mailstrom_async._envelope import Delivery

LIFETIME = timedelta(days=36_500)
"""Of a person: dates that are later may not exist."""


SKEW = timedelta(seconds=10)
"""By so much the clock of another machine may be ahead: what it has just accepted is no sign of a clock set back."""


def next_due(policy: RetryPolicy, *, attempt: int, now: datetime, expires_at: datetime, chance: float) -> datetime:
    """When a delivery is attempted again that was deferred (RFC 5321 section 4.5.4.1).

    Args:
        policy: The schedule.
        attempt: The number of the attempt that was just deferred, from 1: the first retry waits base_delay * factor.
        now: When it was deferred.
        expires_at: The end of the message's lifetime; nothing waits beyond it.
        chance: A random number in [0, 1).
    """
    # A huge exponent overflows a float, and a huge delay a date, long before they mean anything.
    growth = min(policy.factor ** min(attempt, 64), policy.max_delay / policy.base_delay)
    growth *= 1 + policy.jitter * (2 * chance - 1)
    left = max(expires_at - now, timedelta(0))
    return now + (left if growth >= left / policy.base_delay else policy.base_delay * growth)


def longest_wait(policy: RetryPolicy) -> timedelta:
    """No retry waits longer. What seems to was planned before the clock was set back (row C16)."""
    return min(policy.max_delay, LIFETIME) * (1 + policy.jitter)


def due_after_setback(
    due_at: datetime, *, queued_at: datetime, attempted: bool, now: datetime, longest: timedelta
) -> datetime:
    """When a waiting delivery is due, after the clock may have been set back.

    What was due when it was accepted is due now. A retry waits no longer than any may; those that would all wait too
    long are spread over that time, not brought together. What the caller wants to have sent later keeps its time.
    """
    if not attempted:
        return now if due_at == queued_at and due_at > now + SKEW else due_at
    return due_at if due_at <= now + longest else now + (due_at - now) % longest


def has_expired(delivery: Delivery, now: datetime, lifetime: timedelta) -> bool:
    """Whether the delivery's time is over, so that it is failed rather than attempted.

    Nothing expires that was never attempted, however long the process was down or wherever the clock jumped; but for
    what was given less time than `lifetime`, the usual one: its sender said that it is worthless afterwards.
    """
    message = delivery.message
    if now < message.expires_at:
        return False
    return message.expires_at - message.queued_at < lifetime or all(one.attempts > 0 for one in delivery.recipients)
