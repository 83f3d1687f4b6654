"""The time, as the queue sees it."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Protocol

LONGEST_SLEEP = timedelta(seconds=60)


class Clock(Protocol):
    """**Protocol:** tells the time and waits for it. Tests put a clock here that they move by hand.

    Network timeouts do not use it: they measure what really passes.
    """

    def now(self) -> datetime:
        """The current time, aware, in UTC."""
        ...

    async def wait(self, wake: asyncio.Event, until: datetime | None) -> None:
        """Return once `wake` is set or `until` is reached; with None only then when it is set.

        May return earlier: whoever waits looks again. Never clears `wake`.
        """
        ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def wait(self, wake: asyncio.Event, until: datetime | None) -> None:
        # The wall clock may be set while we sleep on the monotonic one, so no sleep is long.
        span = LONGEST_SLEEP if until is None else min(until - self.now(), LONGEST_SLEEP)
        if span <= timedelta(0) or wake.is_set():
            return
        try:
            async with asyncio.timeout(span.total_seconds()):
                await wake.wait()
        except TimeoutError:
            return
