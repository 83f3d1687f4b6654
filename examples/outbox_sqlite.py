"""Orders and their mails in one transaction, in one SQLite file.

What it shows: `send_email(..., connection=connection)` with aiosqlite; a connection of sqlite3's does as well. The mail
               is queued if and when the transaction commits. No order without its mail, no mail without its order.
Requires: pip install mailstrom-async aiosqlite
To run:   python examples/outbox_sqlite.py ada@example.net
          (settings: see examples/README.md; the orders are in the file of the queue, in a table of their own)
It should print: "tea: ordered, its mail is delivered", or why it is not yet, and "a yacht: not ordered, and no mail".
"""

import asyncio
import os
import sys
from datetime import timedelta

import aiosqlite

from mailstrom_async import Config, Email, Mailstrom, MessageNotFound, SQLiteStorage


class TooExpensive(Exception):
    pass


async def order(connection: aiosqlite.Connection, mailer: Mailstrom, customer: str, article: str, price: int) -> str:
    """Part of the caller's transaction; returns the Message-ID of the mail that goes out with it."""
    cursor = await connection.execute("INSERT INTO orders (article, price) VALUES (?, ?)", (article, price))
    message_id = await mailer.send_email(
        Email(
            from_="Shop <shop@example.org>",
            to=customer,
            subject=f"Your order {cursor.lastrowid}",
            text=f"Thank you for ordering {article}.\n",
        ),
        connection=connection,
    )
    if price > 1000:
        raise TooExpensive(message_id)
    return message_id


async def main(customer: str) -> None:
    config = Config.model_validate_json(os.environ.get("MAIL_CONFIG", '{"helo_name": "app.example.org"}'))
    path = os.environ.get("MAIL_DB", "mail.db")
    # The mailer first: it makes the file.
    async with Mailstrom(config, SQLiteStorage(path)) as mailer, aiosqlite.connect(path) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS orders (article TEXT, price INTEGER)")
        message_id = await order(connection, mailer, customer, "tea", 5)
        await connection.commit()
        # Committed: the mail is on its way.
        status = await mailer.wait(message_id, until="attempted", timeout=timedelta(minutes=5))
        print(f"tea: ordered, its mail is {status.recipients[0].result.state}")
        try:
            await order(connection, mailer, customer, "a yacht", 1_000_000)
            await connection.commit()
        except TooExpensive as error:
            await connection.rollback()
            try:
                await mailer.query_status(str(error))
            except MessageNotFound:
                print("a yacht: not ordered, and no mail")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
