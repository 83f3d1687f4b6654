"""The file: made whole or not at all, and left alone if it is not ours."""

# ruff: noqa: ASYNC240 - a test may wait for its own small files

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from mailstrom_async import StorageError, StorageIncompatible
from mailstrom_async.storage import SQLiteStorage
from mailstrom_async.storage._sqlite import file as file_room
from mailstrom_async.storage._sqlite import schema
from mailstrom_async.testing._contract.ground import ADA, ID, NOW, claim_one, delivered, email, record_of, states_of

from .conftest import Program


async def refused(path: Path) -> str:
    """The error that opening the store ends in: always the same one, and the file is as it was."""
    before = path.read_bytes() if path.is_file() else None
    storage = SQLiteStorage(path)
    for _ in range(2):
        with pytest.raises(StorageIncompatible) as caught:
            await storage.open(NOW)
    await storage.aclose()
    assert (path.read_bytes() if path.is_file() else None) == before
    assert str(path) in str(caught.value)
    return str(caught.value)


async def test_a_new_store_is_for_its_owner_only(store: SQLiteStorage, path: Path):
    """Mail is nobody else's business: not the file, and not what lies beside it."""
    await store.enqueue([email()])
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}

    assert modes == dict.fromkeys(("mail.db", "mail.db-wal", "mail.db-shm", "mail.db.lock", "mail.db.sock"), 0o600)


async def test_a_closed_store_is_one_file_and_its_lock(path: Path):
    """The log is in the file, so it can be copied."""
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    await storage.enqueue([email()])
    await storage.aclose()

    assert sorted(file.name for file in path.parent.iterdir()) == ["mail.db", "mail.db.lock"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT message_id FROM messages").fetchall() == [(ID,)]


async def test_an_empty_file_becomes_a_store_with_the_permissions_it_had(path: Path):
    """Whoever wants to share the file makes it first."""
    path.touch()
    path.chmod(0o640)
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    await storage.enqueue([email()])
    await storage.aclose()

    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "content",
    [b"Dear diary,\n", b"\x00" * 4096, b"SQLite format 3\x00", b"x" * 100_000],
    ids=["short", "zeros", "header only", "long"],
)
@pytest.mark.rule("C9", "a foreign file is refused and not changed")
async def test_a_file_that_is_no_database_is_left_alone(path: Path, content: bytes):
    """Row C9: refused, and not a byte of it is changed."""
    path.write_bytes(content)

    assert "not a SQLite database" in await refused(path)


@pytest.mark.rule("C9", "another program's database is refused and not changed")
async def test_the_database_of_another_program_is_left_alone(path: Path):
    """Row C9: what is in it stays there."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE messages (diary)")

    assert "another program's" in await refused(path)


async def test_the_database_of_another_program_is_not_even_recovered(path: Path):
    """Row C9: its log belongs to its own program, which may be in the middle of something."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE messages (diary)")
        wal = path.with_name("mail.db-wal").read_bytes()
        await refused(path)

        assert path.with_name("mail.db-wal").read_bytes() == wal


@pytest.mark.parametrize("place", [100, 3000, 4096, 4 * 4096 + 10], ids=str)
@pytest.mark.rule("C9", "a damaged file is refused and not changed")
async def test_a_damaged_store_is_left_alone(path: Path, place: int):
    """Row C9: it is never recreated; what can be saved of it is still there to be saved."""
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    await storage.enqueue([email(f"{number}") for number in range(100)])
    await storage.aclose()
    content = bytearray(path.read_bytes())
    content[place : place + 200] = os.urandom(200)
    path.write_bytes(content)

    assert "damaged" in await refused(path)


async def test_a_store_that_was_cut_off_is_left_alone(path: Path):
    """Row C9: half a file is a damaged file."""
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    await storage.enqueue([email(f"{number}") for number in range(100)])
    await storage.aclose()
    path.write_bytes(path.read_bytes()[: 5 * 4096])

    assert "damaged" in await refused(path)


