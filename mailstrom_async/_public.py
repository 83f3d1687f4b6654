"""Everything that `import mailstrom_async` gives; loaded when the first of it is wanted, see there."""

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
        globals()[_name].__module__ = "mailstrom_async"
