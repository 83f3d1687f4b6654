"""What can go wrong while the store is open: no room, a lock, damaged rows, and faults of our own."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mailstrom_async import StorageError
from mailstrom_async._errors import AlreadyQueued
from mailstrom_async._reply import Reply
from mailstrom_async._status import Deferred
from mailstrom_async.storage import SQLiteStorage
from mailstrom_async.storage._sqlite import file, queue
from mailstrom_async.storage._sqlite.guard import Guard
from mailstrom_async.storage._sqlite.owner import Owner
from mailstrom_async.testing._contract.ground import (
    ADA,
    EVE,
    HOUR,
    ID,
    NOW,
    claim,
    claim_one,
    deferred,
    delivered,
    email,
    failed,
    record_of,
    states_of,
)

from .conftest import Program, Query, ask, owner_of


async def limit_pages(store: SQLiteStorage, spare: int) -> None:
    """From now on the disk has room for so many pages more."""

    def limit(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + spare}")

    await ask(store, limit)


@pytest.mark.rule("C5", "disk full at accept: StorageError that names the remedy; nothing half stored")
async def test_a_full_disk_refuses_what_does_not_fit_and_nothing_else(store: SQLiteStorage):
    """Row C5: the error names the remedy, nothing is half stored, and what fits is stored by the same commit."""
    await limit_pages(store, 20)
    outcomes = await asyncio.gather(
        store.enqueue([email("small 1")]),
        store.enqueue([email("large", content=b"x" * 200_000)]),
        store.enqueue([email("small 2")]),
        return_exceptions=True,
    )

    assert [type(outcome) for outcome in outcomes] == [list, StorageError, list]
    assert "make room on the disk" in str(outcomes[1])
    assert await store.status("large") is None
    assert states_of(await store.status("small 1")) == states_of(await store.status("small 2")) == {ADA: "queued"}


@pytest.mark.rule("C6", "disk full at recording: the same result can be written once there is room")
async def test_a_store_works_on_once_there_is_room_again(store: SQLiteStorage):
    """Rows C5 and C6: the same process, the same instance; results that could not be written can be now."""
    await store.enqueue([email(content=b"x" * 50_000)])
    delivery = await claim_one(store)
    await limit_pages(store, 0)
    with pytest.raises(StorageError, match="make room"):
        await store.enqueue([email("2", content=b"x" * 50_000)])
    record = record_of(delivery, deferred(NOW, "x" * 50_000), NOW)
    with pytest.raises(StorageError, match="make room"):
        await store.record([record])
    await limit_pages(store, 10_000)
    (recorded,) = await store.record([record])
    await store.enqueue([email("2", content=b"x" * 50_000)])

    assert recorded.accepted
    assert len(await store.upcoming(10)) == 2


TOO_LARGE = """
import asyncio, resource, sys
from mailstrom_async import SQLiteStorage, StorageError
from mailstrom_async.testing._contract.ground import NOW, email

