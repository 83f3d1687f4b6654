"""One site: the deliveries that wait for it, and the sessions that carry them one after another."""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from mailstrom_async._engine.attempt import (
    STOPPED_BEFORE,
    Contact,
    Unreachable,
    carry,
    open_session,
    worth_another_host,
)
from mailstrom_async._envelope import Delivery, QueuedMessage
from mailstrom_async._policy.hosts import Route
from mailstrom_async._policy.verdict import judge_breakdown
from mailstrom_async._reply import Phase
from mailstrom_async._status import Outcome
from mailstrom_async.smtp.base import Following, Session

if TYPE_CHECKING:
    from mailstrom_async._engine.sites import Sites

logger = logging.getLogger("mailstrom_async")

SiteKey = Hashable

TURN = 10
"""Messages that a site's only session carries before it makes room for another site."""

LOST = judge_breakdown(Phase.CONNECT, "local", "the lease ended before it was this delivery's turn")

FIRST_SESSIONS = 2
"""Sessions to a site that has not yet shown that it takes mail."""
CAUTION, MOST_ASKED = 4, 256
"""After each connection that a site refuses beside others, so many times more messages earn it the next one, at most:
a limit of the host (row A63) is tested ever more rarely."""


@dataclass(slots=True)
class Bundle:
    """All deliveries of one message that wait at a site: they share transactions."""

    route: Route
    deliveries: list[Delivery]

    @property
    def recipients(self) -> list[str]:
        return [recipient.address for delivery in self.deliveries for recipient in delivery.recipients]


