"""One site: the deliveries that wait for it, and the sessions that carry them one after another."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from mailstrom_async._engine.attempt import (
    STOPPED_BEFORE,
    Contact,
    Unreachable,
    carry,
    open_session,
    outcomes_of,
    worth_another_host,
)
from mailstrom_async._engine.bundle import Bundle, Lookahead
from mailstrom_async._engine.pace import Pace
from mailstrom_async._engine.throttles import SiteKey, Throttle
from mailstrom_async._envelope import Delivery, Lane
from mailstrom_async._policy.bucket import Bucket
from mailstrom_async._policy.congestion import Signal, Window, signal_of
from mailstrom_async._policy.hosts import Route
from mailstrom_async._policy.limits import SiteLimits
from mailstrom_async._policy.verdict import judge_breakdown
from mailstrom_async._queue.lanes import Lanes, Room
from mailstrom_async._reply import Phase, Reply
from mailstrom_async._status import Outcome, SiteStatus
from mailstrom_async.smtp.base import Following, Session, TransactionResult

if TYPE_CHECKING:
    from mailstrom_async._engine.sites import Sites

logger = logging.getLogger("mailstrom_async")

TURN = 10
"""Messages that a site's only session carries before it makes room for another site."""

WAITING_FOR_EACH, FEWEST_WAITING = 32, 2
"""So many messages wait for each session at most; so many at least where there is a rate."""
SETTLED_AT_ONCE = 1000
"""Recipients that get their results in one turn of the event loop."""
KNOWN_DESTINATIONS = 10
"""Of a site, so many are remembered to be shown."""


