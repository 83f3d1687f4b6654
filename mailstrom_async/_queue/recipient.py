"""The life of a recipient, as one table. An absent entry is an illegal transition.

queued ──▶ deferred ──▶ delivered
   │          │ ▲└──────▶ failed
   │          └─┘
   └──────▶ delivered, failed
"""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Literal

from mailstrom_async._envelope import PendingRecipient, RecipientState
from mailstrom_async._immutable import immutable
from mailstrom_async._model import trusted
from mailstrom_async._reply import Reply
from mailstrom_async._status import Deferred, Delivered, Failed, Outcome

Occurrence = Literal["delivered", "deferred", "failed", "expired", "cancelled"]
"""What can happen to a recipient: one of the three outcomes of an attempt, or the end of waiting."""

TRANSITIONS: Mapping[tuple[RecipientState, Occurrence], RecipientState] = MappingProxyType(
    {
        ("queued", "delivered"): "delivered",
        ("queued", "deferred"): "deferred",
        ("queued", "failed"): "failed",
        ("queued", "cancelled"): "failed",
        ("deferred", "delivered"): "delivered",
        ("deferred", "deferred"): "deferred",
        ("deferred", "failed"): "failed",
        ("deferred", "expired"): "failed",
        ("deferred", "cancelled"): "failed",
    }
)

RecipientResult = Deferred | Delivered | Failed

CANCELLED = "cancelled by the sender"


class IllegalTransition(Exception):
    """A recipient would leave its life: a fault in this library, never a server's."""


@immutable()
class Circumstances:
    """What is the same for all recipients of an attempt when their outcomes are turned into results.

    Attributes:
        now: When the outcomes became known.
        next_attempt_at: When deferred recipients are attempted again.
        expires_at: From then on a deferred recipient fails instead.
        host: The name of the host that was spoken to.
        tls: The TLS version of the session; None: plaintext.
    """

    now: datetime
    next_attempt_at: datetime
    expires_at: datetime
    host: str = ""
    tls: str | None = None


def after(state: RecipientState, occurrence: Occurrence) -> RecipientState:
    """The state that follows.

    Raises:
        IllegalTransition: Nothing can happen any more to a final recipient, and only who was attempted can expire.
    """
    try:
        return TRANSITIONS[state, occurrence]
    except KeyError:
        raise IllegalTransition(f"a recipient that is {state} can't become {occurrence}") from None


def settle(recipient: PendingRecipient, outcome: Outcome, given: Circumstances) -> RecipientResult:
    """The new result of a recipient after an attempt.

    Deferred at the end of the message's lifetime means expired; the last reply stays visible.
    """
    state, reply = after(recipient.state, outcome.state), outcome.reply
    if state == "delivered":
        assert reply is not None  # noqa: S101 - only a reply delivers
        return trusted(Delivered, reply=reply, host=given.host, tls=given.tls, delivered_at=given.now)
    if state == "deferred" and given.now >= given.expires_at:
        after(state, "expired")
        return expired(outcome.reason, reply, given.now)
    cause = outcome.cause or "local"
    if state == "deferred":
        return Deferred(
            cause=cause,
            enhanced=outcome.enhanced,
            reason=outcome.reason,
            reply=reply,
            next_attempt_at=given.next_attempt_at,
        )
    return Failed(cause=cause, enhanced=outcome.enhanced, reason=outcome.reason, reply=reply, failed_at=given.now)


def expired(last_reason: str, reply: Reply | None, now: datetime) -> Failed:
    """The result of a recipient whose time is over (RFC 3463: X.4.7, delivery time expired)."""
    return Failed(
        cause="expired",
        enhanced="4.4.7",
        reason=f"could not be delivered within its lifetime; the last attempt: {last_reason}",
        reply=reply,
        failed_at=now,
    )


def cancelled(now: datetime) -> Failed:
    """The result of a recipient whose message was cancelled before it was delivered (RFC 3463: X.0.0)."""
    return Failed(cause="cancelled", enhanced="5.0.0", reason=CANCELLED, reply=None, failed_at=now)
