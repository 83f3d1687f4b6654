"""How recipients are shown: as a table, or live."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mailstrom_async import (
    Deferred,
    Delivered,
    Event,
    Mailstrom,
    MessageStatus,
    Queued,
    RecipientDeferred,
    RecipientDelivered,
    RecipientFailed,
    RecipientStatus,
)

COLOURS = {"queued": "white", "deferred": "yellow", "failed": "red", "delivered": "green"}
UNFINISHED_FIRST = list(COLOURS)
REFRESH = timedelta(milliseconds=100)
LOOK_EVERY = 10
"""After so many looks all that is unfinished is read again: another process may deliver it, without events here."""
PIPED_WIDTH = 140
"""Of what is written to a file or a pipe, which have no width of their own."""

Show = Callable[[Sequence[MessageStatus]], None]


def console() -> Console:
    """Standard output, wide enough for a table where nobody knows its width."""
    terminal = Console(highlight=False, markup=False)
    return terminal if terminal.is_terminal else Console(highlight=False, markup=False, width=PIPED_WIDTH)


def recipients_table(statuses: Iterable[MessageStatus], *, title: str | None = None, most: int | None = None) -> Table:
    """One line for each recipient: state, attempts, and what was said last.

    Args:
        statuses: The messages.
        title: Above the table.
        most: Show at most so many lines, the unfinished first.
    """
    table = Table(title=title)
    table.add_column("Recipient", no_wrap=True, min_width=16)
    table.add_column("State", no_wrap=True, min_width=9)
    table.add_column("Attempts", no_wrap=True, min_width=8, justify="right")
    table.add_column("Host", no_wrap=True, min_width=8)
    table.add_column("Said")  # the one that is made narrower where there is little room
    lines = [recipient for status in statuses for recipient in status.recipients]
    if most is not None and len(lines) > most:
        lines = sorted(lines, key=lambda line: UNFINISHED_FIRST.index(line.result.state))[:most]
    for line in lines:
        state = line.result.state
        words = said(line)
        if most is not None:  # each line must be one line
            words.no_wrap, words.overflow = True, "ellipsis"
        table.add_row(Text(line.address), Text(state, COLOURS[state]), str(line.attempts), host(line), words)
    return table


def host(recipient: RecipientStatus) -> str:
    """The host that decided, if there was one."""
    result = recipient.result
    if isinstance(result, Delivered):
        return result.host
    return "" if isinstance(result, Queued) or result.reply is None else result.reply.host


def said(recipient: RecipientStatus) -> Text:
    """The last reply, or the reason where there was none."""
    result = recipient.result
    if isinstance(result, Queued):
        return Text("")
    if isinstance(result, Delivered):
        return Text(str(result.reply))
    words = str(result.reply) if result.reply is not None else result.reason
    later = f" (again at {result.next_attempt_at.astimezone():%H:%M:%S})" if isinstance(result, Deferred) else ""
    return Text(words + later)


def summary(statuses: Iterable[MessageStatus]) -> str:
    """How many recipients are in which state."""
    states = [recipient.result.state for status in statuses for recipient in status.recipients]
    return ", ".join(f"{states.count(state)} {state}" for state in COLOURS if state in states)


@contextmanager
def showing(output: Console) -> Generator[Show]:
    """Show statuses as they change: a live table on a terminal, else a line for each change."""
    if not output.is_terminal:
        yield _Lines(output)
        return
    with Live(console=output, auto_refresh=False, transient=True) as live:
        # The title, the head, the frame and the line below must fit, too.
        most = max(5, output.height - 8)
        yield lambda statuses: live.update(recipients_table(statuses, title=summary(statuses), most=most), refresh=True)


class _Lines:
    """Prints what changed since the last call."""

    def __init__(self, output: Console) -> None:
        self._output = output
        self._begin = time.monotonic()
        self._seen: dict[tuple[str, str], RecipientStatus] = {}

    def __call__(self, statuses: Sequence[MessageStatus]) -> None:
        for status in statuses:
            for recipient in status.recipients:
                key = (status.message_id, recipient.address)
                if recipient.result.state != "queued" and self._seen.get(key) != recipient:
                    self._seen[key] = recipient
                    self._output.print(self._line(recipient), soft_wrap=True)

    def _line(self, recipient: RecipientStatus) -> str:
        words = (
            f"{time.monotonic() - self._begin:6.2f} s",
            f"{recipient.address:<28}",
            f"{recipient.result.state:<9}",
            f"attempt {recipient.attempts}",
            host(recipient),
            str(said(recipient)),
        )
        return "  ".join(word for word in words if word)


async def follow(
    mailer: Mailstrom,
    message_ids: Sequence[str],
    show: Show,
    *,
    enough: Callable[[MessageStatus], bool],
    patience: timedelta,
) -> list[MessageStatus]:
    """Show messages until there is enough of each, or patience ends; returns their last statuses."""
    statuses: dict[str, MessageStatus] = {}
    stale = set(message_ids)
    end = time.monotonic() + patience.total_seconds()
    async with mailer.events(RecipientDelivered, RecipientDeferred, RecipientFailed) as events:
        reader = asyncio.create_task(_note_changes(events, stale, message_ids))
        try:
            turn = 0
            while True:
                if turn % LOOK_EVERY == 0:
                    stale.update(message_id for message_id, status in statuses.items() if not status.completed)
                changed = list(stale)
                stale.clear()
                for message_id in changed:
                    statuses[message_id] = await mailer.query_status(message_id)
                current = [statuses[message_id] for message_id in message_ids]
                show(current)
                if all(enough(status) for status in current) or time.monotonic() > end:
                    return current
                await asyncio.sleep(REFRESH.total_seconds())
                turn += 1
        finally:
            reader.cancel()
            await asyncio.wait([reader])


async def _note_changes(events: AsyncIterator[Event], stale: set[str], followed: Sequence[str]) -> None:
    known = frozenset(followed)
    async for event in events:
        if isinstance(event, RecipientDelivered | RecipientDeferred | RecipientFailed):
            stale.update(known & {event.message_id})
        else:  # EventsLost
            stale.update(known)
