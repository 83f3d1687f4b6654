"""What the tests of several processes share: an owner and a follower, and an owner that does what a test tells it.

Two stores over one file in one process are owner and follower as well: the lock belongs to an open file.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from mailstrom_async.storage import SQLiteStorage
from mailstrom_async.storage._sqlite.file import open_file
from mailstrom_async.storage._sqlite.file_lock import locked
from mailstrom_async.storage._sqlite.socket import listen
from mailstrom_async.testing._contract.ground import NOW


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file that several have open."""
    return tmp_path / "mail.db"


@pytest.fixture
async def owner(path: Path) -> AsyncGenerator[SQLiteStorage]:
    """The first to open it."""
    async with opened(path) as storage:
        yield storage


@pytest.fixture
async def follower(owner: SQLiteStorage, path: Path) -> AsyncGenerator[SQLiteStorage]:
    """The second one."""
    async with opened(path) as storage:
        yield storage


def role(storage: SQLiteStorage) -> str:
    """What a store says that it is: "owner", "follower", "changing hands" or "closed"."""
    return repr(storage).rpartition("[")[2].removesuffix("]>")


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SQLiteStorage]:
    """A store, open for the length of a block."""
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    try:
        yield storage
    finally:
        await storage.aclose()


async def becomes(storage: SQLiteStorage, wanted: str) -> None:
    """Return when a store is the owner, or a follower. It wakes its mailer whenever that changes."""
    changed = asyncio.Event()
    storage.watch(changed.set)
    async with asyncio.timeout(20):
        while role(storage) != wanted:
            await changed.wait()
            changed.clear()


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted_owner(path: Path, serve: Serve) -> AsyncIterator[ExitStack]:
    """Somebody holds the lock, and serves who connects as a test says; then dies. Close what it gives to take the lock
    away sooner."""
    open_file(path).close()
    connections: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await serve(reader, writer)

    with ExitStack() as lock:
        lock.enter_context(locked(path))
        server = await asyncio.start_unix_server(accept, sock=listen(path))
        try:
            yield lock
        finally:
            server.close()
            for writer in connections:
                writer.transport.abort()
