"""A newsletter: one letter, a copy for each reader, signed, and unsubscribed from with one click.

What it shows: `bulk_problems`, `Email.but` (the attachment is encoded once for all), `send_emails`, DKIM.
Requires: pip install 'mailstrom-async[cli,dkim]'
To run:   mailstrom-async dkim-key example.org news      (and the record that it prints goes into the DNS)
          python examples/newsletter.py news.example.org.pem ada@example.net bob@example.net
It should print: "ada@example.net: delivered", a line for each reader      (settings: see examples/README.md)
"""

import asyncio
import os
import sys
from datetime import timedelta

from mailstrom_async import Attachment, Config, DKIMKey, Email, Mailstrom, SQLiteStorage, bulk_problems


async def main(key_file: str, readers: list[str]) -> int:
    """Returns the exit status: 0 if all have it."""
    settings = Config.model_validate_json(os.environ.get("MAIL_CONFIG", '{"helo_name": "app.example.org"}'))
    config = settings.model_copy(
        update={"dkim": (DKIMKey(domain="example.org", selector="news", private_key=key_file),)}
    )
    letter = Email(
        from_="Example News <news@example.org>",
        subject="News of May",
        attachments=[Attachment(filename="catalogue.pdf", content=b"%PDF-1.7 ...", content_type="application/pdf")],
    )
    letters = [
        letter.but(
            to=reader,
            text=f"Dear {reader},\n\nour catalogue is attached.\n",
            list_unsubscribe=f"https://example.org/unsubscribe?reader={number}",
        )
        for number, reader in enumerate(readers)
    ]
    for problem in bulk_problems(letters[0], config):
        print(f"Gmail or Yahoo may not like this: {problem}")
    async with Mailstrom(config, SQLiteStorage(os.environ.get("MAIL_DB", "mail.db"))) as mailer:
        all_delivered = True
        for message_id in await mailer.send_emails(letters):
            status = await mailer.wait(message_id, until="attempted", timeout=timedelta(minutes=5))
            for recipient in status.recipients:
                print(f"{recipient.address}: {recipient.result.state}")
            all_delivered = all_delivered and status.succeeded
    return 0 if all_delivered else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2:])))
