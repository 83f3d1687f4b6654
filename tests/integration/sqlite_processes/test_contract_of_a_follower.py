"""A process that follows the owner of a file sees and does what the contract demands, as far as it is asked for it."""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from mailstrom_async._envelope import Delivery, Due, Lane, PreparedEmail
from mailstrom_async._status import Attempt, MessageStatus
from mailstrom_async.storage import Acceptance, Record, Recorded, SQLiteStorage, Storage
from mailstrom_async.testing import StorageContract


class OwnerAndFollower:
    """Two stores over one file: the follower accepts and answers, the owner delivers, as they do in two processes."""

    def __init__(self, path: Path) -> None:
        self.owner = SQLiteStorage(path)
        self.follower = SQLiteStorage(path)
        self.entries: dict[str, set[int]] = {}

    @property
    def shared(self) -> bool:
        return self.follower.shared

    def watch(self, wake: Callable[[], None]) -> None:
        self.follower.watch(wake)

    async def open(self, now: datetime) -> None:
        await self.owner.open(now)
        try:
            await self.follower.open(now)
        except BaseException:
            await self.owner.aclose()
            raise
        assert (repr(self.owner)[-7:], repr(self.follower)[-10:]) == ("owner]>", "follower]>")

    async def aclose(self) -> None:
        await self.follower.aclose()
        await self.owner.aclose()

    async def enqueue(self, acceptances: Sequence[Acceptance], *, queue_size: int | None = None) -> list[Due]:
        before = {entry.delivery_id for entry in await self.owner.upcoming(1_000_000)}
        assert await self.follower.enqueue(acceptances, queue_size=queue_size) == []
        entries = [entry for entry in await self.owner.upcoming(1_000_000) if entry.delivery_id not in before]
        for acceptance in acceptances:
            self.entries.setdefault(acceptance.prepared.message_id, set()).update(
                entry.delivery_id for entry in entries
            )
        return sorted(entries, key=lambda entry: entry.delivery_id)

    async def hasten(self, message_id: str, now: datetime) -> list[Due] | None:
        if await self.follower.hasten(message_id, now) is None:
            return None
        return [
            entry for entry in await self.owner.upcoming(1_000_000) if entry.delivery_id in self.entries[message_id]
        ]

    async def status(self, message_id: str) -> MessageStatus | None:
        return await self.follower.status(message_id)

    async def recent(self, since: datetime | None, limit: int) -> list[MessageStatus]:
        return await self.follower.recent(since, limit)

    async def attempts(self, message_id: str) -> list[Attempt] | None:
        return await self.follower.attempts(message_id)

    async def prepared(self, message_id: str) -> PreparedEmail | None:
        return await self.follower.prepared(message_id)

    async def cancel(self, message_id: str, now: datetime) -> MessageStatus | None:
        return await self.follower.cancel(message_id, now)

    async def purge(self, completed_before: datetime) -> int:
        return await self.follower.purge(completed_before)

    async def bring_forward(self, now: datetime, longest: timedelta) -> int:
        return await self.owner.bring_forward(now, longest)

    async def upcoming(self, limit: int, *, excluding: Collection[str] = (), lane: Lane | None = None) -> list[Due]:
        return await self.owner.upcoming(limit, excluding=excluding, lane=lane)

    async def claim(
        self, delivery_ids: Sequence[int], *, owner: str, now: datetime, lease_until: datetime
    ) -> list[Delivery]:
        return await self.owner.claim(delivery_ids, owner=owner, now=now, lease_until=lease_until)

    async def renew(self, deliveries: Sequence[Delivery], lease_until: datetime) -> list[Delivery]:
        return await self.owner.renew(deliveries, lease_until)

    async def release(self, deliveries: Sequence[Delivery], due_at: datetime) -> list[Due]:
        return await self.owner.release(deliveries, due_at)

    async def record(self, records: Sequence[Record]) -> list[Recorded]:
        return await self.owner.record(records)


class TestFollowerOfASQLiteFile(StorageContract):
    """Every promise of the contract, kept across the socket."""

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "mail.db"

    def make_storage(self) -> Storage:
        return OwnerAndFollower(self.path)
