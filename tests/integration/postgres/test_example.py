"""The examples for PostgreSQL, as a user runs them."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest
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


@pytest.mark.timeout(120)
@on_one_server
async def test_four_workers_of_a_web_server_share_one_database(dsn: str, schema: str) -> None:
    """examples/several_workers.py under uvicorn: whoever is asked knows what became of a mail, whoever accepted it."""
    admin = await asyncpg.connect(dsn)
    await admin.execute(f"CREATE DATABASE {schema}")
    try:
        async with SMTPServer() as sink, asyncio.timeout(100):
            settings = {"MAIL_DB": dsn.rpartition("/")[0] + f"/{schema}", "MAIL_CONFIG": config(sink).model_dump_json()}
            async with four_workers(settings) as client:
                mail = {"from": "app@example.org", "to": "ada@example.net", "subject": "Hello", "text": "Hello Ada"}
                workers: set[int] = set()
                while len(workers) < 4:
                    accepted = await asyncio.gather(*(client.post("/mails", json=mail) for _ in range(8)))
                    workers |= {each.json()["worker"] for each in accepted}
                states = {"queued"}
                while states != {"delivered"}:
                    answers = await asyncio.gather(*(client.get(f"/mails/{one.json()['id']}") for one in accepted))
                    states = {one.json()["status"]["recipients"][0]["result"]["state"] for one in answers}
    finally:
        await admin.execute(f"DROP DATABASE {schema} WITH (FORCE)")
        await admin.close()

    assert len({message.email["Message-ID"] for message in sink.messages}) == sink.received


@asynccontextmanager
async def four_workers(settings: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """The web server; each request is a connection of its own, and may get another worker."""
    uvicorn = ("-m", "uvicorn", "--workers", "4", "--port", "0", "--app-dir", str(PROJECT / "examples"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *uvicorn, "several_workers:app"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | settings | {"PYTHONPATH": str(PROJECT)},
        start_new_session=True,
    )
    try:
        said = ""
        while said.count("startup complete") < 4 and (line := await process.stdout.readline()):
            said += line.decode()
        found = re.search(r"running on (http://\S+?) ", said)
        assert found, said
        each_anew = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=found[1], limits=each_anew, timeout=100) as client:
            yield client
    finally:
        process.terminate()
        try:
            await asyncio.wait_for(process.communicate(), 20)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
