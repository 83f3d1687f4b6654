"""The tables of the PostgreSQL store, and how one version becomes the next.

All statements name the schema `mailstrom`; where another one is wanted, `Session` puts it in its place.

While a delivery is claimed its `due_at` is the end of the lease, so that one comparison tells whether it may be
claimed; NULL means finished. Results and attempts are JSON, as the status shows them. Rows of several tables are locked
in one order, messages before deliveries and each by its key, so that processes do not block each other for good.
"""

import re

from mailstrom_async._errors import StorageError, StorageIncompatible
from mailstrom_async.storage._postgres.connection import Session

OLDEST = 13
"""The oldest release that we test our statements with is younger; this one has all that they need."""

_VERSION_1 = (
    # The identity tells this store from others of the same schema name in other databases.
    """
    CREATE TABLE mailstrom.schema_version (
        version integer NOT NULL,
        identity uuid NOT NULL DEFAULT gen_random_uuid()
    )
    """,
    """
    CREATE TABLE mailstrom.messages (
        key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        message_id text NOT NULL UNIQUE,
        sender text NOT NULL,
        smtputf8 boolean NOT NULL,
        eight_bit boolean NOT NULL,
        queued_at timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        unfinished integer NOT NULL,     -- recipients that are not final
        cancelled_at timestamptz,
        completed_at timestamptz
    )
    """,
    "CREATE INDEX messages_incomplete ON mailstrom.messages (queued_at, key) WHERE completed_at IS NULL",
    "CREATE INDEX messages_completed ON mailstrom.messages (completed_at) WHERE completed_at IS NOT NULL",
    # Apart from the messages, so that reading a status never pages through bodies. Gone at completion.
    """
    CREATE TABLE mailstrom.contents (
        message bigint PRIMARY KEY REFERENCES mailstrom.messages ON DELETE CASCADE,
        content bytea NOT NULL
    )
    """,
    # Most of it is base64 and lives for seconds: compressing it would cost more than it saves.
    "ALTER TABLE mailstrom.contents ALTER COLUMN content SET STORAGE EXTERNAL",
    """
    CREATE TABLE mailstrom.deliveries (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        message bigint NOT NULL REFERENCES mailstrom.messages ON DELETE CASCADE,
        destination text NOT NULL,
        size integer NOT NULL,
        due_at timestamptz,
        attempt integer NOT NULL DEFAULT 0,
        owner text,
        claimed_at timestamptz
    )
    """,
    "CREATE INDEX deliveries_of_message ON mailstrom.deliveries (message)",
    # With all that the scheduler asks for, so that it is answered from the index alone.
    """
    CREATE INDEX deliveries_due ON mailstrom.deliveries (due_at, id) INCLUDE (destination, size)
        WHERE due_at IS NOT NULL
    """,
    """
    CREATE INDEX deliveries_due_at_destination ON mailstrom.deliveries (destination, due_at, id) INCLUDE (size)
        WHERE due_at IS NOT NULL
    """,
    """
    CREATE TABLE mailstrom.recipients (
        delivery bigint NOT NULL REFERENCES mailstrom.deliveries ON DELETE CASCADE,
        position integer NOT NULL,       -- in the envelope
        address text NOT NULL,
        written text,                    -- as the caller wrote it, if that differs
        state text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'deferred', 'delivered', 'failed')),
        attempts integer NOT NULL DEFAULT 0,
        result json,
        PRIMARY KEY (delivery, position)
    )
    """,
    """
    CREATE TABLE mailstrom.attempts (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        message bigint NOT NULL REFERENCES mailstrom.messages ON DELETE CASCADE,
        started_at timestamptz NOT NULL,
        attempt json NOT NULL
    )
    """,
    "CREATE INDEX attempts_of_message ON mailstrom.attempts (message, started_at)",
    # A queue's rows change and go all the time: what is dead must not pile up at the front of the due index.
    "ALTER TABLE mailstrom.deliveries SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000)",
    "ALTER TABLE mailstrom.contents SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000)",
    "INSERT INTO mailstrom.schema_version VALUES (0)",
)

_ENGINES = (
    # Who delivers, to share the limits.
    "CREATE TABLE mailstrom.engines (owner text PRIMARY KEY, seen_at timestamptz NOT NULL)",
)

