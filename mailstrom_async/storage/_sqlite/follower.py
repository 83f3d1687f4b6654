"""A process that does not own the file: its calls go to the one that does."""

import asyncio
import itertools
import logging
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mailstrom_async._errors import StorageError
from mailstrom_async.storage._sqlite.calls import Call
from mailstrom_async.storage._sqlite.file_lock import is_locked
from mailstrom_async.storage._sqlite.socket import connect
from mailstrom_async.storage._sqlite.wire import (
    ANSWER,
    LONGEST_GREETING,
    PIECE,
    BrokenFrame,
    Frame,
    Splitter,
    check_greeting,
    pieces_of_frame,
    unpack_fault,
)

logger = logging.getLogger("mailstrom_async")

T = TypeVar("T")

GREETING_SECONDS = 2.0
SILENCE_SECONDS = 15.0
"""The owner has not answered anything for so long: longer than it waits for a lock on the file (5 s) and a commit."""
LOOK_SECONDS = 0.5
"""How often the lock is looked at: a connection does not break if a fork of the dead owner holds it open."""


class OwnerLost(Exception):
    """The owner went away; whether it has done what it was asked is not known."""


class Unreachable(Exception):
    """Somebody owns the file, but can't be talked to."""


class _Pending(NamedTuple):
    future: "asyncio.Future[Any]"
    call: Call[Any]
    since: float


class Follower(asyncio.Protocol):
    """A connection to the owner. Calls follow one another without waiting, and are answered in any order."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._path = path
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._greeting = b""
        self._greeted: asyncio.Future[None] = loop.create_future()
        self._splitter = Splitter()
        self._numbers = itertools.count()
        self._pending: dict[int, _Pending] = {}
        self._unsent: deque[bytes | memoryview] = deque()
        self._writable = asyncio.Event()
        self._writable.set()
        self._heard_at = loop.time()
        self._lost = asyncio.Event()
        self._trouble: StorageError | None = None

    @classmethod
    async def connect(cls, path: Path) -> "Follower":
        """Raises Unreachable."""
        loop = asyncio.get_running_loop()
        follower = cls(path, loop)
        try:
            await loop.create_unix_connection(lambda: follower, sock=connect(path))
            async with asyncio.timeout(GREETING_SECONDS):
                await follower._greeted
        except TimeoutError as error:
            follower.hang_up()
            raise Unreachable(f"it does not answer within {GREETING_SECONDS:g} s") from error
        except BrokenFrame as error:
            follower.hang_up()
            raise Unreachable(str(error)) from error
        except OSError as error:
            raise Unreachable(f"its socket can't be reached: {error}") from error
        except BaseException:
            follower.hang_up()
            raise
        return follower

    async def do(self, call: Call[T]) -> T:
        """Have the owner do this.

        Raises:
            OwnerLost: It went away.
            MailstromError: What the call raised there.
        """
        await self._writable.wait()
        if self._lost.is_set():
            raise self._trouble or OwnerLost
        number = next(self._numbers)
        try:
            sent = pieces_of_frame(number, call.kind, call.packed())
        except BrokenFrame as error:
            raise StorageError(f"{self._path} is open in another process, and {error}; send less at a time") from error
        pending = self._pending[number] = _Pending(self._loop.create_future(), call, self._loop.time())
        if not self._unsent:
            self._loop.call_soon(self._send)  # together with what others ask in this turn of the loop
        self._unsent.extend(sent)
        del sent
        try:
            answer: T = await pending.future
        finally:
            self._pending.pop(number, None)
        return answer

    async def over(self) -> None:
        """Return when the owner is gone, or does not answer any more."""
        while not self._lost.is_set():
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._lost.wait()
            except TimeoutError:
                self._look()

    def stop(self) -> None:
        """Nothing has to begin before `aclose`."""

    async def aclose(self) -> None:
        """Wait for the answers that are to come, and hang up."""
        try:
            if pending := [waiting.future for waiting in self._pending.values()]:
                await asyncio.wait(pending, timeout=SILENCE_SECONDS)
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _look(self) -> None:
        if is_locked(self._path) is False:  # not None: without its file nobody can tell, and the owner may well live
            self.hang_up()
            return
        oldest = min((waiting.since for waiting in self._pending.values()), default=None)
        if oldest is not None and self._loop.time() - max(oldest, self._heard_at) > SILENCE_SECONDS:
            self._trouble = StorageError(
                f"{self._path}: the process that owns it has not answered for {SILENCE_SECONDS:g} s, and whether it "
                "did what it was asked is not known: look what holds it up, or end it, and another one takes over"
            )
            self.hang_up()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # uvloop's is a transport without the base class

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost.set()
        self._writable.set()
        if not self._greeted.done():
            self._greeted.set_exception(ConnectionResetError("the connection was closed at once"))
        for waiting in self._pending.values():
            if not waiting.future.done():
                waiting.future.set_exception(self._trouble or OwnerLost())

    def data_received(self, data: bytes) -> None:
        try:
            if not self._greeted.done():
                data = self._greet(data)
            for one in self._splitter.feed(data):
                self._answered(one)
        except BrokenFrame as error:
            logger.warning("%s: its owner sent what nobody can read: %s", self._path, error)
            self.hang_up()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
        self._send()

    def _greet(self, data: bytes) -> bytes:
        """Returns what follows the greeting."""
        self._greeting += data
        line, end, rest = self._greeting.partition(b"\n")
        if not end and len(line) < LONGEST_GREETING:
            return b""
        try:
            check_greeting(line + end)
        except BrokenFrame as error:
            self._greeted.set_exception(error)
            return b""
        self._greeted.set_result(None)
        return rest

    def _answered(self, one: Frame) -> None:
        self._heard_at = self._loop.time()
        waiting = self._pending.get(one.number)
        if waiting is None or waiting.future.done():  # cancelled meanwhile
            return
        try:
            if one.kind == ANSWER:
                waiting.future.set_result(waiting.call.unpack_answer(one.packed))
            else:
                waiting.future.set_exception(unpack_fault(one.packed))
        except ValueError as error:
            # Asked anew, the owner would most likely say the same.
            trouble = f"{self._path}: what its owner answered can't be read: {type(error).__name__}"
            waiting.future.set_exception(StorageError(trouble))

    def _send(self) -> None:
        """Write what waits, as far as the connection takes it; the rest when it takes more."""
        while self._unsent and self._transport is not None and self._writable.is_set():
            batch: list[bytes | memoryview] = []
            size = 0
            while self._unsent and size < PIECE:
                batch.append(self._unsent.popleft())
                size += len(batch[-1])
            self._transport.write(b"".join(batch))
