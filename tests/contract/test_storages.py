"""Every store that comes with the library keeps what `Storage` promises."""

from pathlib import Path

import pytest

from mailstrom_async.storage import MemoryStorage, SQLiteStorage, Storage
from mailstrom_async.testing import StorageContract


class TestMemoryStorage(StorageContract):
    """What it holds outlives `aclose`, so the same object stands for a restart."""

    @pytest.fixture(autouse=True)
    def place(self) -> None:
        self.storage = MemoryStorage()

    def make_storage(self) -> Storage:
        return self.storage


class TestSQLiteStorage(StorageContract):
    """A new object over the same file is a restart."""

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "mail.db"

    def make_storage(self) -> Storage:
        return SQLiteStorage(self.path)
