"""Messages that callers hand in whole: checked, completed, and otherwise left as they are, byte for byte."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime

from mailstrom_async._errors import InvalidEmail
from mailstrom_async._message.addresses import Mailbox, parse_addresses
from mailstrom_async._message.headers import address_field, check_id

ADDRESS_FIELDS = ("From", "Sender", "Reply-To", "To", "Cc", "Bcc")
HIDDEN = frozenset({"bcc", "resent-bcc", "return-path"})
# RFC 5322 section 3.6: at most one of each. Two From fields are how one reader is shown another author than the next.
ONCE = frozenset(
    {"from", "sender", "reply-to", "to", "cc", "bcc", "message-id", "in-reply-to", "references", "subject", "date"}
)

_LINE_END = re.compile(rb"\r\n|\r|\n")
_LONG_LINE = re.compile(rb"[^\r\n]{999}")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:((?:.|\r\n[ \t])*)", re.DOTALL)
_NEXT_FIELD = re.compile(rb"\r\n(?![ \t])")


@dataclass(frozen=True, slots=True)
class Foreign:
    """A message taken apart as far as we need it.

    Attributes:
        fields: Lower-case name and raw text of each header field, without its final line end.
        values: The unfolded value of each field that occurs, by lower-case name.
    """

    fields: list[tuple[str, bytes]]
    values: dict[str, str]
    body: bytes

    def mailboxes(self, name: str) -> list[Mailbox]:
        """The addresses of a field; none if it is missing."""
        return parse_addresses(name, self.values[name]) if name in self.values else []

    @property
    def message_id(self) -> str | None:
        value = self.values.get("message-id")
        return check_id("message_id", value) if value is not None else None

    def write(self, message_id: str, now: datetime) -> bytes:
        """The message as it is sent: without hidden fields, with the ones that must not be missing."""
        header = [raw for name, raw in self.fields if name not in HIDDEN]
        if "message-id" not in self.values:
            header.append(f"Message-ID: <{message_id}>".encode("ascii"))
        if "date" not in self.values:
            header.append(f"Date: {format_datetime(now)}".encode("ascii"))
        return b"\r\n".join([*header, b"", self.body])


def take_apart(content: bytes) -> Foreign:
    """Raises InvalidEmail if the bytes are no message that can be sent as it is."""
    content = _LINE_END.sub(b"\r\n", content)
    if b"\0" in content:
        raise InvalidEmail("email", "contains a NUL, which no mail may; encode the part that has it as base64")
    if _LONG_LINE.search(content):
        raise InvalidEmail("email", "has a line of more than 998 octets; encode its body as quoted-printable or base64")
    if not content.endswith(b"\r\n"):
        content += b"\r\n"
    header, separator, body = content.partition(b"\r\n\r\n")
    if content.startswith(b"\r\n"):
        raise InvalidEmail("email", "has no header; it must begin with fields such as From:")
    if not separator:
        header, body = content[:-2], b""
    fields: list[tuple[str, bytes]] = []
    values: dict[str, str] = {}
    for raw in _NEXT_FIELD.split(header):
        name, value = _field(raw)
        if name in values and name in ONCE:
            raise InvalidEmail("email", f"has the field {name} twice")
        fields.append((name, raw))
        values.setdefault(name, value)
    if "from" not in values:
        raise InvalidEmail("email", "has no From field")
    return Foreign(fields, values, body)


def flatten(message: EmailMessage) -> bytes:
    """A stdlib message as bytes. The address fields are written by us: the stdlib of some patch levels loses recipients
    on the way (CVE-2025-1795)."""
    try:
        copied = copy.copy(message)
        own: list[str] = []
        for name in ADDRESS_FIELDS:
            values = [str(value) for value in message.get_all(name, [])]
            if len(values) > 1:
                raise InvalidEmail("email", f"has the field {name} twice")
            del copied[name]
            if values and (mailboxes := parse_addresses(name.lower(), values[0])):
                own.append(address_field(name, mailboxes))
        rest = copied.as_bytes(policy=policy.SMTP.clone(cte_type="7bit"))
    except InvalidEmail:
        raise
    except Exception as error:
        # Of this or that kind, depending on what is wrong inside: the stdlib finds out while it writes.
        raise InvalidEmail("email", f"the EmailMessage can't be written: {error!r:.300}") from error
    return "".join(own).encode("utf-8", "strict") + rest


def _field(raw: bytes) -> tuple[str, str]:
    if raw.startswith(b"From "):
        raise InvalidEmail("email", 'begins with an mbox "From " line; remove it')
    match = _FIELD.fullmatch(raw)
    if match is None:
        raise InvalidEmail("email", f"has a header line that is no field: {raw[:60]!r}")
    try:
        value = match[2].replace(b"\r\n", b"").decode()
    except UnicodeDecodeError:
        raise InvalidEmail("email", f"has a header field {match[1][:60]!r} that is not UTF-8") from None
    return match[1].decode("ascii").lower(), value.strip()


def recipients_of(foreign: Foreign) -> Sequence[Mailbox]:
    """Those whom the header names, hidden ones included."""
    return [mailbox for name in ("to", "cc", "bcc") for mailbox in foreign.mailboxes(name)]
