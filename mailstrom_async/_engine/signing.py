"""Signing, off the event loop: a few threads that take what waits in batches."""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import NamedTuple

from mailstrom_async._errors import MailerStateError
from mailstrom_async._message.dkim import Signer, sign

THREADS = 2
"""An RSA signature takes a third of a millisecond outside of the interpreter's lock: more threads gain nothing that
the loop could keep up with."""
BATCH = 16
"""Messages taken at once: waking a thread and the loop for each would cost more than an Ed25519 signature."""


class _Order(NamedTuple):
    content: bytes
    now: datetime
    signed: asyncio.Future[bytes]


class SigningPool:
    """Signs messages in threads. Belongs to the event loop that it is made on.

    The state that threads share is `_orders` alone, a deque, whose ends are safe to use from several; all else is
    touched on the loop only.
    """

    def __init__(self, signers: Sequence[Signer]) -> None:
        self._signers = signers
        self._loop = asyncio.get_running_loop()
        self._orders: deque[_Order] = deque()
        self._working = 0
        self._closed = False
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="mailstrom-dkim")

    def __repr__(self) -> str:
        return f"<SigningPool [{len(self._signers)} keys, {len(self._orders)} waiting, {self._working} working]>"

    async def sign(self, contents: Sequence[bytes], now: datetime) -> list[bytes]:
        """The messages with their signatures, in order.

        Raises:
            MailerStateError: The pool was closed meanwhile.
        """
        if self._closed:
            raise MailerStateError("the mailer is being closed; send again when it is open")
        orders = [_Order(content, now, self._loop.create_future()) for content in contents]
        self._orders.extend(orders)
        self._wake()
        try:
            return [await order.signed for order in orders]
        finally:
            for order in orders:
                order.signed.cancel()  # those that nobody waits for any more; no effect on the others

    async def aclose(self) -> None:
        """Sign nothing more; returns when the threads have ended."""
        self._closed = True
        while self._orders:
            _fail(self._orders.popleft().signed, MailerStateError("the mailer was closed before the mail was signed"))
        await asyncio.to_thread(self._executor.shutdown)

    def _wake(self) -> None:
        if self._orders and self._working < THREADS and not self._closed:
            self._working += 1
            self._executor.submit(self._work)

    # In a thread.

    def _work(self) -> None:
        while batch := self._take():
            results = [(order.signed, self._signed(order)) for order in batch]
            batch = []  # the unsigned ones may be large
            self._loop.call_soon_threadsafe(_resolve, results)
        self._loop.call_soon_threadsafe(self._rest)

    def _take(self) -> list[_Order]:
        batch: list[_Order] = []
        while len(batch) < BATCH:
            try:
                batch.append(self._orders.popleft())
            except IndexError:
                break
        return batch

    def _signed(self, order: _Order) -> bytes | Exception:
        try:
            return sign(order.content, self._signers, order.now)
        except Exception as error:  # noqa: BLE001 - it is raised where the signature is waited for
            return error

    # On the loop again.

    def _rest(self) -> None:
        self._working -= 1
        self._wake()  # for what came after the thread had looked


def _resolve(results: Sequence[tuple[asyncio.Future[bytes], bytes | Exception]]) -> None:
    for future, result in results:
        if isinstance(result, Exception):
            _fail(future, result)
        elif not future.done():
            future.set_result(result)


def _fail(future: asyncio.Future[bytes], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # it is told to whoever waits, and to nobody if nobody does
