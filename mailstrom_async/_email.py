"""An email as its author thinks of it."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Self, TypedDict, Unpack

from pydantic import (
    AfterValidator,
    AliasChoices,
    AwareDatetime,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    WithJsonSchema,
)

from mailstrom_async._model import Frozen


def _frozen(texts: str | Sequence[str]) -> str | Sequence[str]:
    return texts if isinstance(texts, str) else tuple(texts)


Texts = Annotated[str | Sequence[str], AfterValidator(_frozen)]

Addresses = Texts
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

    Only the base name of `filename` goes out; it is never opened as a path. Emails that hold the same object have it
    encoded once.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"filename": "greeting.txt", "content": "SGVsbG8=", "content_type": "text/plain"}],
        }
    )

    filename: str
    content: Content = Field(repr=False)
    content_type: str = "application/octet-stream"
    """The MIME type, with parameters if it has any: "text/csv; header=present"."""
    inline_id: str | None = None
    """Set, the part is shown where the HTML says `<img src="cid:INLINE_ID">`."""


EXAMPLES: list[JsonValue] = [
    {
        "from": "App <app@example.org>",
        "to": "Ada Lovelace <ada@example.net>",
        "subject": "Welcome",
        "text": "Hello Ada",
    },
    {
        "from": "Shop <shop@example.org>",
        "to": ["ada@example.net", "Team: bob@example.net, carol@example.net;"],
        "reply_to": "help@example.org",
        "subject": "Your invoice",
        "text": "It is attached.",
        "html": "<p>It is attached.</p>",
        "attachments": [{"filename": "invoice.pdf", "content": "JVBERi0xLjQK", "content_type": "application/pdf"}],
        "message_id": "invoice-4711@example.org",
    },
]


class EmailFields(TypedDict, total=False):
    """What `Email.but` takes: any of the fields of `Email`."""

    from_: Addresses
    to: Addresses
    cc: Addresses
    bcc: Addresses
    reply_to: Addresses
    sender: str | None
    subject: str
    text: str | None
    html: str | None
    calendar: str | None
    attachments: Sequence[Attachment]
    headers: Mapping[str, str]
    date: datetime | None
    message_id: str | None
    in_reply_to: str | Sequence[str] | None
    references: str | Sequence[str] | None
    list_unsubscribe: str | Sequence[str] | None


class Email(Frozen):
    """An email to be composed.

    What is wrong inside a field (an impossible address, a line break in a header) is told by `send_email`, which raises
    `InvalidEmail` with the field's name and stores nothing.

    As a request body of FastAPI, `from_` is called "from", and an attachment's content is base64.
    """

    model_config = ConfigDict(json_schema_extra={"examples": EXAMPLES})

    from_: Addresses = Field(validation_alias=AliasChoices("from", "from_"), serialization_alias="from")
    """The author: one address, or several and a `sender`."""
    to: Addresses = ()
    """One or several addresses or groups, in one text or a list of texts."""
    cc: Addresses = ()
    """Further recipients, whom all see."""
    bcc: Addresses = Field(default=(), repr=False)
    """Recipients that no copy names."""
    reply_to: Addresses = ()
    """Where answers go; none: to the author."""
    sender: str | None = None
    """Who sent it on behalf of the authors. Several authors need one. It is also the default reverse-path."""
    subject: str = ""
    text: str | None = Field(default=None, repr=False)
    """The plain text."""
    html: str | None = Field(default=None, repr=False)
    """The same as HTML."""
    calendar: str | None = Field(default=None, repr=False)
    """An invitation, or an answer to one: an iCalendar object with a METHOD, which calendars show beside the text."""
    attachments: Annotated[Sequence[Attachment], AfterValidator(tuple)] = ()
    headers: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Further header fields, name to value."""
    date: AwareDatetime | None = None
    """The Date header field; None: now."""
    message_id: str | None = None
    """Without angle brackets; None: a new one. One that the caller chooses is an idempotency key."""
    in_reply_to: Texts | None = None
    """Message-IDs, with or without angle brackets."""
    references: Texts | None = None
    """Message-IDs, the oldest first."""
    list_unsubscribe: Texts | None = None
    """A URL or mailto:, or several of them, the best first; an https URL adds List-Unsubscribe-Post (RFC 8058)."""

    def but(self, **changes: Unpack[EmailFields]) -> Self:
        """A copy with some fields changed, and checked as new ones are; all else is shared, not copied.

            letter = Email(from_="News <news@example.org>", subject="News", attachments=[catalogue])
            for reader in readers:
                await mailer.send_email(letter.but(to=reader.address, text=f"Dear {reader.name}, ..."))

        Raises:
            pydantic.ValidationError: An unknown field, or a value of another type.
        """
        kept = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate({**kept, **changes})
