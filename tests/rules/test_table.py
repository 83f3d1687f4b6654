"""The committed table is whole, and up to date with the tests."""

import pytest

from .table import SWITCH, in_table, in_tests

SMTP = [f"A{number}" for number in range(1, 15)]


@pytest.fixture
def anyio_backend():
    """No event loop here."""
    return "asyncio"


def test_every_row_has_a_test():
    """Each row of the matrix is proved by at least one test."""
    proved = {proof.row for proof in in_tests()}

    assert [row for row in SMTP if row not in proved] == []


def test_the_table_is_what_the_tests_prove():
    """A row, its expectation and its test stand in the table as they stand in the tests."""
    assert in_table() == in_tests(), f"write the table anew: {SWITCH}=1 python -m pytest tests/rules"
