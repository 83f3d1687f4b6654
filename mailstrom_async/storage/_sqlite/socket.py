"""Where the owner of a file can be reached by the other processes: a Unix socket beside the file."""

import os
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

LONGEST_ADDRESS = 103
"""Bytes of a path that fit into a socket's address: 107 on Linux, 103 on macOS and the BSDs."""

BACKLOG = 128


def socket_of(path: Path) -> Path:
    return path.with_name(path.name + ".sock")


def listen(path: Path) -> socket.socket:
    """The socket at which the owner of a file is reached; the lock on the file is held.

    Whoever may write the file may connect, and nobody else: it gets the mode of the file.

    Raises:
        OSError: It can't be made there.
    """
    place = socket_of(path)
    place.unlink(missing_ok=True)  # left by one who died; nobody but the holder of the lock makes one
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _address(place) as address:
            listener.bind(address)
        # Before anybody can connect.
        place.chmod(path.stat().st_mode & 0o666)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: Path) -> socket.socket:
    """A connection to the owner of a file.

    Raises:
        OSError: Nobody can be reached there.
    """
    place = socket_of(path)
    with _address(place) as address:
        if not is_trusted(place.lstat().st_uid, path.stat().st_uid, os.geteuid()):
            raise PermissionError(f"{place} belongs to another user than the file beside it")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            connection.connect(address)  # at once, or not at all: there is no way in between
        except BaseException:
            connection.close()
            raise
    return connection


def is_trusted(socket_owner: int, file_owner: int, we: int) -> bool:
    """Whether a socket may be given our mail: in a directory like /tmp a stranger could have put it there."""
    return socket_owner in (we, file_owner, 0)


@contextmanager
def _address(place: Path) -> Generator[str, None, None]:
    """A path that fits into an address and leads to the place, for as long as the context lasts."""
    if len(os.fsencode(place)) <= LONGEST_ADDRESS:
        yield str(place)
        return
    if sys.platform != "linux" or len(os.fsencode(place.name)) > LONGEST_ADDRESS - len("/proc/self/fd/1234567/"):
        raise OSError(
            f"the path {place} is too long for a socket's address ({LONGEST_ADDRESS} bytes); use a shorter one"
        )
    directory = os.open(place.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{place.name}"
    finally:
        os.close(directory)
