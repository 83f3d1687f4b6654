"""Speaking SMTP: the Protocols, and the sessions that come with the library."""

from mailstrom_async.smtp.base import (
    Breakdown,
    Connector,
    Credentials,
    Refusal,
    Session,
    SessionError,
    Target,
    TransactionResult,
)
from mailstrom_async.smtp.connector import SMTPConnector

__all__ = [
    "Breakdown",
    "Connector",
    "Credentials",
    "Refusal",
    "SMTPConnector",
    "Session",
    "SessionError",
    "Target",
    "TransactionResult",
]
