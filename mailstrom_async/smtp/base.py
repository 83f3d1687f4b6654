"""What the engine asks of SMTP: open a session to one address of one host, and send messages over it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from mailstrom_async._config import TLSPolicy
from mailstrom_async._envelope import QueuedMessage
from mailstrom_async._immutable import immutable
from mailstrom_async._policy.hosts import IPAddress
from mailstrom_async._reply import Phase, Reply
from mailstrom_async._status import TLSFacts


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to log in at a relay. One of the two secrets is set."""

    username: str
    password: str | None = field(default=None, repr=False)
    oauth_token: Callable[[], Awaitable[str]] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Target:
    """One address of one host, and what is demanded of a session with it.

    Attributes:
        host: Its name, which a certificate is checked against; for an address literal the address.
        implicit_tls: TLS from the first byte on.
        ip: The address as text.
    """

    host: str
    address: IPAddress
    port: int
    tls: TLSPolicy
    implicit_tls: bool = False
    credentials: Credentials | None = None
    ip: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ip", str(self.address))

    @property
    def key(self) -> tuple[IPAddress, int]:
        """Who it is that answers there."""
        return self.address, self.port

    def __str__(self) -> str:
        """As reasons and logs name it, for instance "mx1.example.org [192.0.2.1]:25"."""
        return f"[{self.ip}]:{self.port}" if self.host == self.ip else (f"{self.host} [{self.ip}]:{self.port}")


class Refusal(NamedTuple):
    """A reply that decides something, and the command it answered."""

    phase: Phase
    reply: Reply


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Why a conversation ended without a reply that decides: nobody listens, the line broke, that was no SMTP, ...

    Attributes:
        phase: What we waited for.
        cause: "outcome_unknown": the whole message was sent, and the reply to it never came.
        reply: A reply that came with it, such as a 421.
        enhanced: The RFC 3463 status, where there is one more exact than the cause's: "5.3.4" (too big for this
            host), "5.6.7" (no SMTPUTF8), "5.6.3" (no 8BITMIME).
    """

    phase: Phase
    cause: Literal["network", "tls", "protocol", "outcome_unknown", "local", "policy"]
    reason: str
    reply: Reply | None = None
    enhanced: str | None = None


class SessionError(Exception):
    """No session could be opened to a target. `why` says where it ended."""

    def __init__(
        self, why: Refusal | Breakdown, *, tls: TLSFacts | None = None, transcript: Sequence[str] = ()
    ) -> None:
        super().__init__(str(why.reply) if isinstance(why, Refusal) else why.reason)
        self.why = why
        self.tls = tls if tls is not None else TLSFacts()
        self.transcript = tuple(transcript)


@immutable()
class TransactionResult:
    """What a transaction did to each recipient.

    Attributes:
        decided: For each recipient that a reply decided: the reply to its RCPT, to MAIL, to DATA, or to the final dot.
        breakdown: Why the transaction ended early; holds for the recipients that are neither decided nor postponed.
        postponed: Recipients that the server will take, but not in this transaction (452 or 552 at RCPT after it took
            others, RFC 5321 section 4.5.3.1.10): to be sent in another one now, without an attempt being counted.
        untouched: The session turned out to be closed before the server answered MAIL: nothing was attempted, and the
            message can go over a new session at no risk. If it was a 421 that ended it, `breakdown` has that.
    """

    decided: Mapping[str, Refusal]
    breakdown: Breakdown | None = None
    postponed: tuple[str, ...] = ()
    untouched: bool = False


Following = Callable[[], tuple[QueuedMessage, Sequence[str]] | None]
"""Names the message, and its recipients, that will be sent next on a session; None: none yet. Called at the last moment
at which it is of use: once, or, where a window of messages may be on their way, for each that there is room for."""


class Session(Protocol):
    """**Protocol:** an SMTP connection after EHLO (and STARTTLS, and AUTH), ready for a transaction."""

    @property
    def target(self) -> Target: ...

    @property
    def tls(self) -> TLSFacts: ...

    @property
    def usable(self) -> bool:
        """The connection stands and is in step: another transaction may follow."""
        ...

    @property
    def in_doubt(self) -> bool:
        """The final dot of the last message was sent, or may have been, and no reply to it came."""
        ...

    @property
    def transactions(self) -> int:
        """How many it carried."""
        ...

    @property
    def transcript(self) -> tuple[str, ...]:
        """What was said since the begin of the last transaction, without content and credentials."""
        ...

    async def transact(
        self, message: QueuedMessage, recipients: Sequence[str], following: Following | None = None
    ) -> TransactionResult:
        """Send a message to recipients. Never raises for what the server does.

        Args:
            following: What it names must be the next that is sent, as its envelope may go out together with the end of
                this content, which saves a round trip. If it is not, the session is of no use any more. Where a window
                was asked for and the server offers CHUNKING, several may be named, and go out whole: see `sent_ahead`.

        Cancelled, the connection is aborted, so that nothing that was buffered still gets out; if the final dot was
        sent, the outcome is unknown.

        Raises:
            ValueError: An address can't stand in a command; nothing was sent. Whoever accepted it should not have.
        """
        ...

    def sent_ahead(self, message: QueuedMessage) -> bool:
        """This message, which was named to be the next, went out with its content: it must be asked for by `transact`
        with the same recipients, or given up by `abandon`."""
        ...

    def abandon(self) -> Sequence[TransactionResult]:
        """Drop the connection. What became of the messages that were sent ahead whole, in the order in which they were
        named; those named after them were not sent."""
        ...

    async def quit(self) -> None:
        """Say QUIT, wait for the answer only briefly, close."""
        ...

    def abort(self) -> None:
        """Drop the connection at once, with what it had still to send."""
        ...


class Connector(Protocol):
    """**Protocol:** opens sessions."""

    async def connect(self, target: Target) -> Session:
        """Open a session: TCP, greeting, EHLO, STARTTLS as `target.tls` demands, AUTH.

        Raises:
            SessionError: None could be opened; says why.
        """
        ...
