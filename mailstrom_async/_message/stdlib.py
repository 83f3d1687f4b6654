"""The standard library's EmailMessage as bytes."""

import copy
import io
from collections.abc import Iterator
from email import policy
from email.generator import BytesGenerator
from email.message import EmailMessage, Message
from typing import TypeAlias, cast

from mailstrom_async._errors import InvalidEmail
from mailstrom_async._message.addresses import ANY, read_addresses
from mailstrom_async._message.foreign import MESSAGE, missing_fields
from mailstrom_async._message.headers import address_field, check_name, literal_field, text_field
from mailstrom_async._message.ids import Stamp
from mailstrom_async._message.lines import BLOCK, Piece, join
from mailstrom_async._message.place import Place

ADDRESS_FIELDS = frozenset({"from", "sender", "reply-to", "to", "cc", "bcc"})
# What loses its meaning when it is encoded.
LITERAL_FIELDS = frozenset({"message-id", "in-reply-to", "references", "date", "mime-version"})

AnyMessage: TypeAlias = "Message[str, str]"


class Text:
    """A `Piece`: ASCII text whose line ends become CRLF while it is written."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._size = sum(map(len, self))

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return (block.encode("ascii") for block in _blocks(self._text))


def _blocks(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = text.find("\n", start + BLOCK) + 1 or len(text)
        yield text[start:end].replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
        start = end


class _Generator(BytesGenerator):
    """The standard library's writer, but in blocks where it would split megabytes into lines in one go, which blocks
    the event loop for a second. If it should call this differently one day, it is slow again, and nothing worse."""

    def _write_lines(self, lines: str) -> None:
        for block in _blocks(lines):
            self.write(block)


def flatten(message: EmailMessage, stamp: Stamp) -> bytes:
    """A stdlib message as bytes, with the fields that must not be missing.

    Its header is written by us: the stdlib of some patch levels loses recipients (CVE-2025-1795), encodes URLs, and
    takes line breaks in the names of fields.

    Raises:
        InvalidEmail: It can't be written.
    """
    large: list[Text] = []
    try:
        named = [(name, str(value)) for name, value in message.items() if not _is_content(name)]
        content = cast(EmailMessage, _without_large(message, f"={stamp.token}=", large))
        for name, _ in named:
            del content[name]
        if content.is_multipart() and content.get_boundary() is None:
            content.set_boundary(f"=_{stamp.token}")  # or all of it would be searched for one that is free
        written = io.BytesIO()
        written.write("".join([_written_anew(name, value) for name, value in named]).encode())
        for field in missing_fields({name.lower() for name, _ in named}, stamp):
            written.write(field + b"\r\n")
        _Generator(written, mangle_from_=False, policy=policy.SMTP.clone(cte_type="7bit")).flatten(content)
    except InvalidEmail:
        raise
    except RecursionError:
        raise MESSAGE.error("the EmailMessage is nested too deeply; attach fewer parts inside of parts") from None
    except Exception as error:
        # Of this or that kind, depending on what is wrong inside: the stdlib finds out while it writes.
        raise MESSAGE.error(f"the EmailMessage can't be written: {type(error).__name__}") from error
    for name in content:
        check_name(MESSAGE, name)
    return _with_large(written.getvalue(), f"={stamp.token}=", large)


def _without_large(part: AnyMessage, mark: str, large: list[Text]) -> AnyMessage:
    """A copy with a mark in place of each large attachment, which the standard library would copy several times."""
    part = copy.copy(part)
    payload = cast(object, part.get_payload())
    if isinstance(payload, list):
        part.set_payload([_without_large(inner, mark, large) for inner in cast(list[AnyMessage], payload)])
    elif (
        isinstance(payload, str)
        and len(payload) > BLOCK
        and payload.isascii()
        and part.get_content_maintype() not in ("message", "multipart")  # the library writes these in other ways
        and str(part.get("Content-Transfer-Encoding", "")).strip().lower() == "base64"
    ):
        part.set_payload(f"{mark}{len(large)}\n")
        large.append(Text(payload if payload.endswith("\n") else payload + "\n"))
    return part


def _with_large(content: bytes, mark: str, large: list[Text]) -> bytes:
    """The message with the attachments themselves."""
    if not large:
        return content
    pieces: list[bytes | Piece] = []
    for number, text in enumerate(large):
        before, found, content = content.partition(f"{mark}{number}\r\n".encode("ascii"))
        if not found:
            raise MESSAGE.error(
                "the EmailMessage can't be written: the place of a large attachment is not clear; hand in its bytes"
            )
        pieces += [before, text]
    return join([*pieces, content])


def _is_content(name: str) -> bool:
    return name.lower().startswith("content-")


def _written_anew(name: str, value: str) -> str:
    check_name(MESSAGE, name)
    place, known = Place("email", name), name.lower()
    if known in ADDRESS_FIELDS:
        addresses = read_addresses(place, value, ANY)  # whether they are allowed is asked when all of it is read again
        return address_field(name, addresses) if addresses else ""
    if known in LITERAL_FIELDS or known.startswith("list-"):
        return literal_field(place, name, value.split())
    return text_field(place, name, value)