async def main():
    storage = SQLiteStorage(sys.argv[1])
    await storage.open(NOW)
    await storage.enqueue([email("before")])
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    for name in ("during 1", "during 2"):
        try:
            await storage.enqueue([email(name, content=bytes(1_000_000))])
        except StorageError as error:
            print(type(error).__name__, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await storage.enqueue([email("after", content=bytes(1_000_000))])
    print([status.message_id for status in await storage.recent(None, 10)])
    await storage.aclose()

asyncio.run(main())
"""


@pytest.mark.rule("C7", "EFBIG: StorageError; the store works on and is whole")
async def test_a_failing_write_is_an_error_and_the_store_works_on(path: Path, program: Program, query: Query):
    """Row C7: EFBIG, which the kernel gives to a write beyond RLIMIT_FSIZE; nothing half written is left."""
    said, trouble = program(TOO_LARGE, path).communicate(timeout=30)
    lines = said.splitlines()

    assert [line.split()[0] for line in lines[:2]] == ["StorageError", "StorageError"], trouble
    assert lines[2] == "['before', 'after']"
    assert query("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.rule("C10", "locked beyond the busy timeout: StorageError; works again afterwards")
async def test_who_finds_the_file_locked_waits_and_is_told(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Row C10: after the busy timeout an error with the remedy; reading goes on; later it works again."""
    monkeypatch.setattr(file, "BUSY_SECONDS", 0.1)
    store = SQLiteStorage(path)
    await store.open(NOW)
    await store.enqueue([email()])
    with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        outcomes = await asyncio.gather(
            *(store.enqueue([email(f"{number}")]) for number in range(2, 5)), return_exceptions=True
        )
        status = await store.status(ID)
        stranger.execute("ROLLBACK")

    assert {type(outcome) for outcome in outcomes} == {StorageError}
    assert "another program holds a lock" in str(outcomes[0])
    assert states_of(status) == {ADA: "queued"}
    assert await store.status("2") is None
    assert len(await store.enqueue([email("2")])) == 1
    await store.aclose()


@pytest.mark.rule("C10", "locked within the busy timeout: only waits")
async def test_who_finds_the_file_locked_for_a_moment_only_waits(store: SQLiteStorage, path: Path):
    """Row C10: within the busy timeout nobody hears of it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        call = asyncio.create_task(store.enqueue([email()]))
        await store.upcoming(1)  # another lane, so it is answered meanwhile
        waiting = not call.done()
        stranger.execute("ROLLBACK")
        await call

    assert waiting
    assert states_of(await store.status(ID)) == {ADA: "queued"}


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM contents WHERE message = 1",
        "UPDATE messages SET sender = CAST(x'ff' AS TEXT) WHERE key = 1",
        "UPDATE messages SET queued_at = 9223372036854775807 WHERE key = 1",
        "UPDATE deliveries SET destination = CAST(x'ff' AS TEXT) WHERE message = 1",
        "UPDATE recipients SET address = CAST(x'ff' AS TEXT) WHERE delivery IN (1, 2)",
        "UPDATE recipients SET state = 'lost' WHERE delivery IN (1, 2)",
        "DELETE FROM recipients WHERE delivery IN (1, 2)",
    ],
)
@pytest.mark.parametrize("destinations", [3, 700])
@pytest.mark.rule("C24", "a row that can't be decoded, a missing body: set aside, others go on")
async def test_a_damaged_message_is_set_aside_and_the_others_go_on(
    path: Path, query: Query, damage: str, destinations: int, caplog: pytest.LogCaptureFixture
):
    """Row C24: it is claimed by nobody, it completes, with a reason if one can be shown, and does not come back."""
    store = SQLiteStorage(path)
    await store.open(NOW)
    others = [email(f"{number}", [f"a@{number}.example"]) for number in range(2, destinations)]
    await store.enqueue([email("1", [ADA, EVE]), *others])
    await store.aclose()
    query(damage)
    await store.open(NOW)
    entries = [*await store.upcoming(10_000), *await store.upcoming(10_000, excluding=["2.example"])]
    deliveries = await claim(store, {entry.delivery_id for entry in entries})

    assert {delivery.message.message_id for delivery in deliveries} == {
        f"{number}" for number in range(2, destinations)
    }
    assert await store.upcoming(10_000) == []
    assert query("SELECT unfinished FROM counters") == [(len(others),)]
    assert query("SELECT count(*) FROM messages WHERE completed_at IS NOT NULL") == [(1,)]
    assert "damaged in the store and was set aside" in caplog.text
    assert len(await store.recent(None, 10_000)) == len(others)
    await store.aclose()
    await store.open(NOW)
    assert len(await store.upcoming(10_000)) == len(others)
    await store.aclose()


@pytest.mark.rule("C24", "its status: F local, with the reason")
async def test_a_damaged_message_says_why_it_failed(store: SQLiteStorage, query: Query):
    """Row C24: its status names the trouble, with the cause "local"."""
    await store.enqueue([email(recipients=[ADA, EVE])])
    query("DELETE FROM contents")
    assert await claim(store) == []
    status = await store.status(ID)

    assert status is not None
    assert status.completed
    for recipient in status.recipients:
        assert recipient.result.state == "failed"
        assert recipient.result.cause == "local"
        assert "its content is missing" in recipient.result.reason


async def test_a_damaged_message_that_was_being_attempted_does_not_keep_the_store_shut(path: Path, query: Query):
    """Row C24: taking up what an earlier life left, the damaged is set aside, too."""
    store = SQLiteStorage(path)
    await store.open(NOW)
    await store.enqueue([email("1", [ADA]), email("2", [EVE])])
    await claim(store)
    await store.aclose()
    query("UPDATE recipients SET address = CAST(x'ff' AS TEXT) WHERE delivery = 1")
    await store.open(NOW)
    deliveries = await claim(store)

    assert [delivery.message.message_id for delivery in deliveries] == ["2"]
    with pytest.raises(StorageError, match="damaged"):
        await store.status("1")
    await store.aclose()


async def test_damaged_results_and_attempts_are_errors_for_whoever_asks_for_them(store: SQLiteStorage, query: Query):
    """Row C24: nobody else hears of them, and mail is delivered all the same."""
    await store.enqueue([email()])
    await store.record([record_of(await claim_one(store), deferred(NOW), NOW)])
    query("UPDATE attempts SET attempt = '{'")
    query('UPDATE recipients SET result = \'{"state": "vanished"}\'')
    for call in (store.status(ID), store.attempts(ID)):
        with pytest.raises(StorageError, match="damaged"):
            await call
    (recorded,) = await store.record([record_of(await claim_one(store), delivered())])

    assert recorded.completed
    assert states_of(await store.status(ID)) == {ADA: "delivered"}


async def test_another_constraint_is_not_taken_for_a_known_message(store: SQLiteStorage, query: Query):
    """A caller that hears AlreadyQueued believes that the message is safe."""
    await store.enqueue([email()])
    query("UPDATE counters SET next_message = 1")
    with pytest.raises(StorageError):
        await store.enqueue([email("2")])

    assert await store.status("2") is None


async def test_a_reply_that_is_no_text_is_stored_as_well_as_it_goes(store: SQLiteStorage):
    """Row D10: an attempt that could not be recorded would be made again and again."""
    said = Reply(code=451, enhanced=None, text="caf\udce9 \ud83d", command="RCPT", host="mx.example.net")
    result = Deferred(cause="smtp", enhanced="4.0.0", reason="caf\udce9", reply=said, next_attempt_at=NOW)
    await store.enqueue([email()])
    (recorded,) = await store.record([record_of(await claim_one(store), result, NOW)])
    status = await store.status(ID)

    assert recorded.accepted
    assert status is not None
    assert getattr(status.recipients[0].result, "reason", None) == "caf?"


@pytest.mark.rule("D10", "lone surrogates: ValueError, others of the same commit are stored")
async def test_an_address_that_is_no_text_is_refused(store: SQLiteStorage):
    """Row D10: a ValueError for its sender, and the others of the same commit are stored."""
    outcomes = await asyncio.gather(
        store.enqueue([email("1")]),
        store.enqueue([email("2", ["\ud800@example.net"])]),
        store.enqueue([email("\ud800")]),
        store.enqueue([email("4")]),
        return_exceptions=True,
    )

    assert [isinstance(outcome, ValueError) for outcome in outcomes] == [False, True, True, False]
    assert [status.message_id for status in await store.recent(None, 10)] == ["1", "4"]


async def test_a_fault_in_one_operation_is_its_callers_alone(store: SQLiteStorage, monkeypatch: pytest.MonkeyPatch):
    """What else shares its commit is done, and the thread goes on."""

    def broken(connection: sqlite3.Connection, message_id: str, now: object) -> None:
        connection.execute("DELETE FROM messages")
        raise KeyError("a fault of ours")

    await store.enqueue([email()])
    monkeypatch.setattr(queue, "hasten", broken)
    outcomes = await asyncio.gather(
        store.hasten(ID, NOW), store.enqueue([email("2")]), store.enqueue([email()]), return_exceptions=True
    )

    assert [type(outcome) for outcome in outcomes] == [KeyError, list, AlreadyQueued]
    assert len(await store.recent(None, 10)) == 2


async def test_a_commit_that_fails_unexpectedly_is_an_error_and_the_thread_goes_on(
    store: SQLiteStorage, caplog: pytest.LogCaptureFixture
):
    """An operation that ends the transaction under the others: all of them are told, nobody waits for ever."""

    def end_transaction(connection: sqlite3.Connection) -> None:
        connection.execute("COMMIT")

    outcomes = await asyncio.gather(ask(store, end_transaction), store.enqueue([email()]), return_exceptions=True)

    assert isinstance(outcomes[0], StorageError)
    assert outcomes[1] == await store.upcoming(10)
    assert len(await store.enqueue([email("2")])) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # which is the fault here
@pytest.mark.parametrize("writes", [True, False], ids=["writer", "reader"])
async def test_nobody_waits_for_a_thread_that_is_gone(store: SQLiteStorage, writes: bool):
    """However it ended: who waits then gets an error, and the file is opened anew for all that comes later."""
    await store.enqueue([email()])
    owner = owner_of(store)

    def vanish(_: sqlite3.Connection) -> int:
        raise SystemExit

    operations: list[Callable[[sqlite3.Connection], int]] = [vanish, lambda _: 1, lambda _: 2]
    calls = [owner.run(operation, writes=writes) for operation in operations]
    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await owner.over()
        assert {type(outcome) for outcome in outcomes} == {StorageError}
        assert "has ended" in str(outcomes[0])
        await store.enqueue([email("2")])
        assert len(await store.upcoming(10)) == 2


async def test_a_fault_while_opening_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Whoever opens the store would wait for ever otherwise; and the lock is free again."""
    store = SQLiteStorage(path)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "take_up", lambda *_: 1 / 0)
        async with asyncio.timeout(10):
            with pytest.raises(StorageError, match="ZeroDivisionError"):
                await store.open(NOW)
    await store.open(NOW)
    await store.aclose()


