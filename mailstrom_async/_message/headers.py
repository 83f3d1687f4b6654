"""Header fields: written so that every line is short enough, and every reader finds in them what we meant.

The standard library's writer loses recipients on some patch levels (CVE-2025-1795) and encodes URLs; this one knows
three kinds of values: addresses, text, and what must never be encoded.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from mailstrom_async._message.addresses import Address, Mailbox
from mailstrom_async._message.lines import LINE_LIMIT
from mailstrom_async._message.place import Place
from mailstrom_async._message.words import check_text, encode_words, needs_encoding, text_words

FOLD_AT = 78
"""Characters of a line, where there is a place to fold (RFC 5322 section 2.1.1)."""
NAME_LIMIT = FOLD_AT - 1
PHRASE_LIMIT = 60
"""Characters of a quoted name that can't be folded, as it has several blanks in a row; a longer one is encoded."""
PHRASE_WORD_LIMIT = 200
"""Characters of a word in a name; one with a longer word is encoded."""

_FIELD_NAME = re.compile(r"[!-9;-~]+")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_PRINTABLE = re.compile(r"[ -~]+")
_BLANKS = re.compile(r"[ \t]+")
_TO_QUOTE = re.compile(r'(["\\])')


def check_name(place: Place, name: str) -> None:
    """Refuse what is no name of a header field (RFC 5322 section 2.2), and could begin another one.

    Raises:
        InvalidEmail: With the name.
    """
    if _FIELD_NAME.fullmatch(name) is None or len(name) > NAME_LIMIT:
        raise place.error(
            f"{name[:NAME_LIMIT]!a} is no name of a header field: printable ASCII without blank and colon, "
            f"at most {NAME_LIMIT} characters"
        )


def fold(name: str, tokens: Sequence[str]) -> str:
    """A header field, its tokens joined by blanks, folded between them. A token is never broken."""
    line = f"{name}: {' '.join(tokens)}"
    return f"{line}\r\n" if len(line) <= FOLD_AT else _folded(name, tokens)


def _folded(name: str, tokens: Sequence[str]) -> str:
    lines: list[str] = []
    line = f"{name}:"
    for token in tokens:
        length = len(line) + 1 + len(token)
        # A token too long for any line stays beside the name: a first line of the name alone is legal, but odd.
        alone = not lines and line == f"{name}:" and len(token) >= FOLD_AT and length <= LINE_LIMIT
        if length > FOLD_AT and not alone:
            lines.append(line)
            line = f" {token}"
        else:
            line = f"{line} {token}"
    lines.append(line)
    return "\r\n".join(lines) + "\r\n"


def text_field(place: Place, name: str, text: str) -> str:
    """A field of text for people. What ASCII can't say goes out as encoded-words (RFC 2047).

    Raises:
        InvalidEmail: A control character or lone surrogate in the text.
    """
    check_text(place, text)
    return fold(name, text_words(text))


def custom_field(place: Place, name: str, text: str) -> str:
    """A field that we know nothing of. Several blanks in a row become one, as in all that has a structure.

    Raises:
        InvalidEmail: A control character or lone surrogate in the text; or one of a mailing list's fields, which hold
            URLs, can't be written without encoding.
    """
    check_text(place, text)
    text = _BLANKS.sub(" ", text).strip(" ")
    if name.lower().startswith("list-"):
        return literal_field(place, name, text.split(" ") if text else [])
    return fold(name, text_words(text))


def literal_field(place: Place, name: str, tokens: Sequence[str]) -> str:
    """A field of identifiers or URLs, which lose their meaning when encoded.

    Raises:
        InvalidEmail: A token that would need to be.
    """
    for token in tokens:
        if token.startswith("=?") or needs_encoding(token.replace("=?", "")):
            raise place.error(
                f"{place.quote(token)} can't be written: printable ASCII only, and at most 900 characters"
            )
    return fold(name, tokens)


def address_field(name: str, addresses: Sequence[Address]) -> str:
    """A field of addresses, folded between them as far as possible."""
    if len(addresses) == 1 and isinstance(addresses[0], Mailbox):
        return _field_of_one(name, addresses[0])
    return fold(name, _lines_of(_listed(addresses)))


@lru_cache(maxsize=4096)
def _field_of_one(name: str, mailbox: Mailbox) -> str:
    # Nearly all fields of addresses hold one, and all that an application sends is of few authors.
    return fold(name, _lines_of([_tokens(mailbox)]))


def _lines_of(texts: Iterable[list[str]]) -> list[str]:
    """Whole addresses where they fit in a line, their parts where not."""
    lines: list[str] = []
    for tokens in texts:
        joined = " ".join(tokens)
        if len(joined) < FOLD_AT:
            lines.append(joined)
        else:
            lines += tokens
    return lines


def _listed(addresses: Sequence[Address], end: str = "") -> Iterable[list[str]]:
    """The tokens of each, with what stands behind it: that counts when lines are filled."""
    for number, address in enumerate(addresses, 1):
        yield _tokens(address, "," if number < len(addresses) else end)


def _tokens(address: Address, end: str = "") -> list[str]:
    if isinstance(address, Mailbox):
        bare = address.address
        return [*phrase(address.name), f"<{bare}>{end}"] if address.name else [f"{bare}{end}"]
    tokens = [*phrase(address.name)]
    tokens[-1] += ":" if address.mailboxes else f":;{end}"
    return tokens + _lines_of(_listed(address.mailboxes, f";{end}"))


@lru_cache(maxsize=4096)
def phrase(name: str) -> Sequence[str]:
    """A display name: as it is, in quotes, or as encoded-words, whichever comes first of those that can say it."""
    if "=?" not in name:
        if _ATOMS.fullmatch(name) is not None:
            text = name
        elif _PRINTABLE.fullmatch(name) is not None:
            text = quoted(name)
        else:
            return encode_words(name)
        words = text.split(" ")
        if all(words) and max(map(len, words)) <= PHRASE_WORD_LIMIT:
            return words
        if len(text) <= PHRASE_LIMIT:
            return [text]
    return encode_words(name)


def quoted(text: str) -> str:
    """A quoted-string (RFC 5322 section 3.2.4) of printable ASCII."""
    return '"' + _TO_QUOTE.sub(r"\\\1", text) + '"'
