"""Hears from other processes that there is mail, on a connection of its own that is made again; and tells them."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from mailstrom_async._errors import StorageError
from mailstrom_async.storage._postgres.connection import (
    DRIVER_ERRORS,
    Address,
    Connection,
    Connections,
    Session,
    back_off,
)
from mailstrom_async.storage._postgres.errors import true_cause

logger = logging.getLogger("mailstrom_async")

PAUSE = 0.1
"""Seconds between two calls, however often we are notified: each makes the mailer read the store."""
TELL_PAUSE = 0.02
"""Seconds between two notifications, however much there is to tell."""
LAST_WORD = 1.0
"""Seconds for the last notification."""
PULSE = 30.0
"""Seconds after which a silent connection is asked whether it lives. A network that drops packets tells nobody."""


@dataclass(slots=True)
class _Calls:
    """Calls at once when there was no call for a while, else when the pause is over; many become one."""

    wake: Callable[[], None]
    seconds: float = PAUSE
    pause: asyncio.TimerHandle | None = None
    again: bool = False

    def call(self) -> None:
        if self.pause is not None:
            self.again = True
            return
        self.pause = asyncio.get_running_loop().call_later(self.seconds, self._pause_over)
        self.wake()

    def _pause_over(self) -> None:
        self.pause = None
        if self.again:
            self.again = False
            self.call()

    def stop(self) -> None:
        if self.pause is not None:
            self.pause.cancel()


class Listener:
    """Listens from `start` until `aclose`, and calls `wake` for what others say.

    Args:
        address: Never that of a PgBouncer in transaction mode, which forgets who listens.
        own_token: What our own connections say; it is passed over.
    """

    def __init__(self, address: Address, channel: str, own_token: str) -> None:
        self._address = address
        self._channel = channel
        self._own_token = own_token
        self._calls = _Calls(lambda: None)
        self._life: asyncio.Task[None] | None = None

    def start(self, wake: Callable[[], None]) -> None:
        self._calls.wake = wake
        if self._life is None:
            self._life = asyncio.create_task(self._live(), name="mailstrom_async listener")

    async def aclose(self) -> None:
        try:
            if self._life is not None:
                self._life.cancel()
                await asyncio.wait([self._life])
                self._life = None
        finally:
            self._calls.stop()

    async def _live(self) -> None:
        failures = 0
        while True:
            try:
                connection = await self._address.connect()
                failures = 0
                await self._listen(connection)
            except StorageError as error:
                if failures == 0:
                    # Nothing is lost by it but speed.
                    logger.warning("mail of other processes is noticed some seconds late: %s", error)
            await asyncio.sleep(back_off(failures))
            failures += 1

    async def _listen(self, connection: Connection) -> None:
        """Listen until the connection breaks."""
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(self._channel, self._heard)
            self._calls.call()  # for what was said before we listened
            while not lost.is_set():
                try:
                    async with asyncio.timeout(PULSE):
                        await lost.wait()
                except TimeoutError:
                    await connection.execute("SELECT 1")
        except DRIVER_ERRORS as error:
            cause = true_cause(error)
            raise self._address.error_of(cause) from cause
        finally:
            connection.terminate()

    def _heard(self, connection: object, process: int, channel: str, said: str) -> None:
        if said != self._own_token:
            self._calls.call()


# The server lets only one transaction at a time commit that notifies. This one has nothing that must reach the disk, so
# the others need not wait for that.
_TELL = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)"


class Crier:
    """Tells the listeners of other processes that deliveries are due: once for many, and not in the transactions that
    make them due, which would have to wait for each other. If it can't, they find out within seconds.

    Args:
        own_token: By which our own listener knows that it is from us.
    """

    def __init__(self, connections: Connections, channel: str, own_token: str) -> None:
        self._connections = connections
        self._channel = channel
        self._own_token = own_token
        self._calls = _Calls(self._begin, TELL_PAUSE)
        self._telling: set[asyncio.Task[None]] = set()

    def tell(self) -> None:
        """Something has been committed that others may want to know. Now, or in a moment."""
        self._calls.call()

    async def finish(self) -> None:
        """Say what is left to say."""
        self._calls.stop()
        if self._calls.again:
            self._begin()
        if self._telling:
            await asyncio.wait(set(self._telling), timeout=LAST_WORD)

    def _begin(self) -> None:
        telling = asyncio.create_task(self._tell())
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _tell(self) -> None:
        async def notify(session: Session) -> None:
            await session.execute(_TELL, self._channel, self._own_token)

        try:
            await self._connections.run(notify)
        except StorageError as error:
            logger.info("other processes notice some seconds late that there is mail: %s", error)
