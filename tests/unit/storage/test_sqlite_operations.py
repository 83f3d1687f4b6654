"""Which operations share a transaction, and what the failure of one costs the others."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from mailstrom_async import StorageError
from mailstrom_async.storage._sqlite.errors import Unusual
from mailstrom_async.storage._sqlite.operations import Operation, Operations


@dataclass
class Alone:
    """One of a kind that can't be done as one; writes its number, and fails after that if it is negative."""

    number: int

    def __call__(self, connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO numbers VALUES (?)", (self.number,))
        if self.number < 0:
            raise StorageError(f"{self.number} is negative")
        return "alone"

    @staticmethod
    def merge(connection: sqlite3.Connection, operations: Sequence["Alone"]) -> list[str]:
        connection.execute("INSERT INTO numbers VALUES (1000)")
        raise Unusual


@dataclass
class Merged(Alone):
    @staticmethod
    def merge(connection: sqlite3.Connection, operations: Sequence["Alone"]) -> list[str]:
        connection.executemany("INSERT INTO numbers VALUES (?)", [(operation.number,) for operation in operations])
        return ["merged"] * len(operations)


def single(connection: sqlite3.Connection) -> str:
    return "single"


Run = Callable[[Sequence[Operation[str]]], tuple[list[object], list[int]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs operations in one batch: what became of each, and the numbers that are stored then."""

    def in_one_batch(chosen: Sequence[Operation[str]]) -> tuple[list[object], list[int]]:
        path = tmp_path / "numbers.db"
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
            connection.execute("CREATE TABLE numbers (number INTEGER)")

            async def all_of_them() -> list[object]:
                operations = Operations(path, "BEGIN IMMEDIATE")
                waiting = [operations.submit(operation) for operation in chosen]
                thread = threading.Thread(target=operations.serve, args=(connection,))
                thread.start()
                try:
                    return list(await asyncio.gather(*waiting, return_exceptions=True))
                finally:
                    operations.stop()
                    await asyncio.to_thread(thread.join)

            outcomes = asyncio.run(all_of_them())
            return outcomes, sorted(number for (number,) in connection.execute("SELECT number FROM numbers"))

    return in_one_batch


def test_those_of_a_kind_are_done_as_one_wherever_they_stand(run: Run):
    """And each gets its own outcome."""
    assert run([Merged(1), single, Merged(2)]) == (["merged", "single", "merged"], [1, 2])


def test_only_those_of_a_kind_that_failed_are_done_one_by_one(run: Run):
    """As long as the queue is full, say, results are written no more slowly than otherwise."""
    assert run([Alone(1), Merged(2), Alone(3), Merged(4)]) == (["alone", "merged", "alone", "merged"], [1, 2, 3, 4])


def test_who_fails_is_told_and_leaves_nothing_behind(run: Run):
    """The others are done all the same, also the one whose kind could have been done as one."""
    outcomes, numbers = run([Alone(1), Alone(-1), Alone(2), Merged(3)])

    assert (outcomes[0], outcomes[2], outcomes[3]) == ("alone", "alone", "merged")
    assert str(outcomes[1]) == "-1 is negative"
    assert numbers == [1, 2, 3]