async def test_a_checkpoint_that_fails_is_logged_and_tried_again(
    store: SQLiteStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """What was committed stays committed, whatever happens to the log."""
    monkeypatch.setattr(Owner, "_checkpoint_if_long", lambda *_: 1 / 0)
    caplog.set_level(logging.WARNING)
    await store.aclose()  # the writer has the old function; that of a new life has the new one
    await store.open(NOW)
    await store.enqueue([email()])
    await store.enqueue([email("2")])

    assert "could not be moved into the file" in caplog.text
    assert len(await store.upcoming(10)) == 2


async def test_a_checkpoint_that_fails_again_and_again_is_logged_once(
    store: SQLiteStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A disk that is full for an hour does not fill what is left of it; that it works again is told as well."""
    loop, tried = asyncio.get_running_loop(), asyncio.Event()
    really = Guard.checkpoint
    disk = {"full": True}

    def checkpoint(guard: Guard) -> bool:
        try:
            if disk["full"]:
                raise sqlite3.OperationalError("database or disk is full")
            return really(guard)
        finally:
            loop.call_soon_threadsafe(tried.set)

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(Guard, "checkpoint", checkpoint)
    for number, full in enumerate([True, True, True, False, True, True]):
        tried.clear()
        disk["full"] = full
        await store.enqueue([email(f"{number}")])
        async with asyncio.timeout(10):
            await tried.wait()  # in the pause that follows
    await store.enqueue([email("last")])  # in the same thread, when that was told

    said = [record.getMessage() for record in caplog.records if "moved into the file" in record.getMessage()]
    assert ["could not" in line for line in said] == [True, False, True]


async def test_space_that_can_not_be_given_back_is_no_endless_loop(path: Path, query: Query):
    """A store that was copied by another tool may have lost the setting that makes it possible."""
    store = SQLiteStorage(path)
    await store.open(NOW)
    await store.enqueue([email(f"{number}", content=bytes(100_000)) for number in range(60)])
    await store.aclose()
    query("PRAGMA auto_vacuum = NONE")
    query("VACUUM")
    await store.open(NOW)
    await store.record([record_of(delivery, failed()) for delivery in await claim(store)])
    async with asyncio.timeout(10):
        assert await store.purge(NOW + HOUR) == 60
    await store.aclose()
