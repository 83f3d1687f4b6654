"""The owner goes, and another one has the file: what was under way at that moment is done once."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from mailstrom_async import AlreadyQueued, StorageError
from mailstrom_async.storage import Acceptance, SQLiteStorage
from mailstrom_async.storage._sqlite import queue, share
from mailstrom_async.storage._sqlite.file import open_file
from mailstrom_async.storage._sqlite.file_lock import locked
from mailstrom_async.storage._sqlite.wire import GREETING
from mailstrom_async.testing._contract.ground import INSTANT, NOW, email, states_of

from .conftest import becomes, opened, role, scripted_owner


async def test_a_follower_takes_over_when_the_owner_closes(owner, follower):
    """Nothing is lost, and its engine is called, since something may be due."""
    await owner.enqueue([email()])
    await owner.aclose()
    await becomes(follower, "owner")

    assert states_of(await follower.status(email().prepared.message_id)) == {"ada@example.net": "queued"}
    assert len(await follower.upcoming(10)) == 1


async def test_what_the_old_owner_attempted_is_taken_up(owner, follower):
    """Its claims are over, as after any restart; nobody knows how far the attempt came."""
    await owner.enqueue([email()])
    (entry,) = await owner.upcoming(10)
    await owner.claim([entry.delivery_id], owner="one", now=NOW, lease_until=NOW)
    await owner.aclose()
    (attempt,) = await follower.attempts(email().prepared.message_id)

    assert attempt.outcome["ada@example.net"].cause == "outcome_unknown"
    assert role(follower) == "owner"


async def test_calls_wait_while_the_file_changes_hands(owner, follower):
    """Whoever sends at that moment notices nothing but the time."""
    await owner.aclose()
    await follower.enqueue([email()])

    assert role(follower) == "owner"


async def test_a_call_in_the_very_moment_of_the_loss_waits_as_well(owner, follower):
    """Nobody but it has noticed yet, and nobody will before it lets the others run."""
    connection = follower._share._side
    connection.hang_up()
    connection.connection_lost(None)  # as the event loop does next
    await follower.enqueue([email()])

    assert role(follower) == "follower"


async def test_all_that_was_under_way_at_a_graceful_end_is_stored_once(owner, follower):
    """Row C3: what the owner has read it answers; the rest the follower sends to itself."""
    sending = [asyncio.ensure_future(follower.enqueue([email(f"{number}@example.org")])) for number in range(300)]
    await sending[0]
    await owner.aclose()
    await asyncio.gather(*sending)

    assert len(await follower.recent(None, 1000)) == 300


async def test_three_followers_agree_on_one_of_them(owner, path):
    """Each tries the lock, one has it, the others find that one."""
    storages = [SQLiteStorage(path) for _ in range(3)]
    for storage in storages:
        await storage.open(NOW)
    await owner.aclose()
    for number, storage in enumerate(storages):
        await storage.enqueue([email(f"{number}@example.org")])

    assert sorted(role(storage) for storage in storages) == ["follower", "follower", "owner"]
    for storage in storages:
        assert len(await storage.recent(None, 10)) == 3
        await storage.aclose()


class _DiesBeforeItAnswers:
    """An owner that stores the first thing it is sent, if told to, and dies over it."""

    def __init__(self, path: Path, stores: Sequence[Acceptance]) -> None:
        self._path = path
        self._stores = stores
        self.died = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await reader.read(1)
        if self._stores:
            with closing(open_file(self._path)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                queue.enqueue(connection, self._stores, None)
                connection.execute("COMMIT")
        self.died.set()

    async def while_it_lives(self, storage: SQLiteStorage, acceptances: Sequence[Acceptance]) -> "asyncio.Task[object]":
        """What becomes of an enqueue that it is sent."""
        async with scripted_owner(self._path, self):
            await storage.open(NOW)
            sending = asyncio.create_task(storage.enqueue(acceptances))
            await self.died.wait()
        return sending


@pytest.mark.rule("C2", expected="a repeated call finds what the first one stored")
async def test_an_answer_that_was_lost_is_no_duplicate(path):
    """The owner had stored it and died before it could say so: asked again, the next one finds it there."""
    storage = SQLiteStorage(path)
    mine = [email("1@example.org"), email("2@example.org")]
    sending = await _DiesBeforeItAnswers(path, mine).while_it_lives(storage, mine)

    assert await sending == []
    assert len(await storage.recent(None, 10)) == 2
    await storage.aclose()


async def test_a_request_that_was_lost_is_made_again(path):
    """The owner died before it had stored it."""
    storage = SQLiteStorage(path)
    sending = await _DiesBeforeItAnswers(path, []).while_it_lives(storage, [email()])

    assert len(await sending) == 1
    assert len(await storage.recent(None, 10)) == 1
    await storage.aclose()


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(email(queued_at=NOW - INSTANT), id="accepted at another time"),
        pytest.param(email(content=b"Subject: Other\r\n\r\n"), id="with another content"),
        pytest.param(email(sender="other@example.org"), id="from another sender"),
    ],
)
async def test_another_message_of_the_same_id_is_a_duplicate_all_the_same(path, other):
    """Somebody else's, accepted while our answer was lost: not ours, so AlreadyQueued."""
    storage = SQLiteStorage(path)
    sending = await _DiesBeforeItAnswers(path, [other]).while_it_lives(storage, [email()])

    with pytest.raises(AlreadyQueued):
        await sending
    await storage.aclose()


