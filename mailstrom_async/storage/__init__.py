"""Where the queue is kept: the Protocol, and the stores that come with the library."""

from mailstrom_async.storage.base import Acceptance, Due, Express, Outbox, Portion, Record, Recorded, Roster, Storage
from mailstrom_async.storage.memory import MemoryStorage
from mailstrom_async.storage.sqlite import SQLiteStorage

__all__ = [
    "Acceptance",
    "Due",
    "Express",
    "MemoryStorage",
    "Outbox",
    "Portion",
    "Record",
    "Recorded",
    "Roster",
    "SQLiteStorage",
    "Storage",
]
