"""What a session carries at a time, and what it will carry next."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailstrom_async._engine.attempt import first_transaction
from mailstrom_async._envelope import Delivery, Lane, QueuedMessage
from mailstrom_async._policy.hosts import Route
from mailstrom_async.smtp.base import Session

if TYPE_CHECKING:
    from mailstrom_async._engine.site import Site


@dataclass(slots=True)
class Bundle:
    """All deliveries of one message that wait at a site: they share transactions."""

    route: Route
    lane: Lane
    deliveries: list[Delivery]

    @property
    def recipients(self) -> list[str]:
        return [recipient.address for delivery in self.deliveries for recipient in delivery.recipients]


class Lookahead:
    """The bundles that a session will carry next, in this order: the first one's envelope, or where the server takes
    BDAT all of several, went out with what is carried now."""

    def __init__(self, site: "Site") -> None:
        self._site = site
        self._bundles: deque[Bundle] = deque()

    def __bool__(self) -> bool:
        return bool(self._bundles)

    def reserve(self, session: Session, carries_other: bool) -> tuple[QueuedMessage, Sequence[str]] | None:
        """Bind the next bundle to the session, if there is one to spare.

        Args:
            session: Whose next it will be.
            carries_other: It carries mail other than "auth" now, and so may go on to do so.
        """
        if not self._site.may_look_ahead(session):
            return None
        bundle = self._site.take(freed=carries_other)
        if bundle is None:
            return None
        self._bundles.append(bundle)
        message, at_once = bundle.deliveries[0].message, self._site.limits.recipients_per_transaction
        return first_transaction(message, bundle.recipients, at_once)

    def take(self) -> Bundle | None:
        return self._bundles.popleft() if self._bundles else None

    def give_back(self, session: Session | None) -> None:
        """The session is over. What was sent ahead whole has an outcome; the rest another session may carry."""
        if session is None or not self._bundles:
            return
        given_up = [(self._bundles.popleft(), result) for result in session.abandon()]
        while self._bundles:
            self._site.put_back(self._bundles.pop())
        for bundle, result in reversed(given_up):
            self._site.settle_given_up(bundle, session, result)