_LANES = (
    # 0 is "auth", 1 "default", 2 "bulk".
    "ALTER TABLE mailstrom.deliveries ADD COLUMN lane smallint NOT NULL DEFAULT 1 CHECK (lane IN (0, 1, 2))",
    "DROP INDEX mailstrom.deliveries_due",
    """
    CREATE INDEX deliveries_due ON mailstrom.deliveries (lane, due_at, id) INCLUDE (destination, size)
        WHERE due_at IS NOT NULL
    """,
    "DROP INDEX mailstrom.deliveries_due_at_destination",
    """
    CREATE INDEX deliveries_due_at_destination ON mailstrom.deliveries (destination, lane, due_at, id) INCLUDE (size)
        WHERE due_at IS NOT NULL
    """,
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1, _ENGINES, _LANES)
"""The n-th entry makes version n (`schema_version`) of the one before. What was released is never changed."""

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('mailstrom_async ' || $1, 0))"

# By a query, which sees what others committed while we waited for the lock; to_regclass may still remember that there
# was nothing.
_TABLES = """
    SELECT relname FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE nspname = $1 AND relname = ANY($2::text[]) ORDER BY relname
"""

_SURROUNDINGS = """
    SELECT current_setting('server_version_num')::integer, current_setting('server_version'),
        current_setting('server_encoding'), current_setting('synchronous_commit'),
        current_setting('transaction_read_only') = 'on'
"""


def checked_name(schema: str) -> str:
    """The name of a schema, if it needs no quotes and leaves room for a channel of the same name."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,49}", schema) or schema.startswith("pg_"):
        raise ValueError(
            f"{schema!r} can't be the schema of a PostgresStorage: use up to 50 lower-case letters, digits and "
            "underscores, not beginning with a digit or pg_"
        )
    return schema


async def make_ready(session: Session) -> str:
    """Look whether the server is fit for a store, and bring the tables to the newest version. In a transaction.

    Returns:
        The identity of the store.

    Raises:
        StorageIncompatible: The tables are not ours, or of a newer version; they are left as they are.
        StorageError: The server can't hold a store.
    """
    await _check_server(session)
    if await _version(session) != len(MIGRATIONS):
        await _migrate(session)
    [(identity,)] = await session.fetch("SELECT identity FROM mailstrom.schema_version")
    return str(identity)


async def _migrate(session: Session) -> None:
    # Many processes may start at once, and only one of them makes the tables.
    await session.execute(_LOCK, session.schema)
    version = await _version(session)
    if version > len(MIGRATIONS):
        raise StorageIncompatible(
            f"the schema {session.schema} in {session.name} is of version {version}, and this library knows up to "
            f"{len(MIGRATIONS)}; it was left as it is: use the version of mailstrom_async that made it, or a newer one"
        )
    if version == 0:
        await _check_free(session)
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            await session.execute(statement)
    await session.execute("UPDATE mailstrom.schema_version SET version = $1", len(MIGRATIONS))
    if version:  # there may be a long queue, and what is guessed of a new column is far from the truth
        await session.execute("ANALYZE mailstrom.messages, mailstrom.deliveries, mailstrom.recipients")


async def _check_server(session: Session) -> None:
    [(number, version, encoding, synchronous, read_only)] = await session.fetch(_SURROUNDINGS)
    if number < OLDEST * 10_000:
        raise StorageError(f"{session.name} runs PostgreSQL {version}; PostgresStorage needs {OLDEST} or newer")
    if encoding != "UTF8":
        raise StorageIncompatible(
            f"{session.name} is a database in {encoding}, which can't hold every address: use one in UTF8"
        )
    if synchronous == "off":
        raise StorageError(
            f"{session.name} has synchronous_commit off, so what is accepted would not be safe: "
            "ALTER ROLE ... SET synchronous_commit = on for the role that the mailer uses"
        )
    if read_only:
        raise StorageError(f"{session.name} is read-only, a standby perhaps: connect to the primary server")


async def _version(session: Session) -> int:
    """The version of the tables; 0: there are none."""
    if not await session.fetch(_TABLES, session.schema, ["schema_version"]):
        return 0
    rows = await session.fetch("SELECT version FROM mailstrom.schema_version")
    if len(rows) != 1:
        raise StorageIncompatible(
            f"{session.schema}.schema_version in {session.name} should hold one version and holds {len(rows)}: it is "
            "another program's, or damaged; it was left as it is: restore it, or use another schema"
        )
    return int(rows[0][0])


async def _check_free(session: Session) -> None:
    """Make the schema if it is not there; if it is, none of our tables may be in it."""
    if not await session.fetch("SELECT FROM pg_namespace WHERE nspname = $1", session.schema):
        await session.execute(f"CREATE SCHEMA {session.schema}")
        return
    ours = ["messages", "contents", "deliveries", "recipients", "attempts", "engines"]
    taken = await session.fetch(_TABLES, session.schema, ours)
    if taken:
        raise StorageIncompatible(
            f"the schema {session.schema} in {session.name} holds another program's table {taken[0][0]}; it was left "
            "as it is: give PostgresStorage a schema of its own"
        )
