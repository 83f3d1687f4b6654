"""What the tests of lookups share: both event loops, a nameserver, and resolvers that ask it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from mailstrom_async.dns import AiodnsResolver
from mailstrom_async.testing import DNSServer

SHORT, LONG = timedelta(seconds=0.3), timedelta(seconds=20)


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Which event loop the test runs on."""
    return request.param


@pytest.fixture
async def server() -> AsyncIterator[DNSServer]:
    """A nameserver that knows nothing yet."""
    async with DNSServer() as server:
        yield server


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Closes what a test opened."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def open_resolver(server: DNSServer, stack: AsyncExitStack):
    """Opens a resolver; by default it asks the server, and has time."""

    async def open_resolver(*nameservers: str, timeout: timedelta = LONG) -> AiodnsResolver:
        resolver = AiodnsResolver(nameservers or (server.address,), timeout=timeout)
        await resolver.open()
        stack.push_async_callback(resolver.aclose)
        return resolver

    return open_resolver


@pytest.fixture
async def resolver(open_resolver) -> AiodnsResolver:
    """A resolver that asks the server."""
    return await open_resolver()


@pytest.fixture
async def hurried(open_resolver) -> AiodnsResolver:
    """One without much time."""
    return await open_resolver(timeout=SHORT)
