"""One try: a session is opened, a message goes over it, every recipient gets an outcome."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mailstrom_async._envelope import QueuedMessage
from mailstrom_async._immutable import immutable
from mailstrom_async._policy.replies import CLOSING
from mailstrom_async._policy.verdict import judge, judge_breakdown
from mailstrom_async._reply import Phase, Reply
from mailstrom_async._status import Outcome, TLSFacts
from mailstrom_async.smtp.base import (
    Breakdown,
    Connector,
    Following,
    Refusal,
    Session,
    SessionError,
    Target,
    TransactionResult,
)

logger = logging.getLogger("mailstrom_async")


@immutable()
class Contact:
    """With whom an attempt spoke last, and what was said."""

    host: str | None = None
    address: str | None = None
    tls: TLSFacts = field(default_factory=TLSFacts)
    transcript: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No session could be opened to any target.

    Attributes:
        outcome: What that means for every recipient.
        contact: The last target.
        login_refused: The relay does not accept our credentials: not the mail's fault, and it hits all mail.
    """

    outcome: Outcome
    contact: Contact
    login_refused: bool = False


@dataclass(frozen=True, slots=True)
class Untouched:
    """Recipients that the server never heard of: they can go over a new session at no risk.

    Attributes:
        recipients: Their addresses.
        reply: The 421 by which it ended the session; None: it ended it without a word.
    """

    recipients: tuple[str, ...]
    reply: Reply | None = None


async def open_session(connector: Connector, targets: Iterable[Target]) -> Session | Unreachable:
    """Open a session to the first target that gives one (RFC 5321 section 5.1)."""
    unreachable = Unreachable(
        judge_breakdown(Phase.CONNECT, "network", "the route has no address left to try"), Contact()
    )
    transcript: list[str] = []
    for target in targets:
        try:
            return await connector.connect(target)
        except SessionError as error:
            transcript.append(f"-- {target.host} [{target.address}]:{target.port}: {error}")
            transcript.extend(error.transcript)
            unreachable = Unreachable(
                verdict_on(error.why),
                Contact(target.host, target.ip, error.tls, tuple(transcript)),
                login_refused=target.credentials is not None and error.why.phase is Phase.AUTH,
            )
        except Exception as error:
            # Those who wait for the session must hear of it, or they would wait, and ask for another one, for ever.
            logger.exception("no session with %s could be opened", target.host)
            unreachable = Unreachable(
                judge_breakdown(Phase.CONNECT, "local", f"a fault in this library: {error!r}"),
                Contact(target.host, target.ip, transcript=tuple(transcript)),
            )
    return unreachable


def worth_another_host(outcomes: Mapping[str, Outcome]) -> bool:
    """Whether another host of the route may still take the message, in the same attempt: this one decided about no
    recipient (RFC 5321 section 5.1).

    It can't take such a message at all (rows A51, A54), or it refused MAIL for now (row A24), or the conversation broke
    while it can't have had the message. A refusal of a recipient is heeded: it would be the same at the others, and
    greylisting, too.
    """
    return all(
        (outcome.state == "failed" and outcome.cause == "policy")
        or (
            outcome.state == "deferred"
            and (outcome.cause in ("network", "protocol") or _is_the_hosts_own(outcome.reply))
        )
        for outcome in outcomes.values()
    )


def _is_the_hosts_own(reply: Reply | None) -> bool:
    return reply is not None and (reply.command == Phase.MAIL or reply.code == CLOSING)


