"""Which sites are dead for the moment, and when each of them is probed."""

from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime
from random import Random

from mailstrom_async._config import RetryPolicy
from mailstrom_async._engine.attempt import Contact
from mailstrom_async._policy.congestion import LONGEST_THROTTLE, throttled_for
from mailstrom_async._status import Outcome, SiteStatus

SiteKey = Hashable


@dataclass(frozen=True, slots=True)
class Throttle:
    """A site is left alone from `since` to `until`; then one message probes it.

    Attributes:
        began: When the first of the `failures` was.
        failures: Probes that failed, in a row.
        why: What the last one came to.
        contact: With whom.
        hosts: The site's.
        destination: One that leads to it.
    """

    began: datetime
    since: datetime
    until: datetime
    failures: int
    why: Outcome
    contact: Contact
    hosts: tuple[str, ...]
    destination: str

    def holds(self, now: datetime) -> bool:
        # A clock that was set back must not make it hold for longer.
        return self.since <= now < self.until

    def status(self) -> SiteStatus:
        """How it goes with a site of which nothing else is known."""
        return SiteStatus(
            hosts=self.hosts,
            destinations=(self.destination,),
            connections=0,
            connections_allowed=1,
            waiting=0,
            throttled_until=self.until,
            reason=self.why.reason,
            last_reply=self.why.reply,
        )

    def is_forgotten(self, now: datetime) -> bool:
        """Nobody has probed the site for long: there is no mail for it."""
        return not self.since <= now < self.until + 2 * LONGEST_THROTTLE


class Throttles:
    """The throttles in force, and those of sites that are to be probed."""

    def __init__(self, retry: RetryPolicy, chance: Random) -> None:
        self._retry = retry
        self._chance = chance
        self._throttles: dict[SiteKey, Throttle] = {}

    def __contains__(self, key: SiteKey) -> bool:
        return key in self._throttles

    def all(self, now: datetime) -> dict[SiteKey, Throttle]:
        """Those that hold."""
        return {key: throttle for key, throttle in self._throttles.items() if throttle.holds(now)}

    def of(self, key: SiteKey, now: datetime) -> Throttle | None:
        """The throttle of a site, if it holds."""
        throttle = self._throttles.get(key)
        return throttle if throttle is not None and throttle.holds(now) else None

    def dead(
        self, key: SiteKey, now: datetime, why: Outcome, contact: Contact, hosts: tuple[str, ...], destination: str
    ) -> Throttle:
        """A site turned out to be dead, or still to be: it is left alone, longer each time."""
        before = self._throttles.pop(key, None)
        self._tidy(now)
        # Our own trouble (no file descriptors, say) is not the site's.
        failures = 1 if before is None or why.cause == "local" else before.failures + 1
        began = now if before is None or now < before.began else before.began
        until = now + throttled_for(failures, self._retry, self._chance.random())
        throttle = self._throttles[key] = Throttle(began, now, until, failures, why, contact, hosts, destination)
        return throttle

    def lift(self, key: SiteKey) -> None:
        """A site lives."""
        self._throttles.pop(key, None)

    def lift_all(self) -> None:
        """Somebody wants attempts now."""
        self._throttles.clear()

    def _tidy(self, now: datetime) -> None:
        """The oldest ones come first, and are looked at until one is not to be forgotten."""
        while self._throttles:
            key, throttle = next(iter(self._throttles.items()))
            if not throttle.is_forgotten(now):
                return
            del self._throttles[key]
