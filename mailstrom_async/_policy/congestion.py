"""How much a site gets of us: feedback in the manner of Postfix's queue manager.

Every site has a window: how many sessions it may have. A message that is taken opens it by one. Trouble closes it by
half, once for each cohort: of the sessions that were under way at a time all may meet the same trouble, and it counts
once. When a whole cohort has met trouble and nothing was taken meanwhile, the site is dead: it is throttled as a whole,
and then probed with one message.

    taken    ──▶ window + 1, failures forgotten
    answered ──▶ failures forgotten
    busy     ──▶ window / 2, grows more slowly from then on
    broken   ──▶ as busy; dead, if it is the last of a cohort
    refused  ──▶ window = the sessions that stand, grows more slowly from then on
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from mailstrom_async._config import RetryPolicy
from mailstrom_async._policy.replies import CLOSING
from mailstrom_async._reply import Phase
from mailstrom_async._status import Outcome

FIRST_SESSIONS = 2
"""Sessions to a site that has not yet shown that it takes mail."""
CAUTION, MOST_ASKED = 4, 256
"""After each connection that a site refuses beside others, so many times more messages earn it the next one, at most:
a limit of the host (row A63) is tested ever more rarely."""
FEWEST_FAILURES = 2
"""In a row, until a site to which we get a connection counts as dead: one message alone may be what breaks it."""
FEW, SOON = 10, 10.0
"""A host that ends a session after fewer messages and seconds than these has enough of us. Others end one now and then,
or because it idled."""
REST, LONGEST_REST = 7, 1.0
"""Such a host is left alone so many times as long as the session lasted, so that we are there an eighth of the time;
but a second at most: longer sessions cost little, however often they are opened."""
FIRST_THROTTLE, LONGEST_THROTTLE = timedelta(seconds=30), timedelta(minutes=15)


class Signal(Enum):
    """What an attempt tells of the site."""

    TAKEN = "it took a message"
    ANSWERED = "it decided about recipients, and lives"
    BUSY = "it takes nothing just now"
    BROKEN = "it closed, fell silent, or talked nonsense"


_FROM_BAD_TO_WORSE = (Signal.ANSWERED, Signal.BUSY, Signal.BROKEN)


def signal_of(outcomes: Collection[Outcome]) -> Signal:
    """What the outcomes of an attempt tell of the site, rather than of the message."""
    for outcome in outcomes:
        if outcome.state == "delivered":
            return Signal.TAKEN
    return max((_signal(outcome) for outcome in outcomes), key=_FROM_BAD_TO_WORSE.index, default=Signal.ANSWERED)


def _signal(outcome: Outcome) -> Signal:
    if outcome.state != "deferred" or outcome.cause in ("local", "policy"):
        return Signal.ANSWERED
    if outcome.reply is None or outcome.reply.code == CLOSING:
        return Signal.BROKEN
    # A 4yz to RCPT is about the recipient: greylisting, a full mailbox. The others can be about nobody but the site.
    return Signal.ANSWERED if outcome.reply.command == Phase.RCPT else Signal.BUSY


@dataclass(slots=True)
class Window:
    """How many sessions a site may have.

    Attributes:
        most: The limit that is set.
        allowed: How many it may have now.
    """

    most: int
    allowed: int = FIRST_SESSIONS
    _asked: int = 1  # messages that the site must take before it gets a session more
    _taken: int = 0
    _failures: int = 0  # in a row
    _cohort: int = 0  # troubles still to come of those that were under way when the window was closed last

    @classmethod
    def of_probe(cls, most: int) -> "Window":
        """Of a site that was dead lately: one session, and the first trouble shows that it still is."""
        return cls(most, 1, _failures=FEWEST_FAILURES - 1)

    def __post_init__(self) -> None:
        self.allowed = max(1, min(self.allowed, self.most))

    def heed(self, signal: Signal) -> bool:
        """Learn from an attempt. Whether the site is dead."""
        if signal is Signal.TAKEN:
            self._failures = 0
            self._taken += 1
            if self._taken >= self._asked:
                self._taken = 0
                if self.allowed < self.most:
                    self.allowed += 1
        elif signal is Signal.ANSWERED:
            self._failures = 0
        else:
            return self._suffer(broken=signal is Signal.BROKEN)
        return False

    def refuse(self, sessions: int) -> None:
        """A connection was refused while so many others stood, or were being opened."""
        self.allowed = max(1, sessions)
        self._asked, self._taken = min(CAUTION * self._asked, MOST_ASKED), 0

    def shown_out(self, carried: int, lasted: float) -> float:
        """The host ended a session rather than take another message on it. If that was soon, it is busy, and the next
        session comes after a rest, or we would do little else than open them.

        Args:
            carried: Messages that the session carried.
            lasted: Its seconds.

        Returns:
            The seconds of the rest.
        """
        if carried >= FEW or lasted >= SOON:
            return 0.0
        self._suffer(broken=False)
        return min(REST * lasted, LONGEST_REST)

    def _suffer(self, *, broken: bool) -> bool:
        self._failures += broken
        if self._cohort > 0:
            self._cohort -= 1
        else:
            self._cohort = self.allowed - 1
            self.allowed = max(1, self.allowed // 2)
            # One that lives but is in trouble again and again grows more slowly each time, and ends with one session.
            self._asked, self._taken = min(2 * self._asked, MOST_ASKED), 0
        return broken and not self._cohort and self._failures >= FEWEST_FAILURES


def throttled_for(failures: int, retry: RetryPolicy, chance: float) -> timedelta:
    """How long a dead site is left alone after so many failed probes in a row.

    The first time shorter than any retry: most of what looks dead is only restarted. Give or take the jitter of
    retries, so that sites which died together are not probed together.

    Args:
        failures: At least 1.
        retry: The schedule of retries.
        chance: A random number in [0, 1).
    """
    first = min(retry.base_delay / 2, FIRST_THROTTLE)
    span = min(first * (1 << min(failures - 1, 20)), LONGEST_THROTTLE)
    return span * (1 + retry.jitter * (2 * chance - 1))


def held_back_until(now: datetime, probe_at: datetime, queued_at: datetime, longest: timedelta) -> datetime:
    """When a delivery for a throttled site is looked at again: when the site is probed, but the older it is, the more
    rarely, so that a backlog for a host that is down for days costs little; a quarter of its age later at most, and
    after the `longest` time between two attempts."""
    return max(probe_at, now + min((now - queued_at) / 4, longest))
