"""Where the owner of a file lets the other processes in: their calls run among its own."""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from mailstrom_async._errors import MailstromError, StorageError
from mailstrom_async.storage._sqlite.calls import CALLS, Call, Offer
from mailstrom_async.storage._sqlite.follower import OwnerLost
from mailstrom_async.storage._sqlite.identity import inode_of
from mailstrom_async.storage._sqlite.operations import Operations
from mailstrom_async.storage._sqlite.socket import listen, socket_of
from mailstrom_async.storage._sqlite.wire import (
    ANSWER,
    FAULT,
    GREETING,
    BrokenFrame,
    Frame,
    Splitter,
    frame,
    pack_fault,
)

logger = logging.getLogger("mailstrom_async")

BYTES_WAITING = 32 * 1024 * 1024
"""Of one guest's calls; beyond, nothing more is read from it until some are done."""

PATIENCE = 1.0
"""Seconds until somebody is let in again after that failed: no file descriptor was free, most likely."""

LAST_ANSWERS = 2.0
"""Seconds in which a guest must have taken its last answers when the door is shut."""


class Door:
    """Serves the other processes from a thread of its own, with an event loop of its own: they must not wait while the
    application's is busy.

    Args:
        path: The file.
        reads: Takes calls that only read.
        writes: Takes calls that write.
        on_hastened: Called in the door's thread when a guest has made deliveries due.
        on_offer: Called in the door's thread when a guest offers to deliver and nothing is claimed.
        on_shut: Called in the door's thread when the last call was answered, and nobody is here any more.

    Raises:
        OSError: The socket can't be made.
    """

    def __init__(
        self,
        path: Path,
        reads: Operations,
        writes: Operations,
        *,
        on_hastened: Callable[[], None],
        on_offer: Callable[[], None],
        on_shut: Callable[[], None],
    ) -> None:
        self._path = path
        self._place = str(socket_of(path))
        self._reads, self._writes = reads, writes
        self._on_hastened = on_hastened
        self._on_offer = on_offer
        self._on_shut = on_shut
        self._guests: set[_Guest] = set()
        self._entering: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.SelectorEventLoop()
        self._shutting = asyncio.Event()
        self._emptied = asyncio.Event()
        try:
            self._listener = listen(path)
            self._inode = inode_of(socket_of(path))
        except BaseException:
            self._loop.close()
            raise
        self._thread = threading.Thread(target=self._live, name=f"door of {path.name}", daemon=True)
        self._thread.start()

    def shut(self) -> None:
        """Let nobody in any more, answer what was asked, and end; returns at once."""
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._shutting.set)

    def look(self) -> None:
        """Make the socket anew if somebody has removed it. The lock is held."""
        with suppress(OSError, RuntimeError):  # it can't be seen now; the door has ended
            if inode_of(self._place) is None:
                self._loop.call_soon_threadsafe(self._listen_anew)

    def join(self) -> None:
        """Return when it has ended."""
        self._thread.join()

    def enter(self, guest: "_Guest") -> None:
        self._guests.add(guest)

    def leave(self, guest: "_Guest") -> None:
        self._guests.discard(guest)
        if not self._guests:
            self._emptied.set()

    def submit(self, call: Call[Any]) -> "asyncio.Future[Any]":
        operations = self._writes if call.writes else self._reads
        return operations.submit(call.operation, size=call.size)

    def done(self, call: Call[Any], answer: object) -> None:
        if call.hastens and answer:
            self._on_hastened()
        elif isinstance(call, Offer) and not answer:
            self._on_offer()

    def _live(self) -> None:
        # Not uvloop's, whatever the application uses: it is another thread's.
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        finally:
            self._on_shut()

    async def _serve(self) -> None:
        self._open()
        await self._shutting.wait()
        # Whoever comes from now on must not wait here, but look for the next owner.
        with suppress(OSError):
            if inode_of(self._place) == self._inode:  # else it is another owner's
                socket_of(self._path).unlink(missing_ok=True)
        self._loop.remove_reader(self._listener)
        self._listener.close()
        await asyncio.gather(*self._entering, return_exceptions=True)
        for guest in list(self._guests):
            guest.finish()
        if self._guests:
            self._emptied.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_ANSWERS):
                    await self._emptied.wait()
        for guest in list(self._guests):
            guest.abort()

    # Not an asyncio.Server, nor sock_accept(): ended while somebody comes in, they leave that connection open and
    # forgotten.

    def _open(self) -> None:
        if not self._shutting.is_set():
            self._loop.add_reader(self._listener, self._let_in)

    def _listen_anew(self) -> None:
        if self._shutting.is_set() or socket_of(self._path).exists():
            return
        try:
            listener = listen(self._path)
        except OSError as error:
            logger.debug("%s: its socket was removed, and can't be made anew: %s", self._path, error)
            return
        logger.warning("%s: its socket was removed by somebody, and made anew", self._path)
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._listener, self._inode = listener, inode_of(self._place)
        self._open()

    def _let_in(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            logger.warning("%s: another process could not be let in: %s", self._path, error)
            self._loop.remove_reader(self._listener)  # who waits there would call us again and again
            self._loop.call_later(PATIENCE, self._open)
            return
        connection.setblocking(False)
        entering = self._loop.create_task(
            self._loop.connect_accepted_socket(lambda: _Guest(self, self._path), connection)
        )
        self._entering.add(entering)
        entering.add_done_callback(self._entering.discard)


class _Guest(asyncio.Protocol):
    """One other process."""

    def __init__(self, door: Door, path: Path) -> None:
        self._door = door
        self._path = path
        self._transport: asyncio.Transport | None = None
        self._splitter = Splitter()
        self._waiting = 0
        self._waiting_bytes = 0
        self._answers: list[bytes] = []
        self._slow = False
        self._finishing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a stream socket
        self._transport = transport
        self._door.enter(self)
        transport.write(GREETING)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._door.leave(self)

    def data_received(self, data: bytes) -> None:
        try:
            for one in self._splitter.feed(data):
                self._begin(one)
        except BrokenFrame as error:
            logger.warning("%s: a process that sent what nobody can read was cut off: %s", self._path, error)
            self.abort()
        except StorageError:  # they are not served any more, so there will be another owner: let it be asked
            self.abort()

    def pause_writing(self) -> None:
        self._slow = True
        self._regulate()

    def resume_writing(self) -> None:
        self._slow = False
        self._regulate()

    def finish(self) -> None:
        """Read nothing more, and hang up when everything is answered."""
        self._finishing = True
        self._regulate()
        self._end_if_done()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _begin(self, one: Frame) -> None:
        try:
            call = CALLS[one.kind].unpacked(one.packed)
        except (ValueError, KeyError, OverflowError) as error:
            # Not cut off, as it would come again and again, with the same call among the others'.
            # Its text may quote what was sent, and that is somebody's mail.
            logger.warning("%s: a call of another process can't be read: %s", self._path, type(error).__name__)
            self._answer(frame(one.number, FAULT, pack_fault(_unreadable(self._path))))
            return
        size = len(one.packed.body)
        self._waiting += 1
        self._waiting_bytes += size
        self._door.submit(call).add_done_callback(partial(self._done, one.number, call, size))
        self._regulate()

    def _done(self, number: int, call: Call[Any], size: int, future: "asyncio.Future[Any]") -> None:
        self._waiting -= 1
        self._waiting_bytes -= size
        if future.cancelled():  # the loop ends
            return
        try:
            answer = future.result()
            self._door.done(call, answer)
            self._answer(frame(number, ANSWER, call.pack_answer(answer)))
        except OwnerLost:  # let the next one be asked
            self.abort()
        except MailstromError as error:
            self._answer(frame(number, FAULT, pack_fault(error)))
        except Exception as error:
            logger.exception("%s: a call of another process failed", self._path)
            self._answer(frame(number, FAULT, pack_fault(error)))

    def _answer(self, answer: bytes) -> None:
        self._answers.append(answer)
        if len(self._answers) == 1:
            # Together with those of the same commit, which follow in this turn of the loop.
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        answers, self._answers = self._answers, []
        if self._transport is not None:
            self._transport.write(b"".join(answers))
            self._regulate()
        self._end_if_done()

    def _regulate(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._slow or self._finishing or self._waiting_bytes > BYTES_WAITING:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _end_if_done(self) -> None:
        if self._finishing and not self._waiting and not self._answers and self._transport is not None:
            self._transport.close()


def _unreadable(path: Path) -> StorageError:
    return StorageError(
        f"{path}: the process that owns the file can't read this call, and did nothing; look at its arguments, "
        "and whether all processes run the same version of mailstrom_async"
    )
