"""Tells whoever listens what was recorded."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterable
from contextlib import contextmanager

from mailstrom_async._events import Event, EventsLost

BACKLOG = 10_000
"""Events kept for one reader that does not come to read them; beyond, the oldest are dropped and counted."""


class Subscription:
    """One reader's events, in the order of their recording."""

    def __init__(self, types: tuple[type[Event], ...]) -> None:
        self._types = types
        self._events: deque[Event] = deque()
        self._lost = 0
        self._ready = asyncio.Event()
        self._ended = False

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return EventsLost(count=lost)
        return self._events.popleft()

    def wants(self, kind: type[Event]) -> bool:
        return not self._types or issubclass(kind, self._types)

    def offer(self, event: Event) -> None:
        if self._types and not isinstance(event, self._types):
            return
        if len(self._events) >= BACKLOG:
            self._events.popleft()
            self._lost += 1
        if not self._events:  # else the reader is not waiting
            self._ready.set()
        self._events.append(event)

    def end(self) -> None:
        """No more events: the reader gets what is left, and its loop ends."""
        self._ended = True
        self._ready.set()


class Broadcast:
    """The readers of events, and those who wait for one message.

    Publishing never waits for anybody: a slow reader loses events, never slows delivery.

    Attributes:
        wanted: The types of events that somebody reads: many an event need not even be made.
    """

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self.wanted: frozenset[type[Event]] = frozenset()
        self._watchers: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def subscribe(self, types: tuple[type[Event], ...]) -> Generator[Subscription]:
        subscription = Subscription(types)
        self._subscriptions.add(subscription)
        self._ask()
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            self._ask()
            subscription.end()

    def _ask(self) -> None:
        """Whoever reads `Event` reads all that derive from it."""
        self.wanted = frozenset(
            kind for kind in Event.__subclasses__() if any(reader.wants(kind) for reader in self._subscriptions)
        )

    @contextmanager
    def watch(self, message_id: str) -> Generator[asyncio.Event]:
        """An event that is set whenever something of the message was recorded; whoever waits clears it."""
        changed = asyncio.Event()
        watchers = self._watchers.setdefault(message_id, set())
        watchers.add(changed)
        try:
            yield changed
        finally:
            watchers.discard(changed)
            if not watchers and self._watchers.get(message_id) is watchers:
                del self._watchers[message_id]

    def wants(self, kind: type[Event]) -> bool:
        """Whether somebody reads events of this type."""
        return kind in self.wanted

    def publish(self, events: Iterable[Event]) -> None:
        for event in events:
            for subscription in self._subscriptions:
                subscription.offer(event)

    def touch(self, message_id: str) -> None:
        """Something was recorded of this message."""
        for changed in self._watchers.get(message_id, ()):
            changed.set()

    def end(self) -> None:
        """Nothing more will be recorded: readers finish, waiters look a last time."""
        for subscription in self._subscriptions:
            subscription.end()
        for watchers in self._watchers.values():
            for changed in watchers:
                changed.set()
