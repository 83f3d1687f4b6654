"""From `send_email` to what a mail exchanger receives: content byte for byte, signed, and 7-bit where it can be."""

import asyncio
from datetime import timedelta
from email import policy
from email.parser import BytesParser

import dkim as dkimpy
import pytest
from fast_mail_parser import parse_email

from mailstrom_async import Attachment, Config, DKIMKey, DKIMKeyError, Email, Limits, Mailstrom, MemoryStorage
from mailstrom_async._message.dkim_keys import new_key
from mailstrom_async.testing import FakeInternet

RSA, ED25519 = new_key("rsa"), new_key("ed25519")
RECORDS = {b"r._domainkey.example.org.": RSA.record, b"e._domainkey.example.org.": ED25519.record}
KEYS = (
    DKIMKey(domain="example.org", selector="r", private_key=RSA.pem),
    DKIMKey(domain="example.org", selector="e", private_key=ED25519.pem),
)
SEVEN_BIT = ("PIPELINING", "SIZE 100000000")
EXTENDED = (*SEVEN_BIT, "8BITMIME", "SMTPUTF8")
LETTER = {
    "from_": "Jörg Müller (Verkauf) <j@example.org>",
    "to": '"山田 太郎" <yamada@example.net>',
    "bcc": "hidden@example.net",
    "subject": "日本語の件名",
    "text": "Grüße\n.\n..\n",
    "html": '<p>Grüße <img src="cid:logo">',
    "attachments": (
        Attachment(filename="😀.pdf", content=b"%PDF\0\xff", content_type="application/pdf"),
        Attachment(filename="logo.png", content=b"\x89PNG", content_type="image/png", inline_id="logo"),
    ),
    "list_unsubscribe": "https://example.org/u?" + "x" * 200,
}


@pytest.fixture
async def internet():
    """example.net has one exchanger, of the old kind."""
    async with FakeInternet() as net:
        await net.exchanger("mx.example.net", extensions=SEVEN_BIT)
        net.domain("example.net", mx=["mx.example.net"])
        yield net


def verified(content: bytes, count: int) -> bool:
    return all(
        dkimpy.DKIM(content).verify(idx=index, dnsfunc=lambda name, **_: RECORDS[name].encode())
        for index in range(count)
    )


async def deliver(internet, message, **settings):
    """What the exchanger has of it, and its status."""
    config = Config(helo_name="app.example.org", delivery=internet.delivery, **settings)
    async with Mailstrom(config, MemoryStorage()) as mailer:
        status = await mailer.wait(await mailer.send_email(message), timeout=timedelta(seconds=20))
    return [taken.content for taken in internet.exchangers["mx.example.net"].messages], status


async def test_a_signed_letter_is_verified_where_it_arrives(internet):
    """Both signatures, by another implementation, and all parts are there."""
    (content,), status = await deliver(internet, Email(**LETTER), dkim=KEYS)
    message = BytesParser(policy=policy.default).parsebytes(content)

    assert status.succeeded
    assert len(status.recipients) == 2
    assert verified(content, 2)
    assert content.isascii()
    assert b"hidden" not in content
    assert message["Subject"] == "日本語の件名"
    assert str(message["To"].addresses[0]) == "山田 太郎 <yamada@example.net>"
    assert message["List-Unsubscribe"] == f"<{LETTER['list_unsubscribe']}>"
    assert message.get_body(("plain",)).get_payload(decode=True).decode() == "Grüße\r\n.\r\n..\r\n"
    assert [part.get_filename() for part in message.iter_attachments()] == ["😀.pdf"]
    assert next(message.iter_attachments()).get_content() == b"%PDF\0\xff"


async def test_two_parsers_that_share_no_code_find_the_same_parts(internet):
    """The standard library's, and one in Rust."""
    (content,), _ = await deliver(internet, Email(**LETTER), dkim=KEYS)
    message = BytesParser(policy=policy.default).parsebytes(content)
    other = parse_email(content)
    files = [part for part in message.walk() if part.get_filename()]

    assert other.subject == message["Subject"] == LETTER["subject"]
    assert other.text_plain == [message.get_body(("plain",)).get_content()]
    assert other.text_html == [message.get_body(("html",)).get_content()]
    assert sorted((file.filename, file.mimetype, file.content) for file in other.attachments) == sorted(
        (part.get_filename(), part.get_content_type(), part.get_content()) for part in files
    )
    assert {part.get_filename() for part in files} == {"😀.pdf", "logo.png"}


async def test_the_unsubscribe_fields_are_signed(internet):
    """RFC 8058 section 3: both of them, or one-click is not believed."""
    (content,), _ = await deliver(internet, Email(**LETTER), dkim=KEYS[1:])

    assert verified(content, 1)
    for change in (
        (b"x" * 200, b"y" * 200),
        (b"One-Click", b"Two-Click"),
        (b"List-Unsubscribe-Post", b"X-List-Unsubscribe-Post"),
    ):
        assert not verified(content.replace(*change), 1)


async def test_bytes_are_signed_as_they_are(internet):
    """Nothing of them is changed."""
    head = (
        b"From: a@example.org\r\nTo:  b@example.net\r\nDate: Fri, 21 Nov 1997 09:55:06 -0600\r\nMessage-ID: <1@x>\r\n"
    )
    raw = head + b"\r\n a \r\n"
    (content,), _ = await deliver(internet, raw, dkim=KEYS)

    assert content.endswith(raw)
    assert verified(content, 2)


