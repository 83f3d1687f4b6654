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

_NEXT_FIELD = re.compile(rb"\r\n(?![ \t])")
_BLANKS = re.compile(rb"[ \t]+")
_TWO_BLANKS = re.compile(rb"  +")

Algorithm = Literal["rsa-sha256", "ed25519-sha256"]


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


def author_domain(fields: Sequence[tuple[str, bytes]]) -> str | None:
    """The domain of the first author; None if From names only a group without members."""
    raw = next((raw for name, raw in fields if name == "from"), b"")
    value = raw.partition(b":")[2].replace(b"\r\n", b"").decode(errors="replace")
    try:
        authors = mailboxes_of(read_addresses(Place("email", "From"), value, ANY))
    except InvalidEmail:
        return None
    return authors[0].domain if authors else None


def signature(fields: Sequence[tuple[str, bytes]], body_hash: bytes, signer: Signer, now: datetime) -> bytes:
    """One DKIM-Signature field with its line end."""
    names, listed = _signed_names(tuple(name for name, _ in fields))
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


def what_is_signed(fields: Sequence[tuple[str, bytes]], names: Sequence[str], head: bytes) -> bytes:
    """The canonical form of the named fields and of the signature without its value (RFC 6376 section 3.7)."""
    left: dict[str, list[bytes]] = {}
    for name, raw in fields:
        left.setdefault(name, []).append(raw)
    # A name that is there several times means the last field first (section 5.4.2); one too many means nothing.
    canonical = [relaxed_field(left[name].pop()) + b"\r\n" for name in names if left.get(name)]
    return b"".join(canonical) + relaxed_field(head)


def relaxed_field(raw: bytes) -> bytes:
    """A header field without its line end, as RFC 6376 section 3.4.2 reduces it."""
    name, _, value = raw.partition(b":")
    return name.strip(b" \t").lower() + b":" + _BLANKS.sub(b" ", value.replace(b"\r\n", b"")).strip(b" ")


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
    # Most bodies have little of this, and to look is ten times faster than to replace.
    if b"\t" in lines:
        lines = lines.replace(b"\t", b" ")
    if b"  " in lines:
        lines = _TWO_BLANKS.sub(b" ", lines)
    return lines.replace(b" \r\n", b"\r\n") if b" \r\n" in lines else lines


def _fields(content: bytes) -> tuple[list[tuple[str, bytes]], int]:
    """Lower-case name and raw text of each header field, and where the body begins."""
    end = content.find(b"\r\n\r\n")
    header, body_at = (content[:end], end + 4) if end >= 0 else (content.removesuffix(b"\r\n"), len(content))
    return [
        (raw.partition(b":")[0].strip(b" \t").decode("ascii", "replace").lower(), raw)
        for raw in _NEXT_FIELD.split(header)
    ], body_at


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
