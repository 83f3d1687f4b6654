"""Real processes over one file: killed, stopped, forked, ended in order."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import mailstrom_async
from mailstrom_async import StorageError
from mailstrom_async.storage._sqlite import follower
from mailstrom_async.testing._contract.ground import email

from .conftest import becomes, opened, role

PROJECT = Path(mailstrom_async.__file__).parents[1]
PATIENCE = 30


class Worker:
    """One process that has the file open, and what it answers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def hear(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return (await self.process.stdout.readline()).decode().strip()

    async def ask(self, command: str) -> str:
        self.process.stdin.write(command.encode() + b"\n")
        return await self.hear()

    async def role(self) -> str:
        return (await self.ask("role")).rpartition("[")[2].removesuffix("]>")

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def close(self) -> int:
        self.process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


@asynccontextmanager
async def worker(path: Path) -> AsyncIterator[Worker]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("worker.py")), str(path)),
        env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONWARNINGS": "error"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    one = Worker(process)
    try:
        assert await one.hear() == "open"
        yield one
    finally:
        if process.returncode is None:
            await one.kill()


async def test_four_processes_have_one_queue(path):
    """Row C13: all of them accept, and each knows what the others accepted."""
    async with worker(path) as one, worker(path) as two, worker(path) as three, opened(path) as four:
        for number, each in enumerate((one, two, three)):
            assert await each.ask(f"accept {number}@example.org") == "accepted"
        await four.enqueue([email("3@example.org")])

        assert [await each.role() for each in (one, two, three)] == ["owner", "follower", "follower"]
        assert [status.message_id for status in await four.recent(None, 10)] == [f"{n}@example.org" for n in range(4)]
        assert (await one.ask("accept 3@example.org")).startswith("AlreadyQueued")
        assert [await each.close() for each in (one, two, three)] == [0, 0, 0]


@pytest.mark.rule("C1", expected="another process takes over by itself, and nothing is lost")
async def test_when_the_owner_is_killed_another_one_goes_on(path):
    """Row C1: nobody has to do anything, and what it had accepted is there."""
    async with worker(path) as one, opened(path) as two:
        await one.ask("accept 1@example.org")
        await one.kill()
        async with asyncio.timeout(PATIENCE):
            await two.enqueue([email("2@example.org")])

        assert role(two) == "owner"
        assert [status.message_id for status in await two.recent(None, 10)] == ["1@example.org", "2@example.org"]


async def test_when_the_owner_ends_another_one_goes_on(path):
    """Row C3: it hands the file over at once."""
    async with worker(path) as one, opened(path) as two:
        await one.ask("accept 1@example.org")
        assert await one.close() == 0
        await two.enqueue([email("2@example.org")])

        assert role(two) == "owner"
        assert len(await two.recent(None, 10)) == 2


async def test_when_a_follower_is_killed_the_owner_does_not_care(path):
    """Nor do the other followers."""
    async with opened(path) as one, worker(path) as two, worker(path) as three:
        await two.ask("accept 2@example.org")
        await two.kill()

        assert await three.ask("accept 3@example.org") == "accepted"
        assert len(await one.recent(None, 10)) == 2
        assert role(one) == "owner"


async def test_when_all_are_killed_the_next_one_finds_everything(path):
    """Row C1: a lock dies with its process, a socket's file does not, and neither is in the way."""
    async with worker(path) as one, worker(path) as two:
        await one.ask("accept 1@example.org")
        await two.ask("accept 2@example.org")
        await one.kill()
        await two.kill()
    async with opened(path) as three:
        assert len(await three.recent(None, 10)) == 2


@pytest.mark.rule("C23", expected="a fork keeps neither the lock nor the file")
async def test_a_fork_of_a_dead_owner_is_not_taken_for_it(path):
    """Row C23: it has copies of the connections, which so don't break; but not of the lock."""
    async with worker(path) as one, opened(path) as two:
        fork = int(await one.ask("fork"))
        try:
            assert role(two) == "follower"
            await one.kill()
            await becomes(two, "owner")
            await two.enqueue([email()])
        finally:
            os.kill(fork, signal.SIGKILL)


async def test_an_owner_whose_event_loop_is_busy_serves_the_others(path):
    """Row C18: what holds up one application does not hold up those that share its file."""
    async with worker(path) as one, opened(path) as two:
        assert await one.ask("block") == "blocked"
        await two.enqueue([email()])
        assert len(await two.recent(None, 10)) == 1

        assert await one.ask("go on") == "went on"


async def test_an_owner_that_is_stopped_is_waited_for_some_seconds_only(path, monkeypatch):
    """The lock is still its own, so nobody may take over; whoever sends is told so. When it goes on, so does all."""
    monkeypatch.setattr(follower, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(follower, "LOOK_SECONDS", 0.1)
    async with worker(path) as one, opened(path) as two:
        one.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(StorageError, match="has not answered"):
                await two.enqueue([email("1@example.org")])
        finally:
            one.process.send_signal(signal.SIGCONT)
        await two.enqueue([email("2@example.org")])

        assert role(two) == "follower"
        assert await one.role() == "owner"
