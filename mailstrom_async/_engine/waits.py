"""Which sessions wait for their host, and which of them have done so for long."""

import asyncio
from collections.abc import Callable

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
        self._since: dict[Wait, float] = {}
        self._slow: set[Wait] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def slow(self) -> int:
        return len(self._slow)

    def begin(self, wait: "Wait") -> None:
        self._since[wait] = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(SLOW / 4, self._look)

    def end(self, wait: "Wait") -> None:
        if self._since.pop(wait, None) is None:
            self._slow.discard(wait)

    def _look(self) -> None:
        self._timer = self._loop.call_later(SLOW / 4, self._look) if self._since or self._slow else None
        before = len(self._slow)
        for wait, since in list(self._since.items()):  # in the order of their begin
            if since > self._loop.time() - SLOW or len(self._slow) >= self.most_slow:
                break
            del self._since[wait]
            self._slow.add(wait)
        if len(self._slow) > before:
            self._on_slow()


class Wait:
    """While a session waits for its host: `with Wait(waits): ...`"""

    __slots__ = ("_waits",)

    def __init__(self, waits: Waits) -> None:
        self._waits = waits

    def __enter__(self) -> None:
        self._waits.begin(self)

    def __exit__(self, *_: object) -> None:
        self._waits.end(self)
