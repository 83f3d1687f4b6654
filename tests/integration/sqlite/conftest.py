"""What the tests of the SQLite store share: a place for the file, a look at it from outside, programs of their own."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from mailstrom_async.storage import SQLiteStorage
from mailstrom_async.storage._sqlite.owner import Owner
from mailstrom_async.testing._contract.ground import NOW

T = TypeVar("T")
Query = Callable[..., list[tuple[object, ...]]]
Program = Callable[..., subprocess.Popen[str]]


def owner_of(store: SQLiteStorage) -> Owner:
    """What has the file open."""
    assert store._share is not None
    assert isinstance(store._share._side, Owner)
    return store._share._side


async def ask(store: SQLiteStorage, question: Callable[[sqlite3.Connection], T]) -> T:
    """What the writer's own connection answers."""
    return await owner_of(store).run(question, writes=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store is to be."""
    return tmp_path / "mail.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStorage]:
    """An open store."""
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    yield storage
    await storage.aclose()


@pytest.fixture
def query(path: Path) -> Query:
    """Runs one statement on the file, over a connection of its own."""

    def run(statement: str, *values: object) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as connection:
            return connection.execute(statement, values).fetchall()

    return run


@pytest.fixture
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Program:
    """Starts a Python program in a process of its own, which ends with the test at the latest."""

    def start(source: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        file = tmp_path / "program.py"
        file.write_text(source)
        process = subprocess.Popen(
            [*before, sys.executable, str(file), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(request.config.rootpath)},
        )

        def end() -> None:
            process.kill()
            process.communicate()

        request.addfinalizer(end)
        return process

    return start
