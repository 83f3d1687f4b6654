"""Addresses: RFC 5322 lists and RFC 6854 groups in, checked mailboxes out.

Our own reader, as what the standard library makes of a strange address depends on its patch level, and some of them
deliver to somebody else than the text names (CVE-2023-27043).
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from mailstrom_async._errors import InvalidEmail
from mailstrom_async._message.place import Place
from mailstrom_async._message.words import check_text, decode_words

if TYPE_CHECKING:
    from email_validator import ValidatedEmail

LOCAL_PART_LIMIT = 64
"""Octets (RFC 5321 section 4.5.3.1.1)."""
ADDRESS_LIMIT = 254
"""Octets: a path of 256 without its angle brackets (RFC 5321 section 4.5.3.1.3)."""
KNOWN_LENGTH = 320
"""Characters of a text up to which what was read from it is remembered."""


class Domains(NamedTuple):
    """What an address may have in place of a domain of several labels, which anybody's DNS knows.

    Attributes:
        literals: An IP address in brackets: [192.0.2.1] or [IPv6:2001:db8::1] (RFC 5321 section 4.1.3).
        dotless: A name of one label, such as a host of the own network.
    """

    literals: bool = False
    dotless: bool = False


FULL_NAMES = Domains()
ANY = Domains(literals=True, dotless=True)


class Mailbox(NamedTuple):
    """One mailbox, checked.

    Attributes:
        name: The display name, or "".
        local: The local part as written, with its quotes if it has any.
        domain: In lower case, A-labels; or an address literal.
        written: The whole of it as the caller wrote it.
        address: Local part and domain, as they go on the wire.
    """

    name: str
    local: str
    domain: str
    written: str
    address: str

    @property
    def identity(self) -> tuple[str, str]:
        """Equal for two spellings of one mailbox. Case matters in a local part; quotes that it didn't need do not."""
        return (_unquote(self.local) if self.local.startswith('"') else self.local, self.domain)


class Group(NamedTuple):
    """A named group, empty perhaps: "undisclosed-recipients:;" (RFC 6854)."""

    name: str
    mailboxes: tuple[Mailbox, ...]


Address = Mailbox | Group


def mailboxes_of(addresses: Iterable[Address]) -> list[Mailbox]:
    mailboxes: list[Mailbox] = []
    for address in addresses:
        if isinstance(address, Group):
            mailboxes += address.mailboxes
        else:
            mailboxes.append(address)
    return mailboxes


def read_addresses(place: Place, value: str | Sequence[str], domains: Domains = FULL_NAMES) -> Sequence[Address]:
    """All the addresses of a field: a text with one or several, or a sequence of such texts.

    A text of nothing but blanks has none; an empty entry of a list, though, is a mistake that somebody made.

    Raises:
        InvalidEmail: With the address at fault.
    """
    if not value:  # as most fields of most mail
        return ()
    if isinstance(value, str):
        return _read(place, value, domains) if value.strip(" \t") else ()
    return [address for text in value for address in _read(place, text, domains)]


def read_mailbox(place: Place, text: str, domains: Domains = FULL_NAMES) -> Mailbox:
    """The one mailbox of a field that takes no list.

    Raises:
        InvalidEmail: It is none, or several.
    """
    addresses = _read(place, text, domains)
    if len(addresses) != 1 or isinstance(addresses[0], Group):
        raise place.error("must be a single address")
    return addresses[0]


def read_bare(place: Place, text: str, domains: Domains = FULL_NAMES) -> Mailbox:
    """A forward-path or reverse-path: an address and nothing else, no name, comment, blank or angle bracket.

    Raises:
        InvalidEmail: It is anything else.
    """
    check_text(place, text)
    match = _BARE.fullmatch(text)
    if match is None:
        raise place.error(f"{place.quote(text)} is not a bare address; write ada@example.net, without name or brackets")
    return _mailbox(place, "", match["local"], match["domain"], text, domains)


_ATOM = r'[^ \t()<>\[\]:;@\\,"]+'
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_BARE = re.compile(rf"(?P<local>{_ATOM}|{_QUOTED})@(?P<domain>{_ATOM}|\[[^\[\]\\]*\])")
_TOKEN = re.compile(
    rf"(?P<blank>[ \t]+)|(?P<atom>{_ATOM})|(?P<quoted>{_QUOTED})|(?P<literal>\[[^\[\]\\]*\])|(?P<special>[<>@,:;])"
)
_COMMENT_EDGE = re.compile(r"\\.|[()]")
_ESCAPED = re.compile(r"\\(.)")
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_DOTTED = rf"{_ATEXT}(?:\.{_ATEXT})*"
_DOT_ATOM = re.compile(_DOTTED)
_DOT = re.compile("[.\u3002\uff0e\uff61]")
"""IDNA takes all of these for one (RFC 3490 section 3.1)."""
_NUMBER = re.compile(r"\d+|0[xX][0-9A-Fa-f]+")


