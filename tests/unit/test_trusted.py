"""Models of values that are ours are those that validation would make of them, only sooner."""

from datetime import UTC, datetime, timedelta

import pytest

from mailstrom_async import Reply
from mailstrom_async._model import trusted
from mailstrom_async._status import Attempt, Delivered, Outcome, TLSFacts

NOW = datetime(2030, 1, 1, tzinfo=UTC)
REPLY = Reply(code=250, enhanced="2.0.0", text="taken", command="end of data", host="mx.example.net")
OUTCOME = Outcome(state="delivered", cause=None, enhanced="2.0.0", reason="taken", reply=REPLY)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (Reply, dict(REPLY)),
        (Outcome, dict(OUTCOME)),
        (Delivered, {"reply": REPLY, "host": "mx.example.net", "tls": None, "delivered_at": NOW}),
        (
            Attempt,
            {
                "started_at": NOW,
                "duration": timedelta(seconds=1),
                "recipients": ("ada@example.net",),
                "destination": "example.net",
                "host": "mx.example.net",
                "address": "192.0.2.1",
                "tls": TLSFacts(version="TLSv1.3"),
                "outcome": {"ada@example.net": OUTCOME},
                "transcript": ("-- said",),
            },
        ),
        (Outcome, {"state": "delivered", "enhanced": "2.0.0", "reason": "taken"}),  # the rest by default
    ],
)
def test_a_trusted_model_is_the_validated_one(model, values):
    made, validated = trusted(model, **values), model(**values)

    assert made == validated
    assert made.model_dump_json() == validated.model_dump_json()
    assert made.model_fields_set == validated.model_fields_set
    assert model.model_validate_json(made.model_dump_json()) == validated


def test_each_has_values_of_its_own():
    """What is remembered of the defaults is not what a model holds."""
    one = trusted(Outcome, state="delivered", enhanced="2.0.0", reason="one")
    another = trusted(Outcome, state="deferred", enhanced="4.0.0", reason="another", cause="network")

    assert (one.reason, one.cause, another.reason, another.cause) == ("one", None, "another", "network")
