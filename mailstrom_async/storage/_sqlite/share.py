"""This process's share in a file that several have open: it owns it, or follows the one that does."""

import asyncio
import logging
import os
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from mailstrom_async._errors import StorageError, StorageInUse
from mailstrom_async.storage._sqlite.file import wal_of
from mailstrom_async.storage._sqlite.file_lock import holder_of, is_locked
from mailstrom_async.storage._sqlite.file_system import refuse_network
from mailstrom_async.storage._sqlite.follower import Follower, Unreachable
from mailstrom_async.storage._sqlite.operations import LOOK_SECONDS
from mailstrom_async.storage._sqlite.owner import Owner

logger = logging.getLogger("mailstrom_async")

PATIENCE_SECONDS = 10.0
"""How long a call waits for an owner before it fails. Another process takes over in less than one second, most of the
time; after a crash of the machine a long log is read first."""

RETRY_SECONDS = 0.03
TROUBLE_SECONDS = 1.0
"""Between two tries to open a file that can't be opened now."""

IDLE_SECONDS = 15.0
"""An engine that runs looks into a store that is shared every few seconds. One that was not seen for longer does not
run, and if another process has one that does, that one gets the file."""
RELUCTANCE_SECONDS = 0.5
"""A process without an engine that runs lets others try first."""


class Share:
    """Makes sure that there is an owner, and that this process can talk to it.

    Each process tries to get the lock of the file. The one that has it opens the file and answers the others; when it
    dies or closes, the lock is free, and the next one has it. So there is only ever one process that
    writes the queue, but for callers' transactions.
    """

    def __init__(self, path: Path, now: datetime) -> None:
        self._path = path.resolve()  # two names of one file must not mean two locks
        self.process = os.getpid()
        self.loop = asyncio.get_running_loop()
        self._now = now
        # Of the clock that tells `now` from the system's. One that is set by hand is taken for one that goes on.
        self._ahead = now - datetime.now(UTC)
        self._side: Owner | Follower | None = None
        self._settled = asyncio.Event()
        self._trouble: StorageError
        self._engine_seen_at: float | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.wake: Callable[[], None] | None = None
        self.closing = False

    @property
    def role(self) -> str:
        """For a repr."""
        if not self._settled.is_set():
            return "changing hands"
        return "owner" if isinstance(self._side, Owner) else "follower"

    async def open(self) -> None:
        """Raises StorageError."""
        refuse_network(self._path)
        self._settle(await self._find(until=self.loop.time() + PATIENCE_SECONDS))
        self._keeper = asyncio.create_task(self._keep(), name=f"share in {self._path.name}")

    async def aclose(self) -> None:
        """Finish what was begun, and leave the file to the others."""
        self.closing = True
        self._settled.set()  # nobody waits for the next owner any more
        if self._side is not None:
            self._side.stop()
        if self._keeper is not None and not self._keeper.done():  # done: with the event loop that it lived in
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._side is not None:
            await self._side.aclose()

    @property
    def settled(self) -> Owner | Follower | None:
        """Whoever answers now, as almost always somebody does."""
        return self._side if self._settled.is_set() and not self.closing else None

    async def side(self) -> Owner | Follower:
        """Whoever answers next. Raises StorageError if there is nobody for so long that the caller should know."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._settled.wait()
        if self.closing:
            raise StorageError(f"{self._path} was closed meanwhile")
        if self._side is None or not self._settled.is_set():
            raise type(self._trouble)(str(self._trouble))
        return self._side

    def lost(self, side: Owner | Follower) -> None:
        """A call found this one gone: the next waits for another. (Without this it would be sent there again and again,
        and nothing else would run that could find another one.)"""
        if side is self._side:
            self._settled.clear()

    def hastened(self) -> None:
        """A caller has made deliveries due. If another process owns the file, it has seen that when it was asked."""
        if isinstance(self._side, Owner):
            self._side.hastened()

    def engine_seen(self) -> None:
        """The engine of this process asks for something."""
        self._engine_seen_at = self.loop.time()

    def _call_engine(self) -> None:
        if self.wake is not None and not self.closing:
            self.wake()

    @property
    def delivers(self) -> bool:
        """An engine of this process runs."""
        seen_at = self._engine_seen_at
        return seen_at is not None and self.loop.time() - seen_at < IDLE_SECONDS

    async def _keep(self) -> None:
        assert self._side is not None  # noqa: S101 - open() has found one
        while True:
            await self._side.over()
            self._settled.clear()
            try:
                await self._side.aclose()
                self._settle(await self._find(until=None))
            except Exception:
                # A fault of this library must not end that search for good: it shows, and we go on.
                logger.exception("%s: no new owner could be found; we try again", self._path)
                await asyncio.sleep(TROUBLE_SECONDS)
            else:
                logger.info("%s changed hands; this process is now its %s", self._path, self.role)

    def _settle(self, side: Owner | Follower) -> None:
        self._side = side
        self._settled.set()
        self._call_engine()  # what is due here now was not so a moment ago

    async def _find(self, until: float | None) -> Owner | Follower:
        """Own the file if nobody does, else follow whoever does.

        Args:
            until: When to give up, on the loop's clock, and not to take trouble for temporary; None: never.

        Raises:
            StorageError: It can't be opened.
        """
        self._trouble = StorageError(f"{self._path} is changing hands, and nobody has it yet")
        may_own_at = 0.0 if until is not None or self.delivers else self.loop.time() + RELUCTANCE_SECONDS
        if is_locked(self._path) is None and wal_of(self._path).exists():
            # An owner whose lock file was removed, and its socket with it, makes them anew at its next look.
            may_own_at = max(may_own_at, self.loop.time() + 2 * LOOK_SECONDS)
        while True:
            pause = RETRY_SECONDS
            try:
                if await self._is_owned():
                    return await Follower.connect(self._path)
                if self.loop.time() >= may_own_at:
                    return await self._own(self._now if until is not None else datetime.now(UTC) + self._ahead)
            except StorageInUse as error:  # another one was quicker
                self._trouble = error
            except Unreachable as error:
                self._trouble = StorageInUse(
                    f"{self._path} is open in another process ({holder_of(self._path)}) that can't be asked for it: "
                    f"{error}; end that process, or give each one a file of its own"
                )
            except StorageError as error:
                if until is not None:
                    raise
                if str(error) != str(self._trouble):
                    logger.error("%s can't be taken over: %s", self._path, error)  # noqa: TRY400 - it is told whole
                self._trouble = error
                pause = TROUBLE_SECONDS
            if until is not None and self.loop.time() >= until:
                raise self._trouble
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads, keeps no secret

    async def _is_owned(self) -> bool:
        """Whether somebody has the lock. If its file was removed, a new one proves nothing: whoever answers is the
        owner still."""
        locked = is_locked(self._path)
        if locked is None:
            with suppress(Unreachable):
                (await Follower.connect(self._path)).hang_up()
                return True
        return bool(locked)

    async def _own(self, now: datetime) -> Owner:
        owner = Owner(self._path, now, wake=self._call_engine, delivers=lambda: self.delivers)
        await owner.open()
        return owner
