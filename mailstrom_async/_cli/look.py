"""Looking into a database."""

from pathlib import Path

import click
from rich.console import Console

from mailstrom_async import Attempt, Config, Mailstrom, SQLiteStorage
from mailstrom_async._cli.table import recipients_table, summary


def mailer(database: Path) -> Mailstrom:
    """A mailer that only answers questions."""
    if not database.exists():
        raise click.ClickException(f"there is no database {database}; name one with --db")
    return Mailstrom(Config(helo_name="localhost"), SQLiteStorage(database), deliver=False)


async def queue(database: Path) -> None:
    """Show every message that is incomplete."""
    console = Console()
    async with mailer(database) as asked:
        statuses = await asked.query_recent(limit=1000)
        if not statuses:
            console.print("The queue is empty.")
            return
        for status in statuses:
            title = f"{status.message_id}  queued {status.queued_at:%Y-%m-%d %H:%M:%S %Z}"
            console.print(recipients_table([status], title=title))
        console.print(summary(statuses))


async def status(database: Path, message_id: str) -> None:
    """Show one message and its attempts."""
    console = Console()
    async with mailer(database) as asked:
        found = await asked.query_status(message_id)
        console.print(recipients_table([found], title=f"queued {found.queued_at:%Y-%m-%d %H:%M:%S %Z}"))
        for number, attempt in enumerate(await asked.query_attempts(message_id), 1):
            _print_attempt(console, number, attempt)


def _print_attempt(console: Console, number: int, attempt: Attempt) -> None:
    tls = attempt.tls.version or "plaintext"
    where = f"{attempt.host} [{attempt.address}], {tls}" if attempt.host else "no host"
    console.print(
        f"\nAttempt {number}, {attempt.started_at:%Y-%m-%d %H:%M:%S %Z}, to {attempt.destination} by {where}, "
        f"{attempt.duration.total_seconds():.3f} s",
        markup=False,
    )
    for recipient, outcome in attempt.outcome.items():
        console.print(f"  {recipient}: {outcome.state} {outcome.enhanced} {outcome.reason}", markup=False)
    for line in attempt.transcript:
        console.print(f"    {line}", markup=False)
