"""Forks, event loops, and lives that end early: clear words, and no lock of the dead."""

import asyncio
import multiprocessing
import signal
from pathlib import Path

import pytest

from mailstrom_async._errors import MailerStateError
from mailstrom_async.storage import SQLiteStorage
from mailstrom_async.testing._contract.ground import ID, NOW, claim, email, ids_of

from .conftest import Program

HOLDER = """
import asyncio, sys
from mailstrom_async import SQLiteStorage
from mailstrom_async.testing._contract.ground import NOW, claim, email

async def main():
    storage = SQLiteStorage(sys.argv[1])
    await storage.open(NOW)
    await storage.enqueue([email()])
    await claim(storage)
    print("open", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""


async def test_the_store_of_a_killed_process_is_free_at_once(path: Path, program: Program):
    """Row C1: no lock is left behind, and what it had claimed is due."""
    holder = program(HOLDER, path)
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    store = SQLiteStorage(path)
    await store.open(NOW)
    deliveries = await claim(store)

    assert [delivery.attempt for delivery in deliveries] == [2]
    await store.aclose()


async def test_a_program_that_forgets_to_close_ends_all_the_same(path: Path, program: Program):
    """What was acknowledged is on disk, and nothing keeps the program alive."""
    holder = program(HOLDER, path)
    holder.communicate("\n", timeout=30)
    store = SQLiteStorage(path)
    await store.open(NOW)

    assert holder.returncode == 0
    assert await store.status(ID) is not None
    await store.aclose()


async def test_an_open_store_can_not_be_opened_again(store: SQLiteStorage):
    """It stays open."""
    with pytest.raises(MailerStateError, match="open already"):
        await store.open(NOW)

    assert await store.upcoming(1) == []


def in_child(store: SQLiteStorage, answers: "multiprocessing.Queue[str]") -> None:
    async def use() -> None:
        for call in (store.status(ID), store.enqueue([email("not opened")])):
            try:
                await call
            except MailerStateError as error:
                answers.put(str(error))
        await store.open(NOW)
        await store.enqueue([email("child")])
        answers.put(repr(store))
        await store.aclose()

    asyncio.run(use())


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # a fork with threads is what is tested
@pytest.mark.rule("C23", "fork after open: clear error; may open for itself")
async def test_a_fork_may_not_use_what_its_parent_opened(store: SQLiteStorage):
    """Row C23: a clear error instead of two processes on one connection; it may open the store itself."""
    await store.enqueue([email()])
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    child = fork.Process(target=in_child, args=(store, answers))
    child.start()
    said = [await asyncio.to_thread(answers.get, timeout=20) for _ in range(3)]
    await asyncio.to_thread(child.join, 20)
    await store.enqueue([email("parent")])

    assert child.exitcode == 0
    assert "of which this one is a fork" in said[0]
    assert said[1] == said[0]
    assert said[2].endswith("[follower]>")
    assert {status.message_id for status in await store.recent(None, 10)} == {ID, "child", "parent"}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.rule("C23", "fork after open: no lock is kept")
async def test_a_fork_does_not_keep_its_parents_lock(path: Path):
    """Row C23: the parent closes the store, and it is free, though the child lives on."""
    store = SQLiteStorage(path)
    await store.open(NOW)
    fork = multiprocessing.get_context("fork")
    go_on = fork.Event()
    child = fork.Process(target=go_on.wait, args=(30,))
    child.start()
    await store.aclose()
    other = SQLiteStorage(path)
    await other.open(NOW)
    await other.aclose()
    go_on.set()
    await asyncio.to_thread(child.join, 20)

    assert child.exitcode == 0


@pytest.mark.rule("C23", "second event loop: clear error")
def test_a_second_event_loop_is_told_so(path: Path):
    """Row C23: it can close the store and open it for itself."""
    store = SQLiteStorage(path)

    async def first() -> None:
        await store.open(NOW)
        await store.enqueue([email()])

    async def second() -> None:
        with pytest.raises(MailerStateError, match="another event loop"):
            await store.status(ID)
        with pytest.raises(MailerStateError, match="open already"):
            await store.open(NOW)
        await store.aclose()
        await store.open(NOW)
        assert await store.status(ID) is not None
        await store.aclose()

    asyncio.run(first())
    asyncio.run(second())


@pytest.mark.rule("C20", "cancellation while opening: nothing is left open")
async def test_who_gives_up_opening_leaves_nothing_open(path: Path):
    """Row C20: at whatever moment; the same instance and others can open the store at once."""
    store = SQLiteStorage(path)
    for steps in range(5):
        opening = asyncio.create_task(store.open(NOW))
        for _ in range(steps):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        if opening.cancelled():
            with pytest.raises(MailerStateError, match="is not open"):
                await store.status(ID)
        await store.aclose()
        other = SQLiteStorage(path)
        await other.open(NOW)
        await other.aclose()
    opening = asyncio.create_task(store.open(NOW))
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    await store.open(NOW)  # without closing it first
    await store.enqueue([email()])
    await store.aclose()

    assert repr(store) == f"<SQLiteStorage {str(path)!r} [closed]>"


async def test_who_gives_up_closing_has_closed_it_all_the_same(path: Path):
    """Row C20: it ends in the background, and the next life waits for that."""
    store = SQLiteStorage(path)
    for life in range(5):
        await store.open(NOW)
        call = asyncio.create_task(store.enqueue([email(f"{life}")]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(store.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing, call])
        with pytest.raises(MailerStateError, match="is not open"):
            await store.status(ID)
        assert call.exception() is None
    await store.open(NOW)
    statuses = await store.recent(None, 10)
    await store.aclose()

    assert len(statuses) == 5


@pytest.mark.rule("C20", "cancellation at each await: nothing is left behind")
async def test_cancelled_operations_leave_nothing_behind(store: SQLiteStorage):
    """Row C20: at each moment of each operation; what is not begun is not done, and all others go on."""
    await store.enqueue([email(f"{number}") for number in range(6)])
    ids = ids_of(await store.upcoming(10))
    for steps in range(4):
        deliveries = await claim(store, ids)
        assert len(deliveries) == 6
        calls = [
            asyncio.create_task(call)
            for call in (
                store.enqueue([email(f"x{steps}")]),
                store.renew(deliveries, NOW),
                store.status("0"),
                store.recent(None, 10),
                store.upcoming(10),
                store.purge(NOW),
                store.hasten("0", NOW),
            )
        ]
        for _ in range(steps):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await store.release(deliveries, NOW)

    stored = {status.message_id for status in await store.recent(None, 100)}
    assert {f"{number}" for number in range(6)} <= stored
    assert "x0" not in stored  # it was cancelled before it began
    assert len(await store.upcoming(100)) == len(stored)
