"""Messages that callers hand in whole: checked, completed, and otherwise left as they are, byte for byte."""

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from mailstrom_async._message.addresses import FULL_NAMES, Domains, Mailbox, mailboxes_of, read_addresses
from mailstrom_async._message.ids import Stamp, foreign_id, format_date
from mailstrom_async._message.lines import LINE_LIMIT, WithCRLF, bytes_to_crlf, is_in_crlf, join, long_line
from mailstrom_async._message.place import Place
from mailstrom_async._message.words import check_text

MESSAGE = Place("email")
MESSAGE_ID = Place("email", "Message-ID")
ADDRESS_FIELDS = {name.lower(): Place("email", name) for name in ("From", "Sender", "To", "Cc", "Bcc")}

HEADER_LIMIT = 4 * 1024 * 1024
"""Octets: room for a hundred thousand recipients."""

HIDDEN = frozenset({"bcc", "resent-bcc", "return-path"})
# RFC 5322 section 3.6: at most one of each. Two From fields are how one reader is shown another author than the next.
ONCE = frozenset(
    {"from", "sender", "reply-to", "to", "cc", "bcc", "message-id", "in-reply-to", "references", "subject", "date"}
)

_FIELD = re.compile(rb"([!-9;-~]+):[\t ]*(.*)", re.DOTALL)
# Readers differ on whether such a line ends the header, and so on what is a field.
_BLANK_LINE = re.compile(rb"\r\n[ \t]+\r\n")
_NEXT_FIELD = re.compile(rb"\r\n(?![ \t])")
_END_OF_HEADER = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?P<empty>\r\n|\r|\n)")


# One field of nothing but printable ASCII, as nearly all are, its further lines not blank; or, where there is no such,
# all that is left. No two parts could take the same text, so it looks back over it once at most. (No possessive
# quantifiers: Python 3.11.2 errs on them in groups.)
_PLAIN_FIELD = re.compile(r"([!-9;-~]+):[\t ]*(?![\t ])([\t -~]*(?:\r\n[\t ]+[!-~][\t -~]*)*)\r\n|(?s:.+)")


class Foreign(NamedTuple):
    """A message taken apart as far as we need it.

    Attributes:
        values: The value of each field that occurs, by lower-case name, still folded, without the blanks before it.
        header: The fields, with the end of the last one.
        whole: All of it, as it was handed in.
        body_at: Where the body begins in that.
        in_order: The whole could be sent as it is, for its lines.
        domains: What addresses may have behind the @.
    """

    values: Mapping[str, str]
    header: bytes
    whole: bytes
    body_at: int
    in_order: bool
    domains: Domains

    def mailboxes(self, *names: str) -> list[Mailbox]:
        """The addresses of these ADDRESS_FIELDS; none of those that are missing."""
        mailboxes: list[Mailbox] = []
        for name in names:
            if value := self.values.get(name):
                unfolded = value.replace("\r\n", "")
                mailboxes += mailboxes_of(read_addresses(ADDRESS_FIELDS[name], unfolded, self.domains))
        return mailboxes

    @property
    def message_id(self) -> str | None:
        value = self.values.get("message-id")
        return foreign_id(MESSAGE_ID, value.replace("\r\n", "")) if value is not None else None

    @property
    def visible_ascii(self) -> bool:
        """Whether the header, as it is sent, is all ASCII; otherwise it needs SMTPUTF8 (RFC 6532)."""
        return self.header.isascii() or all(map(bytes.isascii, self._visible()))

    def write(self, stamp: Stamp) -> bytes:
        """The message as it is sent: without hidden fields, with those that must not be missing.

        Raises:
            InvalidEmail: It has a line that is too long.
        """
        missing = missing_fields(self.values, stamp)
        if self.in_order and not missing and HIDDEN.isdisjoint(self.values):
            return self.whole
        header = [line for raw in self._visible() + missing for line in (raw, b"\r\n")]
        content = join([*header, b"\r\n", WithCRLF(self.whole, self.body_at)])
        _check_lines(content)
        return content

    def _visible(self) -> list[bytes]:
        """The raw fields that are sent, without their final line ends."""
        fields = _NEXT_FIELD.split(self.header.removesuffix(b"\r\n"))
        return [raw for raw in fields if raw.partition(b":")[0].decode("ascii").lower() not in HIDDEN]


