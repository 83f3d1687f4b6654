"""Two stores over one file in one process: the lock belongs to an open file, so they are owner and follower."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mailstrom_async.storage import SQLiteStorage

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mail.db"


@pytest.fixture
async def owner(path: Path) -> AsyncGenerator[SQLiteStorage]:
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    yield storage
    await storage.aclose()


@pytest.fixture
async def follower(owner: SQLiteStorage, path: Path) -> AsyncGenerator[SQLiteStorage]:
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    yield storage
    await storage.aclose()
