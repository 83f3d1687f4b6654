"""Bodies: text, HTML and attachments as MIME entities that any server takes, 7-bit clean (RFC 2045, RFC 2046)."""

import binascii
import re
import struct
import weakref
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote

from mailstrom_async._email import Attachment, Email
from mailstrom_async._message.headers import fold
from mailstrom_async._message.lines import Piece, blocks_of_lines, bytes_to_crlf, is_seven_bit, long_line, text_to_crlf
from mailstrom_async._message.place import Place
from mailstrom_async._message.words import check_text

BASE64_LINE = 76
BASE64_BLOCK = 128
"""Lines that are encoded in one go: many, for speed, but so few that the event loop is not held up: binascii keeps the
interpreter's lock."""
REMEMBERED = 4 * 1024 * 1024
"""Octets of an attachment up to which its encoded form is kept, for the next mail with the same one."""
FILENAME_LIMIT = 255
PARAMETER_LINE = 60

ATTACHMENTS = Place("attachments")

_WORD = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"
_CONTENT_TYPE = re.compile(rf'({_WORD})/({_WORD})((?:\s*;\s*{_WORD}=(?:{_WORD}|"[ !#-\[\]-~]*"))*)')
_PARAMETER = re.compile(rf'{_WORD}=(?:{_WORD}|"[ !#-\[\]-~]*")')
_CONTENT_ID = re.compile(r"[!-;=?-~]{1,200}")
_SIMPLE_NAME = re.compile(r"[ !#-\[\]-~]+")
# They turn what a reader sees of a name around: "exe.gpj" for "jpg.exe".
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_QP_SAFE = bytes(range(32, 127)).replace(b"=", b"") + b"\t\r\n"
_BLOCK = struct.Struct(f"{BASE64_LINE}s" * BASE64_BLOCK)
_METHOD = re.compile(r"(?<![^\r\n])METHOD:([A-Z-]{1,40})[ \t]*(?![^\r\n])", re.IGNORECASE)
"""On a line of its own."""


class Entity(NamedTuple):
    """A body and the fields that describe it, with CRLF line ends (RFC 2045 section 2.4).

    Attributes:
        fields: The Content-* fields.
        body: In pieces, which are joined once, when the message is whole: an attachment may be large.
    """

    fields: str
    body: tuple[bytes | Piece, ...]

    @property
    def pieces(self) -> tuple[bytes | Piece, ...]:
        return (self.fields.encode("ascii") + b"\r\n", *self.body)


