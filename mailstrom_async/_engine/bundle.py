"""What a session carries at a time, and what it will carry next."""

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
    """The bundle that a session will carry next, if its envelope went out with the end of the content before."""

    def __init__(self, site: "Site") -> None:
        self._site = site
        self._bundle: Bundle | None = None

    def __bool__(self) -> bool:
        return self._bundle is not None

    def reserve(self, session: Session, carries_other: bool) -> tuple[QueuedMessage, Sequence[str]] | None:
        """Bind the next bundle to the session, if there is one to spare.

        Args:
            session: Whose next it will be.
            carries_other: It carries mail other than "auth" now, and so may go on to do so.
        """
        if not self._site.may_look_ahead(session):
            return None
        self._bundle = self._site.take(freed=carries_other)
        if self._bundle is None:
            return None
        message, at_once = self._bundle.deliveries[0].message, self._site.limits.recipients_per_transaction
        return first_transaction(message, self._bundle.recipients, at_once)

    def take(self) -> Bundle | None:
        bundle, self._bundle = self._bundle, None
        return bundle

    def give_back(self) -> None:
        """The session is over: another one may carry it."""
        bundle = self.take()
        if bundle is not None:
            self._site.put_back(bundle)
