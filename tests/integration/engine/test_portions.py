"""A mailer that is one of several keeps to its portion of the limits, and that changes while it delivers."""

import asyncio
from datetime import datetime, timedelta

import pytest

from mailstrom_async import Limits, Mailstrom, MemoryStorage, StorageError
from mailstrom_async._engine.attendance import PATIENCE, TELL_EVERY
from mailstrom_async.storage import Portion
from mailstrom_async.testing import Gate, ManualClock, SMTPServer

from .conftest import email

HALF, ALL = Portion(1, 2), Portion(0, 1)


class Shared(MemoryStorage):
    """Says what the test wants it to say."""

    def __init__(self) -> None:
        super().__init__()
        self.portion: Portion | None = HALF
        self.present: set[str] = set()
        self.asked = asyncio.Event()

    async def attend(self, owner: str, *, now: datetime, lease: timedelta) -> Portion:
        self.present.add(owner)
        self.asked.set()
        if self.portion is None:
            raise StorageError("not now")
        return self.portion

    async def leave(self, owner: str) -> None:
        self.present.discard(owner)


@pytest.fixture
def shared() -> Shared:
    """A store that others deliver from, too."""
    return Shared()


async def changed(shared: Shared, clock: ManualClock, portion: Portion | None) -> None:
    """The mailer has heard of its new portion."""
    shared.portion = portion
    shared.asked.clear()
    clock.advance(TELL_EVERY)
    await asyncio.wait_for(shared.asked.wait(), 10)


async def several(mailer: Mailstrom, count: int) -> list[str]:
    """Messages that go one by one."""
    return await mailer.send_emails([email(f"r{number}@example.net") for number in range(count)])


async def arrived(mailer: Mailstrom, message_ids: list[str]) -> None:
    """All of them are delivered."""
    for message_id in message_ids:
        assert (await mailer.wait(message_id, timeout=timedelta(seconds=20))).succeeded


async def sessions(server: SMTPServer, count: int) -> None:
    """Return when the server has so many."""
    async with asyncio.timeout(20):
        while sum(not session.closed for session in server.sessions) != count:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)


@pytest.mark.parametrize("limits", [Limits(connections_per_host=4), Limits(connections=4, connections_per_host=100)])
async def test_the_portion_holds_and_grows_when_others_leave(build, server, clock, shared, limits):
    """Half of four connections is two, however much there is to do; alone again, all four carry."""
    gate = Gate()
    async with build(shared, limits=limits) as mailer:
        await arrived(mailer, await several(mailer, 30))

        assert server.max_concurrent_sessions == 2

        server.script["end of data"] = gate
        ids = await several(mailer, 10)
        await gate.reached(2)
        await changed(shared, clock, ALL)
        await gate.reached(4)

        assert server.max_concurrent_sessions == 4
        gate.open()
        await arrived(mailer, ids)

    assert server.max_concurrent_sessions == 4


@pytest.mark.parametrize("limits", [Limits(connections_per_host=4), Limits(connections=4, connections_per_host=100)])
async def test_sessions_beyond_the_portion_end_with_what_they_carry(build, server, clock, shared, limits):
    """When others come while four connections carry, two of them carry the rest."""
    server.extensions.remove("PIPELINING")  # or each would have announced its next one already
    shared.portion = ALL
    gate = Gate()
    async with build(shared, limits=limits) as mailer:
        await arrived(mailer, await several(mailer, 30))
        server.script["end of data"] = gate
        ids = await several(mailer, 40)
        await gate.reached(4)
        await changed(shared, clock, HALF)
        gate.open()
        gate.close()
        await gate.reached(6)
        await sessions(server, 2)

        assert gate.arrivals == 6
        gate.open()
        await arrived(mailer, ids)
        await sessions(server, 2)


async def test_sessions_without_work_make_room_at_once(build, server, clock, shared):
    """They need not idle to their end."""
    shared.portion = ALL
    gate = Gate()
    async with build(shared, limits=Limits(connections_per_host=4)) as mailer:
        server.script["end of data"] = gate
        gate.open()
        await arrived(mailer, await several(mailer, 30))
        gate.close()
        already = gate.arrivals
        ids = await several(mailer, 4)
        await gate.reached(already + 4)
        gate.open()
        await arrived(mailer, ids)
        await changed(shared, clock, HALF)
        await sessions(server, 2)


async def test_until_it_is_known_who_else_delivers_there_is_one_connection(build, server, clock, shared):
    """A store that can't tell is asked again soon; once known, it stays known when it can't be asked."""
    shared.portion = None
    async with build(shared, limits=Limits(connections_per_host=4)) as mailer:
        await arrived(mailer, await several(mailer, 20))

        assert server.max_concurrent_sessions == 1
        shared.portion = HALF
        shared.asked.clear()
        clock.advance(PATIENCE)
        await asyncio.wait_for(shared.asked.wait(), 10)
        await arrived(mailer, await several(mailer, 20))

        assert server.max_concurrent_sessions == 2
        await changed(shared, clock, None)
        await changed(shared, clock, None)  # asked again, it has dealt with the error
        gate = Gate()
        server.script["end of data"] = gate
        ids = await several(mailer, 10)
        await gate.reached(2)
        gate.open()
        await arrived(mailer, ids)

        assert server.max_concurrent_sessions == 2


async def test_who_does_not_deliver_is_not_counted(build, shared):
    """A mailer that only queues, one that pauses, and one that is closed."""
    async with build(shared, deliver=False) as mailer:
        assert shared.present == set()
        await mailer.start()
        await asyncio.wait_for(shared.asked.wait(), 10)
        assert len(shared.present) == 1
        await mailer.pause()
        assert shared.present == set()
        shared.asked.clear()
        await mailer.start()
        await asyncio.wait_for(shared.asked.wait(), 10)
        assert len(shared.present) == 1

    assert shared.present == set()
