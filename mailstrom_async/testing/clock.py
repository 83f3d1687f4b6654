"""A clock that stands still until a test moves it."""

import asyncio
from datetime import UTC, datetime, timedelta

PATIENCE = timedelta(seconds=10)


class ManualClock:
    """A `Clock` that a test moves by hand, so that hours of retries take no time.

        clock = ManualClock()
        ...
        await clock.until_waiting()              # the queue sleeps until the retry is due
        clock.advance(timedelta(minutes=5))      # and now it is

    Network timeouts are not under its rule: they measure what really passes. Use it on one event loop only.

    Args:
        start: What it shows at first; aware. By default the 1st of January 2030, 12:00 UTC.
    """

    def __init__(self, start: datetime = datetime(2030, 1, 1, 12, tzinfo=UTC)) -> None:
        self._now = _in_utc(start)
        self._waiting: dict[asyncio.Timeout, datetime] = {}
        self._arrival = asyncio.Event()

    def __repr__(self) -> str:
        return f"<ManualClock {self._now.isoformat()}, waiting until {[d.isoformat() for d in self.deadlines]}>"

    def now(self) -> datetime:
        """What it shows."""
        return self._now

    @property
    def deadlines(self) -> tuple[datetime, ...]:
        """Until when others wait at this moment, the nearest first. Waits without an end are not among them."""
        return tuple(sorted(self._waiting.values()))

    async def wait(self, wake: asyncio.Event, until: datetime | None) -> None:
        """Return once `wake` is set, or the clock was moved to `until` or beyond."""
        if wake.is_set() or (until is not None and until <= self._now):
            return
        try:
            # The timeout has no time of its own: `set` makes it end.
            async with asyncio.timeout(None) as limit:
                if until is not None:
                    self._waiting[limit] = until
                    self._arrival.set()
                try:
                    await wake.wait()
                finally:
                    self._waiting.pop(limit, None)
        except TimeoutError:
            return

    def advance(self, span: timedelta) -> None:
        """Move the clock forward (or back, with a negative span) and wake those whose time has come.

        They run when the event loop next gets the word; `until_waiting` is a way to await that.
        """
        self.set(self._now + span)

    def set(self, to: datetime) -> None:
        """Set the clock and wake those whose time has come. The past is allowed: real clocks are set back, too."""
        self._now = _in_utc(to)
        due = [limit for limit, until in self._waiting.items() if until <= self._now]
        for limit in due:
            del self._waiting[limit]
            limit.reschedule(asyncio.get_running_loop().time())

    async def until_waiting(self, *, timeout: timedelta = PATIENCE) -> datetime:
        """Return once somebody waits for a later time; returns the nearest such deadline.

        Raises:
            TimeoutError: Nobody came within `timeout` of real time.
        """
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                while not self._waiting:
                    self._arrival.clear()
                    await self._arrival.wait()
        except TimeoutError:
            raise TimeoutError(f"nobody waited with a deadline on {self!r} within {timeout}") from None
        return min(self._waiting.values())


def _in_utc(time: datetime) -> datetime:
    if time.tzinfo is None:
        raise ValueError(f"{time!r} has no time zone; write datetime(2030, 1, 1, tzinfo=UTC)")
    return time.astimezone(UTC)
