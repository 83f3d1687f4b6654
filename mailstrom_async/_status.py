"""What became of a message, recipient by recipient and attempt by attempt."""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field, computed_field

from mailstrom_async._envelope import Lane, RecipientState
from mailstrom_async._model import Frozen
from mailstrom_async._reply import Reply

Cause = Literal[
    "smtp",  # a server's reply
    "dns",  # the name's records, or no answer about them
    "network",  # no connection, or it broke
    "tls",  # no TLS where it is demanded
    "protocol",  # the server does not speak SMTP
    "policy",  # we may not, or can't, send this there
    "outcome_unknown",  # the message was sent whole, its reply never came
    "expired",  # deferred until its lifetime was over
    "cancelled",  # by the caller
    "suppressed",  # the address is on a list of addresses not to write to
    "local",  # our own trouble: no file descriptors, a fault in this library
]


class Queued(Frozen):
    """Not yet attempted."""

    state: Literal["queued"] = "queued"


class Deferred(Frozen):
    """Attempted, or held back because its hosts seem dead, and to be attempted again."""

    state: Literal["deferred"] = "deferred"
    cause: Cause
    enhanced: str
    """The RFC 3463 status, such as "4.4.1"."""
    reason: str
    """A sentence for a person."""
    reply: Reply | None = None
    next_attempt_at: AwareDatetime


class Delivered(Frozen):
    """A server took responsibility for it."""

    state: Literal["delivered"] = "delivered"
    reply: Reply
    host: str
    """The name of the host that took it."""
    tls: str | None
    """The TLS version it travelled under, such as "TLSv1.3"; None: in plaintext."""
    delivered_at: AwareDatetime


class Failed(Frozen):
    """Final: it will not be attempted again."""

    state: Literal["failed"] = "failed"
    cause: Cause
    enhanced: str
    """The RFC 3463 status, such as "5.1.1"."""
    reason: str
    """A sentence for a person."""
    reply: Reply | None = None
    failed_at: AwareDatetime


DeliveryResult = Annotated[Queued | Deferred | Delivered | Failed, Field(discriminator="state")]


class RecipientStatus(Frozen):
    """What became of one recipient."""

    recipient: str
    """As the caller wrote it."""
    address: str
    """As it stands in the envelope."""
    attempts: int
    result: DeliveryResult


class MessageStatus(Frozen):
    """What became of a message."""

    # Its own JSON has the computed fields in it, and must be readable again.
    model_config = ConfigDict(extra="ignore")

    message_id: str
    queued_at: AwareDatetime
    recipients: tuple[RecipientStatus, ...]
    lane: Lane = "default"
    """How urgent its sender called it."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def completed(self) -> bool:
        """No recipient will be attempted again."""
        return all(recipient.result.state in ("delivered", "failed") for recipient in self.recipients)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def succeeded(self) -> bool:
        """Every recipient is delivered. A status without recipients, which we never make, has not succeeded."""
        return bool(self.recipients) and all(recipient.result.state == "delivered" for recipient in self.recipients)

    @property
    def attempted(self) -> bool:
        """Every recipient is past its first attempt, or final."""
        return all(recipient.result.state != "queued" for recipient in self.recipients)


class TLSFacts(Frozen):
    """How a session was protected."""

    version: str | None = None
    """Such as "TLSv1.3"; None: plaintext."""
    cipher: str | None = None
    verified: bool = False
    """The certificate is valid and names the host."""
    why: str | None = None
    """Why there is no TLS, or why it is not verified."""


class Outcome(Frozen):
    """What an attempt did to a recipient."""

    state: Literal["delivered", "deferred", "failed"]
    cause: Cause | None = None
    """None if delivered."""
    enhanced: str
    reason: str
    reply: Reply | None = None


class Attempt(Frozen):
    """One try at one delivery."""

    started_at: AwareDatetime
    duration: timedelta
    recipients: tuple[str, ...]
    destination: str
    host: str | None = None
    """The name of the last host tried; None if none was reached for."""
    address: str | None = None
    """The IP address of that host."""
    tls: TLSFacts = TLSFacts()
    outcome: dict[str, Outcome]
    """For each recipient."""
    transcript: tuple[str, ...] = ()
    """What was said, kept for failures only, without content and credentials."""

    @property
    def reply(self) -> dict[str, Reply | None]:
        """The reply that decided each recipient's outcome; None where none did."""
        return {recipient: outcome.reply for recipient, outcome in self.outcome.items()}


class SiteStatus(Frozen):
    """How it goes with a site: the hosts that some destinations share, for as long as there is mail for them."""

    hosts: tuple[str, ...]
    """Their names, the most preferred first."""
    destinations: tuple[str, ...]
    """Some of the domains that lead there, at most ten."""
    connections: int
    """How many are open now, or being opened or closed."""
    connections_allowed: int
    """How many there may be now. One more with each message that is taken, up to the limit; fewer when the hosts refuse
    connections, or do not take what is sent."""
    waiting: int
    """Messages that are claimed and wait for a connection or for the rate. More may wait in the queue."""
    throttled_until: AwareDatetime | None = None
    """The site seems dead: until then nothing is sent there, then one message tries. None: it is not throttled."""
    reason: str | None = None
    """Why it is throttled. May have a server's words in it, whole, and so the address of a recipient."""
    rate_left: int | None = None
    """How many messages may go at this moment; None: no rate is set."""
    last_reply: Reply | None = None
    """What the hosts said last to a message."""


class WorkerStatus(Frozen):
    """How delivery itself is doing."""

    state: Literal["starting", "running", "paused", "degraded", "stopped"]
    reason: str | None = None
    """Why it is degraded; None otherwise."""


FINAL_STATES: frozenset[RecipientState] = frozenset({"delivered", "failed"})
