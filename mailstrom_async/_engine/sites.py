"""Where claimed deliveries go: their routes are found, and each site's sessions carry them."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from anyio.abc import TaskGroup

from mailstrom_async._config import Config
from mailstrom_async._engine.attempt import Unreachable
from mailstrom_async._engine.health import Health
from mailstrom_async._engine.routing import Router
from mailstrom_async._engine.settlement import Settlement
from mailstrom_async._engine.site import Site, SiteKey
from mailstrom_async._engine.waits import Wait, Waits
from mailstrom_async._envelope import Delivery
from mailstrom_async._policy.hosts import Route
from mailstrom_async._policy.verdict import judge_breakdown
from mailstrom_async._queue.portion import WHOLE, Portion
from mailstrom_async._reply import Phase
from mailstrom_async._status import Outcome
from mailstrom_async.smtp.base import Connector

logger = logging.getLogger("mailstrom_async")

LONGEST_SUSPENSION = timedelta(seconds=30)


class _Suspension(NamedTuple):
    since: datetime
    until: datetime
    why: Unreachable

    def holds(self, now: datetime) -> bool:
        # A clock that was set back must not make it hold for longer.
        return self.since <= now < self.until


class Sites:
    """All sites that have something to do, and the connections that they share.

    A site exists while deliveries wait there or sessions are open; nothing is kept for each domain afterwards.
    """

    def __init__(
        self,
        config: Config,
        router: Router,
        connector: Connector,
        settlement: Settlement,
        health: Health,
        group: TaskGroup,
        is_lost: Callable[[Delivery], bool],
    ) -> None:
        self.config = config
        self.router = router
        self.connector = connector
        self.settlement = settlement
        self._health = health
        self._group = group
        self.is_lost = is_lost
        self._sites: dict[SiteKey, Site] = {}
        self._wanting: OrderedDict[SiteKey, None] = OrderedDict()
        self._sessions = 0
        # As many connections as are allowed may wait for slow hosts, besides those that do not.
        self._waits = Waits(config.limits.connections, self._serve)
        self.portion = WHOLE
        self.surplus = 0  # sessions that are to end, because others came to share the limits
        self._routing: dict[str, list[Delivery]] = {}
        self._suspended: dict[SiteKey, _Suspension] = {}
        self.closed = False
        self.on_drained: Callable[[], None] | None = None

    def assign(self, deliveries: Sequence[Delivery]) -> None:
        """Take claimed deliveries over."""
        by_destination: dict[str, list[Delivery]] = {}
        for delivery in deliveries:
            by_destination.setdefault(delivery.destination, []).append(delivery)
        for destination, own in by_destination.items():
            if destination in self._routing:
                self._routing[destination] += own
                continue
            route = self.router.cached(destination)
            if route is not None:
                self._assign_routed(own, route)
            else:
                self._routing[destination] = own
                self._group.start_soon(self._find_route, destination)

    def withdraw(self) -> None:
        """Forget what waits and was not attempted, its claims are given back; nothing more is begun."""
        self.closed = True
        self._routing.clear()
        for site in list(self._sites.values()):
            site.withdraw()

    @property
    def busy(self) -> bool:
        """A session is open that carries something."""
        return any(site.busy for site in self._sites.values())

    def want_session(self, site: Site) -> None:
        """A site has more work than sessions: it gets one as soon as a connection is free."""
        self._wanting[site.key] = None
        self._serve()

    def waiting_for_host(self) -> Wait:
        """While a session waits for its host: if that takes long, others do not wait with it."""
        return Wait(self._waits)

    @property
    def connections(self) -> int:
        """How many sessions there may be now, besides slow ones."""
        return self.portion.of(self.config.limits.connections)

    def share(self, portion: Portion) -> None:
        """This is our portion of the limits from now on."""
        self.portion = portion
        self._waits.most_slow = self.connections
        self.surplus = max(0, self._sessions - self.connections - min(self._waits.slow, self.connections))
        for site in self._sites.values():
            site.adapt()
        for _ in range(self.surplus):
            any(site.dismiss_idle() for site in self._sites.values())
        self._serve()

    @property
    def crowded(self) -> bool:
        """Another site waits for a connection."""
        return bool(self._wanting)

    def suspend(self, key: SiteKey, why: Unreachable) -> None:
        """No session can be had with a site. What comes for it in the next moments is deferred with what was just
        learned, so that a backlog for a dead host costs one connection now and then rather than one for each mail.

        Shorter than any retry, so that each of these is an attempt of its own.
        """
        now = self.settlement.now()
        self._suspended = {other: held for other, held in self._suspended.items() if held.holds(now)}
        self._suspended[key] = _Suspension(now, now + min(self.config.retry.base_delay / 2, LONGEST_SUSPENSION), why)

    def resume(self) -> None:
        """Somebody asked for attempts now: forget which sites were out of reach."""
        self._suspended.clear()

    def relay_trouble(self, trouble: str | None) -> None:
        """The relay refuses our login, or does no more: a fault of the settings, which hits all mail."""
        self._health.report("relay", trouble)

    def session_parts(self) -> None:
        """One carries nothing any more."""
        self.surplus = max(0, self.surplus - 1)

    def session_ended(self, site: Site) -> None:
        self._sessions -= 1
        if site.forgettable and self._sites.get(site.key) is site:
            del self._sites[site.key]
        if self.on_drained is not None and not self.busy:
            self.on_drained()
        self._serve()

    def _serve(self) -> None:
        while self._wanting and not self.closed:
            if self._sessions - self._waits.slow >= self.connections:
                any(site.dismiss_idle() for site in self._sites.values())
                return
            key, _ = self._wanting.popitem(last=False)
            site = self._sites.get(key)
            if site is not None and site.wants_session:
                self._sessions += 1
                site.session_begins()
                self._group.start_soon(site.run_session)
                if site.wants_session:
                    self._wanting[key] = None

    async def _find_route(self, destination: str) -> None:
        try:
            route = await self.router.route(destination)
        except Exception as error:
            logger.exception("the route to %s could not be found", destination)
            route = judge_breakdown(Phase.CONNECT, "local", f"finding the route failed unexpectedly: {error!r}")
        # Cancelled, the deliveries stay in _routing and are withdrawn with the rest.
        self._assign_routed(self._routing.pop(destination, []), route)

    def _assign_routed(self, deliveries: Sequence[Delivery], route: Route | Outcome) -> None:
        if isinstance(route, Outcome):
            for delivery in deliveries:
                self.settlement.settle_all(delivery, route)
            return
        suspension = self._suspended.get(route.site)
        if suspension is not None and suspension.holds(self.settlement.now()):
            for delivery in deliveries:
                self.settlement.settle_all(delivery, suspension.why.outcome, contact=suspension.why.contact)
            return
        site = self._sites.get(route.site)
        if site is None:
            site = self._sites[route.site] = Site(route.site, self)
        for delivery in deliveries:
            site.assign(delivery, route)