# What most addresses look like: Ada Lovelace <ada@example.net>. It means the same to the reader below, only sooner.
_COMMON = re.compile(
    rf"(?:(?P<name>{_ATEXT}(?: {_ATEXT})*) )?<(?P<bracketed>{_DOTTED})@(?P<behind>[A-Za-z0-9.-]+)>"
    rf"|(?P<local>{_DOTTED})@(?P<domain>[A-Za-z0-9.-]+)"
)


def _read(place: Place, text: str, domains: Domains) -> Sequence[Address]:
    # Few authors write most mail, and a test or a burst the same one to the same recipient.
    if len(text) <= KNOWN_LENGTH:
        return _known(place, text, domains)
    return _Reader(place, text, domains).address_list()


@lru_cache(maxsize=4096)
def _known(place: Place, text: str, domains: Domains) -> Sequence[Address]:
    match = _COMMON.fullmatch(text)
    if match is None or "=?" in text:
        return tuple(_Reader(place, text, domains).address_list())
    name, bracketed, behind, local, domain = match.groups()
    return (_mailbox(place, name or "", bracketed or local, behind or domain, text, domains),)


class _Token(NamedTuple):
    kind: str
    """ "atom", "quoted", "literal", "comment", "end", or the special character itself."""
    text: str
    start: int
    end: int


_WORDS = frozenset({"atom", "quoted", "literal", "comment"})


class _Reader:
    """Reads the grammar of RFC 5322 section 3.4 from one text. It never looks back, nor recurses into what nests."""

    def __init__(self, place: Place, text: str, domains: Domains) -> None:
        check_text(place, text)
        self._domains = domains
        self._place = place
        self._text = text
        self._begin = 0  # of the address that is read now
        self._tokens = self._split()
        self._next = 0

    def address_list(self) -> list[Address]:
        addresses = [self._address()]
        while self._skip(","):
            addresses.append(self._address())
        self._expect("end", "something behind the address; quote a name that has special characters")
        return addresses

    def _address(self) -> Address:
        self._begin = self._tokens[self._next].start
        words = self._words()
        if not self._skip(":"):
            return self._mailbox(words)
        name = self._phrase(words)
        if not name:
            raise self._error("a group without a name")
        members: list[Mailbox] = []
        words = self._words()
        if self._tokens[self._next].kind != ";" or any(token.kind != "comment" for token in words):
            members.append(self._mailbox(words))
            while self._skip(","):
                members.append(self._mailbox(self._words()))
        self._expect(";", 'a group needs a ";" at its end')
        self._comments()
        return Group(name, tuple(members))

    def _mailbox(self, words: list[_Token]) -> Mailbox:
        """The mailbox that begins with these words, which were read already: a name, or a local part."""
        first = self._next - len(words)
        if self._skip("<"):
            local, domain, _ = self._addr_spec(self._words())
            self._expect(">", 'no ">" where the address ends')
            name = self._phrase(words + self._comments())
        else:
            local, domain, comments = self._addr_spec(words)
            # An old custom: the name as a comment beside the address.
            name = self._phrase(comments).removeprefix("(").removesuffix(")")
        written = self._text[self._tokens[first].start : self._tokens[self._next - 1].end]
        return _mailbox(self._place, name, local, domain, written, self._domains)

    def _addr_spec(self, words: list[_Token]) -> tuple[str, str, list[_Token]]:
        """Local part, domain, and the comments around them."""
        at_sign = self._skip("@")
        if at_sign and not words:
            raise self._error("there is nothing before the @; source routes are not supported")
        if not words:
            raise self._error("an address is missing")
        if not at_sign:
            raise self._error("no @, or special characters in a name that is not in quotes")
        behind = self._words()
        if self._tokens[self._next].kind == "@":
            raise self._error("more than one @")
        parts = [[token for token in side if token.kind != "comment"] for side in (words, behind)]
        if [len(part) for part in parts] != [1, 1] or parts[1][0].kind == "quoted":
            raise self._error("needs one local part before the @ and one domain behind it, without blanks")
        return parts[0][0].text, parts[1][0].text, [token for token in words + behind if token.kind == "comment"]

    def _phrase(self, words: list[_Token]) -> str:
        """A display name. Encoded-words are decoded, but not in quotes (RFC 2047 section 5); comments are kept, as
        whoever writes `Ada Lovelace (Sales) <...>` takes them for a part of the name."""
        parts: list[str] = []
        for kind, run in groupby(words, key=attrgetter("kind")):
            texts = [token.text for token in run]
            if kind == "literal":
                raise self._error("brackets in a name; put the name in quotes")
            if kind == "comment":
                texts = [_ESCAPED.sub(r"\1", text) for text in texts]
            parts += [_unquote(text) for text in texts] if kind == "quoted" else [decode_words(" ".join(texts))]
        name = " ".join(part for part in parts if part)
        check_text(self._place, name)
        return name

    def _words(self) -> list[_Token]:
        first = self._next
        while self._tokens[self._next].kind in _WORDS:
            self._next += 1
        return self._tokens[first : self._next]

    def _comments(self) -> list[_Token]:
        words = self._words()
        if any(token.kind != "comment" for token in words):
            raise self._error('no "," before the next address')
        return words

    def _skip(self, kind: str) -> bool:
        found = self._tokens[self._next].kind == kind
        self._next += found
        return found

    def _expect(self, kind: str, problem: str) -> None:
        if not self._skip(kind):
            raise self._error(problem)

    def _split(self) -> list[_Token]:
        """The text's tokens without its blanks, and "end" behind them."""
        text, position = self._text, 0
        tokens: list[_Token] = []
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is not None:
                kind, end = match.lastgroup or "", match.end()
            elif text[position] == "(":
                kind, end = "comment", self._end_of_comment(position)
            else:
                raise self._error(f"an unexpected or unclosed {text[position]!a}", position + 1)
            if kind != "blank":
                part = text[position:end]
                tokens.append(_Token(part if kind == "special" else kind, part, position, end))
            position = end
        tokens.append(_Token("end", "", len(text), len(text)))
        return tokens

    def _end_of_comment(self, position: int) -> int:
        depth = 0
        for edge in _COMMENT_EDGE.finditer(self._text, position):
            depth += {"(": 1, ")": -1}.get(edge.group(), 0)
            if depth == 0:
                return edge.end()
        raise self._error("a comment without its closing parenthesis", len(self._text))

    def _error(self, problem: str, end: int | None = None) -> InvalidEmail:
        if end is None:
            end = self._tokens[self._next].end
        return self._place.error(f"{self._place.quote(self._text[self._begin : end])} is not an address: {problem}")


