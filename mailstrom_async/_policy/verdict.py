"""What a reply, or the lack of one, means for a recipient: one table."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from mailstrom_async._model import trusted
from mailstrom_async._reply import Phase, Reply
from mailstrom_async._status import Cause, Outcome

State = Literal["delivered", "deferred", "failed"]

END_OF_DATA = Phase.END_OF_DATA  # looked up for every reply: as the enum's member it takes ten times as long

# What a refusal for good (5yz) at each point concerns. Before MAIL it concerns us, the host or our login rather than
# the recipient: another host, or a later day, may see it differently, so it is never a bounce (as in Postfix). That
# holds for a greeting of 521, too ("does not accept mail", RFC 7504): the record that leads there may be mended.
REFUSED_FOR_GOOD: Mapping[Phase, State] = MappingProxyType(
    {
        Phase.CONNECT: "deferred",
        Phase.GREETING: "deferred",
        Phase.EHLO: "deferred",
        Phase.STARTTLS: "deferred",
        Phase.AUTH: "deferred",
        Phase.MAIL: "failed",
        Phase.RCPT: "failed",
        Phase.DATA: "failed",
        Phase.END_OF_DATA: "failed",
    }
)

# Refusals for good that are none, whatever their first digit says.
EXCEPTIONS: Mapping[tuple[Phase, int], State] = MappingProxyType(
    {
        (Phase.MAIL, 530): "deferred",  # it wants TLS or a login first: our settings are at fault, not the mail
        (Phase.RCPT, 530): "deferred",
        (Phase.RCPT, 552): "deferred",  # "too many recipients" in the words of RFC 821 (RFC 5321 section 4.5.3.1.10)
    }
)

# The RFC 3463 status of a conversation that ended without a reply that decides.
BREAKDOWNS: Mapping[Cause, str] = MappingProxyType(
    {
        "network": "4.4.2",  # bad connection
        "tls": "4.7.5",  # cryptographic failure
        "protocol": "4.5.0",  # other or undefined protocol status
        "outcome_unknown": "4.4.2",
        "local": "4.3.0",  # other or undefined mail system status
        "policy": "4.7.0",  # other or undefined security status
    }
)
NO_ANSWER_FROM_HOST = "4.4.1"

OF_CLASS: Mapping[State, str] = MappingProxyType({"delivered": "2.0.0", "deferred": "4.0.0", "failed": "5.0.0"})


def judge(phase: Phase, reply: Reply) -> Outcome:
    """What a reply means for the recipients that it concerns (RFC 5321 section 4.2.1)."""
    state = state_for(phase, reply.code)
    return trusted(
        Outcome,
        state=state,
        cause=None if state == "delivered" else "smtp",
        enhanced=reply.enhanced or OF_CLASS[state],
        reason=f"{reply.host} answered {phase} with: {reply}",
        reply=reply,
    )


def state_for(phase: Phase, code: int) -> State:
    """The state that a reply code leads to. Only the reply to the final dot delivers; a reply that makes no sense where
    it came never decides for good."""
    if code // 100 == 2 and phase is END_OF_DATA:
        return "delivered"
    if code // 100 == 5:
        return EXCEPTIONS.get((phase, code)) or REFUSED_FOR_GOOD[phase]
    return "deferred"


def judge_breakdown(
    phase: Phase, cause: Cause, reason: str, *, enhanced: str | None = None, reply: Reply | None = None
) -> Outcome:
    """What it means that a conversation ended without a reply that decides: to try again, always, unless the status
    given says that this host can never take this message (a status 5.X.X of our own: too big, needs SMTPUTF8).

    Args:
        phase: What we waited for.
        cause: What happened.
        reason: A sentence for a person.
        enhanced: The RFC 3463 status, where there is one more exact than the table's.
        reply: A reply that came with it, such as a 421.
    """
    if reply is not None:
        return Outcome(state="deferred", cause="smtp", enhanced=reply.enhanced or "4.4.2", reason=reason, reply=reply)
    if enhanced is None:
        enhanced = NO_ANSWER_FROM_HOST if (phase, cause) == (Phase.CONNECT, "network") else BREAKDOWNS[cause]
    return Outcome(
        state="failed" if enhanced.startswith("5.") else "deferred", cause=cause, enhanced=enhanced, reason=reason
    )
