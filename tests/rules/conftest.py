"""What the tests of the rows share: both event loops, a small internet, and the table of what was seen."""

from collections.abc import AsyncIterator

import pytest

from mailstrom_async.testing import CertificateAuthority, FakeInternet

from .world import OFFERS, PIPELINED, World


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Which event loop a test runs on: the rules hold on both."""
    return request.param


@pytest.fixture(scope="session")
def authority() -> CertificateAuthority:
    """The certificate authority that mailers trust."""
    return CertificateAuthority()


@pytest.fixture(scope="session")
def stranger() -> CertificateAuthority:
    """One that nobody trusts."""
    return CertificateAuthority()


@pytest.fixture(params=["pipelined", "lock-step"])
def extensions(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What exchangers offer: with and without PIPELINING, which changes the way of a transaction."""
    return PIPELINED if request.param == "pipelined" else OFFERS


@pytest.fixture
async def world(request: pytest.FixtureRequest, authority: CertificateAuthority) -> AsyncIterator[World]:
    """Mail exchangers, a nameserver, a clock that stands still, and mailers."""
    async with FakeInternet() as internet:
        yield World(internet, authority.ca_file, lambda seen: request.node.user_properties.append(("seen", seen)))
