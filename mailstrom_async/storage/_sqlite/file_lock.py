"""One process at a time: an advisory lock on a file beside the store."""

import errno
import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from mailstrom_async._errors import StorageError, StorageInUse
from mailstrom_async.storage._sqlite.identity import inode_of

_held: set[int] = set()


def _let_go_in_child() -> None:
    # A forked child shares the lock with its parent and would keep it when the parent is gone. Closing its copy leaves
    # the parent's lock as it is; unlocking would not.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


class Lock:
    """A lock that is held.

    Args:
        path: The store's file.
        descriptor: What is locked: the file that had the name of the lock.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._name = str(lock_of(path))
        self._take(descriptor)

    def is_held(self) -> bool:
        """Whether what is locked is still the file of that name, at which all others look. One that was removed, as by
        whoever cleans /tmp, is made anew if nobody was quicker.

        Raises:
            StorageError: It can't be made.
        """
        try:
            inode = inode_of(self._name)
            return inode == self._inode if inode is not None else self._make_anew()
        except OSError as error:
            raise StorageError(
                f"{self._path}: its lock file {self._name} was removed, and can't be made anew: {error}; without it "
                "another process could write as well: the directory must be writable for this program"
            ) from error

    @property
    def is_of_its_name(self) -> bool:
        """Whether what is locked is the file of that name."""
        return inode_of(self._name) == self._inode

    def release(self) -> None:
        _release(self._descriptor)

    def _take(self, descriptor: int) -> None:
        self._descriptor = descriptor
        there = os.fstat(descriptor)
        self._inode = there.st_dev, there.st_ino

    def _make_anew(self) -> bool:
        # Locked before it has its name: nobody ever finds it free.
        beside = Path(self._name + ".new")
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        _held.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _inscribe(self._path, descriptor)
            _name(beside, self._name)
        except BaseException as error:
            _release(descriptor)
            if isinstance(error, FileExistsError):
                return False
            raise
        finally:
            beside.unlink(missing_ok=True)
        self.release()
        self._take(descriptor)
        return True


@contextmanager
def locked(path: Path) -> Generator[Lock, None, None]:
    """Hold the lock `<path>.lock`. The kernel lets go of it if this process dies; the file itself stays, for removing
    it would let two processes hold locks on two files of that name, until they look.

    Raises:
        StorageInUse: Somebody else has it.
        StorageError: The file can't be made.
    """
    lock_path = lock_of(path)
    try:
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"{path} can't be opened: no lock file {lock_path}: {error.strerror}; "
            "the directory must exist and be writable for this program"
        ) from error
    _held.add(descriptor)
    lock = Lock(path, descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageInUse(f"{path} is open in another process ({holder_of(path)})") from error
        except OSError as error:
            raise StorageError(f"{path} can't be locked: {error.strerror}; keep it on a local file system") from error
        if not lock.is_of_its_name:  # it was removed since it was opened, and its owner has made it anew
            raise StorageInUse(f"{path} is open in another process ({holder_of(path)})")
        _inscribe(path, descriptor)
        yield lock
    finally:
        lock.release()


def is_locked(path: Path) -> bool | None:
    """Whether somebody holds the lock just now; None: there is no lock file."""
    try:
        descriptor = os.open(lock_of(path), os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        # Without a free descriptor we can't know, and nobody could take the lock in this process.
        return True if error.errno in (errno.EMFILE, errno.ENFILE) else None
    try:
        # Shared, so that two who ask do not stand in each other's way.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing does not unlock it if a child has a copy since this moment
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def holder_of(path: Path) -> str:
    """Who has the lock, for a person to read."""
    try:
        return lock_of(path).read_text("ascii", "replace")[:20].strip() or "unknown"
    except OSError:
        return "unknown"


def _inscribe(path: Path, descriptor: int) -> None:
    _admit_whoever_may_write(path, descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)


def _name(file: Path, name: str) -> None:
    """Give a file a name that nobody has; raises FileExistsError if somebody has it."""
    try:
        os.link(file, name)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links: here a name that somebody takes in this moment would be overwritten.
        if os.path.lexists(name):
            raise FileExistsError(name) from error
        os.rename(file, name)  # noqa: PTH104


def _release(descriptor: int) -> None:
    # A child that forked in this very moment may have a copy, and closing ours would not unlock it then.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    _held.discard(descriptor)
    os.close(descriptor)


def _admit_whoever_may_write(path: Path, descriptor: int) -> None:
    """Who shares the file must be able to open its lock, too."""
    if path.exists() and os.fstat(descriptor).st_uid == os.geteuid():
        os.fchmod(descriptor, path.stat().st_mode & 0o666)


def lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")
