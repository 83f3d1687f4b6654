"""Large mail leaves the event loop and the memory alone."""

import asyncio
import tracemalloc
from email.message import EmailMessage

import pytest

from mailstrom_async import Attachment, Config, DKIMKey, Email, Mailstrom, MemoryStorage
from mailstrom_async._engine.composer import CROWD, LARGE, TURN
from mailstrom_async._message.dkim_keys import new_key

KEY = DKIMKey(domain="example.org", selector="s", private_key=new_key("ed25519").pem)
BIG = bytes(LARGE)


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
    emails = [Email(from_="a@example.org", to="b@example.net", text="x")] * (3 * TURN)

    assert await turns_of_others(mailer.send_emails(emails)) >= 3


async def test_many_large_mails_at_once_have_message_ids_of_their_own(mailer):
    """They are composed in threads, which must not draw from the same random text at the same time."""
    emails = [Email(from_="a@example.org", to="b@example.net", text="x\n" * LARGE) for _ in range(20)]
    message_ids = await asyncio.gather(*(mailer.send_email(email) for email in emails))

    assert len(set(message_ids)) == len(emails)


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
