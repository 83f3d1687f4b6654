"""What is on disk when, how often it is forced there, and what the file grows and shrinks to."""

# ruff: noqa: ASYNC240 - a test may wait for its own small files

import asyncio
import re
import shutil
import sqlite3
import struct
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mailstrom_async.storage import SQLiteStorage
from mailstrom_async.storage._sqlite import owner, queue, reads, settle, upcoming
from mailstrom_async.storage._sqlite.guard import Guard
from mailstrom_async.storage._sqlite.operations import BATCH
from mailstrom_async.storage._sqlite.recent import Recent
from mailstrom_async.storage.base import Due
from mailstrom_async.testing._contract.ground import (
    ADA,
    EVE,
    HOUR,
    INSTANT,
    MINUTE,
    NOW,
    claim,
    claim_one,
    deferred,
    delivered,
    email,
    failed,
    record_of,
)

from .conftest import Program, Query, ask


@asynccontextmanager
async def held_up(store: SQLiteStorage) -> AsyncIterator[None]:
    """The writer is busy as long as this is open: what comes meanwhile waits."""
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait(_: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(30)

    busy = asyncio.create_task(ask(store, wait))
    await begun.wait()
    try:
        yield
    finally:
        go_on.set()
        await busy


def commits_in(wal: Path) -> int:
    """How many transactions the log holds: the last page of each names the size of the database after it."""
    content = wal.read_bytes()
    (page_size,) = struct.unpack_from(">I", content, 8)
    salts = content[16:24]
    frames = (content[start : start + 24] for start in range(32, len(content), 24 + page_size))
    return sum(struct.unpack_from(">I", frame, 4)[0] != 0 and frame[8:16] == salts for frame in frames)


async def test_what_waits_for_a_commit_shares_the_next_one(store: SQLiteStorage, path: Path):
    """Group commit: a hundred senders cost the disk one transaction, whatever they do."""
    await store.enqueue([email(recipients=[ADA, EVE])])
    first, second = await claim(store)
    wal = path.with_name("mail.db-wal")
    async with held_up(store):
        before = commits_in(wal)
        calls: list[asyncio.Task[object]] = [
            asyncio.create_task(store.enqueue([email(f"{number}")])) for number in range(100)
        ]
        calls += [
            asyncio.create_task(store.record([record_of(first, delivered())])),
            asyncio.create_task(store.release([second], NOW)),
            asyncio.create_task(store.cancel("7", NOW)),
        ]
        await asyncio.sleep(0)
    await asyncio.gather(*calls)

    assert commits_in(wal) == before + 1
    assert len(await store.recent(None, 1000)) == 100


async def test_very_many_do_not_wait_for_one_commit(store: SQLiteStorage, path: Path):
    """Nobody's answer waits for thousands of others; large messages make the share smaller."""
    wal = path.with_name("mail.db-wal")
    await store.enqueue([email()])
    async with held_up(store):
        before = commits_in(wal)
        small = [asyncio.create_task(store.enqueue([email(f"{number}")])) for number in range(BATCH + 1)]
        await asyncio.sleep(0)
    await asyncio.gather(*small)
    after_small = commits_in(wal)
    async with held_up(store):
        large = [
            asyncio.create_task(store.enqueue([email(f"large {number}", content=bytes(9 * 2**20))]))
            for number in range(4)
        ]
        await asyncio.sleep(0)
        between = commits_in(wal)
    await asyncio.gather(*large)

    assert after_small == before + 2
    assert commits_in(wal) == between + 2


@pytest.mark.rule("C25", "synchronous=FULL in WAL")
async def test_the_writer_forces_every_commit_to_disk(store: SQLiteStorage):
    """Row C25: a write-ahead log with synchronous=FULL, and no checkpoint within somebody's commit."""
    settings = {
        name: await ask(store, lambda db, name=name: db.execute(f"PRAGMA {name}").fetchone()[0])  # type: ignore[misc]
        for name in ("journal_mode", "synchronous", "foreign_keys", "wal_autocheckpoint", "auto_vacuum")
    }

    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "wal_autocheckpoint": 0,
        "auto_vacuum": 2,
    }


