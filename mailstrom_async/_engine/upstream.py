"""What sites may ask of those who claim for them."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from mailstrom_async._envelope import Delivery, Lane


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where deliveries come from.

    Attributes:
        wanted: Those that may still be attempted, when it is their turn; ends the others.
        hold: Claim nothing more of a lane for a destination, until it is let go: its site has no room.
        let_go: There is room again.
        give_back: These were claimed for a site that has no room: to the queue with them, unattempted.
    """

    wanted: Callable[[Sequence[Delivery]], list[Delivery]]
    hold: Callable[[Lane, str], None]
    let_go: Callable[[Lane, str], None]
    give_back: Callable[[Sequence[Delivery]], Awaitable[None]]
