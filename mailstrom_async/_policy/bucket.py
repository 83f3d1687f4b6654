"""A token bucket: so many messages in so much time."""

import math
from collections.abc import Container, Hashable
from datetime import datetime, timedelta

from mailstrom_async._config import Rate
from mailstrom_async._policy.limits import SiteLimits

A_SECOND, A_MICROSECOND = timedelta(seconds=1), timedelta(microseconds=1)
LONGEST = timedelta(days=1)
"""Between two messages, if we share the rate with so many that hardly anything is left for us."""
TIDY_AT = 256


class Bucket:
    """Holds up to `burst` tokens, and gets one more each `per / messages`. A message takes one out.

    It knows only when it will be full again, exact to the microsecond: a sum of small additions would drift. A clock
    that is set back moves that time with it; one that jumps ahead can do no more than fill it.
    """

    def __init__(self, rate: Rate, now: datetime, part: float = 1.0) -> None:
        """
        Args:
            rate: What is set.
            now: When it begins, full.
            part: How much of the rate is ours.
        """
        self._rate = rate
        self._full_at = self._seen_at = now
        self.burst, self._each = _divided(rate, part)

    def share(self, part: float, now: datetime) -> None:
        """Only this part of the rate is ours from now on. It goes on empty."""
        self.burst, self._each = _divided(self._rate, part)
        self._full_at, self._seen_at = now + self.burst * self._each, now

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


def _divided(rate: Rate, part: float) -> tuple[int, timedelta]:
    """The burst, and the time for each message.

    In whole microseconds, rounded up: rather a little slower than faster than what a receiver allows.
    """
    each = min(rate.per / A_MICROSECOND / rate.messages / part, LONGEST / A_MICROSECOND)
    burst = rate.burst if rate.burst is not None else int(rate.messages * (A_SECOND / rate.per))
    return max(1, int(burst * part)), max(1, math.ceil(each - 1e-6)) * A_MICROSECOND


class Buckets:
    """The buckets in use: one for each site that has a rate, or one for all the sites of an entry in the settings."""

    def __init__(self) -> None:
        self._own: dict[Hashable, Bucket] = {}
        self._shared: dict[int, Bucket] = {}
        self._tidy_at = TIDY_AT
        self._part = 1.0

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
            return self._shared.setdefault(limits.rate_of, Bucket(limits.rate, now, self._part))
        if len(self._own) >= self._tidy_at:
            self._own = {other: held for other, held in self._own.items() if other in in_use or not held.is_full(now)}
            self._tidy_at = max(TIDY_AT, 2 * len(self._own))
        return self._own.setdefault(key, Bucket(limits.rate, now, self._part))

    def share(self, part: float, now: datetime) -> None:
        """Only this part of each rate is ours: others deliver from the same queue."""
        if part != self._part:
            self._part = part
            for bucket in [*self._own.values(), *self._shared.values()]:
                bucket.share(part, now)