TRACED = """
import asyncio, os, sys
from mailstrom_async import SQLiteStorage
from mailstrom_async.testing._contract.ground import NOW, email

async def main():
    storage = SQLiteStorage(sys.argv[1])
    await storage.open(NOW)
    os.write(2, b"called\\n")
    await storage.enqueue([email("1@example.org")])
    os.write(2, b"returned\\n")
    await storage.aclose()

asyncio.run(main())
"""


@pytest.mark.rule("C25", "strace: fdatasync between call and return")
async def test_what_was_accepted_was_synced_before(
    path: Path, program: Program, tmp_path: Path, missing: Callable[[str], None]
):
    """Row C25: between the call of `enqueue` and its return the log is written and then synced."""
    if shutil.which("strace") is None:
        missing("strace is not installed: tests/interop/install.sh")
    trace = tmp_path / "trace"
    tracer = ("strace", "-f", "-y", "-o", str(trace), "-e", "trace=write,pwrite64,fsync,fdatasync")
    program(TRACED, path, before=tracer).communicate(timeout=60)
    lines = trace.read_text().splitlines()
    begin, end = (
        next(at for at, line in enumerate(lines) if f'"{word}\\n"' in line) for word in ("called", "returned")
    )
    calls = [found.group(1) for line in lines[begin:end] if "-wal>" in line and (found := re.search(r" (\w+)\(", line))]

    assert "pwrite64" in calls
    assert calls[-1] in ("fsync", "fdatasync")


async def plans(store: SQLiteStorage, run: Callable[[sqlite3.Connection], object]) -> list[str]:
    """How SQLite carries out each statement that something executes."""
    statements: list[str] = []

    def trace(db: sqlite3.Connection) -> None:
        db.set_trace_callback(statements.append)
        try:
            run(db)
        finally:
            db.set_trace_callback(None)

    await ask(store, trace)
    explainable = [text for text in statements if text.split()[0] in ("SELECT", "UPDATE", "DELETE")]
    assert explainable

    def explain(db: sqlite3.Connection) -> list[str]:
        return [row[3] for text in explainable for row in db.execute(f"EXPLAIN QUERY PLAN {text}")]

    return await ask(store, explain)


