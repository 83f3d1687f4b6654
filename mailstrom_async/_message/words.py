"""Text in header fields: what it may hold, and RFC 2047's encoded-words for what ASCII can't say."""

import binascii
import re
from collections.abc import Callable, Iterator
from email.errors import MessageError
from email.header import decode_header, make_header

from mailstrom_async._message.place import Place

WORD_LIMIT = 64
"""Characters of an encoded-word. RFC 2047 allows 75, but then "Subject:" would stand alone on its line."""
ATOM_LIMIT = 900
"""A longer word without a blank leaves no room for a field's name in a line, so it is encoded or refused."""
DECODE_LIMIT = 10_000
"""Characters up to which encoded-words are looked for: the standard library's search is quadratic."""

_ROOM = WORD_LIMIT - len("=?utf-8?q?") - len("?=")
# NUL, CR and LF, and all that some software takes for a line end: str.splitlines breaks at \x0b, \x0c, \x1c-\x1e, \x85,
# U+2028 and U+2029. Lone surrogates have no bytes.
_FORBIDDEN = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_PLAIN = re.compile(r"[!-~]*")
# RFC 2047 section 5 (3): what may stand for itself even in a display name.
_Q_SAFE = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/ "
_Q = tuple("_" if byte == 32 else chr(byte) if byte in _Q_SAFE else f"={byte:02X}" for byte in range(256))


def check_text(place: Place, text: str) -> None:
    """Refuse what could end a header line, or has no encoding. A tab is a blank.

    Raises:
        InvalidEmail: With the offending character.
    """
    if text.isascii() and text.isprintable():
        return
    found = _FORBIDDEN.search(text)
    if found is not None:
        code = ord(found.group())
        kind = "a line break" if code in (10, 13) else "a lone surrogate" if code >= 0xD800 else "a control character"
        raise place.error(f"{kind} (U+{code:04X}) can't stand in a header field; remove it")


def needs_encoding(word: str) -> bool:
    """Whether a word of a text, without blanks, can't be written as it is. An empty one stands for two blanks in a row
    or one at the end, which parsers don't keep."""
    return not word or len(word) > ATOM_LIMIT or "=?" in word or _PLAIN.fullmatch(word) is None


def text_words(text: str) -> list[str]:
    """The words of a text, to be joined by blanks or folded between: only those that need it are encoded, and what
    stands between these."""
    if not text:
        return []
    words = text.split(" ")
    # Of what most texts are, ASCII with single blanks, all words are looked at in one go.
    if text.isascii() and text.isprintable() and "=?" not in text and "" not in words and len(text) <= ATOM_LIMIT:
        return words
    found = [index for index, word in enumerate(words) if needs_encoding(word)]
    if not found:
        return words
    first, last = found[0], found[-1]
    # An empty encoded-word doesn't exist, so the blanks beside an empty word go into one with its neighbour.
    if not words[first]:
        first = max(first - 1, 0)
    if not words[last]:
        last += 1
    return [*words[:first], *encode_words(" ".join(words[first : last + 1])), *words[last + 1 :]]


def encode_words(text: str) -> list[str]:
    """The text as encoded-words, in UTF-8. Whoever decodes them drops the blanks between; no character is split."""
    octets = text.encode()
    escaped = len(octets.translate(None, _Q_SAFE))
    if 2 * escaped <= len(octets) // 3:
        return [f"=?utf-8?q?{_quoted(piece)}?=" for piece in _pieces(text, lambda c: len(_quoted(c)), _ROOM)]
    pieces = _pieces(text, lambda c: len(c.encode()), _ROOM // 4 * 3)
    return [f"=?utf-8?b?{binascii.b2a_base64(piece.encode(), newline=False).decode()}?=" for piece in pieces]


def _quoted(text: str) -> str:
    return "".join([_Q[octet] for octet in text.encode()])


def _pieces(text: str, cost: Callable[[str], int], room: int) -> Iterator[str]:
    """The text in pieces that cost at most `room`, the characters one by one."""
    start = spent = 0
    for position, character in enumerate(text):
        price = cost(character)
        if spent + price > room:
            yield text[start:position]
            start, spent = position, 0
        spent += price
    yield text[start:]


def decode_words(text: str) -> str:
    """Text with its encoded-words decoded; as it was, if one of them is broken, or it is absurdly long."""
    if "=?" not in text or len(text) > DECODE_LIMIT:
        return text
    try:
        return str(make_header(decode_header(text)))
    except (MessageError, LookupError, ValueError):
        return text
