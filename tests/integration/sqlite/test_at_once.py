"""Mail that is claimed in the transaction that accepts it, where nobody waits for it any more or nobody is there."""

import asyncio
import threading

import pytest

from mailstrom_async import MailerStateError
from mailstrom_async._envelope import Delivery
from mailstrom_async.storage import SQLiteStorage
from mailstrom_async.storage._sqlite import queue
from mailstrom_async.testing._contract.ground import ID, LEASE, NOW, SECOND, claim, email

from .conftest import ask, owner_of


async def begun(store: SQLiteStorage, acceptance) -> tuple[asyncio.Task, threading.Event]:
    """A call that is in the writer's hands, and what lets that go on."""
    running, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold_up(db: object) -> None:
        loop.call_soon_threadsafe(running.set)
        assert go_on.wait(20)

    held_up = owner_of(store).run(hold_up, writes=True)
    call = asyncio.create_task(store.enqueue_claimed(acceptance, owner="one", lease_until=NOW + LEASE))
    async with asyncio.timeout(20):
        await running.wait()
    held_up.add_done_callback(lambda _: None)
    return call, go_on


async def test_the_engine_is_called_for_what_nobody_waits_for_any_more(store):
    """It finds the mail due, and not only when it looks by itself."""
    called = asyncio.Event()
    store.watch(called.set)
    call, go_on = await begun(store, email())
    call.cancel()
    await asyncio.wait([call])
    go_on.set()
    async with asyncio.timeout(3):
        await called.wait()

    assert call.cancelled()
    assert [delivery.attempt for delivery in await claim(store)] == [1]


async def test_only_the_claim_that_nobody_heard_of_is_given_back(store, query):
    """Not what somebody else has since, nor another attempt, nor what has got its number; and only once."""
    operation = queue.EnqueueClaimed(email(), None, "one", NOW + LEASE)
    assert not await ask(store, lambda db: queue.disown(db, operation))  # not begun
    await owner_of(store).run(operation, writes=True)
    for changed, back in (
        ("owner = 'two'", "owner = 'one'"),
        ("attempt = 2", "attempt = 1"),
        ("id = id + 1", "id = id - 1"),
    ):
        query("PRAGMA foreign_keys = OFF")
        query(f"UPDATE deliveries SET {changed}")
        assert not await ask(store, lambda db: queue.disown(db, operation))
        query(f"UPDATE deliveries SET {back}")
    again = queue.EnqueueClaimed(email(queued_at=NOW + SECOND), None, "one", NOW + LEASE, operation.delivery_id)
    assert not await ask(store, lambda db: queue.disown(db, again))

    assert await ask(store, lambda db: queue.disown(db, operation))
    assert not await ask(store, lambda db: queue.disown(db, operation))
    assert query("SELECT owner, attempt FROM deliveries") == [(None, 0)]


async def test_a_cancelled_call_stays_cancelled_though_the_store_is_closed(store):
    """Whoever cancels must not get something else for it."""
    call, go_on = await begun(store, email())
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    go_on.set()
    await closing

    assert call.cancelled()
    with pytest.raises(MailerStateError):
        await store.status(ID)


async def test_while_the_file_changes_hands_mail_is_only_accepted(store):
    """Who claims is found out later: whoever has it then."""
    owner_of(store)._over.set()  # as when another process offers to deliver
    entries = await store.enqueue_claimed(email(), owner="one", lease_until=NOW + LEASE)

    assert isinstance(entries, list)
    assert [delivery.attempt for delivery in await claim(store)] == [1]


async def test_an_engine_that_claims_in_this_way_is_seen_to_run(store):
    """Or the file would be left to another process's."""
    assert not store._share.delivers
    await store.enqueue_claimed(email(), owner="one", lease_until=NOW + LEASE)

    assert store._share.delivers


async def test_a_subclass_with_an_enqueue_of_its_own_gets_all_mail_there(path):
    """As one that keeps copies: nothing may go past it."""
    seen: list[str] = []

    class Counting(SQLiteStorage):
        async def enqueue(self, acceptances, *, queue_size=None):
            seen.extend(acceptance.prepared.message_id for acceptance in acceptances)
            return await super().enqueue(acceptances, queue_size=queue_size)

    store = Counting(path)
    await store.open(NOW)
    entries = await store.enqueue_claimed(email(), owner="one", lease_until=NOW + LEASE)
    await store.aclose()

    assert seen == [ID]
    assert len(entries) == 1


async def test_a_store_of_ours_claims_as_it_accepts(store):
    """Whatever the contract leaves open."""
    assert isinstance(await store.enqueue_claimed(email(), owner="one", lease_until=NOW + LEASE), Delivery)
