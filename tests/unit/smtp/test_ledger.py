"""The replies to one message's commands, each for whom it concerns."""

import pytest

from mailstrom_async._policy.replies import Answer
from mailstrom_async._reply import Phase
from mailstrom_async.smtp.ledger import Ledger
from mailstrom_async.smtp.wire import Broken

A, B, C = "a@example.net", "b@example.net", "c@example.net"


def ledger_after(*codes: int) -> Ledger:
    """A ledger of a message to A, B and C that took these replies."""
    ledger = Ledger((A, B, C), "mx.example.net")
    for code in codes:
        ledger.take(Answer(code, None, "said"))
    return ledger


def seen(ledger: Ledger) -> dict[str, tuple[Phase, int]]:
    """What was decided for whom."""
    return {recipient: (phase, reply.code) for recipient, (phase, reply) in ledger.decided.items()}


@pytest.mark.parametrize(
    ("codes", "phase"),
    [((), Phase.MAIL), ((250,), Phase.RCPT), ((250, 250, 250), Phase.RCPT), ((250, 250, 250, 250), Phase.DATA)],
)
def test_the_next_reply_answers_the_next_command(codes, phase):
    """MAIL, three RCPT, DATA."""
    assert ledger_after(*codes).phase is phase


@pytest.mark.parametrize(
    "codes",
    [
        (250, 250, 250, 250, 354),
        (250, 250, 550, 250, 354),
        (250, 250, 250, 452, 354),
        (250, 550, 550, 550, 554),
        (550, 503, 503, 503, 503),
        (250, 250, 250, 250, 451),
    ],
)
def test_replies_that_come_together_decide_as_one_by_one(codes):
    together = Ledger((A, B, C), "mx.example.net")
    together.take_all([Answer(code, None, "said") for code in codes])
    apart = ledger_after(*codes)

    assert (seen(together), together.accepted, together.postponed) == (seen(apart), apart.accepted, apart.postponed)
    assert (together.phase, together.wants_content, together.refused) == (
        apart.phase,
        apart.wants_content,
        apart.refused,
    )


@pytest.mark.parametrize("codes", [(250, 250, 421, 250, 354), (250, 250, 354, 250, 354), (250, 250, 250, 250, 250)])
def test_replies_that_come_together_end_the_conversation_as_one_by_one(codes):
    with pytest.raises(Broken) as apart:
        ledger_after(*codes)
    with pytest.raises(Broken, match=str(apart.value)):
        Ledger((A, B, C), "mx.example.net").take_all([Answer(code, None, "said") for code in codes])


def test_a_refusal_of_mail_decides_for_all_and_what_follows_for_nobody():
    """Rows A24 and A25: the replies to the commands behind it are read, and mean nothing."""
    ledger = ledger_after(550, 503, 250, 503, 503)

    assert seen(ledger) == dict.fromkeys((A, B, C), (Phase.MAIL, 550))
    assert ledger.accepted == []
    assert ledger.settles_all


def test_a_refusal_of_one_recipient_is_its_own():
    """Rows A26, A27 and A32."""
    ledger = ledger_after(250, 250, 550, 450, 354)
    ledger.content_sent()
    ledger.take(Answer(250, None, "taken"))

    assert seen(ledger) == {A: (Phase.END_OF_DATA, 250), B: (Phase.RCPT, 550), C: (Phase.RCPT, 450)}


@pytest.mark.parametrize("code", [452, 552])
def test_too_many_recipients_postpones_those_who_are_too_many(code):
    """Rows A34 and A35: only after others were taken."""
    assert ledger_after(250, 250, code, code).postponed == [B, C]
    assert seen(ledger_after(250, code, 250, 250)) == {A: (Phase.RCPT, code)}


def test_a_refusal_of_data_decides_for_those_who_were_accepted():
    """Rows A28 and A29: an earlier refusal stays."""
    ledger = ledger_after(250, 550, 250, 250, 451)

    assert seen(ledger) == {A: (Phase.RCPT, 550), B: (Phase.DATA, 451), C: (Phase.DATA, 451)}
    assert ledger.refused
    assert not ledger.wants_content


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        ((421,), "network"),
        ((250, 250, 421), "network"),
        ((354,), "protocol"),
        ((250, 354), "protocol"),
        ((250, 250, 250, 250, 250), "protocol"),
    ],
)
def test_a_reply_that_makes_no_sense_decides_nothing(codes, cause):
    """Rows A41 and A47: neither for those before it nor for its own."""
    with pytest.raises(Broken) as caught:
        ledger_after(*codes)

    assert caught.value.cause == cause


def test_neither_yes_nor_no_to_the_content_decides_nothing():
    """Row A48: 354 after the dot."""
    ledger = ledger_after(250, 250, 250, 250, 354)
    ledger.content_sent()
    with pytest.raises(Broken, match="354 to the whole message"):
        ledger.take(Answer(354, None, "go on"))

    assert ledger.decided == {}
