"""Hears from other processes that there is mail: a connection of its own, made again when it breaks."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from mailstrom_async._errors import StorageError
from mailstrom_async.storage._postgres_connection import DRIVER_ERRORS, Address, Connection, back_off
from mailstrom_async.storage._postgres_errors import storage_error

logger = logging.getLogger("mailstrom_async")

PAUSE = 0.1
"""Seconds between two calls, however often we are notified: each makes the mailer read the store."""
PULSE = 30.0
"""Seconds after which a silent connection is asked whether it lives. A network that drops packets tells nobody."""


@dataclass(slots=True)
class _Calls:
    """Calls at once when there was no call for a while, else when the pause is over; many become one."""

    wake: Callable[[], None]
    pause: asyncio.TimerHandle | None = None
    again: bool = False

    def call(self) -> None:
        if self.pause is not None:
            self.again = True
            return
        self.pause = asyncio.get_running_loop().call_later(PAUSE, self._pause_over)
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
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])
            self._life = None
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
            raise storage_error(self._address.name, error) from error
        finally:
            connection.terminate()

    def _heard(self, connection: object, process: int, channel: str, said: str) -> None:
        if said != self._own_token:
            self._calls.call()
