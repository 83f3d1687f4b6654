"""What of a limit is ours, where several mailers deliver from one queue."""

import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Portion:
    """Of `count` mailers we are number `number`, from 0.

    If each of them keeps to its portion, all together keep to the limit; but for a limit that is smaller than their
    count: whoever delivers needs one connection.
    """

    number: int
    count: int

    def of(self, limit: int) -> int:
        """Our portion of what can be counted, at least 1. What does not divide goes to the first ones."""
        return max(1, limit // self.count + (self.number < limit % self.count))

    def of_rate(self, rate: float) -> float:
        """Our portion of so much in a time."""
        return rate / self.count


WHOLE = Portion(0, 1)
UNKNOWN = Portion(sys.maxsize, sys.maxsize)
"""As long as nobody has told how many we are: as little as can be."""
