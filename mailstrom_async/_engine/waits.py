"""Which sessions wait for their host, and which of them have done so for long."""

import asyncio
from collections.abc import Callable, Hashable

SLOW = 2.0
"""Seconds after which a host that we wait for is slow: its connection is then not counted, so that another site can
have one."""


class Waits:
    """Counts the slow ones, at most so many as told.

    One timer looks after all of them: one for each wait would cost as much as the rest of a small mail's way.
    """

    def __init__(self, most_slow: int, on_slow: Callable[[], None]) -> None:
        """
        Args:
            most_slow: How many may count as slow at a time.
            on_slow: Called when there are more of them than before.
        """
        self.most_slow = most_slow
        self._on_slow = on_slow
        self._since: dict[Hashable, float] = {}
        self._slow: set[Hashable] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def slow(self) -> int:
        return len(self._slow)

    def begin(self, who: Hashable) -> None:
        """Somebody waits for a host, until the `end` of it."""
        self._since[who] = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(SLOW / 4, self._look)

    def end(self, who: Hashable) -> None:
        if self._since.pop(who, None) is None:
            self._slow.discard(who)

    def _look(self) -> None:
        self._timer = self._loop.call_later(SLOW / 4, self._look) if self._since or self._slow else None
        before = len(self._slow)
        for who, since in list(self._since.items()):  # in the order of their begin
            if since > self._loop.time() - SLOW or len(self._slow) >= self.most_slow:
                break
            del self._since[who]
            self._slow.add(who)
        if len(self._slow) > before:
            self._on_slow()
