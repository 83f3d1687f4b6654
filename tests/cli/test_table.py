"""The table of recipients: nothing that was said is cut off, however narrow it is shown."""

from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from mailstrom_async import Deferred, MessageStatus, RecipientStatus
from mailstrom_async._cli.show import recipients_table

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
REASON = "the host mx.example.net does not offer STARTTLS, which the settings demand, so it got nothing of this mail"
DEFERRED = Deferred(cause="policy", enhanced="4.7.0", reason=REASON, next_attempt_at=NOW + timedelta(minutes=3))
STATUS = MessageStatus(
    message_id="1@example.org",
    queued_at=NOW,
    recipients=(RecipientStatus(recipient="ada@example.net", address="ada@example.net", attempts=7, result=DEFERRED),),
)


def shown(width: int, **options: int) -> str:
    console = Console(width=width, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(recipients_table([STATUS], **options))
    return captured.get()


@pytest.mark.parametrize("width", [80, 140])
def test_all_that_was_said_is_there(width):
    """On several lines if need be; and the other columns keep their room."""
    text = shown(width)
    last = " ".join(line.rstrip(" │").rpartition("│")[2].strip() for line in text.splitlines()[3:-1])

    assert all(
        name in text for name in ("Recipient", "State", "Attempts", "Host", "ada@example.net", "deferred", " 7 ")
    )
    assert last.startswith(REASON)
    assert "(again at " in last


def test_a_live_table_has_a_line_for_each_recipient():
    """It is as high as the terminal has lines for it."""
    assert len(shown(80, most=5).splitlines()) == 5
    assert "…" in shown(80, most=5)