@pytest.mark.rule("E1", "every statement of the queue uses an index")
async def test_no_statement_of_the_queue_looks_at_what_it_does_not_return(store: SQLiteStorage):
    """Row E1: neither a scan nor a sort, so a million waiting deliveries cost the next one nothing."""
    for number in range(20):
        await store.enqueue(
            [email(f"{number}", [f"a@{number}.example", ADA], due_at=NOW + number * INSTANT, queued_at=NOW)]
        )
    deliveries = await claim(store, now=NOW + 5 * INSTANT)
    await store.record([record_of(deliveries[0], deferred(NOW), NOW)])
    fresh = Recent()
    fresh.add([email("11")], [Due(NOW, 12, "11.example", 1)], 0.0)
    operations: dict[str, Callable[[sqlite3.Connection], object]] = {
        "bringing forward": lambda db: queue.bring_forward(db, NOW, 4 * HOUR),
        "upcoming": lambda db: upcoming.upcoming(db, 10, ()),
        "upcoming, some excluded": lambda db: upcoming.upcoming(db, 10, {"1.example"}),
        "what is in the way": lambda db: upcoming.is_obstructed(db, {"1.example"}),
        "lining up": lambda db: upcoming.line_up(db, {"1.example"}),
        "upcoming, some lined up": lambda db: upcoming.upcoming(db, 10, {"2.example"}),
        "claim": queue.Claim([10, deliveries[1].id], "two", NOW + HOUR, NOW + 2 * HOUR),
        "claim in bulk": lambda db: queue.Claim.merge(db, [queue.Claim([11], "two", NOW + HOUR, NOW + 2 * HOUR)]),
        "claim, some fresh": lambda db: queue.Claim.merge(
            db, [queue.Claim([12], "two", NOW + HOUR, NOW + 2 * HOUR, fresh.take([12]))]
        ),
        "renew": lambda db: queue.renew(db, deliveries, NOW),
        "release": lambda db: queue.release(db, deliveries[2:3], NOW),
        "record": queue.Recording([record_of(deliveries[3], delivered())]),
        "record in bulk": lambda db: queue.Recording.merge(
            db, [queue.Recording([record_of(deliveries[4], delivered())])]
        ),
        "cancel": lambda db: queue.cancel(db, "15", NOW),
        "hasten": lambda db: queue.hasten(db, "16", NOW),
        "status": lambda db: reads.status(db, "3"),
        "attempts": lambda db: reads.attempts(db, "3"),
        "prepared": lambda db: reads.prepared(db, "4"),
        "recent": lambda db: reads.recent(db, None, 5),
        "taking up": lambda db: queue.take_up(db, NOW),
        "enqueue": lambda db: queue.enqueue(db, [email("new")], 100),
        "purge": lambda db: queue.purge(db, NOW),
        "setting aside": lambda db: settle.Row.unclaimed(db, 17),
    }
    # The first has one row; the second is in order, and left at the limit; the third is what the inner SELECT found;
    # the fourth what the batch named.
    allowed = {"SCAN counters", "SCAN messages USING INDEX messages_incomplete", "SCAN (subquery-1)", "SCAN held"}
    small_sorts = {
        "status",
        "cancel",
        "prepared",
        "recent",
        "claim",
        "claim in bulk",
        "claim, some fresh",
    }  # of the recipients of what is asked for
    for name, operation in operations.items():
        found = [
            step
            for step in await plans(store, operation)
            if ("SCAN" in step and step not in allowed and "VIRTUAL TABLE" not in step)  # the values we bring
            or ("TEMP B-TREE" in step and not (name in small_sorts and "ORDER BY" in step))
        ]
        assert found == [], name


@pytest.mark.rule("E1", "every statement of the queue uses an index")
async def test_no_trigger_of_a_batch_looks_at_what_it_does_not_change(store: SQLiteStorage):
    """Row E1: as the statements; SQLite does not tell of those of a trigger, so each is asked about by itself."""

    def explain(db: sqlite3.Connection) -> list[str]:
        triggers = [text for (text,) in db.execute("SELECT sql FROM temp.sqlite_master WHERE type = 'trigger'")]
        statements = [
            re.sub(r"NEW\.(\w+)", "?", statement)
            for trigger in triggers
            for statement in trigger.partition("BEGIN")[2].rpartition("END")[0].split(";")
            if statement.strip() and "raise(" not in statement
        ]
        assert len(statements) > 10
        nothing = [None] * 10
        return [
            row[3]
            for text in statements
            for row in db.execute(f"EXPLAIN QUERY PLAN {text}", nothing[: text.count("?")])
        ]

    # The first has one row, the others what the batch named.
    allowed = {"SCAN counters", "SCAN h", "SCAN held", "SCAN new"}
    steps = await ask(store, explain)

    assert [step for step in steps if "SCAN" in step and step not in allowed and "VIRTUAL TABLE" not in step] == []


async def test_bodies_are_gone_from_the_file_at_completion(store: SQLiteStorage, query: Query):
    """Only what waits has a body, however it ended: delivered, cancelled, given back after it was cancelled."""
    await store.enqueue([email("1"), email("2"), email("3"), email("4", due_at=NOW + HOUR)])
    one, _, three = await claim(store)
    await store.record([record_of(one, delivered())])
    await store.cancel("3", NOW)
    await store.release([three], NOW)
    await store.cancel("4", NOW)

    assert query("SELECT message_id FROM contents JOIN messages ON key = message") == [("2",)]