class Site:
    """The mail for one set of hosts, and the sessions that carry it: as many as its window allows, as fast as its rate.

    Args:
        key: What it is known by.
        sites: All of them.
        route: One that leads here.
        limits: What holds for it.
        bucket: Of its rate; None: it has none.
        probed: It was dead lately: one message shows whether it still is.
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
        self._waiting = Lanes[Bundle]()  # by message
        self._sessions = 0
        self._opening = 0
        self._carrying = 0
        self._carrying_others = 0  # than "auth"
        self._parting = 0  # sessions that say good-bye; the host still counts them
        self._idle: list[asyncio.Future[bool]] = []
        self._dialled: Counter[str] = Counter()  # hosts, so that equals get equal shares (row B17)

    def assign(self, delivery: Delivery, route: Route, *, whatever: bool = False) -> bool:
        """Take a delivery over; whether there was room for it, or it takes `whatever` comes."""
        message = delivery.message
        bundle = self._waiting.get(message.lane, message.key)
        if bundle is not None:
            bundle.deliveries.append(delivery)
            return True
        if len(self._waiting) >= self._room_to_wait and message.lane != "auth" and not whatever:
            return False
        self._waiting.add(message.lane, message.key, Bundle(route, message.lane, [delivery]))
        if len(self.destinations) < KNOWN_DESTINATIONS:
            self.destinations.add(delivery.destination)
        self.call()
        return True

    @property
    def _room_to_wait(self) -> int:
        """How many may wait here: enough to keep the sessions busy, and few enough that the claims for a site that is
        slow, dead or over its rate leave room for those for others."""
        room = WAITING_FOR_EACH * min(self.window.allowed, self._most)
        return room if self.pace is None else min(room, max(FEWEST_WAITING, 2 * self.pace.burst))

    @property
    def room_left(self) -> int:
        """How many of those that are held may come. If nothing waits, all: those let go may have nothing any more."""
        return self._room_to_wait - len(self._waiting) if self._waiting else len(self.held)

    def _tell_of_room(self) -> None:
        if self.held and len(self._waiting) <= self._room_to_wait // 2:
            self._sites.has_room(self)

    def call(self) -> None:
        """Find somebody who carries what waits: a session that idles, or a new one."""
        if not self._in_time:
            if self.pace is not None and self._waiting:
                self.pace.wait()
        elif self.ready and not self._wake_idle(True) and self.wants_session:
            self._sites.want_session(self)

    def withdraw(self) -> None:
        """Forget what waits; sessions without work end."""
        self._waiting.clear()
        while self._wake_idle(False):
            pass

    @property
    def waiting(self) -> int:
        """How many bundles wait."""
        return len(self._waiting)

    @property
    def connections(self) -> int:
        """As the host counts them."""
        return self._sessions + self._parting

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
    def _in_time(self) -> int:
        """How many of those that wait the rate lets go now."""
        return len(self._waiting) if self.pace is None else min(len(self._waiting), self.pace.left)

    def _room(self, *, freed: int = 0) -> Room:
        allowed = min(self.window.allowed, self._most)
        return Room(allowed, allowed - self._carrying_others + freed, self._sites.auth_seen)

    @property
    def _too_many(self) -> bool:
        """A session has to end because the window was closed, or our portion of the limits became smaller."""
        return self._sessions > min(self.window.allowed, self._most) or self._sites.surplus > 0

    def adapt(self) -> None:
        """Our portion of the limits has changed: what idles and is too much ends, what was too much before begins."""
        self._most = self._sites.portion.of(self.limits.connections_per_host)
        for _ in range(self._sessions - self._most):
            self._wake_idle(False)
        if self.pace is not None:
            self.pace.adapt()
        if self.wants_session:
            self._sites.want_session(self)

    @property
    def wants_session(self) -> bool:
        allowed = min(self.window.allowed, self._most)
        return self._sessions + self._parting < allowed and self.ready > self._sessions - self._carrying

    def status(self, throttle: Throttle | None) -> SiteStatus:
        """How it goes."""
        return SiteStatus(
            hosts=self.hosts,
            destinations=tuple(sorted(self.destinations)),
            connections=self.connections,
            connections_allowed=min(self.window.allowed, self._most),
            waiting=len(self._waiting),
            throttled_until=throttle and throttle.until,
            reason=throttle and throttle.why.reason,
            rate_left=self.pace and self.pace.left,
            last_reply=self.last_reply,
        )

    @property
    def busy(self) -> bool:
        return self._opening + self._carrying > 0

    @property
    def forgettable(self) -> bool:
        return not self._sessions and not self._parting and not self._waiting

    def session_begins(self) -> None:
        self._sessions += 1

    def dismiss_idle(self) -> bool:
        """End a session that has no work, if there is one: another site needs its connection."""
        return self._wake_idle(False)

    async def run_session(self) -> None:
        """The life of one session: opened when there is work, kept for more, closed when it idles too long."""
        session: Session | None = None
        lookahead = Lookahead(self)
        urgent = False
        try:
            while self.ready or lookahead or (session is not None and session.usable and await self._idle_until_work()):
                if session is not None and not (self._fit(session) or (lookahead and session.usable)):
                    lookahead.give_back(session)
                    await self._part_from(session)
                    session = None
                    continue  # another session may have taken what waited while this one was ended
                if session is None:
                    session = await self._open()
                    if session is None:
                        return
                if (bundle := lookahead.take() or self.take(fresh=session.transactions == 0)) is not None:
                    urgent = bundle.lane == "auth"
                    if not session.sent_ahead(bundle.deliveries[0].message):
                        bundle.deliveries = self._sites.wanted(bundle.deliveries)
                if bundle is not None and bundle.deliveries:
                    await self._carry(session, bundle, lookahead)
                bundle = None  # or its content would stay in memory while the session idles
                if not lookahead and (
                    self._too_many or self._has_had_its_turn(session) or (urgent and self._used_what_is_kept)
                ):
                    return
        except Exception:
            # One session's fault is not the others': its deliveries are settled in _carry, the site goes on.
            logger.exception("a session with %s failed unexpectedly", self.key)
        finally:
            lookahead.give_back(session)
            self._sessions -= 1
            self._parting += 1
            self._sites.session_parts()
            try:
                if session is not None:
                    await self._part_from(session)
            finally:
                self._parting -= 1
                self._sites.session_ended(self)
                if self._waiting:
                    self.call()

    def may_look_ahead(self, session: Session) -> bool:
        """Whether the next bundle may be bound to this session: there is work for all the sessions that there may be,
        and this one will be there for it."""
        return (
            self._in_time > self.window.allowed - self._carrying
            and session.transactions < self.limits.messages_per_connection
            and not self._sites.closed
            and not self._sites.crowded
            and not self._too_many
        )

    def _has_had_its_turn(self, session: Session) -> bool:
        """Whether a connection should go to a site that waits for one. A site's only session carries a few messages
        first: opening it is the dear part."""
        return self._sites.crowded and (self._sessions > 1 or session.transactions >= TURN)

    @property
    def _used_what_is_kept(self) -> bool:
        """The connection that is kept of all there are is in use for "auth", and here is nothing more of that."""
        return self._sites.room.of("default") < 0 and self.most_urgent != "auth"

    def take(self, *, freed: int = 0, fresh: bool = False) -> Bundle | None:
        """The next one to carry, if there is one that may be carried now.

        Args:
            freed: Sessions that will not carry any more then what they carry now.
            fresh: A session was opened for it, perhaps the one that is kept: for the most urgent, then.
        """
        bundle = self._waiting.take(self._room(freed=freed), urgent_first=fresh) if self._in_time else None
        if self.pace is not None and bundle is not None:
            self.pace.take(self._transactions(bundle))
        self._tell_of_room()
        return bundle

    def _transactions(self, bundle: Bundle) -> int:
        return -(-len(bundle.recipients) // self.limits.recipients_per_transaction)

    def put_back(self, bundle: Bundle) -> None:
        if self._sites.closed:
            return  # not attempted: its claims are given back
        if self.pace is not None:
            self.pace.give_back(self._transactions(bundle))
        key = bundle.deliveries[0].message.key
        if (others := self._waiting.get(bundle.lane, key)) is not None:
            bundle.deliveries.extend(others.deliveries)
        self._waiting.put_back(bundle.lane, key, bundle)

    def _fit(self, session: Session) -> bool:
        return session.usable and session.transactions < self.limits.messages_per_connection

    def _wake_idle(self, work: bool) -> bool:
        while self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(work)
                return True
        return False

    async def _idle_until_work(self) -> bool:
        if self._sites.closed or self._sites.crowded:  # another site needs the connection
            return False
        if self.pace is not None and self._waiting and not self._in_time:
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

    async def _part_from(self, session: Session) -> None:
        if session.usable:
            await session.quit()
        else:
            session.abort()

    async def _open(self) -> Session | None:
        """Open a session; where none can be had, settle what that means for those who wait."""
        bundle = next(iter(self._waiting))
        started_at = self._sites.settlement.now()
        self._opening += 1
        try:
            targets = self._sites.router.targets(bundle.route, self._dialled)
            self._dialled.update(target.host for target in targets[:1])
            with self._sites.waiting_for_host():
                opened = await open_session(self._sites.connector, targets)
        finally:
            self._opening -= 1
        if not isinstance(opened, Unreachable):
            self._sites.relay_trouble(None)
            return opened
        if opened.login_refused:
            self._sites.relay_trouble(opened.outcome.reason)
        self.window.refuse(self._sessions - 1)
        if self._sessions == 1:
            first = next(iter(self._waiting), None)
            if first is not None:
                # It was the probe, for all that wait.
                self._waiting.discard(first.deliveries[0].message.key)
                for delivery in first.deliveries:
                    self._sites.settlement.settle_all(
                        delivery, opened.outcome, started_at=started_at, contact=opened.contact
                    )
            self._die(opened.outcome, opened.contact, bundle.route)
        # Else others of ours have a session or may still get one, and what waits is theirs: the host has enough of us
        # (row A63). The last one to fail speaks for the site.
        return None

    def _die(self, why: Outcome, contact: Contact, route: Route) -> None:
        """Nothing more is to be had here for a while: what waits is held back."""
        self.window = Window.of_probe(self.limits.connections_per_host)
        self._sites.dead(self, why, contact, route, self._withdraw_all())

    def _withdraw_all(self) -> list[Delivery]:
        deliveries = [delivery for bundle in self._waiting for delivery in bundle.deliveries]
        self._waiting.clear()
        self._tell_of_room()
        return deliveries

    async def _carry(self, session: Session, bundle: Bundle, lookahead: "Lookahead") -> None:
        """Carry a bundle over a session."""
        started_at = self._sites.settlement.now()
        fresh = session.transactions == 0
        outcomes: dict[str, Outcome] = {}
        untouched: tuple[str, ...] = ()
        spoken = [session]
        is_other = bundle.lane != "auth"
        self._carrying += 1
        self._carrying_others += is_other
        try:
            with self._sites.waiting_for_host():
                untouched = await self._attempt(spoken, bundle, outcomes, lambda: lookahead.reserve(session, is_other))
        except asyncio.CancelledError:
            session.abort()
            self._interrupted(spoken[-1], bundle, outcomes, started_at)
            raise
        except Exception as error:
            logger.exception("%r failed unexpectedly", bundle.deliveries)
            session.abort()
            fault = judge_breakdown(Phase.DATA, "local", f"a fault in this library: {error!r}")
            outcomes = {**dict.fromkeys(bundle.recipients, fault), **outcomes}
        finally:
            self._carrying -= 1
            self._carrying_others -= is_other
        if untouched and not fresh and not outcomes:
            self.put_back(bundle)
        else:
            if untouched:
                # Closed by a host that we just greeted, or half-way through: that is an attempt, or we would spin.
                outcomes = {**dict.fromkeys(untouched, closed_early(session)), **outcomes}
            await self._settle_in_turns(bundle, outcomes, started_at, spoken[-1])
            self._learn(bundle, outcomes, spoken[-1])
        if not session.usable:
            session.abort()

    def settle_given_up(self, bundle: Bundle, session: Session, result: TransactionResult) -> None:
        """The session is over, on which this was sent ahead."""
        if result.untouched:
            self.put_back(bundle)
            return
        message, at_once = bundle.deliveries[0].message, self.limits.recipients_per_transaction
        outcomes = outcomes_of(result, message, bundle.recipients, at_once)
        self._settle(bundle, outcomes, self._sites.settlement.now(), session)

    def _learn(self, bundle: Bundle, outcomes: Mapping[str, Outcome], session: Session) -> None:
        """What an attempt tells of the site opens its window or closes it."""
        signal = signal_of(outcomes.values())
        allowed = self.window.allowed
        self.last_reply = next((outcome.reply for outcome in outcomes.values()), None) or self.last_reply
        if self.window.heed(signal):
            # What broke, and not what was said of a recipient: everybody is told of it.
            why = next(outcome for outcome in outcomes.values() if signal_of([outcome]) is Signal.BROKEN)
            self._die(why, contact_of(session, outcomes), bundle.route)
        elif signal in (Signal.TAKEN, Signal.ANSWERED):
            self._sites.lives(self)
            if self.window.allowed > allowed or self.wants_session:
                self.call()

    async def _attempt(
        self, spoken: list[Session], bundle: Bundle, outcomes: dict[str, Outcome], following: Following
    ) -> tuple[str, ...]:
        """Fill in the outcomes; returns the recipients that the server never heard of.

        Args:
            spoken: The session to use. Others are added if another host of the route has to be asked.
        """
        message = bundle.deliveries[0].message
        at_once = self.limits.recipients_per_transaction
        untouched = await carry(
            spoken[0], message, bundle.recipients, at_once=at_once, outcomes=outcomes, following=following
        )
        while outcomes and not untouched and worth_another_host(outcomes):
            tried = {session.target.host for session in spoken}
            others = [target for target in self._sites.router.targets(bundle.route) if target.host not in tried]
            # While another host is asked nothing is decided, should we be stopped then.
            so_far = dict(outcomes)
            outcomes.clear()
            other = await open_session(self._sites.connector, others) if others else None
            if other is None or isinstance(other, Unreachable):
                outcomes.update(so_far)
                break
            spoken.append(other)
            try:
                left = await carry(other, message, bundle.recipients, at_once=at_once, outcomes=outcomes)
                outcomes.update(dict.fromkeys(left, closed_early(other)))
                await other.quit()
            finally:
                other.abort()
        return untouched

    async def _settle_in_turns(
        self, bundle: Bundle, outcomes: dict[str, Outcome], started_at: datetime, session: Session
    ) -> None:
        """As `_settle`; of thousands of recipients, some at a time."""
        contact, left = contact_of(session, outcomes), iter(bundle.deliveries)
        settled = 0
        try:
            for delivery in left:
                self._sites.settlement.settle(delivery, outcomes, started_at=started_at, contact=contact)
                settled += len(delivery.recipients)
                if settled >= SETTLED_AT_ONCE:
                    settled = 0
                    await asyncio.sleep(0)  # others have their turn
        finally:
            for delivery in left:  # we were stopped, and they have their outcomes all the same
                self._sites.settlement.settle(delivery, outcomes, started_at=started_at, contact=contact)

    def _settle(self, bundle: Bundle, outcomes: dict[str, Outcome], started_at: datetime, session: Session) -> None:
        contact = contact_of(session, outcomes)
        for delivery in bundle.deliveries:
            self._sites.settlement.settle(delivery, outcomes, started_at=started_at, contact=contact)

    def _interrupted(
        self, session: Session, bundle: Bundle, outcomes: dict[str, Outcome], started_at: datetime
    ) -> None:
        """We were stopped in the middle. What was decided, or is in doubt, is recorded; a delivery of which nothing is
        known was not attempted, and its claim is given back with the others."""
        begun = [
            delivery
            for delivery in bundle.deliveries
            if any(recipient.address in outcomes for recipient in delivery.recipients)
        ]
        whole = {**dict.fromkeys(bundle.recipients, STOPPED_BEFORE), **outcomes}
        self._settle(Bundle(bundle.route, bundle.lane, begun), whole, started_at, session)


def contact_of(session: Session, outcomes: Mapping[str, Outcome]) -> Contact:
    """With whom we spoke; what was said only where somebody will want to read it."""
    well = all(outcome.state == "delivered" for outcome in outcomes.values())
    return Contact(session.target.host, str(session.target.address), session.tls, () if well else session.transcript)


def closed_early(session: Session) -> Outcome:
    """What it means for those whose turn had not come."""
    return judge_breakdown(Phase.MAIL, "network", f"{session.target.host} closed the connection before MAIL")
