"""The commands of a transaction, written for one server's offers (RFC 5321 section 3.3)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mailstrom_async._envelope import QueuedMessage
from mailstrom_async._immutable import immutable
from mailstrom_async._reply import Phase
from mailstrom_async.smtp.base import Breakdown, Target

RSET = b"RSET\r\n"
DATA = b"DATA\r\n"

# Addresses were parsed when the message was accepted. Here, where a mistake would let a stranger's text become a
# command, they are looked at once more. Blanks and angle brackets may stand in a quoted local part only.
_ADDRESS = re.compile(
    r'(?:"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*"|[^\s<>"@\x00-\x1f\x7f]+)@[^\s<>"@\x00-\x1f\x7f]+'
)


@dataclass(frozen=True, slots=True)
class Offers:
    """What the server offered in its reply to EHLO, as far as we use it. After HELO: nothing.

    Attributes:
        size: The largest message it takes, in bytes (RFC 1870); 0: it names no limit. None: SIZE is not offered.
    """

    pipelining: bool = False
    chunking: bool = False
    eight_bit_mime: bool = False
    smtputf8: bool = False
    size: int | None = None


@immutable()
class Envelope:
    """A transaction's commands, ready to be sent.

    Attributes:
        key: Of the message.
        smtputf8: Whether the message goes out as one that needs SMTPUTF8.
        recipients: Their addresses.
        group: MAIL, a RCPT for each recipient, and DATA: the commands that go out together (RFC 2920 section 3.1: DATA
            may be the last of a group).
    """

    key: int
    smtputf8: bool
    recipients: tuple[str, ...]
    group: tuple[bytes, ...]

    @property
    def commands(self) -> tuple[bytes, ...]:
        """MAIL, and a RCPT for each recipient."""
        return self.group[:-1]

    def is_of(self, message: QueuedMessage, recipients: Sequence[str]) -> bool:
        """It was written for this message to these recipients."""
        same = self.key == message.key and self.smtputf8 == message.smtputf8
        return same and self.recipients == tuple(recipients)

    def chunk(self, message: QueuedMessage) -> tuple[bytes, bytes]:
        """The command that announces the whole content, and what has to be added to that (RFC 3030 section 2)."""
        end = b"" if message.content.endswith(b"\r\n") else b"\r\n"
        return b"BDAT %d LAST\r\n" % (len(message.content) + len(end)), end

    @classmethod
    def write(cls, message: QueuedMessage, recipients: Sequence[str], offers: Offers) -> "Envelope":
        """Raises ValueError if an address can't stand in a command."""
        encoding = "utf-8" if message.smtputf8 else "ascii"
        parameters = b"" if offers.size is None else b" SIZE=%d" % len(message.content)
        if message.eight_bit:
            parameters += b" BODY=8BITMIME"
        if message.smtputf8:
            parameters += b" SMTPUTF8"
        sender = _checked(message.sender, encoding) if message.sender else b""
        mail = b"MAIL FROM:<%b>%b\r\n" % (sender, parameters)
        rcpt = [b"RCPT TO:<%b>\r\n" % _checked(recipient, encoding) for recipient in recipients]
        return cls(message.key, message.smtputf8, tuple(recipients), (mail, *rcpt, DATA))


@lru_cache(maxsize=1024)  # few senders write most mail
def _checked(address: str, encoding: str) -> bytes:
    if _ADDRESS.fullmatch(address) is None:
        raise ValueError(f"{address!r} can't stand in an SMTP command: it is not one plain address")
    return address.encode(encoding)


def unfit(message: QueuedMessage, offers: Offers, target: Target) -> Breakdown | None:
    """Why this server can't be given this message, by what it offers; None: it can."""
    if offers.size and len(message.content) > offers.size:
        return _policy(
            f"{target} takes messages of at most {offers.size} bytes, and this one has {len(message.content)}", "5.3.4"
        )
    if message.smtputf8 and not offers.smtputf8:
        return _policy(f"{target} does not offer SMTPUTF8, which an address or a header of this message needs", "5.6.7")
    if message.eight_bit and not offers.eight_bit_mime:
        return _policy(f"{target} does not offer 8BITMIME, which the content of this message needs", "5.6.3")
    return None


def _policy(reason: str, enhanced: str) -> Breakdown:
    return Breakdown(Phase.MAIL, "policy", reason, enhanced=enhanced)
