"""The token bucket."""

import sys
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from mailstrom_async import Limits, LimitsFor, Rate
from mailstrom_async._policy.bucket import TIDY_AT, Bucket, Buckets
from mailstrom_async._policy.limits import site_limits

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)

rates = st.builds(
    Rate,
    messages=st.integers(1, 10_000),
    per=st.timedeltas(timedelta(milliseconds=1), timedelta(days=1)),
    burst=st.none() | st.integers(1, 50),
)


def emptied(rate: Rate) -> Bucket:
    bucket = Bucket(rate, NOW)
    bucket.take(NOW, bucket.burst)
    return bucket


def test_a_burst_goes_at_once_and_then_one_after_another():
    """Three at once, and one each 20 seconds."""
    bucket = Bucket(Rate(messages=3, per=timedelta(minutes=1), burst=3), NOW)
    for _ in range(3):
        assert bucket.ready_at(NOW) == NOW
        bucket.take(NOW)

    assert bucket.left(NOW) == 0
    assert bucket.ready_at(NOW) == NOW + 20 * SECOND
    assert bucket.left(NOW + 20 * SECOND) == 1
    assert bucket.left(NOW + 59 * SECOND) == 2


def test_by_default_the_burst_is_what_a_second_brings_and_at_least_one():
    """An even flow, but no timer for each of a thousand messages."""
    assert Bucket(Rate(messages=100, per=timedelta(minutes=1)), NOW).burst == 1
    assert Bucket(Rate(messages=600, per=timedelta(minutes=1)), NOW).burst == 10


def test_a_debt_is_paid_before_anything_more_goes():
    """A message of five transactions goes when there is one token, and then five times as long nothing does."""
    bucket = Bucket(Rate(messages=1), NOW)
    bucket.take(NOW, 5)

    assert bucket.ready_at(NOW) == NOW + 5 * SECOND
    assert bucket.left(NOW + 4.9 * SECOND) == 0


def test_what_is_given_back_was_never_taken():
    """A message that could not go costs nothing."""
    bucket = emptied(Rate(messages=1))
    bucket.give_back()

    assert bucket.left(NOW) == 1


def test_a_clock_that_is_set_back_lets_nobody_wait_a_day():
    """It goes on as it was, at the new time."""
    bucket = emptied(Rate(messages=1))
    yesterday = NOW - timedelta(days=1)

    assert bucket.ready_at(yesterday) == yesterday + SECOND
    assert bucket.left(yesterday) == 0


@given(rates, st.lists(st.timedeltas(timedelta(0), timedelta(hours=1)), max_size=100))
def test_in_any_window_no_more_go_than_the_burst_and_what_the_rate_gives(rate, pauses):
    """Whoever takes whenever he may, in however odd a rhythm."""
    bucket = Bucket(rate, NOW)
    now = NOW
    gone: list[datetime] = []
    for pause in pauses:
        now += pause
        if bucket.ready_at(now) <= now:
            bucket.take(now)
            gone.append(now)

    for first, begin in enumerate(gone):
        for last in range(first, len(gone)):
            allowed = bucket.burst + (gone[last] - begin) * rate.messages / rate.per
            assert last - first + 1 <= allowed + 1e-6


@given(rates)
def test_there_is_no_drift(rate):
    """A thousand messages, each as soon as it may go, take as long as the rate says: to the microsecond for each."""
    bucket = emptied(rate)
    now = NOW
    for _ in range(1_000):
        now = bucket.ready_at(now)
        bucket.take(now)

    exact = 1_000 * rate.per / rate.messages
    assert timedelta(0) <= now - NOW - exact + MICROSECOND <= 1_001 * MICROSECOND


@given(rates, st.lists(st.timedeltas(-timedelta(days=1), timedelta(minutes=1)), max_size=100))
def test_a_clock_that_jumps_back_gives_no_tokens(rate, steps):
    """What goes is bounded by the time that went forward."""
    bucket = emptied(rate)
    now, forward, gone = NOW, timedelta(0), 0
    for step in steps:
        now += step
        forward += max(step, timedelta(0))
        if bucket.left(now):
            bucket.take(now)
            gone += 1

    assert gone <= forward * rate.messages / rate.per + 1e-6


def test_a_rate_that_is_shared_is_divided():
    """Four mailers that deliver from one queue keep to the rate together."""
    limits = site_limits(Limits(rate=Rate(messages=20)), "a.example", [])
    buckets = Buckets()
    bucket = buckets.of("a", limits, NOW, {})
    buckets.share(0.25, NOW)

    assert bucket.left(NOW) == 0
    assert bucket.ready_at(NOW) == NOW + 0.2 * SECOND
    assert bucket.left(NOW + 9 * SECOND) == 5
    assert buckets.of("b", limits, NOW, {}).burst == 5


def test_a_rate_that_is_shared_with_nobody_knows_how_many_still_moves():
    """Whoever begins to deliver waits until the others have been counted."""
    buckets = Buckets()
    buckets.share(1 / sys.maxsize, NOW)
    bucket = buckets.of("a", site_limits(Limits(rate=Rate(messages=20)), "a.example", []), NOW, {})
    bucket.take(NOW)
    assert bucket.ready_at(NOW) == NOW + timedelta(days=1)
    buckets.share(1.0, NOW)

    assert bucket.ready_at(NOW) == NOW + 0.05 * SECOND


def test_sites_of_one_entry_share_its_bucket_and_others_have_their_own():
    """A provider counts all that comes from us, at whichever of its hosts."""
    limits = Limits(rate=Rate(messages=1), overrides=[LimitsFor(mx="*.example.com", rate=Rate(messages=9))])
    buckets = Buckets()
    shared = site_limits(limits, "a.example", ["mx.example.com"])
    own = site_limits(limits, "b.example", ["mx.b.example"])

    assert buckets.of("one", shared, NOW, {}) is buckets.of("two", shared, NOW, {})
    assert buckets.of("one", own, NOW, {}) is not buckets.of("two", own, NOW, {})
    assert buckets.of("one", site_limits(Limits(), "a.example", []), NOW, {}) is None


def test_full_buckets_of_sites_that_are_gone_are_forgotten():
    """Row E5: nothing is kept for each domain. One that is not full, or in use, stays."""
    limits = site_limits(Limits(rate=Rate(messages=1)), "a.example", [])
    buckets = Buckets()
    buckets.of("in use", limits, NOW, {})
    empty = buckets.of("empty", limits, NOW, {})
    empty.take(NOW)
    for number in range(10 * TIDY_AT):
        buckets.of(number, limits, NOW, {"in use"})

    assert len(buckets) <= TIDY_AT
    assert buckets.of("empty", limits, NOW, {}) is empty


def test_a_rate_beyond_all_measure_is_a_rate():
    """Whoever means no limit by it gets next to none, and no error in the midst of delivery."""
    bucket = Bucket(Rate(messages=10**15, per=timedelta(seconds=1)), NOW)

    assert bucket.left(NOW) > 0
