"""A cancel at every await: what is delivered there is known here or said to be in doubt, and nothing is left behind."""

import asyncio
import gc
from itertools import count

import pytest

from mailstrom_async.testing import SMTPServer

A, B = "a@example.test", "b@example.test"
BIG = (b"x" * 76 + b"\r\n") * 5_000  # several pieces


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request):
    """Which event loop the test runs on."""
    return request.param


@pytest.fixture(params=["plaintext", "STARTTLS"])
def protection(request, certificates) -> dict[str, object]:
    """How the server is protected."""
    return {} if request.param == "plaintext" else {"tls": certificates.server()}


async def cancelled_after(rounds: int, doing) -> bool:
    """Let a coroutine run for so many rounds of the event loop, then cancel it. False: it was done before."""
    task = asyncio.create_task(doing)
    for _ in range(rounds):
        await asyncio.sleep(0)
        if task.done():
            break
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


async def nothing_left(server: SMTPServer, tasks: set[asyncio.Task]) -> None:
    """Return once all connections are closed and no more tasks are left than these (the server's take a moment)."""
    async with asyncio.timeout(10):
        while asyncio.all_tasks() != tasks or not all(r.closed for r in server.sessions):  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_cancel_anywhere_in_an_opening(client, protection):
    """No connection, task or future is left."""
    async with SMTPServer(**protection) as server:
        await client.connect(server)  # what is loaded once is loaded
        client.sessions.pop().abort()
        before = asyncio.all_tasks()
        for rounds in count(1):
            if not await cancelled_after(rounds, client.connect(server, "verify" if protection else "may")):
                break
            await nothing_left(server, before)
        client.sessions.pop().abort()
        await nothing_left(server, before)
        gc.collect()  # a future whose exception nobody fetched would complain now

        assert rounds >= 3  # it is connected, greeted, answered
        assert server.violations == []


@pytest.mark.parametrize("content", [b"Subject: x\r\n\r\nHello\r\n", BIG], ids=["small", "big"])
async def test_a_cancel_anywhere_in_a_transaction(client, protection, extensions, content):
    """What the server took is either known here, or in doubt; and what is not in doubt it did not take."""
    cancels, doubts = 0, 0
    async with SMTPServer({f"RCPT TO:<{B}>": "550 5.1.1 no"}, extensions=extensions, **protection) as server:
        before = asyncio.all_tasks()
        for rounds in count(1):
            session = await client.connect(server)
            taken = server.received
            cancelled = await cancelled_after(rounds, session.transact(client.message(content), [A, B]))
            if not cancelled:
                break
            cancels += 1
            doubts += session.in_doubt
            assert not session.usable
            await nothing_left(server, before)
            assert server.received == taken or session.in_doubt

        assert server.received == taken + 1
        assert cancels > 3
        assert doubts > 0
