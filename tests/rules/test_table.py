"""The committed table is whole, and up to date with the tests."""

import pytest

from .table import SWITCH, Proof, in_table, in_tests

ROWS = [f"A{number}" for number in range(1, 65)] + [f"B{number}" for number in range(1, 29)] + ["B31"]


@pytest.fixture
def anyio_backend():
    """No event loop here."""
    return "asyncio"


def ours(proofs) -> set[Proof]:
    """Those beside this file that prove the rows for which the table is complete. What tests elsewhere prove besides
    comes into the table when they are run for it."""
    return {proof for proof in proofs if proof.row in ROWS and proof.test.startswith("rules/")}


def test_every_row_has_a_test():
    """Each row of these is proved by at least one test."""
    proved = {proof.row for proof in ours(in_tests())}

    assert [row for row in ROWS if row not in proved] == []


def test_the_table_is_what_the_tests_prove():
    """A row, its expectation and its test stand in the table as they stand in the tests."""
    assert ours(in_table()) == ours(in_tests()), f"bring it up to date: {SWITCH}=1 python -m pytest tests/rules"
