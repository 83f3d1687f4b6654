"""DKIM (RFC 6376): which fields are signed, what is hashed of them, and how the signature is written.

Always relaxed/relaxed, which survives what relays do to blanks. Keys and their algorithms are `dkim_keys`' affair.
"""

import binascii
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Literal, NamedTuple

from mailstrom_async._errors import InvalidEmail
from mailstrom_async._message.addresses import ANY, mailboxes_of, read_addresses
from mailstrom_async._message.lines import blocks_of_lines, join
from mailstrom_async._message.place import Place

# Fields whose meaning a signature should vouch for (RFC 6376 section 5.4.1). They are named once more than they occur,
# so that nobody can add another one and leave the signature valid (section 8.15): one more From, Subject or
# Content-Type would show the reader something that the signer never wrote.
ALWAYS = (
    "from",
    "reply-to",
    "to",
    "cc",
    "subject",
    "date",
    "message-id",
    "in-reply-to",
    "references",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
)
# These only if they occur: mailing lists add their own, and would otherwise break every signature.
IF_PRESENT = (
    "sender",
    "resent-from",
    "resent-to",
    "resent-cc",
    "resent-date",
    "resent-message-id",
    "list-id",
    "list-help",
    "list-subscribe",
    "list-unsubscribe",  # Gmail and Yahoo believe it only under a signature, and so does RFC 8058
    "list-unsubscribe-post",
    "list-post",
    "list-owner",
    "list-archive",
    "auto-submitted",
    "feedback-id",
)

LINE = 72

_TWO_BLANKS = re.compile(rb"  +")

FROM = Place("email", "From")

Algorithm = Literal["rsa-sha256", "ed25519-sha256"]


class Field(NamedTuple):
    """A header field in its canonical form.

    Attributes:
        name: In lower case.
        line: All of it, without its line end.
    """

    name: str
    line: bytes


class Signer(NamedTuple):
    """A key, ready to sign.

    Attributes:
        sign: From the octets to be signed to the signature's.
    """

    domain: str
    selector: str
    algorithm: Algorithm
    sign: Callable[[bytes], bytes]


def sign(content: bytes, signers: Sequence[Signer], now: datetime) -> bytes:
    """A message with a signature of each of the keys that are its author's, in front of it.

    They are those of the From domain, or else of the nearest domain above it: DMARC takes a signature of example.org
    for mail from news.example.org (relaxed alignment, RFC 7489 section 3.1.1). No such key: no signature.
    """
    fields, body_at = _fields(content)
    chosen = signers_for(signers, author_domain(fields))
    if not chosen:
        return content
    body_hash = hash_of_body(content, body_at)
    return join([*(signature(fields, body_hash, signer, now) for signer in chosen), content])


def signers_for(signers: Sequence[Signer], domain: str | None) -> list[Signer]:
    """All signers of this domain; none: those of the nearest domain above it that has any."""
    while domain:
        found = [signer for signer in signers if signer.domain == domain]
        if found:
            return found
        domain = domain.partition(".")[2]
    return []


def author_domain(fields: Sequence[Field]) -> str | None:
    """The domain of the first author; None if From names only a group without members."""
    line = next((field.line for field in fields if field.name == "from"), b"from:")
    value = line.removeprefix(b"from:")
    try:
        authors = mailboxes_of(read_addresses(FROM, value.decode(errors="replace"), ANY))
    except InvalidEmail:
        return None
    return authors[0].domain if authors else None


def signature(fields: Sequence[Field], body_hash: bytes, signer: Signer, now: datetime) -> bytes:
    """One DKIM-Signature field with its line end."""
    names, listed = _signed_names(tuple([field.name for field in fields]))
    head = (
        f"DKIM-Signature: v=1; a={signer.algorithm}; c=relaxed/relaxed; d={signer.domain};\r\n"
        f" s={signer.selector}; t={int(now.timestamp())};\r\n"
        f"{listed};\r\n"
        f" bh={body_hash.decode()};\r\n"
        " b="
    ).encode("ascii")
    octets = binascii.b2a_base64(signer.sign(what_is_signed(fields, names, head)), newline=False)
    return head + b"\r\n ".join(octets[at : at + LINE] for at in range(0, len(octets), LINE)) + b"\r\n"


