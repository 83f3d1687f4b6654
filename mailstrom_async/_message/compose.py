"""From what an author hands in to what is stored and sent, byte for byte."""

import re
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from typing import NamedTuple

from mailstrom_async._arguments import check_type
from mailstrom_async._config import Config, Limits
from mailstrom_async._email import Email
from mailstrom_async._envelope import PreparedEmail
from mailstrom_async._message import foreign, stdlib
from mailstrom_async._message.addresses import (
    FULL_NAMES,
    Domains,
    Mailbox,
    mailboxes_of,
    read_addresses,
    read_bare,
    read_mailbox,
)
from mailstrom_async._message.headers import address_field, check_name, custom_field, literal_field, text_field
from mailstrom_async._message.ids import Stamp, check_id, format_date, referred_ids
from mailstrom_async._message.lines import join
from mailstrom_async._message.mime import build
from mailstrom_async._message.place import Place

URL_LIMIT = 900

FROM, SENDER, REPLY_TO = Place("from_"), Place("sender"), Place("reply_to")
TO, CC, BCC, RECIPIENTS = Place("to"), Place("cc"), Place("bcc"), Place("recipients")
SUBJECT, DATE, MESSAGE_ID = Place("subject"), Place("date"), Place("message_id")
EMAIL, HEADERS = Place("email"), Place("headers")

# What has a field of `Email`, or none at all because we write it: as a custom header it would be there twice.
ELSEWHERE = {
    "from": "from_",
    "sender": "sender",
    "to": "to",
    "cc": "cc",
    "bcc": "bcc",
    "resent-bcc": "bcc",
    "reply-to": "reply_to",
    "subject": "subject",
    "date": "date",
    "message-id": "message_id",
    "in-reply-to": "in_reply_to",
    "references": "references",
    "list-unsubscribe": "list_unsubscribe",
    "list-unsubscribe-post": "list_unsubscribe",
    "return-path": "the argument sender of send_email",
    "mime-version": "text, html and attachments",
}

_URL = re.compile(r"(?:https?://|mailto:)[!-;=?-~]+", re.IGNORECASE)


class Envelope(NamedTuple):
    """Whom the caller of `send_email` names, in place of what the message says.

    Attributes:
        sender: The reverse-path; "" is the null sender; None: the Sender or the first From address.
        recipients: The forward-paths; None: To, Cc and Bcc.
    """

    sender: str | None = None
    recipients: Sequence[str] | None = None


def domains_of(config: Config) -> Domains:
    """What addresses may have behind the @."""
    return Domains(config.allow_address_literals, config.allow_dotless_domains)


class _Written(NamedTuple):
    message_id: str
    content: bytes
    sender: Mailbox | None
    recipients: Sequence[Mailbox]
    smtputf8: bool
    eight_bit: bool


def compose(
    email: Email | EmailMessage | bytes,
    envelope: Envelope,
    stamp: Stamp,
    *,
    limits: Limits,
    domains: Domains = FULL_NAMES,
) -> PreparedEmail:
    """Write an email as it will be stored and sent.

    Args:
        email: An `Email`; a stdlib `EmailMessage`; or a whole RFC 5322 message, which is left as it is but for line
            ends, Bcc, and a missing Message-ID or Date.
        limits: What is larger, or for more recipients, is refused.
        domains: What addresses may have behind the @.

    Raises:
        InvalidEmail: It can't be sent as it is; names the field.
    """
    size = limits.message_size
    if isinstance(email, Email):
        written = _write(email, stamp, size, domains)
    else:
        written = _complete(email, stamp, size, domains)
    _check_size(len(written.content), size)
    sender = _reverse_path(envelope, written, domains)
    recipients = _forward_paths(envelope, written, domains)
    if len(recipients) > limits.recipients:
        field = "to" if envelope.recipients is None else "recipients"
        raise Place(field).error(
            f"{len(recipients)} recipients, and {limits.recipients} are allowed; send several messages, or raise "
            "Limits.recipients"
        )
    return PreparedEmail(
        written.message_id,
        sender,
        tuple([mailbox.address for mailbox in recipients]),
        written.content,
        written.smtputf8 or not sender.isascii(),
        written.eight_bit,
        tuple([mailbox.written for mailbox in recipients]),
    )


def _reverse_path(envelope: Envelope, written: _Written, domains: Domains) -> str:
    if envelope.sender is not None:
        check_type("sender", envelope.sender, str, "an address")
        return read_bare(SENDER, envelope.sender, domains).address if envelope.sender else ""
    if written.sender is None:
        raise SENDER.error("From names a group without members; give the address that bounces go to")
    return written.sender.address


def _forward_paths(envelope: Envelope, written: _Written, domains: Domains) -> Sequence[Mailbox]:
    if envelope.recipients is None:
        recipients = _distinct(written.recipients)
        if not recipients:
            raise TO.error("there is no recipient; name one in to, cc or bcc")
        return recipients
    if isinstance(envelope.recipients, str):
        raise RECIPIENTS.error("must be a list of addresses, not a single text")
    for recipient in envelope.recipients:
        check_type("each of recipients", recipient, str, "an address")
    recipients = _distinct([read_bare(RECIPIENTS, recipient, domains) for recipient in envelope.recipients])
    if not recipients:
        raise RECIPIENTS.error("is empty; name a recipient, or leave it out for To, Cc and Bcc")
    return recipients


