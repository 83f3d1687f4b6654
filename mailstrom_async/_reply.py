"""What a server said, and at which point of the conversation."""

from enum import StrEnum

from mailstrom_async._model import Frozen


class Phase(StrEnum):
    """The point of a conversation that a reply or a failure belongs to."""

    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    END_OF_DATA = "end of data"


class Reply(Frozen):
    """A server's reply (RFC 5321 section 4.2), made safe to store, show and log."""

    code: int
    """The three-digit code."""
    enhanced: str | None
    """The RFC 3463 status that the reply itself carried, such as "5.1.1"; None: it had none, or a contradicting one."""
    text: str
    """The text without codes, lines joined by newlines, in printable characters only."""
    command: str
    """The phase it answered, such as "RCPT" or "end of data"."""
    host: str
    """The name of the host that gave it."""

    def __str__(self) -> str:
        status = f"{self.code} {self.enhanced}" if self.enhanced else str(self.code)
        return f"{status} {text}" if (text := self.text.replace("\n", " ")) else status
