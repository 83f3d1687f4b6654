"""How recipients are shown."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from mailstrom_async import Deferred, Delivered, DeliveryResult, Failed, MessageStatus

COLOURS = {"queued": "white", "deferred": "yellow", "delivered": "green", "failed": "red"}


def recipients_table(statuses: Iterable[MessageStatus], *, title: str | None = None, most: int | None = None) -> Table:
    """One line for each recipient: state, attempts, and what was said last.

    Args:
        statuses: The messages.
        title: Above the table.
        most: Show at most so many lines, the unfinished first.
    """
    table = Table(title=title, expand=False)
    for column in ("Recipient", "State", "Attempts", "Host", "Said"):
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    lines = [recipient for status in statuses for recipient in status.recipients]
    if most is not None and len(lines) > most:
        order = {"deferred": 0, "queued": 1, "failed": 2, "delivered": 3}
        lines = sorted(lines, key=lambda line: order[line.result.state])[:most]
    for line in lines:
        state = line.result.state
        table.add_row(
            Text(line.address),
            Text(state, COLOURS[state]),
            str(line.attempts),
            Text(_host(line.result)),
            _said(line.result),
        )
    return table


def summary(statuses: Iterable[MessageStatus]) -> str:
    """How many recipients are in which state."""
    states = [recipient.result.state for status in statuses for recipient in status.recipients]
    return ", ".join(f"{states.count(state)} {state}" for state in COLOURS if state in states)


def _host(result: DeliveryResult) -> str:
    if isinstance(result, Delivered):
        return result.host
    if isinstance(result, Deferred | Failed) and result.reply is not None:
        return result.reply.host
    return ""


def _said(result: DeliveryResult) -> Text:
    if isinstance(result, Delivered):
        return Text(str(result.reply))
    if isinstance(result, Deferred | Failed):
        return Text(str(result.reply) if result.reply is not None else result.reason)
    return Text("")
