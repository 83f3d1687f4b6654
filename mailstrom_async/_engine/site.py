"""One site: the deliveries that wait for it, and how many carriers may come for them."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from mailstrom_async._engine.attempt import Contact, Unreachable
from mailstrom_async._engine.bundle import Bundle
from mailstrom_async._engine.pace import Pace
from mailstrom_async._engine.throttles import SiteKey, Throttle
from mailstrom_async._envelope import LANES, Delivery, Lane
from mailstrom_async._policy.bucket import Bucket
from mailstrom_async._policy.congestion import Signal, Window, signal_of
from mailstrom_async._policy.hosts import Route
from mailstrom_async._policy.limits import SiteLimits
from mailstrom_async._queue.lanes import Lanes, Room
from mailstrom_async._reply import Reply
from mailstrom_async._status import Outcome, SiteStatus
from mailstrom_async.smtp.base import Target

if TYPE_CHECKING:
    from mailstrom_async._engine.sites import Sites

WAITING_FOR_EACH, FEWEST_WAITING = 32, 2
"""So many messages wait for each session at most; so many at least where there is a rate."""
KNOWN_DESTINATIONS = 10
"""Of a site, so many are remembered to be shown."""


class Site:
    """The mail for one set of hosts, and what its carriers go by: as many sessions as its window allows, as fast as its
    rate. What a carrier does is in carrier.py.

    Args:
        key: What it is known by.
        sites: All of them.
        route: One that leads here.
        limits: What holds for it.
        bucket: Of its rate; None: it has none.
        probed: It was dead lately: one message shows whether it still is.

    Attributes:
        sessions: Carriers that have a session, or will have one.
        carrying: How many of them carry something just now, by its lane.
    """

    def __init__(
        self, key: SiteKey, sites: "Sites", route: Route, limits: SiteLimits, bucket: Bucket | None, *, probed: bool
    ) -> None:
        self.key = key
        self.hosts = tuple(dict.fromkeys(host.name for host in route.hosts))
        self.limits = limits
        self.window = Window.of_probe(limits.connections_per_host) if probed else Window(limits.connections_per_host)
        self.pace = Pace(self, sites, bucket) if bucket is not None else None
        self.destinations: set[str] = set()
        self.held: dict[tuple[Lane, str], None] = {}  # the longest held first
        self.last_reply: Reply | None = None
        self._sites = sites
        self._most = sites.portion.of(limits.connections_per_host)
        self._measure()
        self._waiting = Lanes[Bundle]()  # by message
        self.sessions = 0
        self.carrying: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._parting = 0  # sessions that say good-bye; the host still counts them
        self._idle: list[asyncio.Future[bool]] = []
        self._dialled: Counter[str] = Counter()  # hosts, so that equals get equal shares (row B17)

    def assign(self, deliveries: Sequence[Delivery], route: Route, *, whatever: bool = False) -> list[Delivery]:
        """Take deliveries to one destination over; returns those for which there is no room, unless it takes `whatever`
        comes."""
        surplus: list[Delivery] = []
        before, room = self._waiting.count, self._room_to_wait
        for delivery in deliveries:
            message = delivery.message
            bundle = self._waiting.get(message.lane, message.key)
            if bundle is not None:
                bundle.add(delivery)
            elif self._waiting.count < room or message.lane == "auth" or whatever:
                self._waiting.add(message.lane, message.key, Bundle(route, delivery))
            else:
                surplus.append(delivery)
        if came := self._waiting.count - before:
            if len(self.destinations) < KNOWN_DESTINATIONS:
                self.destinations.add(deliveries[0].destination)
            self.call(came)
        return surplus

    @property
    def _room_to_wait(self) -> int:
        """How many may wait here: enough to keep the sessions busy, and few enough that the claims for a site that is
        slow, dead or over its rate leave room for those for others."""
        room = WAITING_FOR_EACH * self._allowed
        return room if self.pace is None else min(room, max(FEWEST_WAITING, 2 * self.pace.burst))

    @property
    def room_left(self) -> int:
        """How many of those that are held may come. If nothing waits, all: those let go may have nothing any more."""
        return self._room_to_wait - len(self._waiting) if self._waiting else len(self.held)

    def _tell_of_room(self) -> None:
        if len(self._waiting) <= self._room_to_wait // 2:
            self._sites.has_room(self)

    def call(self, many: int = 1) -> None:
        """Find somebody who carries so many of those that wait: sessions that idle, or new ones."""
        if not self.in_time:
            self.wait_for_rate()
            return
        for _ in range(many):
            # Most find all sessions busy, and need not ask how many of those that wait are ready.
            all_busy = not self._idle and self.sessions + self._parting >= self._allowed
            if all_busy or not self.ready:
                return
            if not self._wake_idle(True):
                if not self.wants_session:
                    return
                self._sites.want_session(self)

    def wait_for_rate(self) -> None:
        """What waits and is over the rate goes when it may."""
        if self.pace is not None and self._waiting and not self.in_time:
            self.pace.wait()

    def forget_waiting(self) -> None:
        """Nobody is to carry what waits."""
        self._waiting.clear()

    def dismiss_all(self) -> None:
        """Sessions without work end."""
        while self._wake_idle(False):
            pass

    def withdraw_message(self, message_id: str) -> list[Delivery]:
        """Forget what waits of a message and is not carried yet; returns it."""
        bundles = [bundle for bundle in self._waiting if bundle.message.message_id == message_id]
        for bundle in bundles:
            self._waiting.discard(bundle.message.key)
        if bundles and self.held:
            self._tell_of_room()
        return [delivery for bundle in bundles for delivery in bundle.deliveries]

    @property
    def waiting(self) -> int:
        """How many bundles wait."""
        return len(self._waiting)

    @property
    def connections(self) -> int:
        """As the host counts them."""
        return self.sessions + self._parting

    @property
    def most_urgent(self) -> Lane:
        """The lane of the most urgent mail that waits."""
        return self._waiting.most_urgent

    @property
    def ready(self) -> int:
        """How many of those that wait may be carried now."""
        fitting = self._waiting.fitting(self._room())
        return fitting if self.pace is None else min(fitting, self.pace.left)

    @property
    def in_time(self) -> int:
        """How many of those that wait the rate lets go now."""
        return self._waiting.count if self.pace is None else min(self._waiting.count, self.pace.left)

    def _room(self, *, freed: int = 0) -> Room:
        allowed, carrying = self._allowed, self.carrying
        free = allowed - carrying["default"] - carrying["bulk"] + freed
        return Room(allowed, free, self._sites.lanes_used)

    def _measure(self) -> None:
        """Whenever the window or our portion of the limits has changed: so many sessions there may be."""
        self._allowed = min(self.window.allowed, self._most)

    @property
    def too_many(self) -> bool:
        """A session has to end because the window was closed, or our portion of the limits became smaller."""
        return self.sessions > self._allowed or self._sites.surplus > 0

    def adapt(self) -> None:
        """Our portion of the limits has changed: what idles and is too much ends, what was too much before begins."""
        self._most = self._sites.portion.of(self.limits.connections_per_host)
        self._measure()
        for _ in range(self.sessions - self._most):
            self._wake_idle(False)
        if self.pace is not None:
            self.pace.adapt()
        if self.wants_session:
            self._sites.want_session(self)

    @property
    def wants_session(self) -> bool:
        may_have_another = self.sessions + self._parting < self._allowed
        return may_have_another and self.ready > self.sessions - sum(self.carrying.values())

    def status(self, throttle: Throttle | None) -> SiteStatus:
        """How it goes."""
        return SiteStatus(
            hosts=self.hosts,
            destinations=tuple(sorted(self.destinations)),
            connections=self.connections,
            connections_allowed=self._allowed,
            waiting=len(self._waiting),
            throttled_until=throttle and throttle.until,
            reason=throttle and throttle.why.reason,
            rate_left=self.pace and self.pace.left,
            last_reply=self.last_reply,
        )

    @property
    def busy(self) -> bool:
        """A session carries something. One that is opened just now does not: what it is for still waits."""
        return any(self.carrying.values())

    @property
    def forgettable(self) -> bool:
        return not self.sessions and not self._parting and not self._waiting

    def session_begins(self) -> None:
        """A carrier comes, and will have a session."""
        self.sessions += 1

    def session_parts(self) -> None:
        """It carries nothing any more, and says good-bye."""
        self.sessions -= 1
        self._parting += 1
        self._sites.session_parts()

    def session_ended(self) -> None:
        """It has gone: another may come for what waits."""
        self._parting -= 1
        self._sites.session_ended(self)
        if self._waiting:
            self.call()

    def take(self, *, freed: int = 0, fresh: bool = False) -> Bundle | None:
        """The next one to carry, if there is one that may be carried now.

        Args:
            freed: Sessions that will not carry any more then what they carry now.
            fresh: A session was opened for it, perhaps the one that is kept: for the most urgent, then.
        """
        may_go = self.pace is None or self.pace.left > 0
        bundle = self._waiting.take(self._room(freed=freed), urgent_first=fresh) if may_go else None
        if self.pace is not None and bundle is not None:
            self.pace.take(self._transactions(bundle))
        if self.held:
            self._tell_of_room()
        return bundle

    def take_ahead(self, *, freed: int) -> Bundle | None:
        """As `take`, to be carried after what is carried now, over the same session: if there is work for all the
        sessions that there may be, and none of them is to end."""
        plenty = self.in_time > self._allowed - sum(self.carrying.values())
        return self.take(freed=freed) if plenty and not self.too_many else None

    def _transactions(self, bundle: Bundle) -> int:
        return -(-len(bundle.recipients) // self.limits.recipients_per_transaction)

    def not_sent(self, bundle: Bundle) -> None:
        """It was taken, and is not to be carried: that costs nothing of the rate."""
        if self.pace is not None:
            self.pace.give_back(self._transactions(bundle))

    def put_back(self, bundle: Bundle) -> None:
        """It was not carried, and is the next."""
        if self._sites.closed:
            return  # not attempted: its claims are given back
        self.not_sent(bundle)
        key = bundle.message.key
        if (others := self._waiting.get(bundle.lane, key)) is not None:
            for delivery in others.deliveries:
                bundle.add(delivery)
        self._waiting.put_back(bundle.lane, key, bundle)

    def dismiss_idle(self) -> bool:
        """End a session that has no work, if there is one: another site needs its connection."""
        return self._wake_idle(False)

    def _wake_idle(self, work: bool) -> bool:
        while self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(work)
                return True
        return False

    async def idle_until_work(self) -> bool:
        """Stand in line for work, as long as a session may idle; whether there is some."""
        if self._sites.closed or self._sites.crowded:  # another site needs the connection
            return False
        if self.pace is not None and self._waiting and not self.in_time:
            if not self.pace.soon:
                return False
            self.pace.wait()
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._idle.append(waiter)
        try:
            async with asyncio.timeout(self._sites.config.timeouts.idle.total_seconds()):
                return await waiter
        except TimeoutError:
            return False
        finally:
            if waiter in self._idle:
                self._idle.remove(waiter)

    @property
    def route(self) -> Route:
        """Of the most urgent mail that waits."""
        return next(iter(self._waiting)).route

    def targets(self, route: Route) -> Sequence[Target]:
        """Whom to dial along a route, in this order."""
        targets = self._sites.router.targets(route, self._dialled)
        self._dialled.update(target.host for target in targets[:1])
        return targets

    def unreachable(self, why: Unreachable, route: Route, started_at: datetime) -> None:
        """No session can be had: settle what that means for those who wait.

        Args:
            why: What became of the try.
            route: What it went along.
            started_at: When it began.
        """
        if why.login_refused or (self._sites.relayed and why.outcome.cause in ("tls", "policy")):
            self._sites.relay_trouble(why.outcome.reason)
        self.window.refuse(self.sessions - 1)
        self._measure()
        if self.sessions > 1:
            # Others of ours have a session or may still get one, and what waits is theirs: the host has enough of us
            # (row A63). The last one to fail speaks for the site.
            return
        first = next(iter(self._waiting), None)
        if first is not None:
            # It was the probe, for all that wait.
            self._waiting.discard(first.message.key)
            for delivery in first.deliveries:
                self._sites.settlement.settle_all(delivery, why.outcome, started_at=started_at, contact=why.contact)
        self._die(why.outcome, why.contact, route)

    def learn(self, outcomes: Mapping[str, Outcome], contact: Contact, route: Route) -> None:
        """What an attempt tells of the site opens its window or closes it."""
        signal = signal_of(outcomes.values())
        before = self.window.allowed
        if (first := next(iter(outcomes.values()), None)) is not None:
            self.last_reply = first.reply or self.last_reply
        dead = self.window.heed(signal)
        if self.window.allowed != before:
            self._measure()
        if dead:
            # What broke, and not what was said of a recipient: everybody is told of it.
            why = next(outcome for outcome in outcomes.values() if signal_of([outcome]) is Signal.BROKEN)
            self._die(why, contact, route)
        elif signal in (Signal.TAKEN, Signal.ANSWERED):
            self._sites.lives(self.key)
            if self.window.allowed > before or self.wants_session:
                self.call()

    def shown_out(self, reply: Reply, carried: int, lasted: float) -> float:
        """The host ended a session by this reply to another MAIL: no attempt, but it tells of the site. As
        `Window.shown_out`."""
        self.last_reply = reply
        rest = self.window.shown_out(carried, lasted)
        self._measure()
        return rest

    def _die(self, why: Outcome, contact: Contact, route: Route) -> None:
        """Nothing more is to be had here for a while: what waits is held back."""
        self.window = Window.of_probe(self.limits.connections_per_host)
        self._measure()
        self._sites.dead(self, why, contact, route, self._withdraw_all())

    def _withdraw_all(self) -> list[Delivery]:
        deliveries = [delivery for bundle in self._waiting for delivery in bundle.deliveries]
        self._waiting.clear()
        if self.held:
            self._tell_of_room()
        return deliveries
