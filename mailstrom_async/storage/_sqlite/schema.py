"""The tables of the SQLite store, and how one version becomes the next.

Times are microseconds since 1970, UTC. While a delivery is claimed its `due_at` is the end of the lease, so that one
comparison tells whether it may be claimed; NULL means finished. Results and attempts are JSON, as the status shows
them.
"""

APPLICATION_ID = 0x4D737472  # "Mstr": tells our files from other programs'

_VERSION_1 = (
    """
    CREATE TABLE counters (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        unfinished INTEGER NOT NULL,     -- messages that are not completed: QueueFull must not count a million rows
        next_message INTEGER NOT NULL,   -- keys are never used again, or a late record could meet a stranger's delivery
        next_delivery INTEGER NOT NULL
    ) STRICT
    """,
    "INSERT INTO counters VALUES (1, 0, 1, 1)",
    """
    CREATE TABLE messages (
        key INTEGER PRIMARY KEY,
        message_id TEXT NOT NULL UNIQUE,
        sender TEXT NOT NULL,
        smtputf8 INTEGER NOT NULL,
        eight_bit INTEGER NOT NULL,
        queued_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        unfinished INTEGER NOT NULL,     -- recipients that are not final
        cancelled_at INTEGER,
        completed_at INTEGER
    ) STRICT
    """,
    "CREATE INDEX messages_incomplete ON messages (queued_at) WHERE completed_at IS NULL",
    "CREATE INDEX messages_completed ON messages (completed_at) WHERE completed_at IS NOT NULL",
    # Apart from the messages, so that reading a status never pages through bodies. Gone at completion.
    """
    CREATE TABLE contents (
        message INTEGER PRIMARY KEY REFERENCES messages ON DELETE CASCADE,
        content BLOB NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE deliveries (
        id INTEGER PRIMARY KEY,
        message INTEGER NOT NULL REFERENCES messages ON DELETE CASCADE,
        destination TEXT NOT NULL,
        size INTEGER NOT NULL,
        due_at INTEGER,
        attempt INTEGER NOT NULL DEFAULT 0,
        owner TEXT,
        claimed_at INTEGER
    ) STRICT
    """,
    "CREATE INDEX deliveries_of_message ON deliveries (message)",
    # With the id before the destination, entries of the same time are in order and need no sorting.
    "CREATE INDEX deliveries_due ON deliveries (due_at, id, destination) WHERE due_at IS NOT NULL AND owner IS NULL",
    """
    CREATE INDEX deliveries_due_at_destination ON deliveries (destination, due_at)
        WHERE due_at IS NOT NULL AND owner IS NULL
    """,
    "CREATE INDEX deliveries_claimed ON deliveries (owner) WHERE owner IS NOT NULL",
    """
    CREATE TABLE recipients (
        delivery INTEGER NOT NULL REFERENCES deliveries ON DELETE CASCADE,
        position INTEGER NOT NULL,       -- in the envelope
        address TEXT NOT NULL,
        written TEXT,                    -- as the caller wrote it, if that differs
        state TEXT NOT NULL DEFAULT 'queued',
        attempts INTEGER NOT NULL DEFAULT 0,
        result TEXT,
        PRIMARY KEY (delivery, position)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE attempts (
        id INTEGER PRIMARY KEY,
        message INTEGER NOT NULL REFERENCES messages ON DELETE CASCADE,
        started_at INTEGER NOT NULL,
        attempt TEXT NOT NULL
    ) STRICT
    """,
    "CREATE INDEX attempts_of_message ON attempts (message, started_at)",
)

_LANES = (
    # Numbers, because they take no room in the indexes: 0 is "auth", 1 "default", 2 "bulk".
    "ALTER TABLE deliveries ADD COLUMN lane INTEGER NOT NULL DEFAULT 1 CHECK (lane IN (0, 1, 2))",
    "DROP INDEX deliveries_due",
    """
    CREATE INDEX deliveries_due ON deliveries (lane, due_at, id, destination)
        WHERE due_at IS NOT NULL AND owner IS NULL
    """,
    "DROP INDEX deliveries_due_at_destination",
    """
    CREATE INDEX deliveries_due_at_destination ON deliveries (destination, lane, due_at)
        WHERE due_at IS NOT NULL AND owner IS NULL
    """,
)

_LINES = (
    # See upcoming.py.
    "ALTER TABLE deliveries ADD COLUMN lined_up INTEGER NOT NULL DEFAULT 0 CHECK (lined_up IN (0, 1))",
    "DROP INDEX deliveries_due",
    """
    CREATE INDEX deliveries_due ON deliveries (lane, due_at, id, destination)
        WHERE due_at IS NOT NULL AND owner IS NULL AND lined_up = 0
    """,
    "DROP INDEX deliveries_due_at_destination",
    """
    CREATE INDEX deliveries_due_in_line ON deliveries (destination, lane, due_at)
        WHERE due_at IS NOT NULL AND owner IS NULL AND lined_up = 1
    """,
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1, _LANES, _LINES)
"""The n-th entry makes version n (`PRAGMA user_version`) of the one before. What was released is never changed."""
