"""The life of a recipient: one table, and what results from its steps."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import get_args

import pytest

from mailstrom_async._envelope import PendingRecipient, RecipientState
from mailstrom_async._queue.recipient import (
    TRANSITIONS,
    Circumstances,
    IllegalTransition,
    Occurrence,
    after,
    cancelled,
    expired,
    settle,
)
from mailstrom_async._reply import Reply
from mailstrom_async._status import FINAL_STATES, Deferred, Delivered, Failed, Outcome

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
STATES: tuple[RecipientState, ...] = get_args(RecipientState)
OCCURRENCES: tuple[Occurrence, ...] = get_args(Occurrence)
REPLY = Reply(code=451, enhanced="4.3.0", text="not now", command="end of data", host="mx.example.net")
GIVEN = Circumstances(now=NOW, next_attempt_at=LATER, expires_at=LATER + timedelta(days=1), host="mx.example.net")


def outcome(state: str, cause: str | None = "smtp") -> Outcome:
    return Outcome.model_validate(
        {"state": state, "cause": cause, "enhanced": "4.3.0", "reason": "not now", "reply": REPLY}
    )


@pytest.mark.parametrize(("state", "occurrence"), list(product(STATES, OCCURRENCES)))
def test_every_step_is_in_the_table_or_illegal(state: RecipientState, occurrence: Occurrence):
    """Nothing is decided anywhere else, and an illegal step says which it was."""
    if (state, occurrence) in TRANSITIONS:
        assert after(state, occurrence) == TRANSITIONS[state, occurrence]
    else:
        with pytest.raises(IllegalTransition, match=f"{state} can't become {occurrence}"):
            after(state, occurrence)


def test_nothing_happens_to_a_final_recipient():
    """Invariant I11: delivered stays delivered, and failed stays failed."""
    assert not any(state in FINAL_STATES for state, _ in TRANSITIONS)


def test_nobody_becomes_queued_again():
    """Invariant I11: states go one way."""
    assert "queued" not in TRANSITIONS.values()


def test_every_recipient_can_reach_an_end_from_wherever_it_is():
    """Invariant I3."""
    for start in ("queued", "deferred"):
        assert {"delivered", "failed"} <= {
            new for (state, _), new in TRANSITIONS.items() if state == start and new in FINAL_STATES
        }


def test_only_who_was_attempted_can_expire():
    """Row C17: a message that waited for days in a program that did not run is attempted first."""
    with pytest.raises(IllegalTransition):
        after("queued", "expired")

    assert after("deferred", "expired") == "failed"


def test_a_delivered_recipient_shows_who_took_it():
    """With the reply, the host, and how it travelled."""
    result = settle(PendingRecipient("a@b", "queued", 0), outcome("delivered", None), replace(GIVEN, tls="TLSv1.3"))

    assert result == Delivered(reply=REPLY, host="mx.example.net", tls="TLSv1.3", delivered_at=NOW)


def test_a_deferred_recipient_shows_when_it_is_attempted_again():
    """And why it was deferred."""
    result = settle(PendingRecipient("a@b", "deferred", 3), outcome("deferred", "network"), GIVEN)

    assert result == Deferred(cause="network", enhanced="4.3.0", reason="not now", reply=REPLY, next_attempt_at=LATER)


def test_a_failed_recipient_shows_why():
    """The server's own words."""
    result = settle(PendingRecipient("a@b", "queued", 0), outcome("failed"), GIVEN)

    assert result == Failed(cause="smtp", enhanced="4.3.0", reason="not now", reply=REPLY, failed_at=NOW)


@pytest.mark.parametrize("state", ["queued", "deferred"])
def test_who_is_deferred_at_the_end_of_the_lifetime_has_failed(state: RecipientState):
    """Expired (RFC 3463: X.4.7), with what was said last; to the microsecond."""
    recipient = PendingRecipient("a@b", state, 0)
    result = settle(recipient, outcome("deferred"), replace(GIVEN, expires_at=NOW))
    earlier = settle(recipient, outcome("deferred"), replace(GIVEN, expires_at=NOW + timedelta(microseconds=1)))

    assert result == expired("not now", REPLY, NOW)
    assert (result.cause, result.enhanced, result.reply) == ("expired", "4.4.7", REPLY)
    assert "not now" in result.reason
    assert earlier.state == "deferred"


@pytest.mark.parametrize("state", ["delivered", "failed"])
def test_a_final_outcome_counts_even_at_the_end_of_the_lifetime(state: str):
    """What a server decided is no matter of time."""
    result = settle(PendingRecipient("a@b", "deferred", 1), outcome(state), replace(GIVEN, expires_at=NOW))

    assert result.state == state


@pytest.mark.parametrize("state", ["delivered", "failed"])
def test_an_outcome_for_a_final_recipient_is_a_fault(state: RecipientState):
    """Invariant I16: it should not have been attempted."""
    with pytest.raises(IllegalTransition):
        settle(PendingRecipient("a@b", state, 1), outcome("delivered"), GIVEN)


def test_a_cancelled_recipient_says_so():
    """Nobody else decided it: there is no reply."""
    result = cancelled(NOW)

    assert (result.cause, result.reply, result.failed_at) == ("cancelled", None, NOW)
