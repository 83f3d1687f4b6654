"""For all tests: what they prove comes into the table of the delivery rules, wherever they are."""

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