async def test_a_wrong_key_opens_nothing():
    """Unsigned mail would be worse than none."""
    clear = Config(
        helo_name="app.example.org", dkim=(DKIMKey(domain="example.org", selector="s", private_key="/nowhere"),)
    )
    mailer = Mailstrom(clear, MemoryStorage())
    with pytest.raises(DKIMKeyError, match="can't be read from /nowhere"):
        async with mailer:
            pass

    assert mailer.worker_status.state == "stopped"


async def test_many_mails_are_signed_in_one_commit(internet):
    """`send_emails` too."""
    config = Config(helo_name="app.example.org", delivery=internet.delivery, dkim=KEYS[1:])
    emails = [Email(from_="a@example.org", to="b@example.net", text=f"Number {number}") for number in range(40)]
    async with Mailstrom(config, MemoryStorage(), deliver=False) as mailer:
        prepared = [await mailer.query_prepared(message_id) for message_id in await mailer.send_emails(emails)]

    assert all(verified(one.content, 1) for one in prepared)
    assert [one.content.split()[-1] for one in prepared] == [str(number).encode() for number in range(40)]


@pytest.mark.rule("A53", expected="7-bit from the start: delivered to a server without 8BITMIME")
async def test_text_beyond_ascii_goes_to_any_server(internet):
    """Row A53."""
    (content,), status = await deliver(internet, Email(from_="a@example.org", to="b@example.net", text="Grüße " * 500))

    assert status.succeeded
    assert content.isascii()


@pytest.mark.rule("A53", expected="8-bit bytes to a server without 8BITMIME: failed with 5.6.3, not converted")
async def test_octets_above_127_fail_where_they_may_not_go(internet):
    """Row A53: what the caller wrote byte for byte is not rewritten."""
    raw = "From: a@example.org\r\nTo: b@example.net\r\n\r\nGrüße\r\n".encode()
    contents, status = await deliver(internet, raw)

    assert contents == []
    assert (status.recipients[0].result.state, status.recipients[0].result.enhanced) == ("failed", "5.6.3")


@pytest.mark.rule("A54", expected="failed with 5.6.7; domain alone non-ASCII: delivered to the A-label")
async def test_a_local_part_beyond_ascii_needs_a_server_that_takes_it(internet):
    """Row A54."""
    await internet.exchanger("mx.xn--bcher-kva.example", extensions=SEVEN_BIT)
    internet.domain("xn--bcher-kva.example", mx=["mx.xn--bcher-kva.example"])
    _, failed = await deliver(internet, Email(from_="a@example.org", to="jörg@example.net"))
    _, delivered = await deliver(internet, Email(from_="a@example.org", to="joerg@bücher.example"))

    assert (failed.recipients[0].result.state, failed.recipients[0].result.enhanced) == ("failed", "5.6.7")
    assert delivered.succeeded
    assert delivered.recipients[0].address == "joerg@xn--bcher-kva.example"


@pytest.mark.rule("A54", expected="a hidden one fails alone")
@pytest.mark.parametrize("offered", [False, True], ids=["not offered", "offered"])
@pytest.mark.parametrize("at_once", [1, 100])
async def test_a_hidden_local_part_beyond_ascii_needs_smtputf8_for_itself_only(at_once, offered):
    """Row A54: those who share the mail, but not the address, get it from a server without SMTPUTF8; and nobody loses
    the session, also where an envelope goes out with the end of another content."""
    jorg, ada = "jörg@example.net", "ada@example.net"
    async with FakeInternet() as net:
        exchanger = await net.exchanger("mx.example.net", extensions=EXTENDED if offered else SEVEN_BIT)
        net.domain("example.net", mx=["mx.example.net"])
        limits = Limits(recipients_per_transaction=at_once, connections_per_host=1)
        config = Config(helo_name="mail.example.org", delivery=net.delivery, limits=limits)
        async with Mailstrom(config, MemoryStorage()) as mailer:
            sending = [
                mailer.send_email(Email(from_="a@example.org", text=str(number)), recipients=recipients)
                for number, recipients in enumerate([[jorg, ada], [jorg], [ada], [jorg]] * 5)
            ]
            statuses = [await mailer.wait(message_id) for message_id in await asyncio.gather(*sending)]

    for recipient in (recipient for status in statuses for recipient in status.recipients):
        if offered or recipient.address == ada:
            assert recipient.result.state == "delivered"
        else:
            assert (recipient.result.state, recipient.result.enhanced) == ("failed", "5.6.7")
    assert exchanger.connections == 1
    assert len(exchanger.messages) == (25 if offered else 10)


@pytest.mark.rule("A54", expected="delivered where SMTPUTF8 is offered")
async def test_a_local_part_beyond_ascii_arrives_where_it_may():
    """Row A54."""
    async with FakeInternet() as net:
        await net.exchanger("mx.example.net", extensions=EXTENDED)
        net.domain("example.net", mx=["mx.example.net"])
        (content,), status = await deliver(net, Email(from_="ä@example.org", to="jörg@example.net", subject="ü"))

    assert status.succeeded
    assert "To: jörg@example.net\r\n".encode() in content
    assert net.exchangers["mx.example.net"].messages[0].recipients == ("jörg@example.net",)


@pytest.mark.rule("D18", expected="one transaction")
@pytest.mark.parametrize("end", ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r\n.\r\n"])
async def test_a_smuggled_mail_stays_inside(internet, end):
    """Row D18: what looks like the end of the content is content."""
    attack = f"a{end}MAIL FROM:<x@example.org>\r\nRCPT TO:<y@example.net>\r\nDATA\r\nFrom: z\r\n\r\nevil{end}"
    (content,), _ = await deliver(internet, Email(from_="a@example.org", to="b@example.net", text=attack))

    lines = content.split(b"\r\n")
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    assert b"MAIL FROM:<x@example.org>" in lines
    assert not internet.exchangers["mx.example.net"].violations
