"""A token bucket: so many messages in so much time."""

from collections.abc import Container, Hashable
from datetime import datetime, timedelta

from mailstrom_async._config import Rate
from mailstrom_async._policy.limits import SiteLimits

A_SECOND = timedelta(seconds=1)
TIDY_AT = 256


class Bucket:
    """Holds up to `burst` tokens, and gets one more each `per / messages`. A message takes one out.

    It knows only when it will be full again, exact to the microsecond: a sum of small additions would drift. A clock
    that is set back moves that time with it; one that jumps ahead can do no more than fill it.
    """

    def __init__(self, rate: Rate, now: datetime) -> None:
        # Whole microseconds, rounded up: rather a little slower than faster than what a receiver allows.
        self._each = timedelta(microseconds=max(1, -(-(rate.per // timedelta(microseconds=1)) // rate.messages)))
        self.burst = rate.burst if rate.burst is not None else max(1, int(rate.messages * (A_SECOND / rate.per)))
        self._full_at = self._seen_at = now

    def left(self, now: datetime) -> int:
        """How many messages may go now."""
        return max(0, self.burst - -(-self._lacking(now) // self._each))

    def take(self, now: datetime, count: int = 1) -> None:
        """Take tokens out. More than are in is a debt: nothing goes until it is paid."""
        self._full_at = now + self._lacking(now) + count * self._each

    def give_back(self, count: int = 1) -> None:
        """What was taken out was not used."""
        self._full_at -= count * self._each

    def ready_at(self, now: datetime) -> datetime:
        """When the next message may go; `now`, if it may."""
        return now + max(timedelta(0), self._lacking(now) - (self.burst - 1) * self._each)

    def is_full(self, now: datetime) -> bool:
        """Nothing would be lost if it were forgotten."""
        return not self._lacking(now)

    def _lacking(self, now: datetime) -> timedelta:
        """How long it takes until it is full."""
        if now < self._seen_at:
            self._full_at -= self._seen_at - now
        self._seen_at = now
        return max(self._full_at - now, timedelta(0))


class Buckets:
    """The buckets in use: one for each site that has a rate, or one for all the sites of an entry in the settings."""

    def __init__(self) -> None:
        self._own: dict[Hashable, Bucket] = {}
        self._shared: dict[int, Bucket] = {}
        self._tidy_at = TIDY_AT

    def __len__(self) -> int:
        return len(self._own) + len(self._shared)

    def of(self, key: Hashable, limits: SiteLimits, now: datetime, in_use: Container[Hashable]) -> Bucket | None:
        """The bucket of a site; None: it has no rate.

        Args:
            key: The site's.
            limits: What holds for it.
            now: The time.
            in_use: The keys of sites whose buckets must stay. Others are forgotten now and then, if they are full: a
                full one is as good as a new one.
        """
        if limits.rate is None:
            return None
        if limits.rate_of is not None:
            return self._shared.setdefault(limits.rate_of, Bucket(limits.rate, now))
        if len(self._own) >= self._tidy_at:
            self._own = {other: held for other, held in self._own.items() if other in in_use or not held.is_full(now)}
            self._tidy_at = max(TIDY_AT, 2 * len(self._own))
        return self._own.setdefault(key, Bucket(limits.rate, now))
