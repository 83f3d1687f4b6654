"""Writes header fields: folded, encoded where they must be, and nothing else ever in them (RFC 5322, RFC 2047)."""

import base64
import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from mailstrom_async._errors import InvalidEmail
from mailstrom_async._message.addresses import Mailbox, check_line

WISHED_LINE = 78
LONGEST_LINE = 998
LONGEST_ENCODED_WORD = 75
LONGEST_VALUE = 100_000
UTF_8 = "utf-8''"

_NAME = re.compile(r"[!-9;-~]+")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_Q_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")
_ID = re.compile(r"[!-;=?A-~]+@[!-;=?A-~]+")
_URL = re.compile(r"(?:https?://|mailto:)[!-;=?-~]+", re.IGNORECASE)

OWN_FIELDS = {
    "from": "from_",
    "sender": "sender",
    "to": "to",
    "cc": "cc",
    "bcc": "bcc",
    "reply-to": "reply_to",
    "subject": "subject",
    "date": "date",
    "message-id": "message_id",
    "in-reply-to": "in_reply_to",
    "references": "references",
    "list-unsubscribe": "list_unsubscribe",
    "list-unsubscribe-post": "list_unsubscribe",
    "resent-bcc": "bcc",
    "return-path": "the sender argument of send_email",
    "mime-version": "attachments",
}


def check_name(name: str) -> None:
    """Raises InvalidEmail unless `name` can be an extra header field."""
    if not _NAME.fullmatch(name) or len(name) > WISHED_LINE - 2:
        raise InvalidEmail("headers", f"{name[:100]!r} is not a field name; use letters, digits and hyphens")
    if (own := OWN_FIELDS.get(name.lower())) is not None:
        raise InvalidEmail("headers", f"{name} has a place of its own: use {own}")
    if name.lower().startswith("content-"):
        raise InvalidEmail("headers", f"{name} is written by us; use text, html and attachments")


def text_field(field: str, name: str, value: str) -> str:
    """A field of free text, with its line ends."""
    check_line(field, value)
    if len(value) > LONGEST_VALUE:
        raise InvalidEmail(field, f"is longer than {LONGEST_VALUE} characters")
    value = value.strip(" ")
    words = re.findall(r" *[^ ]+", value)
    if value.isascii() and "=?" not in value and all(len(word) < LONGEST_LINE - WISHED_LINE for word in words):
        # A first word too long for the first line stays there: a line of blanks only is no line.
        return fold(name, [f" {words[0]}", *words[1:]] if words else [" "])
    return fold(name, [f" {word}" for word in encoded_words(value, len(name) + 2)])


def address_field(name: str, mailboxes: Sequence[Mailbox]) -> str:
    """A field of addresses, folded between them."""
    pieces: list[str] = []
    for index, mailbox in enumerate(mailboxes):
        words = _mailbox(mailbox)
        if index < len(mailboxes) - 1:
            words[-1] += ","
        pieces.extend(f" {word}" for word in words)
    return fold(name, pieces)


def ids_field(field: str, name: str, value: str | Sequence[str]) -> str:
    """A field of message ids; never encoded."""
    texts = value.split() if isinstance(value, str) else value
    return fold(name, [f" <{check_id(field, text)}>" for text in texts])


def check_id(field: str, text: str) -> str:
    """A message id without its angle brackets, which may be there. Raises InvalidEmail if it is none."""
    bare = text[1:-1] if text.startswith("<") and text.endswith(">") else text
    if not _ID.fullmatch(bare) or len(bare) > 250:
        raise InvalidEmail(field, f"{text[:100]!r} is not a Message-ID; write it like 42.cafe@example.org")
    return bare


def unsubscribe_fields(url: str) -> str:
    """List-Unsubscribe (RFC 2369), and for https what makes it one click (RFC 8058). Never encoded."""
    if not _URL.fullmatch(url) or len(url) > LONGEST_LINE - WISHED_LINE:
        raise InvalidEmail("list_unsubscribe", f"{url[:100]!r} is not a URL; write https://... or mailto:...")
    written = fold("List-Unsubscribe", [f" <{url}>"])
    if url.lower().startswith("https:"):
        written += "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
    return written


def fold(name: str, pieces: Iterable[str]) -> str:
    """A field of pieces, each of which begins with its blank, broken between them where a line would grow too long."""
    lines: list[str] = []
    line = f"{name}:"
    begun = False
    for piece in pieces:
        if begun and len(line) + len(piece) > WISHED_LINE:
            lines.append(line)
            line = piece
        else:
            line += piece
        begun = True
    lines.append(line)
    return "\r\n".join(lines) + "\r\n"


def encoded_words(text: str, first_indent: int = 0) -> list[str]:
    """Text as encoded-words (RFC 2047), each a whole number of characters.

    Args:
        text: One line.
        first_indent: What stands before the first one in its line.
    """
    words: list[str] = []
    rest = text
    room = LONGEST_ENCODED_WORD - first_indent
    while rest:
        count = _fitting(rest, max(room, 30))
        words.append(_encoded_word(rest[:count]))
        rest = rest[count:]
        room = LONGEST_ENCODED_WORD
    return words


def parameter(name: str, value: str) -> list[str]:
    """A MIME parameter, in as many pieces as RFC 2231 needs."""
    if value.isascii() and len(value) <= 60:
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return [f' {name}="{escaped}"']
    pieces: list[str] = []
    piece = ""
    for character in value:
        encoded = quote(character, safe="!#$&+-.^_`|~")
        if len(piece) + len(encoded) > 55:
            pieces.append(piece)
            piece = ""
        piece += encoded
    pieces.append(piece)
    if len(pieces) == 1:
        return [f" {name}*=utf-8''{pieces[0]}"]
    lines = [f" {name}*{index}*={'' if index else UTF_8}{text}" for index, text in enumerate(pieces)]
    return [f"{line};" for line in lines[:-1]] + lines[-1:]


def _mailbox(mailbox: Mailbox) -> list[str]:
    """The pieces of a mailbox between which a line may be broken."""
    if not mailbox.name:
        return [mailbox.address]
    return [*_phrase(mailbox.name), f"<{mailbox.address}>"]


def _phrase(name: str) -> list[str]:
    if not name.isascii() or "=?" in name or len(name) > 200:
        return encoded_words(name, WISHED_LINE // 3)
    if _ATOMS.fullmatch(name):
        return name.split(" ")
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return [f'"{escaped}"']


def _fitting(text: str, room: int) -> int:
    """How many characters fit into an encoded-word of that length: at least one."""
    count = 0
    raw = q = 0
    for character in text:
        encoded = character.encode()
        raw += len(encoded)
        q += sum(1 if byte in _Q_SAFE or byte == 32 else 3 for byte in encoded)
        if count and min(-(-raw // 3) * 4, q) + len("=?utf-8?b??=") > room:
            break
        count += 1
    return count


def _encoded_word(text: str) -> str:
    raw = text.encode()
    b = base64.b64encode(raw).decode("ascii")
    q = "".join("_" if byte == 32 else chr(byte) if byte in _Q_SAFE else f"={byte:02X}" for byte in raw)
    return f"=?utf-8?q?{q}?=" if len(q) <= len(b) else f"=?utf-8?b?{b}?="
