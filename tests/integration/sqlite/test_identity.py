"""Files that are replaced or removed while they are open: nothing is accepted that nobody would find again."""

# ruff: noqa: ASYNC240 - a test may wait for its own small files

import asyncio
import logging
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from mailstrom_async import Config, Email, Mailstrom, RelayDelivery, StorageError
from mailstrom_async._engine import scheduler
from mailstrom_async.storage import SQLiteStorage
from mailstrom_async.storage._sqlite import operations
from mailstrom_async.testing import SMTPServer
from mailstrom_async.testing._contract.ground import ID, NOW, email

from .conftest import Program, ask

CAUSE = "was replaced or removed while it was open"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The store, in a directory of its own."""
    directory = tmp_path / "place"
    directory.mkdir()
    return directory / "mail.db"


@pytest.fixture
async def backup(path: Path) -> Path:
    """An older copy of the store, with one message in it."""
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    await storage.enqueue([email("in the backup")])
    await storage.aclose()
    return shutil.copy(path, path.parent.parent / "backup.db")


def wal_of(path: Path) -> Path:
    return path.with_name("mail.db-wal")


def replace(path: Path) -> None:
    (path.parent.parent / "backup.db").rename(path)


def remove_all(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


LOSSES: dict[str, Callable[[Path], None]] = {
    "replaced": replace,
    "removed": Path.unlink,
    "log removed": lambda path: wal_of(path).unlink(),
    "all removed": remove_all,
    "directory removed": lambda path: shutil.rmtree(path.parent),
}


async def ids(path: Path) -> list[str]:
    """What somebody who opens the store finds in it."""
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    found = [status.message_id for status in await storage.recent(None, 1000)]
    await storage.aclose()
    return sorted(found)


@pytest.mark.parametrize("loss", LOSSES)
async def test_nothing_is_accepted_into_a_file_that_has_lost_its_name(
    backup: Path, store: SQLiteStorage, path: Path, loss: str, caplog: pytest.LogCaptureFixture
):
    """Whoever sends hears the cause and the remedy, whoever asks as well; the log says it once, and closing works."""
    await store.enqueue([email()])
    LOSSES[loss](path)
    for number in range(3):
        with pytest.raises(StorageError, match=CAUSE) as caught:
            await store.enqueue([email(f"{number}")])
    with pytest.raises(StorageError, match=CAUSE):
        await store.upcoming(10)
    await store.aclose()

    assert str(caught.value).startswith(str(path))
    assert "put it back, or restart" in str(caught.value)
    assert [CAUSE in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [True]


async def test_what_is_committed_while_the_file_is_replaced_is_refused(backup: Path, store: SQLiteStorage, path: Path):
    """Nobody was told before that it is stored, and nobody is told after."""
    replacing = ask(store, lambda _: replace(path))
    outcomes = await asyncio.gather(replacing, store.enqueue([email()]), return_exceptions=True)

    assert [CAUSE in str(outcome) for outcome in outcomes] == [True, True]


@pytest.mark.parametrize("turn", ["ask", "wait"])
async def test_the_old_log_is_not_read_into_the_new_file(backup: Path, path: Path, program: Program, turn: str):
    """Row C1: the process is killed, and leaves nothing that would be taken for the new file's, though
    nobody asked it for anything since."""
    process = program(REPLACED, path, backup, turn)
    said, trouble = await asyncio.to_thread(process.communicate, timeout=30)

    assert said == "refused\n", trouble
    assert await ids(path) == ["in the backup"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


REPLACED = """
import asyncio, logging, os, signal, sys
from mailstrom_async import SQLiteStorage, StorageError
from mailstrom_async.testing._contract.ground import NOW, email

class Seen(logging.Handler):
    def emit(self, record):
        loop.call_soon_threadsafe(seen.set)

async def main():
    global loop, seen
    loop, seen = asyncio.get_running_loop(), asyncio.Event()
    logging.getLogger("mailstrom_async").addHandler(Seen())
    path, backup, turn = sys.argv[1:]
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    await storage.enqueue([email(f"{number}", content=bytes(5000)) for number in range(300)])
    os.rename(backup, path)
    if turn == "wait":
        await seen.wait()
    await storage.enqueue([email("late")])