async def carry(
    session: Session,
    message: QueuedMessage,
    recipients: Sequence[str],
    *,
    at_once: int,
    outcomes: dict[str, Outcome],
    following: Following | None = None,
) -> Untouched | None:
    """Send a message over a session, in as many transactions as its recipients need.

    Args:
        session: Ready for a transaction.
        message: The message.
        recipients: Addresses.
        at_once: Recipients in one transaction.
        outcomes: Filled with the outcome of each recipient as soon as it is known, so that a cancel in a later
            transaction does not lose what an earlier one delivered.
        following: As `Session.transact` has it.

    Returns:
        Whom the server never heard of, because the session had been closed before, if there are such.
    """
    waiting = recipients
    while waiting:
        as_sent, batch = first_transaction(message, waiting, at_once)
        rest = _without(waiting, batch)
        try:
            result = await session.transact(as_sent, batch, None if rest else following)
        except asyncio.CancelledError:
            if session.in_doubt:
                outcomes.update(dict.fromkeys(batch, _STOPPED_IN_DOUBT))
            raise
        if result.untouched:
            return Untouched(tuple(waiting), result.breakdown.reply if result.breakdown is not None else None)
        outcomes.update(_outcomes(result, batch))
        waiting = [*result.postponed, *rest]
        if waiting and not (session.usable and any(recipient in outcomes for recipient in batch)):
            # The conversation is over, or the server postpones everybody: they are deferred as a whole.
            outcome = _not_reached(result.breakdown)
            outcomes.update((recipient, outcome) for recipient in waiting)
            break
    return None


def first_transaction(
    message: QueuedMessage, recipients: Sequence[str], at_once: int
) -> tuple[QueuedMessage, Sequence[str]]:
    """The recipients who go together first, and the message as it goes to them.

    One address beyond ASCII makes the whole transaction need SMTPUTF8 (RFC 6531 section 3.4): those who have one go by
    themselves, so that the others get their mail from a server that does not offer it, too.
    """
    if message.smtputf8 or all(map(str.isascii, recipients)):
        return message, recipients[:at_once]
    plain = [recipient for recipient in recipients if recipient.isascii()]
    return (message, plain[:at_once]) if plain else (message.in_utf8, recipients[:at_once])


def _without(recipients: Sequence[str], batch: Sequence[str]) -> Sequence[str]:
    if len(batch) == len(recipients):
        return ()
    gone = set(batch)
    return [recipient for recipient in recipients if recipient not in gone]


def _outcomes(result: TransactionResult, batch: Sequence[str]) -> dict[str, Outcome]:
    """What a transaction did to its recipients, but for those who were postponed."""
    outcomes: dict[str, Outcome] = {}
    judged: tuple[Refusal, Outcome] | None = None
    for recipient, refusal in result.decided.items():
        if judged is None or refusal is not judged[0]:  # one reply decides for many
            judged = refusal, judge(refusal.phase, refusal.reply)
        outcomes[recipient] = judged[1]
    if result.breakdown is not None:
        in_doubt = verdict_on(result.breakdown)
        for recipient in batch:
            if recipient not in outcomes and recipient not in result.postponed:
                outcomes[recipient] = in_doubt
    return outcomes


def outcomes_of(
    result: TransactionResult, message: QueuedMessage, recipients: Sequence[str], at_once: int
) -> dict[str, Outcome]:
    """What the first transaction of a message did, if no other follows it."""
    _, batch = first_transaction(message, recipients, at_once)
    return {**dict.fromkeys(recipients, _not_reached(result.breakdown)), **_outcomes(result, batch)}


_STOPPED_IN_DOUBT = judge_breakdown(
    Phase.END_OF_DATA, "outcome_unknown", "we were stopped before the host answered the final dot"
)
STOPPED_BEFORE = judge_breakdown(Phase.MAIL, "local", "we were stopped before it was this recipient's turn")


def verdict_on(why: Refusal | Breakdown) -> Outcome:
    """What a refusal or a breakdown means for those whom it concerns."""
    if isinstance(why, Refusal):
        return judge(why.phase, why.reply)
    return judge_breakdown(why.phase, why.cause, why.reason, enhanced=why.enhanced, reply=why.reply)


def _not_reached(breakdown: Breakdown | None) -> Outcome:
    """The outcome of recipients whose turn did not come: never in doubt, for they were never sent."""
    if breakdown is None:
        return judge_breakdown(Phase.RCPT, "network", "the host closed before it came to this recipient")
    if breakdown.cause == "outcome_unknown":
        return judge_breakdown(breakdown.phase, "network", breakdown.reason)
    return verdict_on(breakdown)
