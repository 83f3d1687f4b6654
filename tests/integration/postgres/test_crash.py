"""The crash test of tests/bench/crash.py on PostgreSQL, in a short form: some kills in place of a hundred."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
from _server import on_one_server


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[str]:
    """A database of its own."""
    name = f"crash_{secrets.token_hex(4)}"
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
        yield f"{dsn.rpartition('/')[0]}/{name}"
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@on_one_server
@pytest.mark.rule("C14", expected="nothing lost, no copy without an unknown outcome, no state backwards")
@pytest.mark.timeout(120)
async def test_nothing_is_lost_when_processes_are_killed(
    database: str, survive: Callable[..., Awaitable[None]]
) -> None:
    """Row C14, I1, I3, I4, I6, I10, I11: one, two and all three processes get SIGKILL while mail comes and goes."""
    await survive("--kills", "6", "--processes", "3", "--dsn", database)
