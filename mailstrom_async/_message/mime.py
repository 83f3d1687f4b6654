"""Bodies: text, HTML and attachments as MIME entities that any server takes, 7-bit clean (RFC 2045, RFC 2046)."""

import binascii
import re
from dataclasses import dataclass
from urllib.parse import quote

from mailstrom_async._email import Attachment
from mailstrom_async._message.headers import fold
from mailstrom_async._message.lines import bytes_to_crlf, is_seven_bit, text_to_crlf
from mailstrom_async._message.place import Place
from mailstrom_async._message.words import check_text

BASE64_LINE = 76
FILENAME_LIMIT = 255
PARAMETER_LINE = 60

ATTACHMENTS = Place("attachments")

_WORD = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"
_CONTENT_TYPE = re.compile(rf'({_WORD})/({_WORD})((?:\s*;\s*{_WORD}=(?:{_WORD}|"[ !#-\[\]-~]*"))*)')
_PARAMETER = re.compile(rf'{_WORD}=(?:{_WORD}|"[ !#-\[\]-~]*")')
_CONTENT_ID = re.compile(r"[!-;=?A-~]{1,200}")
_SIMPLE_NAME = re.compile(r"[ !#-\[\]-~]+")
# They turn what a reader sees of a name around: "exe.gpj" for "jpg.exe".
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_QP_SAFE = bytes(range(32, 127)).replace(b"=", b"") + b"\t\r\n"


@dataclass(frozen=True, slots=True)
class Entity:
    """A body and the fields that describe it, both with CRLF line ends (RFC 2045 section 2.4)."""

    fields: str
    body: bytes

    def write(self) -> bytes:
        return self.fields.encode("ascii") + b"\r\n" + self.body


def build(text: str | None, html: str | None, attachments: tuple[Attachment, ...], token: str) -> Entity:
    """The whole content of an email.

    Args:
        text: The plain text.
        html: The HTML, shown in its place where the reader can.
        attachments: Those with an inline_id belong to the HTML.
        token: Random text, which makes the boundaries unlike anything in the parts.

    Raises:
        InvalidEmail: An attachment can't be sent so.
    """
    inline = [attachment_entity(attachment) for attachment in attachments if attachment.inline_id is not None]
    others = [attachment_entity(attachment) for attachment in attachments if attachment.inline_id is None]
    bodies: list[Entity] = []
    if text is not None or html is None:
        bodies.append(text_entity("text", text or "", "plain"))
    if html is not None:
        page = text_entity("html", html, "html")
        bodies.append(multipart("related", [page, *inline], f"{token}r") if inline else page)
    elif inline:
        others = [*inline, *others]
    whole = bodies[0] if len(bodies) == 1 else multipart("alternative", bodies, f"{token}a")
    return multipart("mixed", [whole, *others], f"{token}m") if others else whole


def text_entity(field: str, text: str, subtype: str) -> Entity:
    """Text in UTF-8: as it is if mail can carry it so, else encoded, whichever way is shorter."""
    try:
        raw = text_to_crlf(text).encode()
    except UnicodeEncodeError:
        raise Place(field).error("contains a lone surrogate, which is no character; decode it rightly first") from None
    charset = "us-ascii" if raw.isascii() else "utf-8"
    if is_seven_bit(raw):
        encoding, body = "7bit", raw
    elif 2 * len(raw.translate(None, _QP_SAFE)) > len(raw) // 3:
        encoding, body = "base64", base64_lines(raw)
    else:
        encoding, body = "quoted-printable", quoted_printable(raw)
    return Entity(
        f'Content-Type: text/{subtype}; charset="{charset}"\r\nContent-Transfer-Encoding: {encoding}\r\n', body
    )


def attachment_entity(attachment: Attachment) -> Entity:
    """An attachment; its bytes arrive as they are."""
    match = _CONTENT_TYPE.fullmatch(attachment.content_type)
    if match is None or len(attachment.content_type) > 500:
        given = ATTACHMENTS.quote(attachment.content_type)
        raise ATTACHMENTS.error(f"{given} is not a content type; write it like application/pdf")
    if match[1].lower() == "multipart":
        raise ATTACHMENTS.error("a multipart can't be attached; attach its parts")
    if match[1].lower() == "message":
        encoding, body = "7bit", _attached_message(attachment.content)
    else:
        encoding, body = "base64", base64_lines(attachment.content)
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
    pieces: list[bytes] = []
    for part in parts:
        pieces += [delimiter, part.fields.encode("ascii"), b"\r\n", part.body, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode("ascii"))
    return Entity(f'Content-Type: multipart/{subtype};\r\n boundary="{boundary}"\r\n', b"".join(pieces))


def base64_lines(content: bytes) -> bytes:
    encoded = binascii.b2a_base64(content, newline=False)
    lines = [encoded[start : start + BASE64_LINE] for start in range(0, len(encoded), BASE64_LINE)]
    return b"\r\n".join(lines) + b"\r\n"


def quoted_printable(text: bytes) -> bytes:
    """Quoted-printable of text with CRLF line ends, one at its end."""
    # Bare LFs go in, as binascii then breaks with LF everywhere; with CRLF it would guess from the first line.
    encoded = binascii.b2a_qp(text.replace(b"\r\n", b"\n"), istext=True)
    return encoded.replace(b"\n", b"\r\n")


def _separated(first: str, parameters: list[str]) -> list[str]:
    """A field's tokens, each but the last with its semicolon."""
    tokens = [first, *parameters]
    return [*(f"{token};" for token in tokens[:-1]), tokens[-1]]