async def test_when_nobody_takes_over_the_caller_hears_that_it_is_not_known(path, monkeypatch):
    """The lock is somebody's who does not answer; the call may have been done before that."""
    storage = SQLiteStorage(path)
    dying = _DiesBeforeItAnswers(path, [])
    async with scripted_owner(path, dying):
        await storage.open(NOW)
        sending = asyncio.create_task(storage.enqueue([email()]))
        await dying.died.wait()
        monkeypatch.setattr(share, "PATIENCE_SECONDS", 0.1)
    with locked(path), pytest.raises(StorageError, match=r"not known: repeat it with the same Message-ID"):
        await sending
    await storage.aclose()


async def test_nobody_waits_for_an_owner_in_a_store_that_closes(path):
    """Whoever called hears at once that it is not known."""
    storage = SQLiteStorage(path)
    dying = _DiesBeforeItAnswers(path, [])
    with ExitStack() as lock:
        async with scripted_owner(path, dying):
            await storage.open(NOW)
            sending = asyncio.create_task(storage.enqueue([email()]))
            await dying.died.wait()
        lock.enter_context(locked(path))
        while role(storage) == "follower":  # noqa: ASYNC110 - nothing tells of that moment
            await asyncio.sleep(0)
        await storage.aclose()

        with pytest.raises(StorageError, match=r"closed meanwhile.* not known"):
            await sending


async def test_an_owner_that_holds_no_lock_is_none(path, monkeypatch):
    """Its connection may be kept open by a fork of it when it is dead; the lock is not."""

    async def live_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await reader.read()

    async with scripted_owner(path, live_on) as lock:
        storage = SQLiteStorage(path)
        await storage.open(NOW)
        assert role(storage) == "follower"
        lock.close()
        await becomes(storage, "owner")
        await storage.aclose()


async def test_the_file_may_change_hands_all_the_time(path):
    """Four that open, send and close again and again, each the owner now and then: nothing is lost, nothing is left."""

    async def come_and_go(name: str) -> list[str]:
        sent: list[str] = []
        for turn in range(8):
            async with opened(path) as storage:
                ids = [f"{name}.{turn}.{number}@example.org" for number in range(10)]
                await asyncio.gather(*(storage.enqueue([email(one)]) for one in ids))
                sent += ids
        return sent

    sent = await asyncio.gather(*map(come_and_go, "abcd"))
    async with opened(path) as storage:
        stored = {status.message_id for status in await storage.recent(None, 1000)}

    assert stored == {one for each in sent for one in each}
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["mail.db", "mail.db.lock"]
