"""A small internet on this machine, and real mail through it."""

import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mailstrom_async import Attachment, Config, Email, Mailstrom, MessageStatus, RetryPolicy, SQLiteStorage
from mailstrom_async._cli.show import console, follow, recipients_table, showing, summary
from mailstrom_async.testing import Delay, FakeInternet, Greylist

PATIENCE = timedelta(seconds=60)
GREYLISTED = timedelta(seconds=1.2)
SLOW = timedelta(milliseconds=150)

PEOPLE = ("ada", "grace", "edsger", "barbara", "donald", "radia")
TEMPERS = {
    "swift.example.net": "accepts",
    "slow.example.org": "accepts, slowly",
    "grey.example.org": "greylists",
    "picky.example.com": "rejects grace",
    "backup.example.net": "is down, its backup is up",
    "null.example.org": "takes no mail (null MX)",
}
DOMAINS = tuple(TEMPERS)


async def run(messages: int) -> int:
    """Send so many mails to exchangers of different tempers; 0 if every recipient ended as it should."""
    output = console()
    with tempfile.TemporaryDirectory(prefix="mailstrom-demo-") as folder:
        async with FakeInternet() as internet:
            await build(internet)
            config = Config(
                helo_name="demo.example.org",
                delivery=internet.delivery,
                retry=RetryPolicy(base_delay=timedelta(seconds=0.3), factor=2, max_delay=timedelta(seconds=2)),
            )
            database = Path(folder, "mail.db")
            async with Mailstrom(config, SQLiteStorage(database)) as mailer:
                message_ids = await mailer.send_emails([email(number) for number in range(messages)])
                output.print(f"{messages} mails are safe in {database}; now they are delivered.\n")
                with showing(output) as show:
                    statuses = await follow(
                        mailer, message_ids, show, enough=lambda status: status.completed, patience=PATIENCE
                    )
            received = sum(
                len(message.recipients) for server in internet.exchangers.values() for message in server.messages
            )
    return report(output, statuses, received)


async def build(internet: FakeInternet) -> None:
    """One domain for each temper."""
    await internet.exchanger("mx.swift.example.net")
    internet.domain("swift.example.net", mx=["mx.swift.example.net"])
    await internet.exchanger("mx.slow.example.org", {"end of data": Delay(SLOW)})
    internet.domain("slow.example.org", mx=["mx.slow.example.org"])
    await internet.exchanger("mx.grey.example.org", {"RCPT": Greylist(GREYLISTED)})
    internet.domain("grey.example.org", mx=["mx.grey.example.org"])
    await internet.exchanger("mx.picky.example.com", {"RCPT TO:<grace@picky.example.com>": "550 5.1.1 no such person"})
    internet.domain("picky.example.com", mx=["mx.picky.example.com"])
    internet.down("mx1.backup.example.net")
    await internet.exchanger("mx2.backup.example.net")
    internet.domain("backup.example.net", mx=["mx1.backup.example.net", "mx2.backup.example.net"])
    internet.domain("null.example.org", mx=["."])


def email(number: int) -> Email:
    """One of the mails: all domains take part, and most mails have two recipients."""
    person, friend = PEOPLE[number % len(PEOPLE)], PEOPLE[(number + 1) % len(PEOPLE)]
    turn = number // len(PEOPLE)
    to = [f"{person.title()} <{person}@{DOMAINS[(number + turn) % len(DOMAINS)]}>"]
    if number % 3:
        to.append(f"{friend}@{DOMAINS[(number + turn + 2) % len(DOMAINS)]}")
    attachments = (Attachment(filename="Grüße.txt", content=b"Hello\n", content_type="text/plain"),)
    return Email(
        from_="Demo <demo@example.org>",
        to=to,
        subject=f"Mail number {number} — délivré",
        text="Hello,\n\nthis went over real sockets.\n",
        attachments=attachments if number % 4 == 0 else (),
    )


def report(output: Console, statuses: Sequence[MessageStatus], received: int) -> int:
    """Print how all ended; the exit status."""
    output.print(recipients_table(statuses, title="How every recipient ended"))
    table = Table(title="By domain")
    for column in ("Domain", "Its exchanger", "Ended", "Attempts"):
        table.add_column(column)
    recipients = [recipient for status in statuses for recipient in status.recipients]
    for domain, temper in TEMPERS.items():
        at_domain = [recipient for recipient in recipients if recipient.address.endswith(f"@{domain}")]
        states = [recipient.result.state for recipient in at_domain]
        ended = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        table.add_row(domain, temper, ended, str(sum(recipient.attempts for recipient in at_domain)))
    output.print(table)
    output.print(f"\n{len(statuses)} mails, {len(recipients)} recipients: {summary(statuses)}.")
    delivered = sum(recipient.result.state == "delivered" for recipient in recipients)
    if not all(status.completed for status in statuses):
        output.print(f"Not all were final within {PATIENCE.total_seconds():.0f} s.")
        return 1
    if delivered != received:
        output.print(f"The exchangers took {received} copies, but {delivered} are recorded as delivered.")
        return 1
    output.print(f"The exchangers took {received} copies, one for each that is recorded as delivered.")
    return 0
