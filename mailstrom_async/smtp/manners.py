"""How much at once a host can take, as far as it has shown that it can't take all that it offers."""

from collections import OrderedDict
from collections.abc import Hashable
from enum import IntEnum

LASTS = 900.0
"""Seconds until a host is tried with more again. It may have been the line that broke, and not the host's manners."""
REMEMBERED = 10_000
"""Hosts; of more, those are forgotten that were slow the longest time ago."""


class Manner(IntEnum):
    """How commands are sent; each asks more of the server than the one before it."""

    ONE_BY_ONE = 0
    """Each waits for the reply to the one before it: four round trips for a message."""
    GROUPED = 1
    """MAIL, RCPT and DATA go together (RFC 2920): two."""
    AHEAD = 2
    """The next group goes with the end of the content before: one."""
    STREAMED = 3
    """Several messages are on their way at once, by BDAT (RFC 3030)."""


class Manners:
    """Remembers which hosts broke off, or answered out of step, when they were sent much at once."""

    def __init__(self) -> None:
        self._most: OrderedDict[Hashable, tuple[Manner, float]] = OrderedDict()

    def of(self, host: Hashable, now: float) -> Manner:
        """The most that may be sent to a host at once."""
        most, until = self._most.get(host, (Manner.STREAMED, now))
        return most if now < until else Manner.STREAMED

    def too_much(self, host: Hashable, manner: Manner, now: float) -> None:
        """What was sent in this manner went wrong: for some time less is sent at once."""
        if manner is Manner.ONE_BY_ONE:
            return
        self._most[host] = min(Manner(manner - 1), self.of(host, now)), now + LASTS
        self._most.move_to_end(host)
        while len(self._most) > REMEMBERED:
            self._most.popitem(last=False)