class Site:
    """How many sessions a site may have is learned: one more with each message that it takes, fewer when it refuses
    connections, and from then on more slowly; never above `Limits.connections_per_host`."""

    def __init__(self, key: SiteKey, sites: "Sites") -> None:
        self.key = key
        self._sites = sites
        self._waiting: OrderedDict[int, Bundle] = OrderedDict()  # by message
        self._sessions = 0
        self._opening = 0
        self._carrying = 0
        self._parting = 0  # sessions that say good-bye; the host still counts them
        self._allowed = min(FIRST_SESSIONS, sites.config.limits.connections_per_host)
        self._asked = 1  # messages that the site must take before it gets a session more
        self._taken = 0
        self._idle: list[asyncio.Future[bool]] = []
        self._dialled: Counter[str] = Counter()  # hosts, so that equals get equal shares (row B17)

    def assign(self, delivery: Delivery, route: Route) -> None:
        bundle = self._waiting.get(delivery.message.key)
        if bundle is not None:
            bundle.deliveries.append(delivery)
            return
        self._waiting[delivery.message.key] = Bundle(route, [delivery])
        self._call()

    def _call(self) -> None:
        """Find somebody who carries what waits: a session that idles, or a new one."""
        if not self._wake_idle(True) and self.wants_session:
            self._sites.want_session(self)

    def withdraw(self) -> None:
        """Forget what waits; sessions without work end."""
        self._waiting.clear()
        while self._wake_idle(False):
            pass

    @property
    def recipients_at_once(self) -> int:
        return self._sites.config.limits.recipients_per_transaction

    @property
    def _most(self) -> int:
        return self._sites.portion.of(self._sites.config.limits.connections_per_host)

    @property
    def _too_many(self) -> bool:
        """A session has to end because our portion of the limits became smaller."""
        return self._sessions > self._most or self._sites.surplus > 0

    def adapt(self) -> None:
        """Our portion of the limits has changed: what idles and is too much ends, what was too much before begins."""
        for _ in range(self._sessions - self._most):
            self._wake_idle(False)
        if self.wants_session:
            self._sites.want_session(self)

    @property
    def wants_session(self) -> bool:
        allowed = min(self._allowed, self._most)
        return self._sessions + self._parting < allowed and len(self._waiting) > self._sessions - self._carrying

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
        try:
            while (
                self._waiting or lookahead or (session is not None and session.usable and await self._idle_until_work())
            ):
                if session is not None and not self._fit(session):
                    lookahead.give_back()
                    await self._part_from(session)
                    session = None
                    continue  # another session may have taken what waited while this one was ended
                if session is None:
                    session = await self._open()
                    if session is None:
                        return
                if (bundle := lookahead.take() or self.take()) is not None:
                    self._drop_lost(bundle)
                if bundle is not None and bundle.deliveries:
                    session = await self._carry(session, bundle, lookahead)
                bundle = None  # or its content would stay in memory while the session idles
                if session is None:
                    lookahead.give_back()
                elif ((self._sites.crowded and self._had_its_turn(session)) or self._too_many) and not lookahead:
                    return
        except Exception:
            # One session's fault is not the others': its deliveries are settled in _carry, the site goes on.
            logger.exception("a session with %s failed unexpectedly", self.key)
        finally:
            lookahead.give_back()
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
                    self._call()

    def may_look_ahead(self, session: Session) -> bool:
        """Whether the next bundle may be bound to this session: there is work for all the sessions that there may be,
        and this one will be there for it."""
        return (
            len(self._waiting) > self._allowed - self._carrying
            and session.transactions < self._sites.config.limits.messages_per_connection
            and not self._sites.closed
            and not self._sites.crowded
            and not self._too_many
        )

    def _had_its_turn(self, session: Session) -> bool:
        """Whether a connection should go to a site that waits for one. A site's only session carries a few messages
        first: opening it is the dear part."""
        return self._sessions > 1 or session.transactions >= TURN

    def _drop_lost(self, bundle: Bundle) -> None:
        """Take out what is not ours any more. The store will refuse its record, which ends it here."""
        for delivery in [delivery for delivery in bundle.deliveries if self._sites.is_lost(delivery)]:
            bundle.deliveries.remove(delivery)
            self._sites.settlement.settle_all(delivery, LOST)

    def take(self) -> Bundle | None:
        return self._waiting.popitem(last=False)[1] if self._waiting else None

    def put_back(self, bundle: Bundle) -> None:
        if self._sites.closed:
            return  # not attempted: its claims are given back
        key = bundle.deliveries[0].message.key
        if key in self._waiting:
            bundle.deliveries.extend(self._waiting[key].deliveries)
        self._waiting[key] = bundle
        self._waiting.move_to_end(key, last=False)

    def _fit(self, session: Session) -> bool:
        return session.usable and session.transactions < self._sites.config.limits.messages_per_connection

    def _wake_idle(self, work: bool) -> bool:
        while self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(work)
                return True
        return False

    async def _idle_until_work(self) -> bool:
        if self._sites.closed:
            return False
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
        bundle = next(iter(self._waiting.values()))
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
        self._allowed = max(1, self._sessions - 1)
        self._asked, self._taken = min(CAUTION * self._asked, MOST_ASKED), 0
        if self._sessions == 1:
            self._sites.suspend(self.key, opened)
            for delivery in self._withdraw_all():
                self._sites.settlement.settle_all(
                    delivery, opened.outcome, started_at=started_at, contact=opened.contact
                )
        # Else others of ours have a session or may still get one, and what waits is theirs: the host has enough of us
        # (row A63). The last one to fail speaks for the site.
        return None

    def _withdraw_all(self) -> list[Delivery]:
        deliveries = [delivery for bundle in self._waiting.values() for delivery in bundle.deliveries]
        self._waiting.clear()
        return deliveries

    async def _carry(self, session: Session, bundle: Bundle, lookahead: "Lookahead") -> Session | None:
        """Carry a bundle over a session; returns the session if it can be used further."""
        started_at = self._sites.settlement.now()
        fresh = session.transactions == 0
        outcomes: dict[str, Outcome] = {}
        untouched: tuple[str, ...] = ()
        spoken = [session]
        self._carrying += 1
        try:
            with self._sites.waiting_for_host():
                untouched = await self._attempt(spoken, bundle, outcomes, lambda: lookahead.reserve(session))
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
        if untouched and not fresh and not outcomes:
            self.put_back(bundle)
        else:
            if untouched:
                # Closed by a host that we just greeted, or half-way through: that is an attempt, or we would spin.
                reason = f"{session.target.host} closed the connection before MAIL"
                closed = judge_breakdown(Phase.MAIL, "network", reason)
                outcomes = {**dict.fromkeys(untouched, closed), **outcomes}
            self._settle(bundle, outcomes, started_at, spoken[-1])
            self._learn(outcomes)
        if session.usable:
            return session
        session.abort()
        return None

    def _learn(self, outcomes: Mapping[str, Outcome]) -> None:
        """The site takes mail: it may have a session more."""
        if any(outcome.state == "delivered" for outcome in outcomes.values()):
            self._taken += 1
            if self._taken < self._asked:
                return
            self._taken = 0
            self._allowed = min(self._allowed + 1, self._sites.config.limits.connections_per_host)
            if self.wants_session:
                self._sites.want_session(self)

    async def _attempt(
        self, spoken: list[Session], bundle: Bundle, outcomes: dict[str, Outcome], following: Following
    ) -> tuple[str, ...]:
        """Fill in the outcomes; returns the recipients that the server never heard of.

        Args:
            spoken: The session to use. Others are added if another host of the route has to be asked.
        """
        message = bundle.deliveries[0].message
        at_once = self.recipients_at_once
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
                await carry(other, message, bundle.recipients, at_once=at_once, outcomes=outcomes)
                await other.quit()
            finally:
                other.abort()
        return untouched

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
        self._settle(Bundle(bundle.route, begun), whole, started_at, session)


class Lookahead:
    """The bundle that a session will carry next, if its envelope went out with the end of the content before."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._bundle: Bundle | None = None

    def __bool__(self) -> bool:
        return self._bundle is not None

    def reserve(self, session: Session) -> tuple[QueuedMessage, Sequence[str]] | None:
        """Bind the next bundle to the session, if there is one to spare."""
        if not self._site.may_look_ahead(session):
            return None
        self._bundle = self._site.take()
        if self._bundle is None:
            return None
        return self._bundle.deliveries[0].message, self._bundle.recipients[: self._site.recipients_at_once]

    def take(self) -> Bundle | None:
        bundle, self._bundle = self._bundle, None
        return bundle

    def give_back(self) -> None:
        """The session is over: another one may carry it."""
        bundle = self.take()
        if bundle is not None:
            self._site.put_back(bundle)


def contact_of(session: Session, outcomes: Mapping[str, Outcome]) -> Contact:
    """With whom we spoke; what was said only where somebody will want to read it."""
    well = all(outcome.state == "delivered" for outcome in outcomes.values())
    return Contact(session.target.host, str(session.target.address), session.tls, () if well else session.transcript)
