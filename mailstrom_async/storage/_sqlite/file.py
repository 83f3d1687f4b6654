"""Opens the file of a SQLite store: made whole or not at all, and left alone if it is not ours."""

import os
import sqlite3
import struct
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from mailstrom_async._errors import StorageError, StorageIncompatible
from mailstrom_async.storage._sqlite.schema import APPLICATION_ID, MIGRATIONS

BUSY_SECONDS = 5.0
PAGES_IN_MEMORY = -16_384  # KiB: holds the inner nodes of all indexes of a million deliveries
WAL_KEPT = 4 * 1024 * 1024
FULLY_CHECKED = 64 * 1024 * 1024
"""Files up to this size are searched for damage when they are opened: a tenth of a second. In larger ones damage shows
when the page is read; a check would take seconds."""

_HEADER = 100
_MAGIC = b"SQLite format 3\x00"
_OLDEST = (3, 37, 0)  # STRICT tables


def open_file(path: Path) -> sqlite3.Connection:
    """The connection that writes, to a store that is made where needed, but not yet migrated. The lock is held.

    Raises:
        StorageIncompatible: The file is another program's, too new, or damaged; it is left as it is.
        StorageError: It can't be made or written.
        sqlite3.Error: SQLite can't open it.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        raise StorageError(
            f"SQLite {sqlite3.sqlite_version} is too old for SQLiteStorage: use a Python with SQLite 3.37 or newer"
        )
    try:
        if not path.exists() or path.stat().st_size == 0:
            _create(path)
        else:
            _check_header(path)
    except OSError as error:
        raise StorageError(
            f"{path} can't be opened: {error.strerror}; it must be a file that this program may read and write"
        ) from error
    connection = _connect(path, "rw")
    try:
        _check_inside(connection, path)
        _configure(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Migrate a file of an older version. There is a guard: this writes."""
    migrate(connection, MIGRATIONS)


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A second connection, which sees what is committed and writes nothing."""
    connection = _connect(path, "rw")
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = {PAGES_IN_MEMORY}")
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection, migrations: Sequence[Sequence[str]]) -> None:
    """Bring the tables from the file's version to the newest, all the way or not at all."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statements in migrations[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        # Opened in one thread, used in another; never in two at once.
        check_same_thread=False,
    )


def _create(path: Path) -> None:
    """Make an empty store beside, and move it into place whole: a file at `path` always has our header."""
    if wal_of(path).exists():
        raise StorageIncompatible(
            f"{path} is missing or empty, but {wal_of(path)} is there and belongs to it: "
            "restore both, or remove that too"
        )
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600  # mail is nobody else's business
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode))
    try:
        with closing(_connect(beside, "rw")) as connection:
            # Without this, pages once used are never given back to the disk. It can't be chosen later.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            migrate(connection, MIGRATIONS)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    directory = os.open(path.absolute().parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _check_header(path: Path) -> None:
    # Read without SQLite, which might already recover and so change a file that is none of our business. Opened for
    # writing, because SQLite would open what it can't write as well, and fail at the first message only.
    with path.open("r+b") as file:
        header = file.read(_HEADER)
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        raise StorageIncompatible(f"{path} is not a SQLite database, or damaged; it was left as it is: {_ANOTHER}")
    version, application_id = struct.unpack_from(">i", header, 60)[0], struct.unpack_from(">i", header, 68)[0]
    if application_id != APPLICATION_ID:
        raise StorageIncompatible(f"{path} is another program's database; it was left as it is: {_ANOTHER}")
    _check_version(path, version)


_ANOTHER = "give SQLiteStorage a path of its own; tables of yours can be added to the file that it makes"


def _check_version(path: Path, version: int) -> None:
    if not 0 < version <= len(MIGRATIONS):
        raise StorageIncompatible(
            f"{path} is of version {version}, and this library knows up to {len(MIGRATIONS)}; it was left as it is: "
            "use the version of mailstrom_async that made it, or a newer one"
        )


def _check_inside(connection: sqlite3.Connection, path: Path) -> None:
    _check_version(path, connection.execute("PRAGMA user_version").fetchone()[0])
    if path.stat().st_size <= FULLY_CHECKED:
        findings = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
        if findings != ["ok"]:
            raise StorageIncompatible(
                f"{path} is damaged ({'; '.join(findings)[:300]}); it was left as it is: restore it from a backup, "
                "or move it away to begin with an empty queue"
            )


def _configure(connection: sqlite3.Connection, path: Path) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StorageError(f"{path} can't keep a write-ahead log ({mode}): put it on a local file system")
    for setting in (
        "synchronous = FULL",  # an accepted message is on disk
        "foreign_keys = ON",
        "wal_autocheckpoint = 0",  # not within somebody's commit: the writer does it when it is idle
        f"journal_size_limit = {WAL_KEPT}",
        f"cache_size = {PAGES_IN_MEMORY}",
        "temp_store = MEMORY",
        "trusted_schema = OFF",
        # Not as some systems have it: every page of a large content would be written once more, and kept in memory, to
        # make it blank when it is dropped. Within pages that are written anyway, it is.
        "secure_delete = FAST",
    ):
        connection.execute(f"PRAGMA {setting}")
