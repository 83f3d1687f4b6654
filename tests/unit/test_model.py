"""The base of all models: their schemas, and how ours are made."""

import copy
import pickle
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from pydantic import PrivateAttr, ValidationError

from mailstrom_async import Email, _model
from mailstrom_async._events import MessageCompleted
from mailstrom_async._model import Frozen, trusted
from mailstrom_async._reply import Reply
from mailstrom_async._status import Attempt, Delivered, Outcome


class Invoice(Email):
    """An email of one application."""

    LIMIT: ClassVar[int] = 3
    """Of pages."""
    number: int = 0
    """Of the invoice."""
    _printed: int = PrivateAttr(0)

    def print(self) -> int:
        self._printed += 1
        return self._printed


def test_a_class_variable_with_a_docstring_is_no_field():
    """And the fields beside it are described."""
    properties = Invoice.model_json_schema()["properties"]

    assert properties["number"]["description"] == "Of the invoice."
    assert "LIMIT" not in properties


def test_a_subclass_may_have_private_attributes():
    """Those of users are no fields, and may be set."""
    invoice = Invoice(from_="app@example.org", to="ada@example.net")

    assert [invoice.print(), invoice.print()] == [1, 2]
    with pytest.raises(ValidationError, match="frozen"):
        invoice.number = 2


@pytest.mark.parametrize("module", ["builtins", "no_such_module"])
def test_where_there_is_no_source_there_are_no_descriptions(module):
    """An interactive session's __main__ counts as built in."""
    assert _model._docstrings(module, "Invoice") == {}


NOW = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
REPLY = Reply(code=250, enhanced="2.0.0", text="queued as 1A2B", command="end of data", host="mx.example.net")
OUTCOME = Outcome(enhanced="2.0.0", reason="taken", state="delivered", reply=REPLY)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (MessageCompleted, {"message_id": "1@example.org"}),
        (Reply, dict(REPLY)),
        (Outcome, {"reply": REPLY, "reason": "taken", "enhanced": "2.0.0", "state": "delivered"}),
        (Delivered, {"delivered_at": NOW, "tls": None, "host": "mx.example.net", "reply": REPLY}),
        (
            Attempt,
            {
                "outcome": {"a@example.net": OUTCOME},
                "destination": "example.net",
                "recipients": ("a@example.net",),
                "duration": timedelta(seconds=1),
                "started_at": NOW,
            },
        ),
    ],
)
def test_what_is_trusted_is_as_what_was_validated(model: type[Frozen], values: dict[str, object]):
    """In every respect: whoever gets one can't tell the difference."""
    validated, made = model(**values), trusted(model, **values)

    assert (made, hash_or_none(made), repr(made)) == (validated, hash_or_none(validated), repr(validated))
    assert made.model_fields_set == validated.model_fields_set
    assert made.model_dump() == validated.model_dump()
    assert made.model_dump(exclude_unset=True) == validated.model_dump(exclude_unset=True)
    assert made.model_dump_json() == validated.model_dump_json()
    assert made.__getstate__() == validated.__getstate__()
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made.model_copy() == validated
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, next(iter(values)), "changed")


def hash_or_none(model: Frozen) -> int | None:
    """None where a field has no hash."""
    try:
        return hash(model)
    except TypeError:
        return None
