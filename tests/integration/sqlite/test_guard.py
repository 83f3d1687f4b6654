"""The fault of SQLite up to 3.51.2 (sqlite.org/wal.html#walresetbug) has no occasion, whoever else has the file open.

It takes a checkpoint, and somebody who begins the log anew meanwhile. Here it is shown that only one of the two can be.
"""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from mailstrom_async.storage import SQLiteStorage
from mailstrom_async.storage._sqlite import guard as guard_room
from mailstrom_async.storage._sqlite.file import open_file, wal_of
from mailstrom_async.storage._sqlite.guard import Guard
from mailstrom_async.testing._contract.ground import NOW, email

CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"

# What a checkpoint holds from its begin to its end: the second of SQLite's eight locks, which lie at byte 120.
CHECKPOINTER = """
import fcntl, sys
with open(sys.argv[1], "r+b") as index:
    fcntl.lockf(index, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 121)
    print("in the midst of a checkpoint", flush=True)
    sys.stdin.readline()
"""


class World:
    """A file with its writer and its guard, and a connection of somebody else's."""

    def __init__(self, path: Path, writer: sqlite3.Connection, guard: Guard, other: sqlite3.Connection) -> None:
        self.path = path
        self.writer = writer
        self.guard = guard
        self.other = other

    def write(self) -> None:
        self.writer.execute("UPDATE counters SET next_message = next_message + 1")

    def log(self) -> bytes:
        """What tells one log from the next one: the salt in its header."""
        return wal_of(self.path).read_bytes()[16:24]

    def checkpoint_of_somebody_else(self) -> tuple[int, int]:
        """The length of the log, and how much of it is moved."""
        _, length, moved = self.other.execute(CHECKPOINT).fetchone()
        return length, moved

    def all_is_moved(self) -> bool:
        # A reader that finds all of it moved looks into the file, and so nothing keeps it from being begun anew.
        length, moved = self.checkpoint_of_somebody_else()
        return length == moved


@pytest.fixture
def world(path: Path) -> Iterator[World]:
    """Something was written since the log was begun."""
    with ExitStack() as stack:
        writer = stack.enter_context(closing(open_file(path)))
        guard = stack.enter_context(Guard(path, writer))
        other = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None, timeout=0)))
        world = World(path, writer, guard, other)
        world.write()
        yield world


def test_nobody_else_moves_a_log_that_can_begin_anew(world: World):
    """Neither by itself after a commit, nor when it is asked to."""
    for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE"):
        _, length, moved = world.other.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()

        assert length > 0, mode
        assert moved == 0, mode
    world.other.execute("PRAGMA wal_autocheckpoint = 1")
    world.other.execute("UPDATE counters SET next_message = next_message + 1")
    assert world.checkpoint_of_somebody_else()[1] == 0


def test_our_own_checkpoint_moves_all_and_lets_the_log_begin_anew(world: World):
    """And again and again: after each of them nobody else can."""
    for _ in range(3):
        log = world.log()
        world.guard.checkpoint()
        assert world.all_is_moved()
        world.write()

        assert world.log() != log
        assert world.checkpoint_of_somebody_else() == (1, 0)


def test_a_log_that_others_can_move_does_not_begin_anew(world: World):
    """Somebody reads what is older than the last commit, so not all of it can be moved by us."""
    world.other.execute("BEGIN")
    world.other.execute("SELECT * FROM counters").fetchall()
    world.write()
    world.guard.checkpoint()
    world.other.execute("COMMIT")
    log = world.log()
    assert world.all_is_moved()  # by the one who asks
    world.write()
    world.write()

    assert world.log() == log
    world.guard.checkpoint()
    world.write()
    assert world.log() != log


def test_a_checkpoint_does_not_wait_for_somebody_who_writes(world: World):
    """Who wants to send would wait as well. And it is not made beside him: he could begin the log anew."""
    world.other.execute("BEGIN IMMEDIATE")
    world.guard.checkpoint()
    world.other.execute("ROLLBACK")

    assert world.checkpoint_of_somebody_else()[1] == 0
    assert world.writer.execute("PRAGMA busy_timeout").fetchone() == (5000,)
    assert not world.writer.in_transaction


@contextmanager
def somebody_in_the_midst_of_a_checkpoint(path: Path) -> Iterator[None]:
    """Another process, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHECKPOINTER, f"{path}-shm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield
    finally:
        process.communicate("")


def test_the_guard_does_not_let_go_while_somebody_is_in_the_midst_of_a_checkpoint(world: World):
    """He may have begun it before the log was begun anew, and would go on with the old log's length."""
    let_go: list[str] = []
    world.guard._connection.set_trace_callback(let_go.append)
    with somebody_in_the_midst_of_a_checkpoint(world.path):
        world.guard.checkpoint()
    assert let_go == []
    assert not world.writer.in_transaction
    world.guard.checkpoint()

    assert let_go[0] == "COMMIT"
    assert world.all_is_moved()


def test_the_guard_does_not_let_go_if_somebody_began_a_checkpoint_just_before_nobody_could_write(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    """Between the two somebody else could have begun the log anew."""
    let_go: list[str] = []
    world.guard._connection.set_trace_callback(let_go.append)
    lock = Guard._lock
    with ExitStack() as stack:

        def lock_at_last(guard: Guard) -> bool:
            stack.enter_context(somebody_in_the_midst_of_a_checkpoint(world.path))
            return lock(guard)

        monkeypatch.setattr(Guard, "_lock", lock_at_last)
        world.guard.checkpoint()

        assert let_go == []


def test_a_guard_that_ends_waits_for_somebody_in_the_midst_of_a_checkpoint(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    """And nobody begins the log anew meanwhile."""
    seen: list[bool] = []
    with ExitStack() as stack:
        stack.enter_context(somebody_in_the_midst_of_a_checkpoint(world.path))

        def pause(_: float) -> None:
            seen.append(world.guard._connection.in_transaction)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                world.other.execute("BEGIN IMMEDIATE")
            stack.close()

        monkeypatch.setattr(time, "sleep", pause)
        world.guard.__exit__(None, None, None)

    assert seen == [True]
    assert not world.writer.in_transaction


def test_a_guard_that_ends_does_not_wait_for_ever(world: World, monkeypatch: pytest.MonkeyPatch):
    """Somebody is stopped in the midst of a checkpoint; and a third one writes."""
    monkeypatch.setattr(guard_room, "PATIENCE", 0.02)
    world.other.execute("BEGIN IMMEDIATE")
    with somebody_in_the_midst_of_a_checkpoint(world.path):
        world.guard.__exit__(None, None, None)

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        world.guard._connection.execute("SELECT 1")


async def test_an_open_store_has_a_guard(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever has the file open meanwhile, with his settings as they come."""
    monkeypatch.setattr(Guard, "checkpoint", lambda *_: None)  # so that all that is moved was moved by the other one
    store = SQLiteStorage(path)
    await store.open(NOW)
    await store.enqueue([email()])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA wal_autocheckpoint = 1")
        other.execute("UPDATE counters SET next_message = next_message + 1")
        _, length, moved = other.execute(CHECKPOINT).fetchone()
    await store.aclose()

    assert length > 1
    assert moved == 0


async def test_the_log_is_gone_when_the_store_is_closed(path: Path):
    """The guard does not outlive it, and the file is whole without the log."""
    store = SQLiteStorage(path)
    await store.open(NOW)
    await store.enqueue([email()])
    await store.aclose()

    assert not wal_of(path).exists()