async def test_purging_gives_the_space_back(path: Path, query: Query):
    """Row E10: the file shrinks to what it holds, and what is incomplete is still in it."""
    store = SQLiteStorage(path)
    await store.open(NOW)
    for number in range(10):
        await store.enqueue([email(f"{number}-{part}", content=bytes(100_000)) for part in range(20)])
    await store.enqueue([email("last", due_at=NOW + HOUR)])
    await store.record([record_of(delivery, delivered()) for delivery in await claim(store)])
    full = await ask(store, lambda db: db.execute("PRAGMA page_count").fetchone()[0]) * 4096
    assert await store.purge(NOW + MINUTE) == 200
    await store.aclose()

    assert full > 20_000_000
    assert path.stat().st_size < 10_000_000
    assert query("PRAGMA integrity_check") == [("ok",)]
    assert query("SELECT message_id FROM messages") == [("last",)]


async def test_space_is_given_back_in_large_pieces(store: SQLiteStorage):
    """Each piece is a commit, so page by page would take for ever; all at once nobody could send meanwhile."""
    await store.enqueue([email(f"{number}", content=bytes(100_000)) for number in range(100)])
    await store.record([record_of(delivery, failed()) for delivery in await claim(store)])

    def free(connection: sqlite3.Connection) -> int:
        return int(connection.execute("PRAGMA freelist_count").fetchone()[0])

    before = await ask(store, free)
    more = await ask(store, queue.give_space_back)

    assert before > queue.SPARE_PAGES
    assert more
    assert await ask(store, free) == before - queue.SPARE_PAGES


async def test_purging_forgets_every_row(store: SQLiteStorage, query: Query):
    """No recipients, attempts or deliveries of forgotten messages are left behind."""
    await store.enqueue([email("1", [ADA, EVE]), email("2")])
    await store.record([record_of(delivery, delivered()) for delivery in await claim(store)])
    await store.purge(NOW + MINUTE)

    for table in ("messages", "contents", "deliveries", "recipients", "attempts"):
        assert query(f"SELECT count(*) FROM {table}") == [(0,)], table
    assert query("SELECT unfinished FROM counters") == [(0,)]


async def test_the_log_is_moved_into_the_file_when_nothing_is_to_do(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Off the accept path: not while anybody waits, but soon after."""
    checkpoints: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    original = Guard.checkpoint

    def checkpoint(guard: Guard) -> None:
        original(guard)
        loop.call_soon_threadsafe(checkpoints.put_nowait, path.stat().st_size)

    monkeypatch.setattr(Guard, "checkpoint", checkpoint)
    store = SQLiteStorage(path)
    await store.open(NOW)
    await checkpoints.get()
    before = path.stat().st_size
    for number in range(10):
        await store.enqueue([email(f"{number}", content=bytes(10_000))])
    busy = path.stat().st_size if checkpoints.empty() else before

    assert busy == before
    while await checkpoints.get() < before + 100_000:
        pass
    await store.aclose()


async def test_the_log_is_bounded_even_when_there_is_always_something_to_do(
    store: SQLiteStorage, path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Reading gets slower with its length; beyond the limit it is begun anew."""
    limit = 1_000_000
    monkeypatch.setattr(owner, "WAL_LIMIT", limit)
    wal = path.with_name("mail.db-wal")
    longest = 0
    for number in range(300):
        await asyncio.gather(store.enqueue([email(f"{number}", content=bytes(50_000))]), store.upcoming(10))
        longest = max(longest, wal.stat().st_size)

    assert limit < longest < 3 * limit


async def test_a_reader_does_not_wait_for_a_writer(store: SQLiteStorage):
    """A status is answered while a commit is under way, with what was committed before."""
    await store.enqueue([email()])
    async with held_up(store):
        recording = asyncio.create_task(store.cancel("1@example.org", NOW))
        status = await store.status("1@example.org")

        assert status is not None
        assert not status.completed
    await recording


async def test_what_was_recorded_is_read_at_once(store: SQLiteStorage):
    """Whoever awaited a write sees it in the next read, though another connection reads."""
    await store.enqueue([email()])
    for minute in range(1, 100):
        delivery = await claim_one(store, now=NOW + minute * MINUTE)
        await store.record([record_of(delivery, deferred(NOW), NOW + (minute + 1) * MINUTE)])
        status = await store.status("1@example.org")

        assert status is not None
        assert status.recipients[0].attempts == minute
