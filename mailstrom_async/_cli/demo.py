"""A small internet on this machine, and real mail through it."""

import asyncio
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.live import Live

from mailstrom_async import Attachment, Config, Email, Mailstrom, MessageStatus, RetryPolicy, SQLiteStorage
from mailstrom_async._cli.table import recipients_table, summary
from mailstrom_async.testing import FakeInternet, Greylist

PATIENCE = timedelta(seconds=60)
REFRESH = timedelta(milliseconds=200)

PEOPLE = ("ada", "grace", "edsger", "barbara", "donald", "radia")
DOMAINS = ("swift.example.net", "grey.example.org", "picky.example.com", "backup.example.net", "null.example.org")


async def run(messages: int) -> int:
    """Send so many mails to exchangers of different tempers; 0 if every recipient ended as it should."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="mailstrom-demo-") as folder:
        async with FakeInternet() as internet:
            await build(internet)
            config = Config(
                helo_name="demo.example.org",
                delivery=internet.delivery,
                retry=RetryPolicy(base_delay=timedelta(seconds=0.5), factor=2, max_delay=timedelta(seconds=2)),
            )
            database = Path(folder, "mail.db")
            console.print(f"Queueing {messages} mails in {database}\n", highlight=False)
            async with Mailstrom(config, SQLiteStorage(database)) as mailer:
                ids = await mailer.send_emails([email(number) for number in range(messages)])
                statuses = await watch(mailer, ids, console)
        await asyncio.sleep(0)
    console.print(f"\n{summary(statuses)}")
    for failed in sorted(
        {
            recipient.result.reason
            for status in statuses
            for recipient in status.recipients
            if recipient.result.state == "failed"
        }
    ):
        console.print(f"  failed: {failed}", markup=False, highlight=False)
    return 0 if all(status.completed for status in statuses) else 1


async def build(internet: FakeInternet) -> None:
    """One domain for each temper."""
    await internet.exchanger("mx.swift.example.net")
    internet.domain("swift.example.net", mx=["mx.swift.example.net"])
    await internet.exchanger("mx.grey.example.org", {"RCPT": Greylist(timedelta(seconds=0.6))})
    internet.domain("grey.example.org", mx=["mx.grey.example.org"])
    await internet.exchanger("mx.picky.example.com", {"RCPT TO:<grace@picky.example.com>": "550 5.1.1 no such person"})
    internet.domain("picky.example.com", mx=["mx.picky.example.com"])
    internet.down("mx1.backup.example.net")
    await internet.exchanger("mx2.backup.example.net")
    internet.domain("backup.example.net", mx=["mx1.backup.example.net", "mx2.backup.example.net"])
    internet.domain("null.example.org", mx=["."])


def email(number: int) -> Email:
    """One of the mails: all domains take part, and most have two recipients."""
    person = PEOPLE[number % len(PEOPLE)]
    to = [f"{person.title()} <{person}@{DOMAINS[number % len(DOMAINS)]}>"]
    if number % 3:
        to.append(f"{PEOPLE[(number + 1) % len(PEOPLE)]}@{DOMAINS[(number + 2) % len(DOMAINS)]}")
    attachments = (Attachment(filename="Grüße.txt", content=b"Hello\n", content_type="text/plain"),)
    return Email(
        from_="Demo <demo@example.org>",
        to=to,
        subject=f"Mail number {number} — délivré",
        text="Hello,\n\nthis went over real sockets.\n",
        attachments=attachments if number % 4 == 0 else (),
    )


async def watch(mailer: Mailstrom, ids: Sequence[str], console: Console) -> list[MessageStatus]:
    """Show the recipients until all are final, or patience ends."""
    with Live(console=console, refresh_per_second=10, transient=False) as live:
        try:
            async with asyncio.timeout(PATIENCE.total_seconds()), mailer.events() as events:
                while True:
                    statuses = [await mailer.query_status(message_id) for message_id in ids]
                    live.update(recipients_table(statuses, title=summary(statuses), most=max(10, console.height - 8)))
                    if all(status.completed for status in statuses):
                        return statuses
                    await anext(events)
                    await asyncio.sleep(REFRESH.total_seconds())
        except TimeoutError:
            return [await mailer.query_status(message_id) for message_id in ids]
