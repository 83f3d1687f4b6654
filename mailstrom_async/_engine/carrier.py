"""The life of one session: what waits at its site is carried over it, one message after another."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from mailstrom_async._engine.attempt import (
    STOPPED_BEFORE,
    Contact,
    Unreachable,
    Untouched,
    carry,
    first_transaction,
    open_session,
    outcomes_of,
    worth_another_host,
)
from mailstrom_async._engine.bundle import Bundle
from mailstrom_async._engine.site import Site
from mailstrom_async._envelope import Delivery, QueuedMessage
from mailstrom_async._policy.verdict import judge_breakdown
from mailstrom_async._reply import Phase
from mailstrom_async._status import Outcome
from mailstrom_async.smtp.base import Session, TransactionResult

if TYPE_CHECKING:
    from mailstrom_async._engine.sites import Sites

logger = logging.getLogger("mailstrom_async")

TURN = 10
"""Messages that a site's only session carries before it makes room for another site."""
SETTLED_AT_ONCE = 1000
"""Recipients that get their results in one turn of the event loop."""


class Carrier:
    """Carries what waits at a site, over one session at a time: opened when there is work, kept for more, closed when
    it idles too long.

    Args:
        sites: All of them.
        site: Which counts this carrier among its sessions already (`session_begins`).
    """

    def __init__(self, sites: "Sites", site: Site) -> None:
        self._sites = sites
        self._site = site
        self._session: Session | None = None
        self._ahead: deque[Bundle] = deque()
        """What is carried next, in this order: the first one's envelope, or where the server takes BDAT all of several,
        went out with what is carried now."""
        self._urgent = False  # what was taken last is "auth"
        self._opened_at = 0.0
        self._rest = 0.0  # seconds until another session may be opened

    async def run(self) -> None:
        """Carry until there is nothing more, or somebody else should have the connection."""
        site = self._site
        try:
            while (
                self._ahead
                or site.ready
                or (self._session is not None and self._session.usable and await site.idle_until_work())
            ):
                if self._session is not None and not self._serves(self._session):
                    self._give_back()
                    await self._part()
                    if self._sites.crowded:
                        return
                    await asyncio.sleep(self._rest)
                    continue  # another carrier may have taken what waited meanwhile
                if self._session is None:
                    self._session = await self._open()
                    if self._session is None:
                        return
                session = self._session
                bundle = self._next(session)
                if bundle is not None:
                    await self._carry(session, bundle)
                bundle = None  # or its content would stay in memory while the session idles
                if not self._ahead and (
                    site.too_many or self._has_had_its_turn(session) or (self._urgent and self._used_what_is_kept)
                ):
                    return
        except Exception:
            # One session's fault is not the others': its deliveries are settled in _carry, the site goes on.
            logger.exception("a session with %s failed unexpectedly", site.key)
        finally:
            self._give_back()
            site.session_parts()
            try:
                await self._part()
            finally:
                site.session_ended()

    async def _open(self) -> Session | None:
        """Open a session; None: the site was told that there is none to be had."""
        route = self._site.route
        self._opened_at, self._rest = asyncio.get_running_loop().time(), 0.0
        started_at = self._sites.settlement.now()
        targets = self._site.targets(route)
        self._sites.waits.begin(self)
        try:
            opened = await open_session(self._sites.connector, targets)
        finally:
            self._sites.waits.end(self)
        if isinstance(opened, Unreachable):
            self._site.unreachable(opened, route, started_at)
            return None
        self._sites.relay_trouble(None)
        return opened

    async def _part(self) -> None:
        if self._session is None:
            return
        if self._session.usable:
            await self._session.quit()
        else:
            self._session.abort()
        self._session = None

    def _serves(self, session: Session) -> bool:
        """Whether another message may go over it; what was sent ahead may in any case, while it stands."""
        return session.usable and (
            bool(self._ahead) or session.transactions < self._site.limits.messages_per_connection
        )

    def _has_had_its_turn(self, session: Session) -> bool:
        """Whether a connection should go to a site that waits for one. A site's only session carries a few messages
        first: opening it is the dear part."""
        return self._sites.crowded and (self._site.sessions > 1 or session.transactions >= TURN)

    @property
    def _used_what_is_kept(self) -> bool:
        """The connection that is kept of all there are is in use for "auth", and here is nothing more of that."""
        return self._sites.room.of("default") < 0 and self._site.most_urgent != "auth"

    def _next(self, session: Session) -> Bundle | None:
        """The next bundle to carry, without what nobody wants any more."""
        bundle = self._ahead.popleft() if self._ahead else self._site.take(fresh=session.transactions == 0)
        if bundle is None:
            return None
        self._urgent = bundle.lane == "auth"
        if not session.sent_ahead(bundle.message):
            wanted = self._sites.wanted(bundle.deliveries)
            if not wanted:
                self._site.not_sent(bundle)
            if len(wanted) < len(bundle.deliveries):
                bundle.keep(wanted)
        return bundle if bundle.deliveries else None

    def _look_ahead(self) -> tuple[QueuedMessage, Sequence[str]] | None:
        """Bind one more bundle to the session, if there is one to spare and the session will be there for it: the
        message and recipients that go first."""
        session, sites, limits = self._session, self._sites, self._site.limits
        if session is None or session.transactions >= limits.messages_per_connection or sites.closed or sites.crowded:
            return None
        # Who carries mail other than "auth" may go on to do so.
        bundle = self._site.take_ahead(freed=not self._urgent)
        if bundle is None:
            return None
        self._ahead.append(bundle)
        return first_transaction(bundle.message, bundle.recipients, limits.recipients_per_transaction)

    def _give_back(self) -> None:
        """The session is over. What was sent ahead whole has an outcome; the rest another carrier may take."""
        session = self._session
        if session is None or not self._ahead:
            return
        if not session.usable:
            session.abort()  # first, so that it counts as closed in what became of those that were sent ahead
        given_up = [(self._ahead.popleft(), result) for result in session.abandon()]
        while self._ahead:
            self._site.put_back(self._ahead.pop())
        for bundle, result in reversed(given_up):
            self._settle_given_up(session, bundle, result)

    async def _carry(self, session: Session, bundle: Bundle) -> None:
        """Carry a bundle over a session."""
        sites, site, lane = self._sites, self._site, bundle.lane
        started_at = sites.settlement.now()
        fresh = session.transactions == 0
        outcomes: dict[str, Outcome] = {}
        untouched: Untouched | None = None
        spoken = [session]
        site.carrying[lane] += 1
        sites.waits.begin(self)
        try:
            untouched = await carry(
                session,
                bundle.message,
                bundle.recipients,
                at_once=site.limits.recipients_per_transaction,
                outcomes=outcomes,
                following=self._look_ahead,
            )
            while outcomes and not untouched and worth_another_host(outcomes):
                if not await self._ask_another_host(spoken, bundle, outcomes):
                    break
        except asyncio.CancelledError:
            session.abort()
            self._interrupted(bundle, outcomes, started_at, spoken[-1])
            raise
        except Exception as error:
            logger.exception("%r failed unexpectedly", bundle.deliveries)
            session.abort()
            fault = judge_breakdown(Phase.DATA, "local", f"a fault in this library: {error!r}")
            outcomes = {**dict.fromkeys(bundle.recipients, fault), **outcomes}
        finally:
            sites.waits.end(self)
            site.carrying[lane] -= 1
        if untouched and not fresh and not outcomes:
            self._site.put_back(bundle)
            if untouched.reply is not None:
                lasted = asyncio.get_running_loop().time() - self._opened_at
                carried = session.transactions - 1 - len(self._ahead)
                self._rest = self._site.shown_out(untouched.reply, carried, lasted)
        else:
            if untouched:
                # Closed by a host that we just greeted, or half-way through: that is an attempt, or we would spin.
                outcomes = {**dict.fromkeys(untouched.recipients, closed_early(session)), **outcomes}
            contact = contact_of(spoken[-1], outcomes)
            if len(bundle.deliveries) == 1:
                self._sites.settlement.settle(bundle.deliveries[0], outcomes, started_at=started_at, contact=contact)
            else:
                await self._settle_in_turns(bundle, outcomes, started_at, contact)
            self._site.learn(outcomes, contact, bundle.route)

    async def _ask_another_host(self, spoken: list[Session], bundle: Bundle, outcomes: dict[str, Outcome]) -> bool:
        """Attempt a bundle at another host of its route; whether there was one.

        Args:
            spoken: The sessions that were used for it. The new one is added.
            bundle: What is attempted.
            outcomes: By recipient.
        """
        tried = {session.target.host for session in spoken}
        others = [target for target in self._sites.router.targets(bundle.route) if target.host not in tried]
        # While another host is asked nothing is decided, should we be stopped then.
        so_far = dict(outcomes)
        outcomes.clear()
        if others:
            await self._make_room_for_another()
        other = await open_session(self._sites.connector, others) if others else None
        if other is None or isinstance(other, Unreachable):
            outcomes.update(so_far)
            return False
        spoken.append(other)
        at_once = self._site.limits.recipients_per_transaction
        try:
            left = await carry(other, bundle.message, bundle.recipients, at_once=at_once, outcomes=outcomes)
            outcomes.update(dict.fromkeys(left.recipients if left else (), closed_early(other)))
            await other.quit()
        finally:
            other.abort()
        return True

    async def _make_room_for_another(self) -> None:
        """Say good-bye to our session: one to another host takes its place among those that there may be.

        Not if something was sent ahead on it, of which it would not be known then whether it was taken.
        """
        session = self._session
        if session is not None and session.usable and not self._ahead:
            await session.quit()

    def _settling(
        self, outcomes: Mapping[str, Outcome], started_at: datetime, contact: Contact
    ) -> Callable[[Delivery], None]:
        """Records what an attempt did to a delivery."""
        return partial(self._sites.settlement.settle, outcomes=outcomes, started_at=started_at, contact=contact)

    async def _settle_in_turns(
        self, bundle: Bundle, outcomes: Mapping[str, Outcome], started_at: datetime, contact: Contact
    ) -> None:
        """Record what an attempt did; of thousands of recipients, some at a time."""
        settle, left = self._settling(outcomes, started_at, contact), iter(bundle.deliveries)
        settled = 0
        try:
            for delivery in left:
                settle(delivery)
                settled += len(delivery.recipients)
                if settled >= SETTLED_AT_ONCE:
                    settled = 0
                    await asyncio.sleep(0)  # others have their turn
        finally:
            for delivery in left:  # we were stopped, and they have their outcomes all the same
                settle(delivery)

    def _settle_given_up(self, session: Session, bundle: Bundle, result: TransactionResult) -> None:
        """The session is over, on which this was sent ahead."""
        if result.untouched:
            self._site.put_back(bundle)
            return
        outcomes = outcomes_of(result, bundle.message, bundle.recipients, self._site.limits.recipients_per_transaction)
        settle = self._settling(outcomes, self._sites.settlement.now(), contact_of(session, outcomes))
        for delivery in bundle.deliveries:
            settle(delivery)

    def _interrupted(
        self, bundle: Bundle, outcomes: Mapping[str, Outcome], started_at: datetime, session: Session
    ) -> None:
        """We were stopped in the middle. What was decided, or is in doubt, is recorded; a delivery of which nothing is
        known was not attempted, and its claim is given back with the others."""
        whole = {**dict.fromkeys(bundle.recipients, STOPPED_BEFORE), **outcomes}
        settle = self._settling(whole, started_at, contact_of(session, whole))
        for delivery in bundle.deliveries:
            if any(recipient.address in outcomes for recipient in delivery.recipients):
                settle(delivery)


def contact_of(session: Session, outcomes: Mapping[str, Outcome]) -> Contact:
    """With whom we spoke; what was said only where somebody will want to read it."""
    target = session.target
    for outcome in outcomes.values():
        if outcome.state != "delivered":
            return Contact(target.host, target.ip, session.tls, session.transcript)
    return Contact(target.host, target.ip, session.tls)


def closed_early(session: Session) -> Outcome:
    """What it means for those whose turn had not come."""
    return judge_breakdown(Phase.MAIL, "network", f"{session.target.host} closed the connection before MAIL")
