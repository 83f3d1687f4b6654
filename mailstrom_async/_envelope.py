"""A message as the store holds it and the wire carries it."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, NamedTuple, get_args

from mailstrom_async._immutable import immutable

RecipientState = Literal["queued", "deferred", "delivered", "failed"]

Lane = Literal["auth", "default", "bulk"]
"""How urgent a message is. "auth": somebody sits before a screen and waits for it, a login code or a new password;
"default": what one person gets on occasion; "bulk": the same for many, which may take its time."""

LANES: tuple[Lane, ...] = get_args(Lane)
"""The most urgent first. Stores know a lane by its place here."""


def domain_of(address: str) -> str:
    """The destination of an envelope address: its domain, A-labels in lower case. A quoted local part may hold an @."""
    return address.rpartition("@")[2].lower()


@dataclass(frozen=True, slots=True, repr=False)  # it is public: whoever would change one is told
class PreparedEmail:
    """A composed email: byte for byte what goes on the wire, and the envelope it goes in.

    Attributes:
        message_id: Without angle brackets.
        sender: The reverse-path; "" is the null sender.
        recipients: The forward-paths, each once, domains as A-labels.
        content: Header and body with CRLF line ends, without Bcc, not dot-stuffed.
        smtputf8: The sender or a header needs a server that offers SMTPUTF8 (RFC 6531), whoever the recipient is. A
            recipient beyond ASCII needs one for itself.
        eight_bit: The content has octets above 127 and needs a server that offers 8BITMIME (RFC 6152).
        written: What the caller wrote for each of `recipients`, in the same order.
    """

    message_id: str
    sender: str
    recipients: tuple[str, ...]
    content: bytes
    smtputf8: bool = False
    eight_bit: bool = False
    written: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.recipients:
            raise ValueError("an envelope needs at least one recipient")
        if not self.written:
            object.__setattr__(self, "written", self.recipients)
        if len(self.written) != len(self.recipients):
            raise ValueError("written must have an entry for each recipient")

    def __repr__(self) -> str:
        # Neither content nor recipients: a repr ends up in logs, and some recipients are hidden.
        return (
            f"<PreparedEmail {self.message_id!r} from {self.sender!r} "
            f"[{len(self.recipients)} recipients, {len(self.content)} bytes]>"
        )


def _stuff(lines: bytes, end: bytes = b"") -> bytes:
    # An encoded attachment has no dot, and to look for the last one is far quicker than to replace those behind it.
    dotted = lines.rfind(b".") + 1
    stuffed = lines[:dotted].replace(b"\r\n.", b"\r\n..")
    return b"".join((b"." if lines.startswith(b".") else b"", stuffed, memoryview(lines)[dotted:], end))


@immutable()
class QueuedMessage:
    """The part of a stored message that all its deliveries share. One object serves all claims of a batch.

    Attributes:
        key: The store's own key, independent of the Message-ID.
    """

    key: int
    message_id: str
    sender: str
    content: bytes
    smtputf8: bool
    eight_bit: bool
    queued_at: datetime
    expires_at: datetime
    lane: Lane = "default"
    _stuffed: bytes | None = field(default=None, init=False, compare=False)
    _in_utf8: "QueuedMessage | None" = field(default=None, init=False, compare=False)

    def on_the_wire(self, size: int) -> Iterator[bytes]:
        """The content as it goes between DATA and its reply, in pieces of about `size` bytes: dot-stuffed (RFC 5321
        section 4.5.2), and ended by a line with one dot.

        What fits into one piece is made once for the message and not once for each host; of a large one no whole copy
        is made, nor is the event loop held up for all of it.
        """
        if len(self.content) <= size:
            yield self.stuffed
            return
        start = 0
        while len(self.content) - start > size:
            # Cut where a line ends, so that a dot at the begin of a piece is one at the begin of a line.
            end = self.content.rfind(b"\n", start, start + size) + 1 or self.content.find(b"\n", start) + 1
            if not end:
                break
            yield _stuff(self.content[start:end])
            start = end
        yield _stuff(self.content[start:], self._end)

    @property
    def stuffed(self) -> bytes:
        """All of it in one piece, made once."""
        if self._stuffed is None:
            object.__setattr__(self, "_stuffed", made := _stuff(self.content, self._end))
            return made
        return self._stuffed

    @property
    def in_utf8(self) -> "QueuedMessage":
        """The same for recipients whose addresses need SMTPUTF8, if the message itself does not; made once, too."""
        if self.smtputf8:
            return self
        if self._in_utf8 is None:
            object.__setattr__(self, "_in_utf8", made := replace(self, smtputf8=True))
            return made
        return self._in_utf8

    @property
    def _end(self) -> bytes:
        return b".\r\n" if self.content.endswith(b"\r\n") else b"\r\n.\r\n"

    def __repr__(self) -> str:
        return f"<QueuedMessage {self.message_id!r} [{len(self.content)} bytes]>"


class PendingRecipient(NamedTuple):
    """A recipient of a claimed delivery that is not yet delivered or failed."""

    address: str
    state: RecipientState
    attempts: int


class Due(NamedTuple):
    """An entry of the store's due index: what the delay heap holds of a delivery.

    Attributes:
        size: The bytes of the message's content, so that no claim brings more of them than memory is set aside for.
    """

    due_at: datetime
    delivery_id: int
    destination: str
    size: int
    lane: Lane = "default"


@immutable()
class Delivery:
    """One message's unfinished recipients at one destination, claimed by `owner` until its lease ends.

    Attributes:
        id: The store's key of this delivery.
        destination: The domain of its recipients.
        attempt: The number of the attempt that this claim is for, from 1. Together with `owner` it fences off the
            results of a claim that was lost in the meantime.
    """

    id: int
    destination: str
    owner: str
    attempt: int
    recipients: tuple[PendingRecipient, ...]
    message: QueuedMessage

    def __repr__(self) -> str:
        return (
            f"<Delivery {self.id} of {self.message.message_id!r} to {self.destination!r} "
            f"[attempt {self.attempt}, {len(self.recipients)} recipients]>"
        )
