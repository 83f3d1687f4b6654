"""Where claimed deliveries go: their routes are found, and each site's sessions carry them."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta
from random import Random

from anyio.abc import TaskGroup

from mailstrom_async._config import Config, RelayDelivery
from mailstrom_async._engine.attempt import Contact
from mailstrom_async._engine.carrier import Carrier
from mailstrom_async._engine.health import Health
from mailstrom_async._engine.routing import Router
from mailstrom_async._engine.settlement import Settlement
from mailstrom_async._engine.site import Site
from mailstrom_async._engine.throttles import SiteKey, Throttle, Throttles
from mailstrom_async._engine.upstream import Upstream
from mailstrom_async._engine.waits import Waits
from mailstrom_async._envelope import Delivery, Lane
from mailstrom_async._policy.bucket import Buckets
from mailstrom_async._policy.hosts import Route
from mailstrom_async._policy.limits import own_entries, site_limits
from mailstrom_async._policy.verdict import judge_breakdown
from mailstrom_async._queue.lanes import Lanes, Room
from mailstrom_async._queue.portion import WHOLE, Portion
from mailstrom_async._queue.retry import has_expired
from mailstrom_async._reply import Phase
from mailstrom_async._status import Outcome, SiteStatus
from mailstrom_async.smtp.base import Connector

logger = logging.getLogger("mailstrom_async")

LAST_CHANCE = timedelta(hours=1)
"""So long after a site was found dead, mail fails there whose time is over, even if it was never attempted."""


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
        chance: Random,
        upstream: Upstream,
    ) -> None:
        self.config = config
        self.relayed = isinstance(config.delivery, RelayDelivery)
        self.router = router
        self.connector = connector
        self.settlement = settlement
        self._health = health
        self.group = group
        self.clock = settlement.clock
        self.wanted = upstream.wanted
        self._upstream = upstream
        self._sites: dict[SiteKey, Site] = {}
        self._wanting = Lanes[Site]()  # by the most urgent that waits there
        self.lanes_used = False
        self._sessions = 0
        # As many connections as are allowed may wait for slow hosts, besides those that do not.
        self.waits = Waits(config.limits.connections, self._serve)
        self.portion = WHOLE
        self.surplus = 0  # sessions that are to end, because others came to share the limits
        self._routing: dict[str, list[Delivery]] = {}
        self._throttles = Throttles(config.retry, chance)
        self._buckets = Buckets()
        self.closed = False
        self.on_drained: Callable[[], None] | None = None

    def assign(self, deliveries: Sequence[Delivery]) -> None:
        """Take claimed deliveries over."""
        if self.closed:
            return  # their claims are given back with all others
        by_destination = defaultdict[str, list[Delivery]](list)
        for delivery in deliveries:
            if delivery.message.lane != "default":
                self.lanes_used = True
            by_destination[delivery.destination].append(delivery)
        for destination, own in by_destination.items():
            if destination in self._routing:
                self._routing[destination] += own
                continue
            route = self.router.cached(destination)
            if route is not None:
                self._assign_routed(destination, own, route)
            else:
                self._routing[destination] = own
                self.group.start_soon(self._find_route, destination)

    def close(self) -> None:
        """Forget what waits and was not attempted, its claims are given back; nothing more is begun."""
        self.closed = True
        self._routing.clear()
        for site in self._sites.values():
            site.forget_waiting()

    def withdraw(self) -> None:
        """As `close`, and sessions without work end."""
        self.close()
        for site in list(self._sites.values()):
            site.dismiss_all()

    def withdraw_message(self, message_id: str) -> list[Delivery]:
        """Forget what waits of a message and is not carried yet; returns it."""
        withdrawn: list[Delivery] = []
        for destination, waiting in self._routing.items():
            withdrawn += [delivery for delivery in waiting if delivery.message.message_id == message_id]
            self._routing[destination] = [one for one in waiting if one.message.message_id != message_id]
        for site in list(self._sites.values()):
            withdrawn += site.withdraw_message(message_id)
            if site.forgettable:
                del self._sites[site.key]
        return withdrawn

    @property
    def busy(self) -> bool:
        """A session is open that carries something."""
        return any(site.busy for site in self._sites.values())

    def want_session(self, site: Site) -> None:
        """A site has more work than sessions: it gets one as soon as a connection is free."""
        self._wanting.add(site.most_urgent, site.key, site)
        self._serve()

    @property
    def connections(self) -> int:
        """How many sessions there may be now, besides slow ones."""
        return self.portion.of(self.config.limits.connections)

    def share(self, portion: Portion) -> None:
        """This is our portion of the limits from now on."""
        self.portion = portion
        self._buckets.share(portion.of_rate(1.0), self.settlement.now())
        self.waits.most_slow = self.connections
        self.surplus = max(0, self._sessions - self.connections - min(self.waits.slow, self.connections))
        for site in self._sites.values():
            site.adapt()
        for _ in range(self.surplus):
            any(site.dismiss_idle() for site in self._sites.values())
        self._serve()

    @property
    def room(self) -> Room:
        """How many sessions more there may be."""
        return Room(self.connections, self.connections - (self._sessions - self.waits.slow), self.lanes_used)

    @property
    def crowded(self) -> bool:
        """Another site waits for a connection."""
        return self._wanting.count > 0

    def dead(self, site: Site, why: Outcome, contact: Contact, route: Route, waiting: Sequence[Delivery]) -> None:
        """A site is dead: it is left alone as a whole, and then probed with one message.

        Args:
            site: Which.
            why: How the last attempt there ended.
            contact: With whom.
            route: One that leads there.
            waiting: What is not attempted because of that.
        """
        now = self.settlement.now()
        # It may be known already: others of its sessions fail later.
        throttle = self._throttles.of(site.key, now) or self._throttles.dead(
            site.key, now, why, contact, site.hosts, route.destination
        )
        self._hold_back(waiting, throttle)

    def lives(self, key: SiteKey) -> None:
        """A site answers."""
        self._throttles.lift(key)

    def _hold_back(self, deliveries: Sequence[Delivery], throttle: Throttle) -> None:
        """What comes for a throttled site waits until it is probed: that is no attempt, and is not counted as one.

        But whose time is over fails with what was learned there, or nothing would end for a site that stays dead. What
        was never attempted, because nobody delivered for long, has a chance all the same, for as long as it takes a few
        probes (row C17).
        """
        now = self.settlement.now()
        has_had_its_chance = now - throttle.began >= LAST_CHANCE
        for delivery in deliveries:
            is_late = delivery.message.expires_at <= now
            if is_late and (has_had_its_chance or has_expired(delivery, now, self.config.retry.lifetime)):
                self.settlement.settle_all(delivery, throttle.why, contact=throttle.contact)
            else:
                self.settlement.hold_back(delivery, throttle.why, throttle.until)

    def status(self) -> list[SiteStatus]:
        """How it goes with each site that has something to do, or is throttled."""
        throttles = self._throttles.all(self.settlement.now())
        idle = [throttle.status() for key, throttle in throttles.items() if key not in self._sites]
        return [site.status(throttles.get(key)) for key, site in self._sites.items()] + idle

    def resume(self) -> None:
        """Somebody asked for attempts now: forget which sites were out of reach."""
        self._throttles.lift_all()

    def relay_trouble(self, trouble: str | None) -> None:
        """The relay refuses our login, or has not the TLS that we demand, or neither any more: a fault of the settings,
        here or there, which hits all mail."""
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
            room = self.room
            wanting = self._wanting.take(room) if room.free > 0 else None
            if wanting is None:
                any(site.dismiss_idle() for site in self._sites.values())
                return
            self._wanting.discard(wanting.key)
            site = self._sites.get(wanting.key)  # it may have been forgotten, and come again as another one
            if site is None:
                continue
            if not site.wants_session:
                site.wait_for_rate()  # which others may have used up meanwhile
                continue
            if room.of(site.most_urgent) > 0 or site.most_urgent == "auth":  # which may be gone meanwhile
                self._sessions += 1
                site.session_begins()
                self.group.start_soon(Carrier(self, site).run)
            if site.wants_session:
                self._wanting.add(site.most_urgent, site.key, site)

    async def _find_route(self, destination: str) -> None:
        try:
            route = await self.router.route(destination)
        except Exception as error:
            logger.exception("the route to %s could not be found", destination)
            route = judge_breakdown(Phase.CONNECT, "local", f"finding the route failed unexpectedly: {error!r}")
        # Cancelled, the deliveries stay in _routing and are withdrawn with the rest.
        self._assign_routed(destination, self._routing.pop(destination, []), route)

    def _assign_routed(self, destination: str, deliveries: Sequence[Delivery], route: Route | Outcome) -> None:
        if isinstance(route, Outcome):
            for delivery in deliveries:
                self.settlement.settle_all(delivery, route)
            return
        key = self._key(destination, route)
        probed = key in self._throttles
        if probed and (throttle := self._throttles.of(key, self.settlement.now())) is not None:
            self._hold_back(deliveries, throttle)
            return
        site = self._site(key, destination, route, probed=probed)
        surplus = site.assign(deliveries, route)
        if surplus:
            lanes: set[Lane] = {delivery.message.lane for delivery in surplus}
            for lane in lanes:
                site.held[lane, destination] = None
                self._upstream.hold(lane, destination)
            self.group.start_soon(self._give_back, key, surplus, route)

    def _site(self, key: SiteKey, destination: str, route: Route, *, probed: bool) -> Site:
        site = self._sites.get(key)
        if site is None:
            limits = site_limits(self.config.limits, destination, (host.name for host in route.hosts))
            bucket = self._buckets.of(key, limits, self.settlement.now(), self._sites)
            site = self._sites[key] = Site(key, self, route, limits, bucket, probed=probed)
        return site

    async def _give_back(self, key: SiteKey, surplus: Sequence[Delivery], route: Route) -> None:
        """A site has no room: others must not wait for the claims that wait there."""
        try:
            await self._upstream.give_back(surplus)
        except Exception as error:  # noqa: BLE001 - whatever a store raises, delivery goes on
            logger.warning("claims could not be given back, they wait for their turn: %s", error)
            if self.closed:
                return  # they are given back with all others
            for delivery in surplus:
                site = self._site(key, delivery.destination, route, probed=key in self._throttles)
                site.assign([delivery], route, whatever=True)

    def has_room(self, site: Site) -> None:
        """What was held because a site had no room may come, as much of it as there is room for."""
        for lane, destination in list(site.held)[: site.room_left]:
            self._upstream.let_go(lane, destination)
            del site.held[lane, destination]

    def _key(self, destination: str, route: Route) -> SiteKey:
        overrides = self.config.limits.overrides
        own = own_entries(overrides, destination) if overrides else ()
        return (route.site, own) if own else route.site
