"""Writes bodies: text, HTML and attachments as MIME parts, 7-bit clean (RFC 2045, RFC 2046)."""

import binascii
import re
from dataclasses import dataclass

from mailstrom_async._email import Attachment
from mailstrom_async._errors import InvalidEmail
from mailstrom_async._message.addresses import check_line
from mailstrom_async._message.headers import fold, parameter

BASE64_LINE = 76
LONGEST_FILENAME = 255

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"
_CONTENT_TYPE = re.compile(rf'({_TOKEN})/({_TOKEN})((?:\s*;\s*{_TOKEN}=(?:{_TOKEN}|"[ !#-\[\]-~]*"))*)')
_LINE_END = re.compile(r"\r\n|\r|\n")
_LINE_END_BYTES = re.compile(rb"\r\n|\r|\n")
_LONG_LINE = re.compile(rb"[^\r\n]{999}")
_CONTENT_ID = re.compile(r"[!-;=?A-~]+")
# They turn what a reader sees of a name around: "exe.gpj" for "jpg.exe".
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Part:
    """A MIME entity: the fields that describe it, and its body, both with CRLF line ends."""

    header: str
    body: bytes

    def write(self) -> bytes:
        return self.header.encode("ascii") + b"\r\n" + self.body


def build(text: str | None, html: str | None, attachments: tuple[Attachment, ...], token: str) -> Part:
    """The whole content of an email.

    Args:
        text: The plain text.
        html: The HTML, shown in its place where the reader can.
        attachments: Those with an inline_id belong to the HTML.
        token: Random text that makes the boundaries unlike anything in the parts.

    Raises:
        InvalidEmail: An attachment can't be sent so.
    """
    inline = [attachment_part(attachment) for attachment in attachments if attachment.inline_id is not None]
    others = [attachment_part(attachment) for attachment in attachments if attachment.inline_id is None]
    bodies: list[Part] = []
    if text is not None or html is None:
        bodies.append(text_part("text", text or "", "plain"))
    if html is not None:
        page = text_part("html", html, "html")
        bodies.append(multipart("related", [page, *inline], f"{token}r") if inline else page)
    elif inline:
        others = [*inline, *others]
    whole = bodies[0] if len(bodies) == 1 else multipart("alternative", bodies, f"{token}a")
    return multipart("mixed", [whole, *others], f"{token}m") if others else whole


def text_part(field: str, text: str, subtype: str) -> Part:
    """Text as UTF-8: as it is if mail can carry it so, else encoded, whichever way is shorter."""
    text = _LINE_END.sub("\r\n", text) if "\r" in text or "\n" in text else text
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise InvalidEmail(field, "contains a lone surrogate, which is not text; decode it rightly first") from None
    if raw.isascii() and b"\0" not in raw and not _LONG_LINE.search(raw):
        encoding, body = "7bit", raw if raw.endswith(b"\r\n") else raw + b"\r\n"
    elif sum(raw.count(bytes([byte])) for byte in b"eatonirs \r\n") * 2 < len(raw):
        encoding, body = "base64", base64_lines(raw)
    else:
        encoding, body = "quoted-printable", quoted_printable(raw)
    charset = "us-ascii" if raw.isascii() else "utf-8"
    return Part(f'Content-Type: text/{subtype}; charset="{charset}"\r\nContent-Transfer-Encoding: {encoding}\r\n', body)


def attachment_part(attachment: Attachment) -> Part:
    """An attachment; its bytes arrive as they are."""
    match = _CONTENT_TYPE.fullmatch(attachment.content_type)
    if match is None or len(attachment.content_type) > 500:
        raise InvalidEmail(
            "attachments", f"{attachment.content_type[:100]!r} is not a content type; write it like application/pdf"
        )
    maintype = match[1].lower()
    if maintype == "multipart":
        raise InvalidEmail("attachments", "a multipart can't be attached; attach its parts")
    filename = base_name(attachment.filename)
    fields = fold(
        "Content-Type", [f" {match[1]}/{match[2]}", *(f"; {text.strip()}" for text in match[3].split(";")[1:])]
    )
    if maintype == "message":
        # RFC 2046 section 5.2.1: a message must not be encoded.
        body = _LINE_END_BYTES.sub(b"\r\n", attachment.content)
        if not body.isascii() or b"\0" in body or _LONG_LINE.search(body):
            raise InvalidEmail(
                "attachments",
                "a message with octets above 127 or long lines can't be attached as such; use application/octet-stream",
            )
        fields += "Content-Transfer-Encoding: 7bit\r\n"
    else:
        body = base64_lines(attachment.content)
        fields += "Content-Transfer-Encoding: base64\r\n"
    if attachment.inline_id is not None:
        if not _CONTENT_ID.fullmatch(attachment.inline_id) or len(attachment.inline_id) > 200:
            raise InvalidEmail(
                "attachments", f"{attachment.inline_id[:100]!r} can't be an inline_id; write it like logo"
            )
        fields += f"Content-ID: <{attachment.inline_id}>\r\n"
    disposition = "attachment" if attachment.inline_id is None else "inline"
    fields += fold("Content-Disposition", [f" {disposition};", *parameter("filename", filename)])
    return Part(fields, body)


def base_name(filename: str) -> str:
    """The last part of a path, of whatever system. Raises InvalidEmail if nothing sensible is left."""
    check_line("attachments", filename)
    name = re.split(r"[/\\]", filename)[-1].strip()
    if name.strip(".") == "" or len(name) > LONGEST_FILENAME or _BIDI.search(name):
        raise InvalidEmail(
            "attachments",
            f"{filename[:100]!r} is not a file name; use up to {LONGEST_FILENAME} characters, none of them a direction mark",
        )
    return name


def multipart(subtype: str, parts: list[Part], boundary: str) -> Part:
    """Several parts as one."""
    # "=_" occurs in neither base64 nor quoted-printable, and the token is random.
    boundary = f"=_{boundary}"
    delimiter = f"--{boundary}\r\n".encode()
    pieces: list[bytes] = []
    for part in parts:
        pieces += [delimiter, part.header.encode("ascii"), b"\r\n", part.body, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return Part(f'Content-Type: multipart/{subtype};\r\n boundary="{boundary}"\r\n', b"".join(pieces))


def base64_lines(content: bytes) -> bytes:
    encoded = binascii.b2a_base64(content, newline=False)
    lines = [encoded[start : start + BASE64_LINE] for start in range(0, len(encoded), BASE64_LINE)]
    return b"\r\n".join(lines) + b"\r\n"


def quoted_printable(text: bytes) -> bytes:
    encoded = binascii.b2a_qp(text, istext=True)
    encoded = _LINE_END_BYTES.sub(b"\r\n", encoded)
    return encoded if encoded.endswith(b"\r\n") else encoded + b"=\r\n"
