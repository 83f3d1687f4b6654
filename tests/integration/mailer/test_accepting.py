"""What the mailer accepts, what it refuses, and that it stores nothing half."""

import asyncio
from datetime import datetime, timedelta
from email.message import EmailMessage

import pytest

from mailstrom_async import AlreadyQueued, Email, InvalidEmail, Limits, MailstromError, QueueFull, SQLiteStorage

BYTES = b"From: app@example.org\r\nTo: ada@example.net\r\nSubject: Hello\r\n\r\nHello\r\n"


def stdlib() -> EmailMessage:
    message = EmailMessage()
    message["From"] = "app@example.org"
    message["To"] = "ada@example.net"
    message.set_content("Hello\n")
    return message


@pytest.mark.parametrize("kind", ["Email", "EmailMessage", "bytes"])
async def test_three_kinds_of_mail_are_accepted(build, email, server, kind):
    """What callers already have is as good as an `Email`. The id returned is the one of the message."""
    async with build() as mailer:
        message_id = await mailer.send_email({"Email": email(), "EmailMessage": stdlib(), "bytes": BYTES}[kind])
        status = await mailer.wait(message_id)

    assert status.succeeded
    assert "<" not in message_id
    (received,) = server.messages
    assert received.email["Message-ID"] == f"<{message_id}>"
    assert received.sender == "app@example.org"
    assert received.recipients == ("ada@example.net",)
    assert received.email["Date"]


async def test_the_envelope_may_be_given(build, email, server):
    """`sender` and `recipients` replace what the header says; "" is the null sender."""
    async with build() as mailer:
        for sender in ("bounces@example.org", ""):
            message_id = await mailer.send_email(email(), sender=sender, recipients=["grace@example.net"])
            await mailer.wait(message_id)

    assert [message.sender for message in server.messages] == ["bounces@example.org", ""]
    assert {message.recipients for message in server.messages} == {("grace@example.net",)}
    assert server.messages[0].email["To"] == "ada@example.net"


@pytest.mark.parametrize("lane", ["auth", "default", "bulk"])
async def test_the_status_shows_the_lane(build, email, lane):
    """Of one mail, and of many at once; who says nothing has the one between."""
    async with build(deliver=False) as mailer:
        message_ids = [await mailer.send_email(email(), lane=lane), *await mailer.send_emails([email()] * 2, lane=lane)]
        lanes = [(await mailer.query_status(message_id)).lane for message_id in message_ids]
        unnamed = await mailer.query_status(await mailer.send_email(email()))

    assert lanes == [lane] * 3
    assert unnamed.lane == "default"


@pytest.mark.parametrize("lane", ["fast", "", "AUTH", None, ["auth"]])
async def test_an_unknown_lane_is_refused_and_nothing_is_stored(build, email, lane):
    """The error names the lanes that there are."""
    async with build(deliver=False) as mailer:
        with pytest.raises(InvalidEmail, match="lane: is none of auth, default, bulk"):
            await mailer.send_email(email(), lane=lane)
        with pytest.raises(InvalidEmail, match="lane"):
            await mailer.send_emails([email()], lane=lane)

        assert await mailer.query_recent() == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"to": "not an address"}, "to"),
        ({"to": ()}, "to"),
        ({"to": "undisclosed: ;"}, "to"),
        ({"cc": "ada@"}, "cc"),
        ({"from_": ""}, "from"),
        ({"reply_to": "a@b@c"}, "reply_to"),
        ({"subject": "one\r\nBcc: evil@example.com"}, "subject"),
        ({"headers": {"X-One": "a\nb"}}, "headers"),
        ({"headers": {"X One": "a"}}, "headers"),
        ({"message_id": "no at sign >"}, "message_id"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
async def test_what_is_wrong_is_named_and_nothing_is_stored(build, email, change, field):
    """`InvalidEmail` is a ValueError that names the field; the queue stays empty."""
    async with build() as mailer:
        with pytest.raises(ValueError, match=r".") as caught:
            await mailer.send_email(email(**change))

        assert isinstance(caught.value, InvalidEmail)
        assert caught.value.field.startswith(field)
        assert await mailer.query_recent() == []


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"recipients": []}, "recipients"),
        ({"recipients": ["ada@example.net SIZE=1"]}, "recipients"),
        ({"sender": "no address"}, "sender"),
        ({"not_before": datetime(2030, 1, 1)}, "not_before"),  # noqa: DTZ001 - that it is naive is the point
        ({"expires_after": timedelta(0)}, "expires_after"),
    ],
    ids=["nobody", "parameters", "sender", "naive time", "no life"],
)
async def test_wrong_arguments_are_named(build, email, arguments, field):
    """The arguments of `send_email` are checked like the email's fields."""
    async with build() as mailer:
        with pytest.raises(InvalidEmail) as caught:
            await mailer.send_email(email(), **arguments)

        assert caught.value.field == field
        assert await mailer.query_recent() == []


