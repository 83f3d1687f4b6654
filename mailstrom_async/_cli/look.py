"""Looking into a database."""

from pathlib import Path

import click
from rich.console import Console

from mailstrom_async import Attempt, Config, Mailstrom, MessageStatus, SQLiteStorage
from mailstrom_async._cli.show import console, recipients_table, summary


def mailer(database: Path) -> Mailstrom:
    """A mailer that only answers questions."""
    if not database.exists():
        raise click.ClickException(f"there is no database {database}; name one with --db")
    return Mailstrom(Config(helo_name="localhost"), SQLiteStorage(database), deliver=False)


async def queue(database: Path, limit: int, *, as_json: bool) -> None:
    """Show the incomplete messages."""
    output = console()
    async with mailer(database) as asked:
        statuses = await asked.query_recent(limit=limit)
    if as_json:
        for status in statuses:
            click.echo(status.model_dump_json())
        return
    if not statuses:
        output.print("The queue is empty.")
        return
    for status in statuses:
        output.print(recipients_table([status], title=f"{status.message_id}, {_origin(status)}"))
    messages = "1 message" if len(statuses) == 1 else f"{len(statuses)} messages"
    output.print(f"{messages}, recipients: {summary(statuses)}")
    if len(statuses) == limit:
        output.print("There may be more: raise --limit.")


async def status(database: Path, message_id: str, *, as_json: bool) -> None:
    """Show one message and its attempts."""
    async with mailer(database) as asked:
        found = await asked.query_status(message_id)
        attempts = await asked.query_attempts(message_id)
    if as_json:
        click.echo(found.model_dump_json())
        return
    output = console()
    output.print(recipients_table([found], title=_origin(found)))
    for number, attempt in enumerate(attempts, 1):
        _print_attempt(output, number, attempt)


def _origin(status: MessageStatus) -> str:
    lane = "" if status.lane == "default" else f", lane {status.lane}"
    return f"queued {status.queued_at:%Y-%m-%d %H:%M:%S %Z}{lane}"


def _print_attempt(output: Console, number: int, attempt: Attempt) -> None:
    where = (
        f"at {attempt.host} [{attempt.address}], {attempt.tls.version or 'plaintext'}" if attempt.host else "no host"
    )
    output.print(
        f"\nAttempt {number}, {attempt.started_at:%Y-%m-%d %H:%M:%S %Z}, for {attempt.destination} {where}, "
        f"{attempt.duration.total_seconds():.3f} s",
        soft_wrap=True,
    )
    for recipient, outcome in attempt.outcome.items():
        output.print(f"  {recipient}: {outcome.state} {outcome.enhanced} {outcome.reason}", soft_wrap=True)
    for line in attempt.transcript:
        output.print(f"    {line}", soft_wrap=True)
