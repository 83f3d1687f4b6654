"""The schemas of models that users derive from ours."""

from typing import ClassVar

import pytest

from mailstrom_async import Email, _model


class Invoice(Email):
    """An email of one application."""

    LIMIT: ClassVar[int] = 3
    """Of pages."""
    number: int = 0
    """Of the invoice."""


def test_a_class_variable_with_a_docstring_is_no_field():
    """And the fields beside it are described."""
    properties = Invoice.model_json_schema()["properties"]

    assert properties["number"]["description"] == "Of the invoice."
    assert "LIMIT" not in properties


@pytest.mark.parametrize("module", ["builtins", "no_such_module"])
def test_where_there_is_no_source_there_are_no_descriptions(module):
    """An interactive session's __main__ counts as built in."""
    assert _model._docstrings(module, "Invoice") == {}
