"""The pool that signs: in threads, in batches, in order, and closed without a hang."""

import asyncio
import threading
from datetime import UTC, datetime

import pytest

from mailstrom_async._engine.signing import BATCH, THREADS, SigningPool
from mailstrom_async._errors import MailerStateError
from mailstrom_async._message.dkim import Signer

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MESSAGES = [b"From: a@example.org\r\nX-Number: %d\r\n\r\n" % number for number in range(100)]


class Pen:
    """A key that signs when it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.threads: set[int] = set()

    def sign(self, octets: bytes) -> bytes:
        self.threads.add(threading.get_ident())
        self.begun.release()
        assert self.let_go.wait(30)
        return b"signed"

    @property
    def signer(self) -> Signer:
        return Signer("example.org", "s", "ed25519-sha256", self.sign)


async def test_all_are_signed_in_their_order():
    """Whichever thread was the quicker."""
    pen = Pen()
    pen.let_go.set()
    pool = SigningPool([pen.signer])
    signed = await pool.sign(MESSAGES, NOW)
    await pool.aclose()

    assert [content.partition(b"From:")[2] for content in signed] == [m.partition(b"From:")[2] for m in MESSAGES]
    assert all(content.startswith(b"DKIM-Signature: ") for content in signed)
    assert threading.get_ident() not in pen.threads


async def test_many_callers_share_few_threads():
    """And none is forgotten that came while they were busy."""
    pen = Pen()
    pool = SigningPool([pen.signer])
    callers = [asyncio.create_task(pool.sign([message], NOW)) for message in MESSAGES]
    await asyncio.to_thread(pen.begun.acquire)
    pen.let_go.set()
    signed = await asyncio.gather(*callers)
    late = await pool.sign(MESSAGES[:1], NOW)
    await pool.aclose()

    assert len(signed) == len(MESSAGES)
    assert late[0].endswith(MESSAGES[0])
    assert len(pen.threads) <= THREADS


async def test_a_message_that_comes_while_the_threads_stop_is_signed():
    """They have looked for the last time, and the loop doesn't know it yet."""
    pen = Pen()
    pool = SigningPool([pen.signer])
    first = []
    for message in MESSAGES[:THREADS]:
        first.append(asyncio.create_task(pool.sign([message], NOW)))
        await asyncio.to_thread(pen.begun.acquire)
    everybody = threading.Barrier(THREADS)

    async def hold_the_loop_until_the_threads_have_stopped() -> None:
        pen.let_go.set()
        for stopped in [pool._executor.submit(everybody.wait, 30) for _ in range(THREADS)]:
            stopped.result()

    holding = asyncio.create_task(hold_the_loop_until_the_threads_have_stopped())
    late = asyncio.create_task(pool.sign(MESSAGES[-1:], NOW))  # begins in the same turn of the loop
    async with asyncio.timeout(30):
        await asyncio.gather(*first, holding)
        (signed,) = await late
    await pool.aclose()

    assert signed.endswith(MESSAGES[-1])


async def test_a_caller_that_gives_up_disturbs_nobody():
    """Cancellation, while its message is being signed."""
    pen = Pen()
    pool = SigningPool([pen.signer])
    impatient = asyncio.create_task(pool.sign(MESSAGES[:3], NOW))
    await asyncio.to_thread(pen.begun.acquire)
    patient = asyncio.create_task(pool.sign(MESSAGES[3:5], NOW))
    await asyncio.sleep(0)
    impatient.cancel()
    pen.let_go.set()

    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert [content.endswith(message) for content, message in zip(await patient, MESSAGES[3:5], strict=True)] == [
        True,
        True,
    ]
    await pool.aclose()


async def test_an_error_reaches_the_caller():
    """Rather than a thread's end that nobody sees."""

    def broken(octets: bytes) -> bytes:
        raise RuntimeError("no entropy")

    pool = SigningPool([Signer("example.org", "s", "rsa-sha256", broken)])
    with pytest.raises(RuntimeError, match="no entropy"):
        await pool.sign(MESSAGES[: BATCH + 1], NOW)
    with pytest.raises(RuntimeError, match="no entropy"):
        await pool.sign(MESSAGES[:1], NOW)
    await pool.aclose()


async def test_closing_tells_those_who_wait():
    """What a thread has begun is finished, the rest is refused, and so is what comes later."""
    pen = Pen()
    pool = SigningPool([pen.signer])
    callers = [asyncio.create_task(pool.sign([message], NOW)) for message in MESSAGES]
    for _ in range(THREADS):
        await asyncio.to_thread(pen.begun.acquire)
    closing = asyncio.create_task(pool.aclose())
    await asyncio.sleep(0)
    pen.let_go.set()
    await closing
    results = await asyncio.gather(*callers, return_exceptions=True)

    refused = [result for result in results if isinstance(result, MailerStateError)]
    assert len(refused) >= len(MESSAGES) - THREADS * BATCH
    assert all(isinstance(result, MailerStateError | list) for result in results)
    with pytest.raises(MailerStateError):
        await pool.sign(MESSAGES, NOW)