def missing_fields(present: Container[str], stamp: Stamp) -> list[bytes]:
    """The fields without line ends that a message can't do without, and has not (lower-case names)."""
    fields: list[str] = []
    if "message-id" not in present:
        fields.append(f"Message-ID: <{stamp.message_id}>")
    if "date" not in present:
        fields.append(f"Date: {format_date(MESSAGE, stamp.now)}")
    return [field.encode("ascii") for field in fields]


def take_apart(content: bytes, domains: Domains = FULL_NAMES) -> Foreign:
    """Read what matters of a message.

    Raises:
        InvalidEmail: The bytes are no message that can be sent as it is.
    """
    if b"\0" in content:
        raise MESSAGE.error("contains a NUL, which no mail may; encode the part that has it as base64")
    if content.startswith((b"\r", b"\n")) or not content:
        raise MESSAGE.error("has no header; it must begin with fields such as From:")
    unchanged = is_in_crlf(content)
    if unchanged:
        _check_lines(content)
        end = content.find(b"\r\n\r\n") + 2
        body_at = end + 2 if end > 1 else 0
    else:
        found = _END_OF_HEADER.search(content, 0, HEADER_LIMIT + 4)
        end, body_at = found.span("empty") if found is not None else (0, 0)
    if not body_at:
        end = body_at = len(content)  # a header and nothing else
    if end > HEADER_LIMIT:
        raise MESSAGE.error(f"has a header of more than {HEADER_LIMIT} octets; is there a blank line behind it?")
    header = content[:end] if unchanged else bytes_to_crlf(content[:end])
    fields = _plain_fields(header) or _fields(header)
    values = {name.lower(): value for name, value in fields}
    if len(values) < len(fields):
        times = Counter([name.lower() for name, _ in fields])
        if twice := next((name for name in times if times[name] > 1 and name in ONCE), None):
            raise MESSAGE.error(f"has the header field {twice} twice; keep one")
    if "from" not in values:
        raise MESSAGE.error("has no From header field; add the author's address")
    return Foreign(values, header, content, body_at, unchanged and body_at > end, domains)


def _check_lines(content: bytes) -> None:
    if long_line(content) is not None:
        raise MESSAGE.error(
            f"has a line of more than {LINE_LIMIT} octets; encode its body as quoted-printable or base64"
        )


def _plain_fields(header: bytes) -> Sequence[tuple[str, str]] | None:
    """The name and the value of each field, as in `Foreign` but for the case of the name; None: there is something that
    is to be looked at more closely."""
    if not header.isascii():
        return None
    fields: list[tuple[str, str]] = _PLAIN_FIELD.findall(header.decode("ascii"))
    return fields if fields and fields[-1][0] else None


def _fields(header: bytes) -> Sequence[tuple[str, str]]:
    """As `_plain_fields`, of any header.

    Raises:
        InvalidEmail: It has a field that can't be sent.
    """
    if _BLANK_LINE.search(header) is not None:
        raise MESSAGE.error("has a line of nothing but blanks in its header; remove it")
    return [_field(raw) for raw in _NEXT_FIELD.split(header.removesuffix(b"\r\n"))]


def _field(raw: bytes) -> tuple[str, str]:
    if raw.startswith(b"From ") and not raw.startswith(b"From :"):
        raise MESSAGE.error('begins with an mbox "From " line; remove it')
    match = _FIELD.fullmatch(raw)
    if match is None:
        # Its text stays out: whatever line of a broken header this is, it may name a hidden recipient.
        raise MESSAGE.error(
            'has a line in its header that is no field; write "Name: value", without a blank before the colon, and an '
            "empty line behind the last one"
        )
    name = match[1].decode("ascii")
    place = Place("email", name)
    try:
        value = match[2].decode()
    except UnicodeDecodeError:
        raise place.error("is not UTF-8; encode it (RFC 2047)") from None
    check_text(place, value.replace("\r\n", ""))
    return name, value