async def test_a_log_whose_file_is_missing_is_not_thrown_away(path: Path):
    """What was acknowledged may be in it: an empty store in its place would be a silent loss."""
    path.with_name("mail.db-wal").write_bytes(b"the mail of a day")

    assert "belongs to it" in await refused(path)
    assert path.with_name("mail.db-wal").read_bytes() == b"the mail of a day"


@pytest.mark.rule("C27", "a newer version is refused")
async def test_a_store_of_a_newer_version_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Row C27: never misread."""
    newer = (*schema.MIGRATIONS, ("ALTER TABLE messages ADD COLUMN priority INTEGER",))
    with monkeypatch.context() as patch:
        patch.setattr(file_room, "MIGRATIONS", newer)
        storage = SQLiteStorage(path)
        await storage.open(NOW)
        await storage.aclose()

    assert f"of version {len(newer)}" in await refused(path)


@pytest.mark.rule("C27", "an older version is migrated")
async def test_a_store_of_an_older_version_is_brought_to_the_newest(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Row C27: with all that it holds, and it is used on as if it had always been new."""
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    await storage.enqueue([email()])
    await storage.aclose()
    statements = ("ALTER TABLE attempts ADD COLUMN note TEXT", "CREATE INDEX attempts_note ON attempts (note)")
    newer = (*schema.MIGRATIONS, statements, ("ALTER TABLE attempts ADD COLUMN other TEXT",))
    monkeypatch.setattr(file_room, "MIGRATIONS", newer)
    await storage.open(NOW)
    await storage.record([record_of(await claim_one(storage), delivered())])
    status = await storage.status(ID)
    await storage.aclose()

    assert states_of(status) == {ADA: "delivered"}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(newer),)
        assert connection.execute("SELECT note, other FROM attempts").fetchall() == [(None, None)]


@pytest.mark.parametrize("version", range(1, len(schema.MIGRATIONS)))
async def test_every_version_that_there_was_is_brought_to_the_newest(
    path: Path, version: int, monkeypatch: pytest.MonkeyPatch
):
    """Row C27: mail that was accepted before there were lanes is in the lane between."""
    with monkeypatch.context() as patch:
        patch.setattr(file_room, "MIGRATIONS", schema.MIGRATIONS[:version])
        file_room.open_file(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in OLD_MAIL:
            connection.execute(statement)
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    due = await storage.upcoming(10)
    await storage.record([record_of(await claim_one(storage), delivered())])
    await storage.enqueue([email("code@example.org", lane="auth")])
    statuses = await storage.recent(NOW, 10)
    await storage.aclose()

    assert [(entry.destination, entry.size, entry.lane) for entry in due] == [("example.net", 9, "default")]
    assert [(status.message_id, status.lane, status.completed) for status in statuses] == [
        ("old@example.org", "default", True),
        ("code@example.org", "auth", False),
    ]


OLD_MAIL = (
    "INSERT INTO messages VALUES (1, 'old@example.org', 'app@example.org', 0, 0, 1, 9000000000000000, 1, NULL, NULL)",
    "INSERT INTO contents VALUES (1, CAST('old mail!' AS BLOB))",
    "INSERT INTO deliveries (id, message, destination, size, due_at) VALUES (1, 1, 'example.net', 9, 1)",
    "INSERT INTO recipients (delivery, position, address) VALUES (1, 0, 'ada@example.net')",
    "UPDATE counters SET unfinished = 1, next_message = 2, next_delivery = 2",
)
"""A message as version 1 held it, and any later one still takes it."""


@pytest.mark.rule("C27", "a migration that fails changes nothing")
async def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Row C27: all the way, or not at all; the version that made the store goes on with it."""
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    await storage.enqueue([email()])
    await storage.aclose()
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        broken = ("ALTER TABLE attempts ADD COLUMN note TEXT", "DROP TABLE contents", "SELECT nonsense")
        patch.setattr(file_room, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(StorageError, match="nonsense"):
            await storage.open(NOW)

    assert path.read_bytes() == before
    await storage.open(NOW)
    assert await storage.prepared(ID) is not None
    await storage.aclose()


@pytest.mark.rule("C8", "missing directory: open() fails with a clear error")
async def test_a_missing_directory_is_named(tmp_path: Path):
    """Row C8: it is not made, for it may be a disk that is not mounted."""
    storage = SQLiteStorage(tmp_path / "missing" / "mail.db")
    with pytest.raises(StorageError, match="the directory must exist"):
        await storage.open(NOW)

    assert not (tmp_path / "missing").exists()


async def test_a_directory_is_no_store(path: Path):
    """Row C8."""
    path.mkdir()
    with pytest.raises(StorageError, match="must be a file"):
        await SQLiteStorage(path).open(NOW)


@pytest.mark.parametrize("nothing", ["", ":memory:"])
def test_a_store_in_memory_is_another_class(nothing: str):
    """SQLite would take these for databases that vanish."""
    with pytest.raises(ValueError, match="MemoryStorage"):
        SQLiteStorage(nothing)


async def test_a_path_that_can_be_no_path_is_an_error_of_the_store(tmp_path: Path):
    """Row C8: whoever configured it gets to hear of it at once, and not never."""
    with pytest.raises((StorageError, ValueError)):
        await SQLiteStorage(f"{tmp_path}/a\x00b").open(NOW)


POWERLESS = """
import asyncio, concurrent.futures.thread, os, sys  # all that is needed, for soon little can be read
from pathlib import Path
from mailstrom_async import SQLiteStorage, StorageError
from mailstrom_async.testing._contract.ground import NOW

if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)  # root may write everywhere