try:
    asyncio.run(main())
except StorageError:
    print("refused", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_who_closes_leaves_no_log_beside_the_new_file(backup: Path, store: SQLiteStorage, path: Path):
    """Replaced after the last thing that was asked: the next one to open it finds the backup as it was."""
    await store.enqueue([email(f"{number}", content=bytes(5000)) for number in range(300)])
    replace(path)
    await store.aclose()

    assert await ids(path) == ["in the backup"]


async def test_a_file_that_is_put_back_is_used_on(store: SQLiteStorage, path: Path):
    """With all that it holds, and what was refused meanwhile can be sent again."""
    await store.enqueue([email()])
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(StorageError, match=CAUSE):
        await store.enqueue([email("2")])
    path.with_name("elsewhere").rename(path)
    await store.enqueue([email("2")])
    await store.aclose()

    assert await ids(path) == sorted([ID, "2"])


async def test_a_file_that_is_put_back_in_the_place_of_another_is_used_on(
    backup: Path, store: SQLiteStorage, path: Path
):
    """Its log was emptied into it meanwhile."""
    await store.enqueue([email()])
    path.rename(path.with_name("elsewhere"))
    replace(path)
    with pytest.raises(StorageError, match=CAUSE):
        await store.enqueue([email("2")])
    path.with_name("elsewhere").rename(path)
    await store.enqueue([email("3")])
    await store.aclose()

    assert await ids(path) == sorted(["in the backup", ID, "3"])


async def test_what_was_accepted_before_the_log_was_removed_is_kept(store: SQLiteStorage, path: Path):
    """SQLite moves what it has open into the file when it is closed."""
    await store.enqueue([email()])
    wal_of(path).unlink()
    with pytest.raises(StorageError, match=f"mail.db-wal {CAUSE}"):
        await store.enqueue([email("2")])
    await store.aclose()

    assert await ids(path) == [ID]


async def test_nothing_is_lost_by_others_that_close(store: SQLiteStorage, path: Path):
    """A log is only removed by whoever closes the file last, which is not one of them."""
    for number in range(3):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"CREATE TABLE others{number} (x)")
        await store.enqueue([email(f"{number}")])


@pytest.fixture
async def mailer(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mailstrom]:
    """One that delivers, and does not ask of itself what is due."""
    monkeypatch.setattr(scheduler, "LOOK_EVERY", timedelta(hours=1))
    async with SMTPServer() as server:
        relay = RelayDelivery(host=server.host, port=server.port, security="none")
        config = Config(helo_name="app.example.org", delivery=relay, shutdown_grace=timedelta(seconds=1))
        async with Mailstrom(config, SQLiteStorage(path)) as mailer:
            yield mailer


async def test_health_shows_it(mailer: Mailstrom, path: Path):
    """Degraded, with the reason, though nothing is sent or due; and well again when the file is back."""
    mail = Email(from_="a@example.org", to="ada@example.net", subject="Hello", text="Hello")
    await mailer.wait(await mailer.send_email(mail))
    path.rename(path.with_name("elsewhere"))
    await _state(mailer, "degraded")
    with pytest.raises(StorageError, match=CAUSE):
        await mailer.send_email(mail)
    assert CAUSE in str(mailer.worker_status.reason)
    path.with_name("elsewhere").rename(path)
    await _state(mailer, "running")


async def _state(mailer: Mailstrom, wanted: str) -> None:
    async with asyncio.timeout(30), mailer.events() as events:
        while mailer.worker_status.state != wanted:
            await anext(aiter(events))


async def test_a_look_at_the_files_is_cheap(store: SQLiteStorage, monkeypatch: pytest.MonkeyPatch):
    """A few for each commit, and not for each message."""
    seen: list[object] = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: seen.append(path) or real(path, **options))
    await asyncio.gather(*(store.enqueue([email(f"{number}")]) for number in range(operations.CROWD - 1)))

    assert len(seen) < 20
