"""When a deferred delivery is attempted again, and when its time is over."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom_async._config import RetryPolicy
from mailstrom_async._envelope import Delivery, PendingRecipient, QueuedMessage
from mailstrom_async._queue.retry import SKEW, due_after_setback, has_expired, longest_wait, next_due

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NEVER = NOW + timedelta(days=10_000)
DAY = timedelta(days=1)


def delays(policy: RetryPolicy, attempts: int, chance: float = 0.5) -> list[timedelta]:
    return [
        next_due(policy, attempt=attempt, now=NOW, expires_at=NEVER, chance=chance) - NOW
        for attempt in range(1, attempts + 1)
    ]


def delivery(*attempts: int, expires_at: datetime = NOW) -> Delivery:
    message = QueuedMessage(1, "1", "", b"", False, False, NOW - DAY, expires_at)
    recipients = tuple(PendingRecipient(f"{n}@example.net", "deferred" if n else "queued", n) for n in attempts)
    return Delivery(1, "example.net", "one", 1, recipients, message)


def test_the_schedule_of_the_default_policy():
    """Three minutes, nine, twenty-seven, eighty-one, then every four hours. (RFC 5321 section 4.5.4.1)"""
    minutes = [delay / timedelta(minutes=1) for delay in delays(RetryPolicy(), 7)]

    assert minutes == pytest.approx([3, 9, 27, 81, 240, 240, 240])


def test_chance_moves_a_retry_by_the_jitter_at_most():
    """What was deferred together does not return together, and neither much sooner nor later than it should."""
    policy = RetryPolicy(jitter=0.2)
    lowest, highest = (delays(policy, 5, chance)[0] for chance in (0.0, 1 - 2**-53))

    assert lowest == timedelta(minutes=3) * 0.8
    assert timedelta(minutes=3) * 1.19 < highest <= timedelta(minutes=3) * 1.2


def test_nothing_waits_beyond_its_lifetime():
    """The last attempt is made when the time is over, not hours after that."""
    expires_at = NOW + timedelta(minutes=1)

    assert next_due(RetryPolicy(), attempt=9, now=NOW, expires_at=expires_at, chance=0.5) == expires_at
    assert next_due(RetryPolicy(), attempt=1, now=NOW + DAY, expires_at=expires_at, chance=0.5) == NOW + DAY


@pytest.mark.rule("C16", "clock back 1 day: retries count from what it shows")
def test_a_clock_that_was_set_back_makes_nobody_wait_a_day():
    """Row C16: the delay counts from what the clock shows now, whatever it showed before."""
    before = next_due(RetryPolicy(), attempt=1, now=NOW - DAY, expires_at=NOW + 5 * DAY, chance=0.5)

    assert before == NOW - DAY + timedelta(minutes=3)


@given(
    wait=st.timedeltas(timedelta(0), timedelta(days=400)),
    age=st.timedeltas(timedelta(0), timedelta(days=400)),
    longest=st.timedeltas(timedelta(seconds=1), timedelta(days=30)),
    attempted=st.booleans(),
)
def test_after_a_setback_nothing_waits_longer_than_the_schedule_allows(
    wait: timedelta, age: timedelta, longest: timedelta, attempted: bool
) -> None:
    """Row C16: but for what is to be sent later. Nothing is late by it, and nothing that was well is changed."""
    queued_at, due_at = NOW + wait - age, NOW + wait

    def again(due_at: datetime) -> datetime:
        return due_after_setback(due_at, queued_at=queued_at, attempted=attempted, now=NOW, longest=longest)

    new = again(due_at)
    if attempted:
        assert NOW <= new <= min(due_at, NOW + longest)
        assert new == due_at or due_at > NOW + longest
        assert again(new) == new
    else:
        assert new == (NOW if age == timedelta(0) and wait > SKEW else due_at)


@pytest.mark.parametrize("most", [timedelta(hours=4), timedelta.max])
def test_the_longest_wait_is_a_time_that_can_be_added(most: timedelta) -> None:
    """Whatever the policy says."""
    policy = RetryPolicy(max_delay=most, jitter=0.5)

    assert timedelta(hours=6) <= longest_wait(policy)
    assert NOW + longest_wait(policy) < datetime.max.replace(tzinfo=UTC)


@given(
    base=st.timedeltas(timedelta(microseconds=1), timedelta(days=100_000)),
    longest=st.timedeltas(timedelta(microseconds=1), timedelta.max),
    factor=st.floats(1, 100),
    jitter=st.floats(0, 1, exclude_max=True),
    attempt=st.integers(1, 2**63),
    lifetime=st.timedeltas(timedelta(days=-10_000), timedelta(days=2_900_000)),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_any_policy_gives_a_time_between_now_and_the_end(
    base: timedelta,
    longest: timedelta,
    factor: float,
    jitter: float,
    attempt: int,
    lifetime: timedelta,
    chance: float,
):
    """No exponent and no span is too large: an error here would end all delivery."""
    policy = RetryPolicy(base_delay=base, max_delay=longest, factor=factor, jitter=jitter)
    due = next_due(policy, attempt=attempt, now=NOW, expires_at=NOW + lifetime, chance=chance)

    assert NOW <= due <= max(NOW, NOW + lifetime)


def test_a_delivery_expires_at_the_end_of_its_lifetime():
    """Not before it."""
    assert has_expired(delivery(1, 3), NOW, DAY)
    assert not has_expired(delivery(1, 3, expires_at=NOW + timedelta(microseconds=1)), NOW, DAY)


@pytest.mark.rule("C17", "clock forward 10 days: nobody expires unattempted")
def test_nobody_expires_unattempted():
    """Row C17: not after ten days of standing still, and not by a clock that jumped."""
    assert not has_expired(delivery(0), NOW + 10 * DAY, DAY)
    assert not has_expired(delivery(1, 0), NOW + 10 * DAY, DAY)


def test_what_was_given_less_time_than_usual_expires_unattempted():
    """A login code: its sender said when it is worthless. Not before that."""
    assert has_expired(delivery(0), NOW, DAY + timedelta(microseconds=1))
    assert not has_expired(delivery(0), NOW - timedelta(microseconds=1), 5 * DAY)