def signed_names(present: Sequence[str]) -> list[str]:
    """The names that h= lists, in its order.

    Args:
        present: The names of all header fields, in lower case.
    """
    times = Counter(present)
    names = [name for name in ALWAYS for _ in range(times[name] + 1)]
    return names + [name for name in IF_PRESENT if times[name] for _ in range(times[name] + 1)]


@lru_cache(maxsize=256)
def _signed_names(present: tuple[str, ...]) -> tuple[Sequence[str], str]:
    # The mails of an application have few sets of fields between them.
    names = signed_names(present)
    return names, _folded_names(names)


def what_is_signed(fields: Sequence[Field], names: Sequence[str], head: bytes) -> bytes:
    """The canonical form of the named fields and of the signature without its value (RFC 6376 section 3.7)."""
    left: dict[str, list[bytes]] = {}
    for name, line in fields:
        left.setdefault(name, []).append(line)
    # A name that is there several times means the last field first (section 5.4.2); one too many means nothing.
    lines = [left[name].pop() for name in names if left.get(name)]
    lines += [field.line for field in relaxed_fields(head)]
    return b"\r\n".join(lines)


def relaxed_fields(header: bytes) -> list[Field]:
    """The fields of a header, without the last line end, as RFC 6376 section 3.4.2 reduces them."""
    fields: list[Field] = []
    for line in _single_blanks(header.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ")).split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.strip(b" ").lower()
        fields.append(Field(name.decode("ascii", "replace"), b"%s:%s" % (name, value.strip(b" "))))
    return fields


def hash_of_body(content: bytes, body_at: int) -> bytes:
    """SHA-256 of the body as RFC 6376 section 3.4.4 reduces it, in base64. Lines must end with CRLF."""
    digest = hashlib.sha256()
    waiting, some = 0, False  # line ends that count only if something follows; whether anything did
    for block in blocks_of_lines(content, body_at):
        reduced = relaxed_lines(block)
        kept = reduced.rstrip(b"\r\n")
        if kept:
            digest.update(b"\r\n" * waiting)
            digest.update(kept)
            waiting = 0
        waiting += (len(reduced) - len(kept)) // 2
        some = some or bool(kept)
    if some:
        digest.update(b"\r\n")
    return binascii.b2a_base64(digest.digest(), newline=False)


def relaxed_lines(lines: bytes) -> bytes:
    """Whole lines, with runs of blanks made one and none at their ends."""
    # An encoded attachment has no blanks, and to look for the last one is far quicker than for those in a row.
    end = max(lines.rfind(b" "), lines.rfind(b"\t")) + len(b" \r\n")
    return _single_blanks(lines[:end]).replace(b" \r\n", b"\r\n") + lines[end:]


def _single_blanks(text: bytes) -> bytes:
    # Most have little of this, and to look is ten times faster than to replace.
    if b"\t" in text:
        text = text.replace(b"\t", b" ")
    return _TWO_BLANKS.sub(b" ", text) if b"  " in text else text


def _fields(content: bytes) -> tuple[list[Field], int]:
    """The header fields, and where the body begins."""
    end = content.find(b"\r\n\r\n")
    header, body_at = (content[:end], end + 4) if end >= 0 else (content.removesuffix(b"\r\n"), len(content))
    return relaxed_fields(header), body_at


def _folded_names(names: Sequence[str]) -> str:
    lines: list[str] = []
    line = " h="
    for position, name in enumerate(names):
        item = name if position == len(names) - 1 else f"{name}:"
        if len(line) + len(item) > LINE:
            lines.append(line)
            line = "  "
        line += item
    return "\r\n".join([*lines, line])
