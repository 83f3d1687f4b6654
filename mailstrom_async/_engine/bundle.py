"""What a session carries at a time."""

from dataclasses import dataclass

from mailstrom_async._envelope import Delivery, Lane
from mailstrom_async._policy.hosts import Route


@dataclass(slots=True)
class Bundle:
    """All deliveries of one message that wait at a site: they share transactions."""

    route: Route
    lane: Lane
    deliveries: list[Delivery]

    @property
    def recipients(self) -> list[str]:
        return [recipient.address for delivery in self.deliveries for recipient in delivery.recipients]
