"""Files beside the store, or the store itself, that somebody removes while several have it open."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mailstrom_async import StorageError
from mailstrom_async.storage import SQLiteStorage
from mailstrom_async.storage._sqlite import operations, share
from mailstrom_async.storage._sqlite.file_lock import lock_of, locked
from mailstrom_async.storage._sqlite.socket import socket_of
from mailstrom_async.testing._contract.ground import claim_one, email

from .conftest import opened, role

CAUSE = "was replaced or removed while it was open"


def stored(path: Path) -> list[str]:
    """What is in the file, whoever owns it."""
    with closing(sqlite3.connect(path)) as connection:
        return [message_id for (message_id,) in connection.execute("SELECT message_id FROM messages ORDER BY key")]


async def test_without_lock_and_socket_there_is_still_one_owner(path):
    """As after a cleaner of /tmp: who comes finds both again, for the owner has made them anew."""
    async with opened(path) as first:
        await first.enqueue([email("1@example.org")])
        lock_of(path).unlink()
        socket_of(path).unlink()
        async with opened(path) as second:
            await second.enqueue([email("2@example.org")])

            assert (role(first), role(second)) == ("owner", "follower")
            assert len(await first.upcoming(10)) == 2

    assert sorted(file.name for file in path.parent.iterdir()) == ["mail.db", "mail.db.lock"]


async def test_an_owner_whose_lock_was_removed_makes_it_anew_before_it_writes(path, monkeypatch):
    """It does not wait for its next look: nobody else can have the file from then on."""
    monkeypatch.setattr(operations, "LOOK_SECONDS", 3600)
    async with opened(path) as owner:
        lock_of(path).unlink()
        await owner.enqueue([email()])

        assert role(owner) == "owner"
        with pytest.raises(StorageError, match="open in another process"), locked(path):
            pass


async def test_who_has_lost_the_lock_to_another_one_writes_nothing_more(path):
    """What it was asked is done when there is an owner again."""
    async with opened(path) as owner:
        other = path.with_name("other")
        with locked(other):
            lock_of(other).rename(lock_of(path))
            sending = asyncio.ensure_future(owner.enqueue([email()]))
            async with asyncio.timeout(20):
                await owner._share._side.over()
            assert stored(path) == []
        await sending

        assert role(owner) == "owner"
        assert stored(path) == [email().prepared.message_id]


async def test_two_owners_become_one(path, monkeypatch):
    """The one that was quicker has the file; what the other one and its followers are asked goes there, and is stored
    once; its claims are over."""
    monkeypatch.setattr(operations, "LOOK_SECONDS", 3600)
    monkeypatch.setattr(share, "LOOK_SECONDS", 0)
    async with opened(path) as first, opened(path) as guest:
        await first.enqueue([email("claimed@example.org")])
        await claim_one(first)
        lock_of(path).unlink()
        socket_of(path).unlink()
        async with opened(path) as second:
            assert (role(first), role(second)) == ("owner", "owner")
            await asyncio.gather(first.enqueue([email("1@example.org")]), guest.enqueue([email("2@example.org")]))

            assert [role(storage) for storage in (first, guest, second)] == ["follower", "follower", "owner"]
            assert await first.upcoming(10) == []
            assert len(await second.upcoming(10)) == 3
            assert socket_of(path).exists()
        await becomes_owner_of(first, guest)


async def becomes_owner_of(*storages: SQLiteStorage) -> None:
    """Return when one of them has the file, and it works."""
    for number, storage in enumerate(storages):
        await storage.enqueue([email(f"after {number}@example.org")])
    assert sorted(map(role, storages)) == ["follower", "owner"]


async def test_a_lock_that_can_not_be_made_anew_is_told(path):
    """Without one nothing is written: another process could write as well. It works on when the cause is gone."""
    async with opened(path) as owner:
        in_the_way = path.with_name("mail.db.lock.new")
        in_the_way.mkdir()
        lock_of(path).unlink()
        with pytest.raises(StorageError, match=r"lock file .* was removed, and can't be made anew"):
            await owner.enqueue([email("1@example.org")])
        in_the_way.rmdir()
        await owner.enqueue([email("2@example.org")])

        assert stored(path) == ["2@example.org"]


async def test_a_socket_that_was_removed_is_made_anew(path):
    """Who comes finds the owner, and not only an error."""
    async with opened(path) as first, opened(path) as second:
        socket_of(path).unlink()
        async with opened(path) as third:
            await third.enqueue([email("3@example.org")])
            await second.enqueue([email("2@example.org")])

            assert [role(storage) for storage in (first, second, third)] == ["owner", "follower", "follower"]


async def test_followers_hear_that_the_file_is_gone(owner, follower, path):
    """The same as the owner's callers, whether they send or ask; and it works on for them when it is put back."""
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(StorageError, match=CAUSE):
        await follower.enqueue([email()])
    with pytest.raises(StorageError, match=CAUSE):
        await follower.status("1@example.org")
    path.with_name("elsewhere").rename(path)
    await follower.enqueue([email()])

    assert role(follower) == "follower"


async def test_a_new_owner_does_not_take_up_the_file_that_was_replaced(path):
    """All is removed, and another process begins anew: the first one refuses, and leaves its socket alone."""
    async with opened(path) as first:
        for file in list(path.parent.iterdir()):
            file.unlink()
        async with opened(path) as second:
            with pytest.raises(StorageError, match=CAUSE):
                await first.enqueue([email("1@example.org")])
            await first.aclose()
            async with opened(path) as third:
                await third.enqueue([email("3@example.org")])

                assert (role(second), role(third)) == ("owner", "follower")
                assert stored(path) == ["3@example.org"]
