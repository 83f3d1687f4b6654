"""Scripted servers for tests."""

from mailstrom_async.testing._actions import (
    Action,
    Close,
    Context,
    Delay,
    Drip,
    Flood,
    Gate,
    Greylist,
    HalfClose,
    Hang,
    Raw,
    ReadSlowly,
    Reply,
    Reset,
    Script,
    Scripted,
    StopReading,
    Take,
    TakeThenClose,
)
from mailstrom_async.testing._records import ReceivedMessage, SessionRecord
from mailstrom_async.testing.clock import ManualClock
from mailstrom_async.testing.smtp_server import SMTPServer

__all__ = [
    "Action",
    "Close",
    "Context",
    "Delay",
    "Drip",
    "Flood",
    "Gate",
    "Greylist",
    "HalfClose",
    "Hang",
    "ManualClock",
    "Raw",
    "ReadSlowly",
    "ReceivedMessage",
    "Reply",
    "Reset",
    "SMTPServer",
    "Script",
    "Scripted",
    "SessionRecord",
    "StopReading",
    "Take",
    "TakeThenClose",
]
