"""Addresses: RFC 5322 lists and RFC 6854 groups in, checked mailboxes out.

Our own reader, as what the standard library makes of a strange address depends on its patch level, and some of them
deliver to somebody else than the text names (CVE-2023-27043).
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from email_validator import EmailNotValidError, validate_email

from mailstrom_async._message.place import Place
from mailstrom_async._message.words import check_text, decode_words

LOCAL_PART_LIMIT = 64
"""Octets (RFC 5321 section 4.5.3.1.1)."""
ADDRESS_LIMIT = 254
"""Octets: a path of 256 without its angle brackets (RFC 5321 section 4.5.3.1.3)."""


class Mailbox(NamedTuple):
    """One mailbox, checked.

    Attributes:
        name: The display name, or "".
        local: The local part as written, with its quotes if it has any.
        domain: In lower case, A-labels.
        written: The whole of it as the caller wrote it.
    """

    name: str
    local: str
    domain: str
    written: str

    @property
    def address(self) -> str:
        return f"{self.local}@{self.domain}"

    @property
    def identity(self) -> tuple[str, str]:
        """Equal for two spellings of one mailbox. Case matters in a local part; quotes that it didn't need do not."""
        return (_unquote(self.local) if self.local.startswith('"') else self.local, self.domain)


class Group(NamedTuple):
    """A named group, empty perhaps: "undisclosed-recipients:;" (RFC 6854)."""

    name: str
    mailboxes: tuple[Mailbox, ...]


Address = Mailbox | Group


def mailboxes_of(addresses: Iterable[Address]) -> Iterable[Mailbox]:
    for address in addresses:
        if isinstance(address, Group):
            yield from address.mailboxes
        else:
            yield address


def read_addresses(place: Place, value: str | Sequence[str]) -> list[Address]:
    """All the addresses of a field: a text with one or several, or a sequence of such texts.

    A text of nothing but blanks has none; an empty entry of a list, though, is a mistake that somebody made.

    Raises:
        InvalidEmail: With the address at fault.
    """
    if isinstance(value, str):
        return _Reader(place, value).address_list() if value.strip(" \t") else []
    addresses: list[Address] = []
    for text in value:
        addresses += _Reader(place, text).address_list()
    return addresses


def read_mailbox(place: Place, text: str) -> Mailbox:
    """The one mailbox of a field that takes no list.

    Raises:
        InvalidEmail: It is none, or several.
    """
    addresses = _Reader(place, text).address_list()
    if len(addresses) != 1 or isinstance(addresses[0], Group):
        raise place.error("must be a single address")
    return addresses[0]


def read_bare(place: Place, text: str) -> Mailbox:
    """A forward-path or reverse-path: an address and nothing else, no name, comment, blank or angle bracket.

    Raises:
        InvalidEmail: It is anything else.
    """
    check_text(place, text)
    match = _BARE.fullmatch(text)
    if match is None:
        raise place.error(f"{place.quote(text)} is not a bare address; write ada@example.net, without name or brackets")
    return _mailbox(place, "", match["local"], match["domain"], text)


_ATOM = r'[^ \t()<>\[\]:;@\\,"]+'
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_BARE = re.compile(rf"(?P<local>{_ATOM}|{_QUOTED})@(?P<domain>{_ATOM}|\[[^\[\]\\]*\])")
_TOKEN = re.compile(
    rf"(?P<blank>[ \t]+)|(?P<atom>{_ATOM})|(?P<quoted>{_QUOTED})|(?P<literal>\[[^\[\]\\]*\])|(?P<special>[<>@,:;])"
)
_COMMENT_EDGE = re.compile(r"\\.|[()]")
_ESCAPED = re.compile(r"\\(.)")
_DOT_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")


class _Token(NamedTuple):
    kind: str
    """ "atom", "quoted", "literal", "comment", "end", or the special character itself."""
    text: str
    start: int
    end: int


class _Reader:
    """Reads one text by recursive descent; the grammar of RFC 5322 section 3.4 with no depth but that of a group."""

    def __init__(self, place: Place, text: str) -> None:
        check_text(place, text)
        self._place = place
        self._text = text
        self._tokens = self._split(text)
        self._next = 0

    def address_list(self) -> list[Address]:
        addresses = [self._address()]
        while self._peek() == ",":
            self._next += 1
            addresses.append(self._address())
        if self._peek() != "end":
            raise self._error(f"an unexpected {self._tokens[self._next].text!r}")
        return addresses

    def _address(self) -> Address:
        words = self._words()
        if self._peek() != ":":
            return self._mailbox(words)
        self._next += 1
        name = self._name(words)
        if not name:
            raise self._error("a group without a name")
        return Group(name, self._group_members())

    def _group_members(self) -> tuple[Mailbox, ...]:
        members: list[Mailbox] = []
        comments = self._words()
        if self._peek() == ";" and all(token.kind == "comment" for token in comments):
            self._next += 1
        else:
            members.append(self._mailbox(comments))
            while self._peek() == ",":
                self._next += 1
                members.append(self._mailbox(self._words()))
            if self._peek() != ";":
                raise self._error('a group without the ";" at its end')
            self._next += 1
        if any(token.kind != "comment" for token in self._words()):
            raise self._error('no "," after a group')
        return tuple(members)

    def _mailbox(self, words: list[_Token]) -> Mailbox:
        """The mailbox whose first words, a name or a local part, were read already."""
        start = words[0].start if words else self._tokens[self._next].start
        if self._peek() == "<":
            self._next += 1
            local, domain = self._addr_spec(self._words())
            if self._peek() != ">":
                raise self._error('no ">" where the address should end')
            self._next += 1
            trailing = self._words()
            name = self._name(words + trailing)
        else:
            local, domain = self._addr_spec(words)
            # An old custom: the name as a comment behind the address.
            trailing = [token for token in self._tokens[: self._next] if token.start >= start]
            name = self._name([token for token in trailing if token.kind == "comment"], bare=True)
        if any(token.kind != "comment" for token in trailing if token.start > start and self._peek_is_open(token)):
            raise self._error("something between the address and the next comma")
        end = self._tokens[self._next - 1].end
        return _mailbox(self._place, name, local, domain, self._text[start:end])
