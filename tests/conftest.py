"""For all tests: what they prove comes into the table of the delivery rules, wherever they are; and what they share."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from .rules.table import record, remember, write

# `RULES_TABLE=1 python -m pytest tests` brings tests/RULES.md up to date.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        remember(item)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    record(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    write(session)


@pytest.fixture
def missing() -> Callable[[str], None]:
    """Skips a test for which something is not installed; where tests/interop/install.sh was to install it, it fails."""

    def missing(why: str) -> None:
        if os.environ.get("MAILSTROM_TEST_ALL"):
            pytest.fail(why)
        pytest.skip(why)

    return missing


@pytest.fixture
def survive() -> Callable[..., Awaitable[None]]:
    """Runs tests/bench/crash.py, with these arguments, in a short form: some kills in place of a hundred."""

    async def survive(*arguments: str) -> None:
        project = Path(__file__).parents[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(project / "tests/bench/crash.py"), *arguments),
            env={**os.environ, "PYTHONPATH": str(project)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), 110)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

        assert process.returncode == 0, output.decode()
        assert b"violations                                                       0\n" in output

    return survive