class Base64:
    """A `Piece`: octets that are encoded only while they are written."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __len__(self) -> int:
        octets = -(-len(self._content) // 3) * 4
        return octets + 2 * max(1, -(-octets // BASE64_LINE))

    def __iter__(self) -> Iterator[bytes]:
        return base64_pieces(self._content)


def build(email: Email, token: str) -> Entity:
    """The whole content of an email: text, HTML and calendar as alternatives, inline images beside the HTML, and the
    other attachments behind it all.

    Args:
        token: Random text, which makes the boundaries unlike anything in the parts.

    Raises:
        InvalidEmail: A part can't be sent so.
    """
    inline = [attachment_entity(attachment) for attachment in email.attachments if attachment.inline_id is not None]
    others = [attachment_entity(attachment) for attachment in email.attachments if attachment.inline_id is None]
    bodies: list[Entity] = []
    if email.text is not None or (email.html is None and email.calendar is None):
        bodies.append(text_entity("text", email.text or "", "plain"))
    if email.html is not None:
        page = text_entity("html", email.html, "html")
        bodies.append(multipart("related", [page, *inline], f"{token}r") if inline else page)
    elif inline:
        others = [*inline, *others]
    if email.calendar is not None:
        bodies.append(calendar_entity(email.calendar))
    whole = bodies[0] if len(bodies) == 1 else multipart("alternative", bodies, f"{token}a")
    return multipart("mixed", [whole, *others], f"{token}m") if others else whole


def text_entity(field: str, text: str, subtype: str, parameters: str = "") -> Entity:
    """Text in UTF-8: as it is if mail can carry it so, else encoded, whichever way is shorter."""
    try:
        raw = text_to_crlf(text)
    except UnicodeEncodeError:
        raise Place(field).error("contains a lone surrogate, which is no character; decode it rightly first") from None
    # Control characters are encoded too: some software ends a line at some of them.
    escaped = raw.translate(None, _QP_SAFE)
    charset = "us-ascii" if escaped.isascii() else "utf-8"
    encoding: str
    body: tuple[bytes | Piece, ...]
    if not escaped.replace(b"=", b"") and long_line(raw) is None:
        encoding, body = "7bit", (raw,)
    else:
        encoding, body = _shorter(raw, len(escaped))
    return Entity(
        f'Content-Type: text/{subtype};{parameters} charset="{charset}"\r\nContent-Transfer-Encoding: {encoding}\r\n',
        body,
    )


def _shorter(raw: bytes, escaped: int) -> tuple[str, tuple[bytes, ...]]:
    """Text encoded, whichever way is shorter.

    Args:
        raw: With CRLF line ends.
        escaped: Octets that quoted-printable can't leave as they are: each costs two more, and line breaks more still.
    """
    size = len(Base64(raw))
    if len(raw) + 2 * escaped <= size:
        quoted = tuple(map(quoted_printable, blocks_of_lines(raw)))
        if sum(map(len, quoted)) <= size:
            return "quoted-printable", quoted
    return "base64", tuple(base64_pieces(raw))


def calendar_entity(calendar: str) -> Entity:
    """An iCalendar object, which readers that know it show as an invitation (RFC 6047 section 2.4)."""
    method = _METHOD.search(calendar)
    if method is None or not calendar.lstrip("\ufeff \t\r\n").upper().startswith("BEGIN:VCALENDAR"):
        raise Place("calendar").error(
            "is not an invitation: it must begin with BEGIN:VCALENDAR and have a line such as METHOD:REQUEST"
        )
    return text_entity("calendar", calendar, "calendar", f" method={method[1].upper()};")


# By identity, as comparing contents costs more than encoding them again. An entry goes when its attachment does.
_remembered: dict[int, tuple[weakref.ref[Attachment], Entity]] = {}


def attachment_entity(attachment: Attachment) -> Entity:
    """An attachment; its bytes arrive as they are. Who sends the same `Attachment` again has it encoded once."""
    key = id(attachment)
    known = _remembered.get(key)
    if known is not None and known[0]() is attachment:
        return known[1]
    entity = _encoded(attachment)
    if len(attachment.content) <= REMEMBERED:
        _remembered[key] = weakref.ref(attachment, lambda _: _remembered.pop(key, None)), entity
    return entity


def _encoded(attachment: Attachment) -> Entity:
    match = _CONTENT_TYPE.fullmatch(attachment.content_type)
    if match is None or len(attachment.content_type) > 500:
        given = ATTACHMENTS.quote(attachment.content_type)
        raise ATTACHMENTS.error(f"{given} is not a content type; write it like application/pdf")
    if match[1].lower() == "multipart":
        raise ATTACHMENTS.error("a multipart can't be attached; attach its parts")
    encoding: str
    body: tuple[bytes | Piece, ...]
    if match[1].lower() == "message":
        encoding, body = "7bit", (_attached_message(attachment.content),)
    elif len(attachment.content) > REMEMBERED:
        encoding, body = "base64", (Base64(attachment.content),)
    else:
        encoding, body = "base64", tuple(base64_pieces(attachment.content))
    fields = [
        fold("Content-Type", _separated(f"{match[1]}/{match[2]}", _PARAMETER.findall(match[3]))),
        f"Content-Transfer-Encoding: {encoding}\r\n",
    ]
    disposition = "attachment"
    if attachment.inline_id is not None:
        if _CONTENT_ID.fullmatch(attachment.inline_id) is None:
            raise ATTACHMENTS.error(
                f"{ATTACHMENTS.quote(attachment.inline_id)} can't be an inline_id; write it like logo or logo@example"
            )
        disposition = "inline"
        fields.append(f"Content-ID: <{attachment.inline_id}>\r\n")
    name = base_name(attachment.filename)
    fields.append(fold("Content-Disposition", _separated(disposition, parameter("filename", name))))
    return Entity("".join(fields), body)


def _attached_message(content: bytes) -> bytes:
    # RFC 2046 section 5.2.1: a message must not be encoded.
    body = bytes_to_crlf(content)
    if not is_seven_bit(body):
        raise ATTACHMENTS.error(
            "a message with octets above 127 or lines above 998 octets can't be attached as such; "
            "give it the content type application/octet-stream"
        )
    return body


def base_name(filename: str) -> str:
    """The last part of a path, of whatever system.

    Raises:
        InvalidEmail: Nothing sensible is left.
    """
    check_text(ATTACHMENTS, filename)
    name = re.split(r"[/\\]", filename)[-1].strip()
    if not name.strip(".") or len(name) > FILENAME_LIMIT or "\t" in name or _DIRECTION.search(name):
        raise ATTACHMENTS.error(
            f"{ATTACHMENTS.quote(filename)} is not a file name; use up to {FILENAME_LIMIT} characters, "
            "no tab and no direction mark among them"
        )
    return name


def parameter(name: str, value: str) -> list[str]:
    """A parameter of a Content-* field: quoted where ASCII and one line can say it, else as RFC 2231 has it."""
    if len(value) <= PARAMETER_LINE and _SIMPLE_NAME.fullmatch(value) is not None:
        return [f'{name}="{value}"']
    encoded = quote(value, safe="!#$&+-.^_`{|}~")
    if len(encoded) <= PARAMETER_LINE:
        return [f"{name}*=utf-8''{encoded}"]
    pieces: list[str] = []
    while encoded:
        end = min(PARAMETER_LINE, len(encoded))
        # A percent sign and its two digits stay together.
        end -= next((back for back in (1, 2) if end < len(encoded) and encoded[end - back] == "%"), 0)
        pieces.append(encoded[:end])
        encoded = encoded[end:]
    pieces[0] = f"utf-8''{pieces[0]}"
    return [f"{name}*{index}*={piece}" for index, piece in enumerate(pieces)]


def multipart(subtype: str, parts: list[Entity], boundary: str) -> Entity:
    """Several entities as one."""
    # "=_" occurs in neither base64 nor quoted-printable, and the token is random.
    boundary = f"=_{boundary}"
    delimiter = f"--{boundary}\r\n".encode("ascii")
    pieces: list[bytes | Piece] = []
    for part in parts:
        pieces += [delimiter, *part.pieces, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode("ascii"))
    return Entity(f'Content-Type: multipart/{subtype};\r\n boundary="{boundary}"\r\n', tuple(pieces))


def base64_pieces(content: bytes) -> Iterator[bytes]:
    """Base64 in lines, in pieces of BASE64_BLOCK lines."""
    size = BASE64_LINE // 4 * 3 * BASE64_BLOCK
    view = memoryview(content)
    whole = len(content) - len(content) % size
    for start in range(0, whole, size):
        encoded = binascii.b2a_base64(view[start : start + size], newline=False)
        yield b"\r\n".join((*_BLOCK.unpack(encoded), b""))
    if whole < len(content) or not content:
        rest = binascii.b2a_base64(view[whole:], newline=False)
        lines = [rest[start : start + BASE64_LINE] for start in range(0, len(rest), BASE64_LINE)]
        yield b"\r\n".join(lines) + b"\r\n"


def quoted_printable(text: bytes) -> bytes:
    """Quoted-printable of text with CRLF line ends, one at its end."""
    # Bare LFs go in, as binascii then breaks with LF everywhere; with CRLF it would guess from the first line.
    encoded = binascii.b2a_qp(text.replace(b"\r\n", b"\n"), istext=True)
    return encoded.replace(b"\n", b"\r\n")


def _separated(first: str, parameters: list[str]) -> list[str]:
    """A field's tokens, each but the last with its semicolon."""
    tokens = [first, *parameters]
    return [*(f"{token};" for token in tokens[:-1]), tokens[-1]]
