"""What the scripted SMTP server remembers: sessions, messages, and what clients did wrong."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTPUTF8


@dataclass(slots=True, eq=False)
class SessionRecord:
    """One connection that the server saw.

    Attributes:
        number: The first has number 1.
        peer: The client's address.
        commands: Every command as it came, AUTH's secrets replaced by "***".
        helo: The name that the client gave at EHLO or HELO.
        tls: "TLSv1.3" and the like, once TLS was negotiated.
        server_name: The name that the client asked for in TLS (SNI).
        tls_error: Why a TLS handshake failed.
        username: Who logged in.
        pipelined: How many commands came before the one in front of them was answered.
        transactions: How many MAIL commands were accepted.
        messages: How many messages were taken.
        quit: The client said QUIT.
        closed: The connection is over.
        aborted: The connection broke (a reset), or ended in the middle of a message.
    """

    number: int
    peer: str
    commands: list[str] = field(default_factory=list[str])
    helo: str | None = None
    tls: str | None = None
    server_name: str | None = None
    tls_error: str | None = None
    username: str | None = None
    pipelined: int = 0
    transactions: int = 0
    messages: int = 0
    quit: bool = False
    closed: bool = False
    aborted: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedMessage:
    """A message that the server took: it will have answered 2yz to the final dot, unless the script said otherwise.

    Attributes:
        sender: The reverse-path; "" is the null sender.
        recipients: The forward-paths that were accepted, in order.
        content: Every byte as it came, without dot-stuffing and without the final dot.
        mail_options: The parameters of MAIL, such as "SIZE=1234".
        rcpt_options: The parameters of each recipient's RCPT.
        session: The connection that it came over.
        received_at: When, on `time.monotonic()`.
        tls: It came over TLS.
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes = field(repr=False)
    mail_options: tuple[str, ...]
    rcpt_options: tuple[tuple[str, ...], ...]
    session: SessionRecord = field(repr=False)
    received_at: float
    tls: bool

    @property
    def email(self) -> EmailMessage:
        """The content, parsed."""
        return message_from_bytes(self.content, policy=SMTPUTF8)


class Ledger:
    """All that one server remembers. With `keep` false it only counts."""

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self.messages: list[ReceivedMessage] = []
        self.sessions: list[SessionRecord] = []
        self.violations: list[str] = []
        self.failures: list[Exception] = []
        self.received = 0
        self.connections = 0
        self.open_sessions = 0
        self.max_concurrent_sessions = 0
        self._arrivals: list[tuple[int, asyncio.Future[None]]] = []

    def begin(self, peer: str) -> SessionRecord:
        self.connections += 1
        self.open_sessions += 1
        self.max_concurrent_sessions = max(self.max_concurrent_sessions, self.open_sessions)
        record = SessionRecord(self.connections, peer)
        if self.keep:
            self.sessions.append(record)
        return record

    def end(self, record: SessionRecord) -> None:
        record.closed = True
        self.open_sessions -= 1

    def take(self, message: ReceivedMessage) -> None:
        self.received += 1
        message.session.messages += 1
        if self.keep:
            self.messages.append(message)
        if self._arrivals:
            for count, arrival in self._arrivals:
                if count <= self.received and not arrival.done():
                    arrival.set_result(None)

    def violation(self, record: SessionRecord, what: str) -> None:
        # Bounded, because a benchmark with a faulty client would otherwise fill the memory with the same sentence.
        if len(self.violations) < 10_000:
            self.violations.append(f"session {record.number}: {what}")

    async def wait_for(self, count: int, timeout: timedelta) -> None:
        if self.received >= count:
            return
        entry = (count, asyncio.get_running_loop().create_future())
        self._arrivals.append(entry)
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                await entry[1]
        except TimeoutError:
            raise TimeoutError(f"{self.received} of {count} messages arrived within {timeout}") from None
        finally:
            self._arrivals.remove(entry)


def now() -> float:
    return time.monotonic()
