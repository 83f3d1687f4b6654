"""Orders and their mails in one transaction, with SQLAlchemy on PostgreSQL.

What it shows: `send_email(..., connection=session)`. The mail is queued if and when the transaction commits. No order
               without its mail, no mail without its order, whatever fails in between.
Requires: PostgreSQL, and pip install "mailstrom-async[postgres]" "sqlalchemy[asyncio]"
To run:   python examples/outbox_sqlalchemy.py postgresql://user:password@localhost/shop ada@example.net
          (settings: see examples/README.md; makes a table `orders`, and a schema `mailstrom` for the queue)
It should print: "tea: ordered, its mail is delivered", or why it is not yet, and "a yacht: not ordered, and no mail".
"""

import asyncio
import os
import sys
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from mailstrom_async import Config, Email, Mailstrom, MessageNotFound
from mailstrom_async.storage.postgres import PostgresStorage


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    number: Mapped[int] = mapped_column(primary_key=True)
    article: Mapped[str]
    price: Mapped[int]


class TooExpensive(Exception):
    pass


async def order(session: AsyncSession, mailer: Mailstrom, customer: str, article: str, price: int) -> str:
    """Part of the caller's transaction; returns the Message-ID of the mail that goes out with it."""
    row = Order(article=article, price=price)
    session.add(row)
    await session.flush()
    message_id = await mailer.send_email(
        Email(
            from_="Shop <shop@example.org>",
            to=customer,
            subject=f"Your order {row.number}",
            text=f"Thank you for ordering {article}.\n",
        ),
        connection=session,
    )
    if price > 1000:
        raise TooExpensive(message_id)
    return message_id


async def main(dsn: str, customer: str) -> None:
    config = Config.model_validate_json(os.environ.get("MAIL_CONFIG", '{"helo_name": "app.example.org"}'))
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"))
    new_session = async_sessionmaker(engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with Mailstrom(config, PostgresStorage(dsn)) as mailer:
        async with new_session.begin() as session:
            message_id = await order(session, mailer, customer, "tea", 5)
        # Committed: the mail is on its way.
        status = await mailer.wait(message_id, until="attempted", timeout=timedelta(minutes=5))
        print(f"tea: ordered, its mail is {status.recipients[0].result.state}")
        try:
            async with new_session.begin() as session:
                await order(session, mailer, customer, "a yacht", 1_000_000)
        except TooExpensive as error:
            # Rolled back, mail and all.
            try:
                await mailer.query_status(str(error))
            except MessageNotFound:
                print("a yacht: not ordered, and no mail")
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
