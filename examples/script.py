"""A script that sends one mail and waits for its result.

What it shows: `async with` in place of a framework, an attachment, waiting, and reading a result.
Requires: nothing more
To run:   python examples/script.py ada@example.net       (settings: see examples/README.md)
It should print: "ada@example.net: delivered to HOST (250 ...)", or why it is not, and the exit status says the same.
"""

import asyncio
import os
import sys
from datetime import timedelta

from mailstrom_async import Attachment, Config, Deferred, Delivered, Email, Failed, Mailstrom, Queued, SQLiteStorage


async def main(address: str) -> int:
    """Returns the exit status: 0 if it was delivered."""
    config = Config.model_validate_json(os.environ.get("MAIL_CONFIG", '{"helo_name": "app.example.org"}'))
    email = Email(
        from_="Script <script@example.org>",
        to=address,
        subject="Your report",
        text="You find it attached.\n",
        html="<p>You find it <b>attached</b>.</p>",
        attachments=(Attachment(filename="report.csv", content=b"a;b\r\n1;2\r\n", content_type="text/csv"),),
    )
    async with Mailstrom(config, SQLiteStorage(os.environ.get("MAIL_DB", "mail.db"))) as mailer:
        message_id = await mailer.send_email(email)
        # A deferred mail may take days; whoever does not wait finds it in the queue next time.
        status = await mailer.wait(message_id, until="attempted", timeout=timedelta(minutes=5))
    result = status.recipients[0].result
    match result:
        case Delivered(host=host, reply=reply):
            print(f"{address}: delivered to {host} ({reply})")
        case Deferred(reason=reason, next_attempt_at=at):
            print(f"{address}: deferred until {at:%H:%M}: {reason}; run this again then")
        case Failed(reason=reason):
            print(f"{address}: failed: {reason}")
        case Queued():
            print(f"{address}: not attempted yet")
    return 0 if status.succeeded else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
