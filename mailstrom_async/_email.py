"""An email as its author thinks of it."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AliasChoices, AwareDatetime, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from mailstrom_async._model import Frozen

Addresses = str | Sequence[str]
"""One or several addresses or groups, as RFC 5322 and RFC 6854 write them, or a sequence of such."""


def _from_base64(value: object) -> object:
    # JSON has no bytes, and FastAPI validates parsed JSON in pydantic's Python mode, where a str would pass as UTF-8.
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"a str must be base64 (in Python pass bytes): {error}") from None
    return value


Content = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    PlainSerializer(lambda content: base64.b64encode(content).decode("ascii"), when_used="json"),
    WithJsonSchema({"type": "string", "format": "byte", "description": "base64"}),
]


class Attachment(Frozen):
    """A file that travels with an email.

    Only the base name of `filename` goes out; it is never opened as a path.
    """

    filename: str
    content: Content = Field(repr=False)
    content_type: str = "application/octet-stream"
    """The MIME type, with parameters if it has any: "text/csv; header=present"."""
    inline_id: str | None = None
    """Set, the part is shown where the HTML says `<img src="cid:INLINE_ID">`."""


class Email(Frozen):
    """An email to be composed.

    What is wrong inside a field (an impossible address, a line break in a header) is told by `send_email`, which raises
    `InvalidEmail` with the field's name and stores nothing.

    As a request body of FastAPI, `from_` is called "from", and an attachment's content is base64.
    """

    from_: Addresses = Field(validation_alias=AliasChoices("from", "from_"), serialization_alias="from")
    to: Addresses = ()
    cc: Addresses = ()
    bcc: Addresses = Field(default=(), repr=False)
    """Recipients that no copy names."""
    reply_to: Addresses = ()
    sender: str | None = None
    """Who sent it on behalf of the authors. Several authors need one. It is also the default reverse-path."""
    subject: str = ""
    text: str | None = Field(default=None, repr=False)
    html: str | None = Field(default=None, repr=False)
    calendar: str | None = Field(default=None, repr=False)
    """An invitation, or an answer to one: an iCalendar object with a METHOD, which calendars show beside the text."""
    attachments: tuple[Attachment, ...] = ()
    headers: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Further header fields, name to value."""
    date: AwareDatetime | None = None
    """The Date header field; None: now."""
    message_id: str | None = None
    """Without angle brackets; None: a new one. One that the caller chooses is an idempotency key."""
    in_reply_to: str | Sequence[str] | None = None
    """Message-IDs, with or without angle brackets."""
    references: str | Sequence[str] | None = None
    list_unsubscribe: str | None = None
    """A URL or mailto: an https URL adds List-Unsubscribe-Post (RFC 8058)."""
