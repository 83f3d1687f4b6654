"""Large mail leaves the event loop and the memory alone."""

import asyncio
import gc
import json
import subprocess
import sys
import threading
import tracemalloc
from email.message import EmailMessage
from pathlib import Path

import pytest

from mailstrom_async import (
    Attachment,
    Config,
    DKIMKey,
    Email,
    Mailstrom,
    MemoryStorage,
    PreparedEmail,
    RelayDelivery,
    SQLiteStorage,
)
from mailstrom_async._engine.composer import CROWD, LARGE, Tokens
from mailstrom_async._envelope import QueuedMessage
from mailstrom_async._message.dkim_keys import new_key
from mailstrom_async.testing import SMTPServer

KEY = DKIMKey(domain="example.org", selector="s", private_key=new_key("ed25519").pem)
BIG = bytes(LARGE)
MANY = 2000


def email_message() -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = "a@example.org", "b@example.net"
    message.set_content("x")
    return message


@pytest.fixture
async def mailer():
    """Takes mail and delivers none; its store answers at once, without a turn of the loop."""
    async with Mailstrom(Config(helo_name="mail.example.org"), MemoryStorage(), deliver=False) as open_mailer:
        yield open_mailer


async def turns_of_others(sending) -> int:
    """How often another coroutine had its turn while the mail was accepted."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await sending
    counting.cancel()
    return turns


@pytest.mark.parametrize(
    ("email", "envelope"),
    [
        (Email(from_="a@example.org", to="b@example.net", attachments=(Attachment(filename="a", content=BIG),)), {}),
        (Email(from_="a@example.org", to="b@example.net", text="x\n" * LARGE), {}),
        (b"From: a@example.org\r\nTo: b@example.net\r\n\r\n" + b"x\r\n" * LARGE, {}),
        (email_message(), {}),
        (Email(from_="a@example.org", to=[f"b{n}@example.net" for n in range(CROWD + 1)]), {}),
        (Email(from_="a@example.org", to=", ".join(f"b{n}@example.net" for n in range(CROWD + 1))), {}),
        (Email(from_="a@example.org"), {"recipients": [f"b{n}@example.net" for n in range(CROWD + 1)]}),
    ],
    ids=["attachment", "text", "bytes", "EmailMessage", "to", "to in one text", "recipients"],
)
async def test_others_have_their_turn_while_a_large_mail_is_composed(mailer, email, envelope):
    """It is done in a thread."""
    assert await turns_of_others(mailer.send_email(email, **envelope)) > 0


async def test_a_small_mail_is_composed_at_once(mailer):
    """A thread would cost more than the work."""
    assert await turns_of_others(mailer.send_email(Email(from_="a@example.org", to="b@example.net", text="x"))) == 0


async def test_others_have_their_turn_while_many_mails_are_composed(mailer):
    """Each is small, but there are many."""
    emails = [Email(from_="a@example.org", to="b@example.net", text="x")] * MANY

    assert await turns_of_others(mailer.send_emails(emails)) >= 3


async def test_others_have_their_turn_while_many_callers_send_at_once(mailer):
    """Each sends one small mail, but all begin in the same turn of the loop."""
    emails = [Email(from_="a@example.org", to="b@example.net", text="x")] * MANY

    assert await turns_of_others(asyncio.gather(*map(mailer.send_email, emails))) >= 3


async def test_many_large_mails_at_once_have_message_ids_of_their_own(mailer, monkeypatch):
    """They are composed in threads, which must not draw from the same random text at the same time: the loop draws."""
    threads: list[int] = []
    draw = Tokens.next

    def noting(tokens: Tokens) -> str:
        threads.append(threading.get_ident())
        return draw(tokens)

    monkeypatch.setattr(Tokens, "next", noting)
    emails = [Email(from_="a@example.org", to="b@example.net", text="x\n" * LARGE) for _ in range(20)]
    message_ids = await asyncio.gather(*(mailer.send_email(email) for email in emails))

    assert len(set(message_ids)) == len(emails)
    assert threads == [threading.get_ident()] * len(emails)


async def test_a_large_mail_takes_at_most_four_times_its_size():
    """Row C19: attachment, encoded, and the message that is stored; signed, too."""
    size = 8 * 1024 * 1024
    config = Config(helo_name="mail.example.org", dkim=(KEY,))
    async with Mailstrom(config, MemoryStorage(), deliver=False) as mailer:
        tracemalloc.start()
        try:
            email = Email(
                from_="a@example.org", to="b@example.net", attachments=(Attachment(filename="a", content=bytes(size)),)
            )
            await mailer.send_email(email)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak <= 4 * size


def held(message_id: str) -> bool:
    """Whether the content of a message is still in memory."""
    kinds = (QueuedMessage, PreparedEmail)
    return any(one.message_id == message_id for one in gc.get_objects() if isinstance(one, kinds))


async def test_nothing_of_a_completed_mail_stays_in_memory(tmp_path):
    """Row C19: not with the session that idles, nor in the store's thread; waits until it is gone."""
    async with SMTPServer() as server:
        delivery = RelayDelivery(host="127.0.0.1", port=server.port, security="none")
        config = Config(helo_name="mail.example.org", delivery=delivery)
        async with Mailstrom(config, SQLiteStorage(tmp_path / "mail.db")) as mailer:
            message_id = await mailer.send_email(Email(from_="a@example.org", to="b@example.net", text="x"))
            await mailer.wait(message_id)
            async with asyncio.timeout(20):
                while held(message_id):  # noqa: ASYNC110 - a thread lets go of it, which nobody tells
                    await asyncio.sleep(0)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of memory on Linux only")
@pytest.mark.parametrize(
    ("kind", "store", "signed"),
    [
        ("Email", "sqlite", False),
        ("Email", "sqlite", True),
        ("Email", "memory", True),
        ("bytes", "sqlite", False),
        ("EmailMessage", "sqlite", False),
    ],
)
async def test_a_25_mb_attachment_takes_at_most_four_times_its_size_on_the_whole_way(kind, store, signed):
    """Row C19: resident memory of a process of its own, from send_email to the recorded status."""
    bench = Path(__file__).parents[2] / "bench" / "large.py"
    async with SMTPServer() as server:
        one = json.dumps([kind, store, signed, 25 * 1024 * 1024, server.port])
        process = await asyncio.create_subprocess_exec(sys.executable, bench, "--one", one, stdout=subprocess.PIPE)
        async with asyncio.timeout(120):
            told, _ = await process.communicate()

    assert process.returncode == 0
    assert json.loads(told)["memory"] <= 4
