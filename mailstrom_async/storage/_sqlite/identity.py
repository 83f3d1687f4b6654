"""Whether the files that are open are still those that their names lead to.

Whoever moves a backup over the file, or removes it or its log, leaves us with one that nobody finds again: SQLite goes
on to write there, and it is lost when this process ends.
"""

import os
from pathlib import Path

from mailstrom_async._errors import StorageError
from mailstrom_async.storage._sqlite.file import wal_of

Inode = tuple[int, int]


def inode_of(path: str | Path) -> Inode | None:
    """What a name leads to; None: to nothing.

    Raises:
        OSError: That can't be seen now.
    """
    try:
        there = os.stat(path)  # noqa: PTH116 - for each commit, and a Path takes twice as long
    except (FileNotFoundError, NotADirectoryError):
        return None
    return there.st_dev, there.st_ino


class Identity:
    """What was opened: the file and its log. To be made when they are just open, as SQLite does not say what it has.

    Any connection of ours keeps SQLite from removing the log, so one that is missing was removed by somebody else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = (str(path), str(wal_of(path)))
        self._opened = tuple(map(inode_of, self._names))

    def trouble(self) -> StorageError | None:
        """What to tell whoever asks for something. It is always the same, as health is told it again and again."""
        for name, opened in zip(self._names, self._opened, strict=True):
            if not _leads_to(name, opened):
                return StorageError(
                    f"{name} was replaced or removed while it was open, so nothing more is accepted (whether what was "
                    "accepted in that moment is kept is not known); put it back, or restart the application to go on "
                    "with what is there now: what was accepted before is in the old file only"
                )
        return None

    def check(self) -> None:
        """Raises StorageError: see `trouble`."""
        if (trouble := self.trouble()) is not None:
            raise trouble

    def log_lies_beside_another(self) -> bool:
        """Whether another file was put in the place of ours, but not of its log: whoever opens it next, after a crash
        perhaps, takes our log for its own."""
        file, wal = map(inode_of, self._names)
        return file not in (None, self._opened[0]) and wal == self._opened[1]


def _leads_to(name: str, opened: Inode | None) -> bool:
    try:
        return inode_of(name) == opened
    except OSError:  # a directory that may not be searched just now: it says nothing about the file
        return True