def _mailbox(place: Place, name: str, local: str, domain: str, written: str, domains: Domains) -> Mailbox:
    try:
        domain = _wire_domain(domain)
        _check_domain(domain, domains)
        if _DOT_ATOM.fullmatch(local) is None:
            local = _wire_local(local)
    except ValueError as error:  # ours below, or email_validator's
        raise place.error(f"{place.quote(written)} is not an address mail can be sent to: {error}") from None
    address = f"{local}@{domain}"
    if len(local.encode()) > LOCAL_PART_LIMIT or len(address.encode()) > ADDRESS_LIMIT:
        raise place.error(
            f"{place.quote(written)} is too long; at most {LOCAL_PART_LIMIT} octets before the @, "
            f"{ADDRESS_LIMIT} in all"
        )
    return Mailbox(name, local, domain, written, address)


def _check_domain(domain: str, domains: Domains) -> None:
    if domain.startswith("["):
        if not domains.literals:
            raise ValueError("A bracketed IP address is taken only with Config.allow_address_literals.")
    elif "." not in domain and not domains.dotless:
        raise ValueError(
            "The domain has no dot; write all of it, such as example.net. A host of your own network is taken only "
            "with Config.allow_dotless_domains."
        )


def load_validator() -> "Callable[..., ValidatedEmail]":
    """email_validator's function. It compiles its patterns for 20 ms when it is imported, and who only reads a status,
    or asks a command line for help, has no address to check."""
    from email_validator import validate_email

    return validate_email


@lru_cache(maxsize=4096)
def _wire_domain(domain: str) -> str:
    """The domain in lower case, as A-labels; or an address literal. Most mail goes to few domains, and IDNA is slow.

    Names below .test are let through (RFC 6761 section 6.2 leaves them to whoever tests), the other reserved ones not.
    """
    if domain.startswith("["):
        return _wire_literal(domain)
    if domain.lower() == "localhost":
        return "localhost"
    if _NUMBER.fullmatch(domain) is not None:
        raise ValueError("The domain is a number, which much software takes for an IP address.")
    several_labels = _DOT.search(domain) is not None
    return load_validator()(
        f"x@{domain}", check_deliverability=False, test_environment=True, globally_deliverable=several_labels
    ).ascii_domain


def _wire_literal(literal: str) -> str:
    """In the one form that we write (RFC 5321 section 4.1.3)."""
    text = literal[1:-1]
    try:
        if text[:5].lower() == "ipv6:":
            if "%" not in text:
                return f"[IPv6:{IPv6Address(text[5:])}]"
        else:
            return f"[{IPv4Address(text)}]"
    except ValueError:
        pass  # nor is it one of the two
    raise ValueError("In brackets only [192.0.2.1] or [IPv6:2001:db8::1] can stand.")


def _wire_local(local: str) -> str:
    """A local part that is quoted or not ASCII, otherwise unchanged: what it means is up to its host (RFC 5321
    section 2.4)."""
    load_validator()(f"{local}@example.org", check_deliverability=False, allow_quoted_local=True)
    return unicodedata.normalize("NFC", local)


def _unquote(text: str) -> str:
    return _ESCAPED.sub(r"\1", text[1:-1])
