"""From what an author hands in to what is stored and sent, byte for byte."""

from collections.abc import Sequence
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import NamedTuple

from mailstrom_async._email import Email
from mailstrom_async._envelope import PreparedEmail
from mailstrom_async._errors import InvalidEmail
from mailstrom_async._message import foreign
from mailstrom_async._message.addresses import Mailbox, distinct, parse_addresses, parse_path
from mailstrom_async._message.headers import (
    address_field,
    check_id,
    check_name,
    ids_field,
    text_field,
    unsubscribe_fields,
)
from mailstrom_async._message.mime import build


class _Written(NamedTuple):
    message_id: str
    content: bytes
    sender: Mailbox
    recipients: Sequence[Mailbox]
    non_ascii_address: bool


def compose(
    email: Email | EmailMessage | bytes,
    *,
    sender: str | None = None,
    recipients: Sequence[str] | None = None,
    now: datetime,
    token: str,
    helo_name: str,
    message_size: int,
) -> PreparedEmail:
    """Write an email as it will be stored and sent.

    Args:
        email: An `Email`; a stdlib `EmailMessage`; or a whole RFC 5322 message, which is left as it is but for line
            ends, Bcc, and a missing Message-ID or Date.
        sender: The reverse-path; "" is the null sender; None: the Sender or the first From address.
        recipients: The forward-paths; None: To, Cc and Bcc.
        now: For the Date.
        token: Random letters and digits, for the Message-ID and the MIME boundaries.
        helo_name: The right side of a new Message-ID.
        message_size: Larger ones are refused, in bytes.

    Raises:
        InvalidEmail: It can't be sent as it is; names the field.
    """
    new_id = f"{token}@{helo_name}"
    if isinstance(email, Email):
        written = _write_email(email, now, token, new_id, message_size)
    else:
        written = _complete(email, now, new_id, message_size)
    _check_size(len(written.content), message_size)
    path = written.sender.address if sender is None else (parse_path("sender", sender).address if sender else "")
    if recipients is None:
        forward = distinct(written.recipients)
        if not forward:
            raise InvalidEmail("to", "there is no recipient; name one in to, cc or bcc")
    else:
        forward = distinct(parse_path("recipients", recipient) for recipient in recipients)
        if not forward:
            raise InvalidEmail("recipients", "is empty; name a recipient, or leave it out for To, Cc and Bcc")
    eight_bit = not written.content.isascii()
    addresses = tuple(mailbox.address for mailbox in forward)
    return PreparedEmail(
        message_id=written.message_id,
        sender=path,
        recipients=addresses,
        content=written.content,
        smtputf8=written.non_ascii_address or not path.isascii() or not all(map(str.isascii, addresses)),
        eight_bit=eight_bit,
        written=tuple(mailbox.written for mailbox in forward),
    )


def _write_email(email: Email, now: datetime, token: str, new_id: str, message_size: int) -> _Written:
    _check_size(
        len(email.text or "") + len(email.html or "") + sum(len(part.content) * 4 // 3 for part in email.attachments),
        message_size,
    )
    authors = parse_addresses("from_", email.from_)
    if not authors:
        raise InvalidEmail("from_", "names nobody; give the author's address")
    senders = parse_addresses("sender", email.sender) if email.sender is not None else []
    if email.sender is not None and len(senders) != 1:
        raise InvalidEmail("sender", "must be one address")
    if len(authors) > 1 and not senders:
        raise InvalidEmail("sender", "several authors need a sender (RFC 5322 section 3.6.2)")
    to, cc, bcc = (parse_addresses(name, getattr(email, name)) for name in ("to", "cc", "bcc"))
    reply_to = parse_addresses("reply_to", email.reply_to)
    message_id = check_id("message_id", email.message_id) if email.message_id is not None else new_id
    header = [
        address_field(name, mailboxes)
        for name, mailboxes in (("From", authors), ("Sender", senders), ("Reply-To", reply_to), ("To", to), ("Cc", cc))
        if mailboxes
    ]
    header.append(text_field("subject", "Subject", email.subject))
    header.append(f"Date: {format_datetime(email.date or now)}\r\nMessage-ID: <{message_id}>\r\n")
    header.extend(_threading(email))
    if email.list_unsubscribe is not None:
        header.append(unsubscribe_fields(email.list_unsubscribe))
    header.extend(_extra_fields(email))
    content = build(email.text, email.html, email.attachments, token)
    named = [*authors, *senders, *reply_to, *to, *cc]
    return _Written(
        message_id,
        b"".join([*(field.encode() for field in header), b"MIME-Version: 1.0\r\n", content.write()]),
        senders[0] if senders else authors[0],
        [*to, *cc, *bcc],
        not all(mailbox.local.isascii() for mailbox in named),
    )


def _threading(email: Email) -> list[str]:
    return [
        ids_field(field, name, value)
        for field, name, value in (
            ("in_reply_to", "In-Reply-To", email.in_reply_to),
            ("references", "References", email.references),
        )
        if value
    ]


def _extra_fields(email: Email) -> list[str]:
    names: set[str] = set()
    fields: list[str] = []
    for name, value in email.headers.items():
        check_name(name)
        if name.lower() in names:
            raise InvalidEmail("headers", f"{name} is there twice, in different case")
        names.add(name.lower())
        fields.append(text_field("headers", name, value))
    return fields


def _complete(email: EmailMessage | bytes, now: datetime, new_id: str, message_size: int) -> _Written:
    content = foreign.flatten(email) if isinstance(email, EmailMessage) else email
    _check_size(len(content), message_size)
    message = foreign.take_apart(content)
    authors = message.mailboxes("from")
    senders = message.mailboxes("sender")
    if not authors:
        raise InvalidEmail("email", "its From field names nobody")
    message_id = message.message_id or new_id
    visible = b"".join(raw for name, raw in message.fields if name not in foreign.HIDDEN)
    return _Written(
        message_id,
        message.write(message_id, now),
        (senders or authors)[0],
        foreign.recipients_of(message),
        not visible.isascii(),
    )


def _check_size(size: int, message_size: int) -> None:
    if size > message_size:
        raise InvalidEmail(
            "email", f"has about {size} bytes, and {message_size} are allowed; send less, or raise Limits.message_size"
        )
