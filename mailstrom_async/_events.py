"""What happens to messages, as it is recorded. `mailer.events(...)` hands them out."""

from pydantic import AwareDatetime

from mailstrom_async._model import Frozen
from mailstrom_async._status import Deferred, Delivered, Failed, WorkerStatus


class Event(Frozen):
    """The base of all events."""


class MessageQueued(Event):
    """A message is safe in the store."""

    message_id: str
    queued_at: AwareDatetime


class RecipientDelivered(Event):
    """A server took responsibility for one recipient."""

    message_id: str
    address: str
    result: Delivered


class RecipientDeferred(Event):
    """One recipient was attempted and will be attempted again."""

    message_id: str
    address: str
    result: Deferred


class RecipientFailed(Event):
    """One recipient will not be attempted again."""

    message_id: str
    address: str
    result: Failed


class MessageCompleted(Event):
    """The last recipient of a message is delivered or failed."""

    message_id: str


class WorkerStatusChanged(Event):
    """Delivery started, stopped, paused, degraded or recovered."""

    status: WorkerStatus


class EventsLost(Event):
    """A reader was too slow: so many of its events were dropped. Query the statuses of what it follows."""

    count: int