async def main():
    storage = SQLiteStorage(Path(sys.argv[1]))
    try:
        await storage.open(NOW)
    except StorageError as error:
        print(type(error).__name__, error)
    else:
        print("opened")
        await storage.aclose()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("file_mode", "lock_mode", "directory_mode"),
    [(0o444, 0o666, 0o777), (0o444, 0o444, 0o555), (0o666, 0o666, 0o555), (0o000, 0o666, 0o777)],
    ids=["file", "all", "directory", "unreadable"],
)
@pytest.mark.rule("C8", "read-only file or directory: open() fails with a clear error")
async def test_a_store_that_may_not_be_written_says_what_to_do(
    tmp_path: Path, program: Program, file_mode: int, lock_mode: int, directory_mode: int
):
    """Row C8: a clear error that names the file and the remedy, and nothing is changed."""
    place = tmp_path / "place"
    place.mkdir()
    path = place / "mail.db"
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    await storage.aclose()
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    path.chmod(file_mode)
    path.with_name("mail.db.lock").chmod(lock_mode)
    place.chmod(directory_mode)
    said, trouble = program(POWERLESS, path).communicate(timeout=30)
    place.chmod(0o755)

    assert said.startswith("StorageError"), trouble
    assert str(path) in said
    assert "writ" in said


async def test_a_link_and_its_file_are_one_store(path: Path):
    """Two names of one file must not mean two locks, and two connections that write."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    one, two = SQLiteStorage(link), SQLiteStorage(path)
    await one.open(NOW)
    await two.open(NOW)
    await one.enqueue([email()])

    assert repr(one).endswith("[owner]>")
    assert repr(two).endswith("[follower]>")
    assert await two.status(ID) is not None
    await two.aclose()
    await one.aclose()


async def test_what_an_earlier_life_left_half_made_is_made_anew(path: Path):
    """It died while it made the store, before anything was accepted."""
    for name in ("mail.db.new", "mail.db.new-journal"):
        path.with_name(name).write_bytes(b"half")
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    await storage.enqueue([email()])
    await storage.aclose()

    assert not path.with_name("mail.db.new").exists()
