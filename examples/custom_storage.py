"""A store of your own.

What it shows: a store that keeps a copy of every accepted mail, made from one that comes with the library, and the
suite that proves that it still does all that a store must. A store from scratch is a class with the methods of
`mailstrom_async.Storage`, which needs no common ancestor, and is proved the same way.
Requires: pip install pytest
To run:   pytest -o anyio_mode=auto examples/custom_storage.py
It should print: some dozens of tests passed.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from mailstrom_async import SQLiteStorage
from mailstrom_async.storage import Acceptance, Due
from mailstrom_async.testing import StorageContract


class ArchivingStorage(SQLiteStorage):
    """A SQLite store that also writes each accepted mail to a folder.

    Args:
        path: The database.
        archive: The folder.
    """

    def __init__(self, path: str | os.PathLike[str], archive: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._archive = Path(archive)

    async def enqueue(self, acceptances: Sequence[Acceptance], *, queue_size: int | None = None) -> list[Due]:
        # First the queue: what it refuses must not be in the archive. A copy too few is what we would rather have than
        # a copy of what was never sent.
        dues = await super().enqueue(acceptances, queue_size=queue_size)
        await asyncio.to_thread(self._keep, acceptances)
        return dues

    def _keep(self, acceptances: Sequence[Acceptance]) -> None:
        for acceptance in acceptances:
            day = self._archive / f"{acceptance.queued_at:%Y-%m-%d}"
            day.mkdir(parents=True, exist_ok=True)
            # A Message-ID is what its caller chose: it is not trusted to be a file name.
            name = acceptance.prepared.message_id.encode().hex()[:200]
            (day / f"{name}.eml").write_bytes(acceptance.prepared.content)


class TestArchivingStorage(StorageContract):
    """All that a store must do."""

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        """Each test has a folder of its own."""
        self.folder = tmp_path

    def make_storage(self) -> ArchivingStorage:
        """Another one over the same files, as after a restart."""
        return ArchivingStorage(self.folder / "mail.db", self.folder / "archive")
