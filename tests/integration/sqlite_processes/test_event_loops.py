"""Owner and follower on uvloop, whose transports and sockets are its own."""

import asyncio

import pytest

from mailstrom_async.testing._contract.ground import email

from .conftest import becomes, role


@pytest.fixture
def anyio_backend():
    """uvloop; all the other tests run on asyncio's own loop."""
    return "asyncio", {"use_uvloop": True}


async def test_a_follower_on_uvloop_shares_and_takes_over(owner, follower):
    """Many calls at once, a large one, errors, the loss of the owner: as on asyncio's loop."""
    large = email("large@example.org", content=b"Subject: large\r\n\r\n" + b"x" * 3_000_000)
    await asyncio.gather(
        follower.enqueue([large]), *(follower.enqueue([email(f"{number}@example.org")]) for number in range(100))
    )
    assert await follower.prepared("large@example.org") == large.prepared

    await owner.aclose()
    statuses = await follower.recent(None, 1000)
    await becomes(follower, "owner")

    assert type(asyncio.get_running_loop()).__module__ == "uvloop"
    assert len(statuses) == 101
    assert role(follower) == "owner"
