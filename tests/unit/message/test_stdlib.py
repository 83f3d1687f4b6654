"""The standard library's EmailMessage, with attachments that are too large for it to write in one go."""

from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage

import pytest

from mailstrom_async import InvalidEmail, Limits
from mailstrom_async._message import stdlib
from mailstrom_async._message.compose import Envelope, compose
from mailstrom_async._message.ids import Stamp
from mailstrom_async._message.lines import BLOCK

STAMP = Stamp(datetime(2030, 1, 1, tzinfo=UTC), "token", "app.example.org")
LARGE = bytes(range(256)) * (BLOCK // 128)
INNER = b"From: x@example.org\r\nSubject: inner\r\n\r\n" + b"Hello to everybody.\r\n" * (BLOCK // 16)


def letter() -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "app@example.org", "ada@example.net", "Hello"
    message.set_content("Hello Ada")
    return message


def test_a_large_message_as_an_attachment_arrives_whole():
    """The library writes those in another way than other attachments: they stay where they are."""
    message = letter()
    message.add_attachment(INNER, maintype="message", subtype="rfc822", filename="inner.eml")
    message.add_attachment(LARGE, maintype="application", subtype="octet-stream", filename="data.bin")

    content = compose(message, Envelope(), STAMP, limits=Limits()).content

    assert content.rstrip().endswith(b"--")
    text, inner, data = message_from_bytes(content).get_payload()
    assert text.get_payload().strip() == "Hello Ada"
    assert data.get_payload(decode=True) == LARGE
    assert "".join(inner.as_string().split()) == "".join(next(iter(message.iter_attachments())).as_string().split())


def test_a_place_that_is_not_found_is_an_error_and_no_mangled_mail(monkeypatch):
    """Should the library write a part otherwise one day."""
    monkeypatch.setattr(stdlib._Generator, "_write_lines", lambda self, lines: self.write(lines + "!"))
    message = letter()
    message.add_attachment(LARGE, maintype="application", subtype="octet-stream", filename="data.bin")

    with pytest.raises(InvalidEmail, match="place of a large attachment"):
        compose(message, Envelope(), STAMP, limits=Limits())