def _distinct(mailboxes: Sequence[Mailbox]) -> Sequence[Mailbox]:
    """Each mailbox once, as it was first written."""
    if len(mailboxes) < 2:  # as of most mail
        return mailboxes
    distinct: dict[tuple[str, str], Mailbox] = {}
    for mailbox in mailboxes:
        distinct.setdefault(mailbox.identity, mailbox)
    return list(distinct.values())


def _write(email: Email, stamp: Stamp, message_size: int, domains: Domains) -> _Written:
    _check_size(size_of(email), message_size)
    authors = read_addresses(FROM, email.from_, domains)
    if not authors:
        raise FROM.error("names nobody; give the author's address")
    sender = read_mailbox(SENDER, email.sender, domains) if email.sender is not None else None
    if len(authors) > 1 and sender is None:
        raise SENDER.error("is missing; several authors need one (RFC 5322 section 3.6.2)")
    reply_to = read_addresses(REPLY_TO, email.reply_to, domains)
    to = read_addresses(TO, email.to, domains)
    cc, bcc = read_addresses(CC, email.cc, domains), read_addresses(BCC, email.bcc, domains)
    message_id = check_id(MESSAGE_ID, email.message_id, stamp) if email.message_id else stamp.message_id
    fields = [address_field("From", authors)]
    if sender is not None:
        fields.append(address_field("Sender", [sender]))
    if reply_to:
        fields.append(address_field("Reply-To", reply_to))
    if to:
        fields.append(address_field("To", to))
    if cc:
        fields.append(address_field("Cc", cc))
    if email.subject:
        fields.append(text_field(SUBJECT, "Subject", email.subject))
    fields.append(f"Date: {format_date(DATE, email.date or stamp.now)}\r\nMessage-ID: <{message_id}>\r\n")
    fields += _threading(email)
    fields += _unsubscribing(email)
    if email.headers:
        fields += _custom_fields(email.headers)
    fields.append("MIME-Version: 1.0\r\n")
    header = "".join(fields)
    international = not header.isascii()
    return _Written(
        message_id,
        join((header.encode(), *build(email, stamp.token).pieces)),
        sender or next(iter(mailboxes_of(authors)), None),
        mailboxes_of([*to, *cc, *bcc]),
        international,
        international,  # what `build` gives is all ASCII
    )


def size_of(email: Email) -> int:
    """About how many bytes an email will have."""
    size = len(email.text or "") + len(email.html or "") + len(email.calendar or "")
    for attachment in email.attachments:
        size += len(attachment.content) * 4 // 3
    return size


def _threading(email: Email) -> Sequence[str]:
    fields: list[str] = []
    if email.in_reply_to:
        place = Place("in_reply_to")
        fields.append(literal_field(place, "In-Reply-To", referred_ids(place, email.in_reply_to)))
    if email.references:
        place = Place("references")
        fields.append(literal_field(place, "References", referred_ids(place, email.references)))
    return fields


def _unsubscribing(email: Email) -> Sequence[str]:
    """List-Unsubscribe (RFC 2369), and for https what makes it one click (RFC 8058)."""
    if email.list_unsubscribe is None:
        return ()
    place = Place("list_unsubscribe")
    urls = [email.list_unsubscribe] if isinstance(email.list_unsubscribe, str) else email.list_unsubscribe
    for url in urls:
        if _URL.fullmatch(url) is None or len(url) > URL_LIMIT:
            raise place.error(f"{place.quote(url)} is not a URL; write https://... or mailto:...")
    if not urls:
        raise place.error("is an empty list; leave it out, or give a URL")
    tokens = [f"<{url}>," for url in urls[:-1]] + [f"<{urls[-1]}>"]
    fields = [literal_field(place, "List-Unsubscribe", tokens)]
    if any(map(is_one_click, urls)):
        fields.append("List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n")
    return fields


def is_one_click(url: str) -> bool:
    """Whether RFC 8058 section 3.1 has a POST to it."""
    return url.lower().startswith("https://")


def _custom_fields(headers: Mapping[str, str]) -> Sequence[str]:
    place, names, fields = HEADERS, set[str](), list[str]()
    for name, value in headers.items():
        check_name(place, name)
        if (where := ELSEWHERE.get(name.lower())) is not None:
            raise place.error(f"{name} has a place of its own: use {where}")
        if name.lower().startswith("content-"):
            raise place.error(f"{name} is written by us; use text, html and attachments")
        if name.lower() in names:
            raise place.error(f"{name} is there twice, in different case")
        names.add(name.lower())
        fields.append(custom_field(place, name, value))
    return fields


def _complete(email: EmailMessage | bytes, stamp: Stamp, message_size: int, domains: Domains) -> _Written:
    if isinstance(email, EmailMessage):
        content = stdlib.flatten(email, stamp)
    elif isinstance(email, bytes):  # pyright: ignore[reportUnnecessaryIsInstance] - not every caller checks types
        content = email
    else:
        raise TypeError(f"email must be an Email, an EmailMessage or bytes, and is a {type(email).__name__}")
    _check_size(len(content), message_size)
    message = foreign.take_apart(content, domains)
    senders = message.mailboxes("sender", "from")
    content = message.write(stamp)
    return _Written(
        message.message_id or stamp.message_id,
        content,
        senders[0] if senders else None,
        message.mailboxes("to", "cc", "bcc"),
        not message.visible_ascii,
        not content.isascii(),
    )


def _check_size(size: int, message_size: int) -> None:
    if size > message_size:
        raise EMAIL.error(
            f"has about {size} bytes, and {message_size} are allowed; send less, or raise Limits.message_size"
        )
