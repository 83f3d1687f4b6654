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
from mailstrom_async.testing._zone import Answer, Entry, Fault, Forged, InTurn, Late, Records, Truncated, Zone
from mailstrom_async.testing.certificates import CertificateAuthority
from mailstrom_async.testing.clock import ManualClock
from mailstrom_async.testing.dns_server import DNSServer, Question
from mailstrom_async.testing.internet import FakeInternet
from mailstrom_async.testing.smtp_server import SMTPServer

__all__ = [
    "Action",
    "Answer",
    "CertificateAuthority",
    "Close",
    "Context",
    "DNSServer",
    "Delay",
    "Drip",
    "Entry",
    "FakeInternet",
    "Fault",
    "Flood",
    "Forged",
    "Gate",
    "Greylist",
    "HalfClose",
    "Hang",
    "InTurn",
    "Late",
    "ManualClock",
    "Question",
    "Raw",
    "ReadSlowly",
    "ReceivedMessage",
    "Records",
    "Reply",
    "Reset",
    "SMTPServer",
    "Script",
    "Scripted",
    "SessionRecord",
    "StopReading",
    "Take",
    "TakeThenClose",
    "Truncated",
    "Zone",
]
