"""examples/outbox_sqlalchemy.py, as a user runs it."""

import asyncio
import os
import sys
from pathlib import Path

import asyncpg
from _mailers import config
from _server import on_one_server

from mailstrom_async.testing import SMTPServer

PROJECT = Path(__file__).parents[3]


@on_one_server
async def test_an_order_that_is_rolled_back_sends_no_mail(dsn: str, schema: str) -> None:
    """One order and one mail are there in the end, both of the same transaction."""
    admin = await asyncpg.connect(dsn)
    shop = dsn.rpartition("/")[0] + f"/{schema}"
    await admin.execute(f"CREATE DATABASE {schema}")
    try:
        async with SMTPServer() as sink:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(PROJECT / "examples" / "outbox_sqlalchemy.py"),
                *[shop, "ada@example.net"],
                stdout=asyncio.subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(PROJECT), "MAIL_CONFIG": config(sink).model_dump_json()},
            )
            output, _ = await asyncio.wait_for(process.communicate(), 50)
            (message,) = sink.messages
        connection = await asyncpg.connect(shop)
        orders = await connection.fetch("SELECT article FROM orders")
        await connection.close()
    finally:
        await admin.execute(f"DROP DATABASE {schema} WITH (FORCE)")
        await admin.close()

    assert output.decode().splitlines() == ["tea: ordered, its mail is delivered", "a yacht: not ordered, and no mail"]
    assert b"Thank you for ordering tea" in message.content
    assert [row[0] for row in orders] == ["tea"]
