"""The outbound half of a mail server as an asyncio library.

    mailer = Mailstrom(Config(helo_name="mail.example.org"), SQLiteStorage("mail.db"))
    async with mailer:
        message_id = await mailer.send_email(
            Email(from_="App <app@example.org>", to="Ada <ada@example.net>", subject="Welcome", text="Hello Ada")
        )
        status = await mailer.query_status(message_id)

The way of a message, and where to read it:

1. `send_email` composes the `Email` (`_message/compose.py`) and stores it (`storage/`); then it returns.
2. The scheduler (`_engine/scheduler.py`) claims what is due, fairly over destinations (`_queue/`).
3. The router (`_engine/routing.py`) finds out where the destination leads (`dns/`, `_policy/hosts.py`).
4. A session of the site (`_engine/site.py`, `smtp/`) carries the message; each reply is judged (`_policy/verdict.py`).
5. The outcomes are settled into results (`_queue/recipient.py`) and recorded; deferred ones are due again later.
"""

from mailstrom_async._config import (
    Config,
    DirectDelivery,
    DKIMKey,
    Limits,
    LimitsFor,
    Rate,
    RelayDelivery,
    RetryPolicy,
    Timeouts,
)
from mailstrom_async._email import Attachment, Email
from mailstrom_async._envelope import Lane, PreparedEmail
from mailstrom_async._errors import (
    AlreadyQueued,
    DKIMKeyError,
    InvalidEmail,
    MailerStateError,
    MailstromError,
    MessageNotFound,
    QueueFull,
    ResolutionFailed,
    ResolverError,
    StorageError,
    StorageIncompatible,
    StorageInUse,
    UnusableConnection,
)
from mailstrom_async._events import (
    Event,
    EventsLost,
    MessageCompleted,
    MessageQueued,
    RecipientDeferred,
    RecipientDelivered,
    RecipientFailed,
    WorkerStatusChanged,
)
from mailstrom_async._mailer import Mailstrom
from mailstrom_async._message.bulk import bulk_problems
from mailstrom_async._reply import Reply
from mailstrom_async._status import (
    Attempt,
    Deferred,
    Delivered,
    DeliveryResult,
    Failed,
    MessageStatus,
    Outcome,
    Queued,
    RecipientStatus,
    SiteStatus,
    TLSFacts,
    WorkerStatus,
)
from mailstrom_async.storage import MemoryStorage, SQLiteStorage, Storage

__version__ = "0.1.0"

__all__ = [
    "AlreadyQueued",
    "Attachment",
    "Attempt",
    "Config",
    "DKIMKey",
    "DKIMKeyError",
    "Deferred",
    "Delivered",
    "DeliveryResult",
    "DirectDelivery",
    "Email",
    "Event",
    "EventsLost",
    "Failed",
    "InvalidEmail",
    "Lane",
    "Limits",
    "LimitsFor",
    "MailerStateError",
    "Mailstrom",
    "MailstromError",
    "MemoryStorage",
    "MessageCompleted",
    "MessageNotFound",
    "MessageQueued",
    "MessageStatus",
    "Outcome",
    "PreparedEmail",
    "QueueFull",
    "Queued",
    "Rate",
    "RecipientDeferred",
    "RecipientDelivered",
    "RecipientFailed",
    "RecipientStatus",
    "RelayDelivery",
    "Reply",
    "ResolutionFailed",
    "ResolverError",
    "RetryPolicy",
    "SQLiteStorage",
    "SiteStatus",
    "Storage",
    "StorageError",
    "StorageInUse",
    "StorageIncompatible",
    "TLSFacts",
    "Timeouts",
    "UnusableConnection",
    "WorkerStatus",
    "WorkerStatusChanged",
    "bulk_problems",
]

# Reprs, tracebacks and pickles name what users import, not the room where it lies.
for _name in __all__:
    if isinstance(globals()[_name], type):
        globals()[_name].__module__ = __name__