async def test_many_are_accepted_all_or_none(build, email, server):
    """One commit for all: a bad one, or one that is known, and none is stored."""
    async with build() as mailer:
        assert await mailer.send_emails([]) == []
        with pytest.raises(InvalidEmail):
            await mailer.send_emails([email(), email(to="nonsense")])
        with pytest.raises(InvalidEmail):
            await mailer.send_emails([email(message_id="1@a.example"), email(), email(message_id="1@a.example")])
        assert await mailer.query_recent() == []

        message_ids = await mailer.send_emails([email(subject=str(number)) for number in range(20)])
        for message_id in message_ids:
            await mailer.wait(message_id)

    assert len(set(message_ids)) == 20
    assert {message.email["Subject"] for message in server.messages} == {str(number) for number in range(20)}


async def test_a_message_id_is_an_idempotency_key(build, email, server, tmp_path):
    """A repeated call is told, before and after completion and after a restart; one mail arrives."""
    storage = SQLiteStorage(tmp_path / "mail.db")
    for _ in range(2):
        async with build(storage) as mailer:
            for _ in range(2):
                try:
                    await mailer.send_email(email(message_id="order-17@example.org"))
                except AlreadyQueued as error:
                    assert error.message_id == "order-17@example.org"  # noqa: PT017 - the first call is taken
                await mailer.wait("order-17@example.org")

    assert server.received == 1


async def test_of_callers_at_once_with_one_message_id_one_wins(build, email, server, tmp_path):
    """Twenty concurrent calls: one id, nineteen errors, one mail."""
    async with build(SQLiteStorage(tmp_path / "mail.db")) as mailer:
        calls = [mailer.send_email(email(message_id="once@example.org")) for _ in range(20)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        await mailer.wait("once@example.org")

    assert ended.count("once@example.org") == 1
    assert sum(isinstance(error, AlreadyQueued) for error in ended) == 19
    assert server.received == 1


async def test_a_full_queue_refuses_and_recovers(build, email, server):
    """`Limits.queue_size` unfinished messages are the most; when some are done there is room again."""
    async with build(deliver=False, limits=Limits(queue_size=2)) as mailer:
        first = await mailer.send_email(email())
        with pytest.raises(QueueFull) as caught:
            await mailer.send_emails([email(), email()])
        assert "raise Limits.queue_size" in str(caught.value)
        await mailer.send_email(email())
        with pytest.raises(QueueFull):
            await mailer.send_email(email())
        assert len(await mailer.query_recent()) == 2

        await mailer.start()
        await mailer.wait(first)
        await mailer.send_email(email())


async def test_a_message_that_is_too_big_is_refused(build, email):
    """`Limits.message_size` is named."""
    async with build(limits=Limits(message_size=10_000)) as mailer:
        with pytest.raises(InvalidEmail, match="message_size"):
            await mailer.send_email(email(text="x" * 20_000))

        assert await mailer.query_recent() == []


async def test_errors_and_reprs_keep_secrets(build, email):
    """Neither bodies nor Bcc are in what may get into a log."""
    secret = email(bcc="hidden@example.net", text="the password is sesame", subject="x\ny")
    async with build() as mailer:
        with pytest.raises(MailstromError) as caught:
            await mailer.send_email(secret)

    for text in (repr(secret), str(caught.value), repr(mailer)):
        assert "hidden" not in text
        assert "sesame" not in text


def test_errors_of_emails_keep_secrets():
    """Nor are they in what is said of an email that can't even be made."""
    for wrong in ({}, {"from_": "a@example.org", "subjekt": "x"}, {"from_": 1}):
        with pytest.raises(ValueError, match=r".") as caught:
            Email(bcc="hidden@example.net", text="the password is sesame", **wrong)
        assert "hidden" not in str(caught.value)
        assert "sesame" not in str(caught.value)


def test_an_unknown_field_of_an_email_is_an_error():
    """A typo is not a mail without a subject."""
    with pytest.raises(ValueError, match="subjekt"):
        Email(from_="a@example.org", to="b@example.net", subjekt="Hello")
