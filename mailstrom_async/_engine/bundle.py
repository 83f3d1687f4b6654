"""What a session carries at a time."""

from mailstrom_async._envelope import Delivery, Lane
from mailstrom_async._policy.hosts import Route


class Bundle:
    """All deliveries of one message that wait at a site: they share transactions.

    Attributes:
        route: The way of the first of them.
        recipients: The addresses of all.
    """

    __slots__ = ("deliveries", "lane", "message", "recipients", "route")

    def __init__(self, route: Route, first: Delivery) -> None:
        self.route = route
        self.message = first.message
        self.lane: Lane = first.message.lane
        self.deliveries = [first]
        self.recipients = [recipient.address for recipient in first.recipients]

    def add(self, delivery: Delivery) -> None:
        """Another one of the same message comes along."""
        self.deliveries.append(delivery)
        self.recipients += [recipient.address for recipient in delivery.recipients]

    def keep(self, deliveries: list[Delivery]) -> None:
        """Only these come along, perhaps none."""
        self.deliveries = deliveries
        self.recipients = [recipient.address for delivery in deliveries for recipient in delivery.recipients]
