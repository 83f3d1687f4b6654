"""One mail transaction: from MAIL to the reply after the final dot (RFC 5321 section 3.3)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mailstrom_async._config import Timeouts
from mailstrom_async._envelope import QueuedMessage
from mailstrom_async._policy.replies import CLOSING, Answer
from mailstrom_async._reply import Phase
from mailstrom_async.smtp.base import Breakdown, Refusal, Target, TransactionResult
from mailstrom_async.smtp.wire import CHUNK, Broken, Wire

RSET = b"RSET\r\n"
DATA = b"DATA\r\n"
LONE_DOT = b".\r\n"

START_INPUT = 354
# Insufficient storage, and what RFC 821 called it: at RCPT, after others were taken, both mean "no more of them in this
# transaction" (RFC 5321 section 4.5.3.1.10).
TOO_MANY_RECIPIENTS = (452, 552)

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
    eight_bit_mime: bool = False
    smtputf8: bool = False
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """A transaction's commands, ready to be sent."""

    mail: bytes
    rcpt: tuple[tuple[str, bytes], ...]

    @classmethod
    def write(cls, message: QueuedMessage, recipients: Sequence[str], offers: Offers) -> "Envelope":
        """Raises ValueError if an address can't stand in a command."""
        encoding = "utf-8" if message.smtputf8 else "ascii"
        sender = _checked(message.sender).encode(encoding) if message.sender else b""
        parameters = b""
        if offers.size is not None:
            parameters += b" SIZE=%d" % len(message.content)
        if message.eight_bit:
            parameters += b" BODY=8BITMIME"
        if message.smtputf8:
            parameters += b" SMTPUTF8"
        return cls(
            b"MAIL FROM:<%b>%b\r\n" % (sender, parameters),
            tuple(
                (recipient, b"RCPT TO:<%b>\r\n" % _checked(recipient).encode(encoding)) for recipient in recipients
            ),
        )


def _checked(address: str) -> str:
    if _ADDRESS.fullmatch(address) is None:
        raise ValueError(f"{address!r} can't stand in an SMTP command: it is not one plain address")
    return address


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


class Transaction:
    """Carries one message to its recipients over a wire.

    Attributes:
        unfinished: The server may still hold an envelope of ours: RSET before the next one.
    """

    def __init__(self, wire: Wire, target: Target, timeouts: Timeouts, *, pipelining: bool) -> None:
        self.unfinished = True
        self._wire = wire
        self._target = target
        self._timeouts = timeouts
        self._pipelining = pipelining
        self._phase = Phase.MAIL
        self._decided: dict[str, Refusal] = {}
        self._accepted: list[str] = []
        self._postponed: list[str] = []
        self._untouched = False

    async def run(self, message: QueuedMessage, envelope: Envelope, *, reset: bool, reused: bool) -> TransactionResult:
        """Send it, and sort the recipients by what was answered.

        Args:
            reset: Begin with RSET.
            reused: The session had a transaction before; if it turns out to be closed, no blame falls on the server.
        """
        breakdown = None
        self._wire.heard = False
        try:
            await self._converse(message, envelope, reset=reset)
        except Broken as broken:
            # Replies that the server gave before it lost its way may have been paired with the wrong commands.
            if broken.cause == "protocol":
                self._decided.clear()
                self._postponed.clear()
            self._untouched |= (
                reused and self._phase is Phase.MAIL and (broken.answer is not None or not self._wire.heard)
                and not self._wire.usable
            )
            breakdown = self._breakdown(broken)
            self._wire.abort()
        settled = self._decided.keys() | set(self._postponed)
        everybody_settled = all(recipient in settled for recipient, _ in envelope.rcpt)
        return TransactionResult(
            decided=self._decided,
            breakdown=None if everybody_settled else breakdown,
            postponed=tuple(self._postponed),
            untouched=self._untouched,
        )

    def _breakdown(self, broken: Broken) -> Breakdown:
        cause: Literal["network", "protocol", "outcome_unknown"] = broken.cause
        reason = f"{self._target} {broken.reason}, at {self._phase}"
        if self._phase is Phase.END_OF_DATA and broken.answer is None:
            # It has all of the message, so it may have taken it.
            cause = "outcome_unknown"
            reason += "; it may have taken the message, which then arrives twice"
        reply = None if broken.answer is None else broken.answer.to(self._phase, self._target.host)
        return Breakdown(self._phase, cause, reason, reply)

    async def _converse(self, message: QueuedMessage, envelope: Envelope, *, reset: bool) -> None:
        if self._pipelining:
            # RFC 2920 section 3.1: DATA may be the last command of the group.
            self._wire.send(
                [*([RSET] if reset else []), envelope.mail, *(command for _, command in envelope.rcpt), DATA]
            )
        if reset and not (await self._ask(Phase.MAIL, RSET)).positive:
            self._untouched = True
            raise Broken("network", "refused to begin a new transaction")
        await self._mail(envelope)
        if self._settled_early():
            return
        await self._rcpt(envelope)
        if self._settled_early():
            return
        if await self._data():
            await self._content(message)

    def _settled_early(self) -> bool:
        """All are refused. In a pipelined group the rest of its replies has still to be read."""
        return not self._accepted and not self._pipelining

    async def _mail(self, envelope: Envelope) -> None:
        answer = await self._ask(Phase.MAIL, envelope.mail)
        recipients = [recipient for recipient, _ in envelope.rcpt]
        if answer.positive:
            self._accepted = recipients
        else:
            self._refuse(recipients, answer)

    async def _rcpt(self, envelope: Envelope) -> None:
        candidates, self._accepted = self._accepted, []
        for recipient, command in envelope.rcpt:
            answer = await self._ask(Phase.RCPT, command)
            if not candidates:
                continue  # MAIL was refused, which decided for all
            if answer.positive:
                self._accepted.append(recipient)
            elif answer.code in TOO_MANY_RECIPIENTS and self._accepted:
                self._postponed.append(recipient)
            else:
                self._refuse([recipient], answer)

    async def _data(self) -> bool:
        """Whether the server waits for the content."""
        answer = await self._ask(Phase.DATA, DATA, self._timeouts.data.total_seconds())
        if answer.code == START_INPUT:
            return True
        if answer.negative:
            self._refuse(self._accepted, answer)
            return False
        raise Broken("protocol", f"answered DATA with {answer.code}, which is neither 354 nor a refusal")

    async def _content(self, message: QueuedMessage) -> None:
        if not self._accepted:
            # Pipelined, and the server wants content although it refused everybody (RFC 2920 section 3.1).
            await self._ask(Phase.END_OF_DATA, LONE_DOT, written=False)
            self.unfinished = False
            return
        answer = await self._upload(message)
        if answer is None:
            self._phase = Phase.END_OF_DATA
            answer = await self._answer(self._timeouts.end_of_data.total_seconds())
        elif not answer.negative:
            raise Broken("protocol", f"answered with {answer.code} before it had the whole message")
        if not answer.positive and not answer.negative:
            raise Broken("protocol", f"answered the whole message with {answer.code}")
        self._refuse(self._accepted, answer)
        self.unfinished = False

    async def _upload(self, message: QueuedMessage) -> Answer | None:
        """Send the content. An answer that comes before the end is returned; the connection is of no use then."""
        seconds = self._timeouts.block.total_seconds()
        content = memoryview(message.stuffed)
        self._wire.transcript.ours(f"({len(content)} bytes of content)")
        self._wire.expect()
        for start in range(0, len(content), CHUNK):
            if start:
                await self._wire.drain(seconds)
                if self._wire.answered:
                    answer = await self._answer(0)
                    self._wire.abort()
                    return answer
            self._wire.write(content[start : start + CHUNK])
        if self._wire.unsent:
            await self._wire.drain(seconds)
        return None

    async def _ask(
        self, phase: Phase, command: bytes, seconds: float | None = None, *, written: bool | None = None
    ) -> Answer:
        """Send a command, unless it went out with its group, and wait for its reply."""
        self._phase = phase
        self._wire.transcript.ours(command)
        if not (self._pipelining if written is None else written):
            self._wire.send([command])
        return await self._answer(self._timeouts.command.total_seconds() if seconds is None else seconds)

    async def _answer(self, seconds: float) -> Answer:
        answer = await self._wire.answer(seconds)
        if answer.code == CLOSING:
            raise Broken("network", f"ended the session: {answer}", answer)
        if answer.code // 100 == 3 and self._phase in (Phase.MAIL, Phase.RCPT):
            raise Broken("protocol", f"answered {self._phase} with {answer.code}")
        return answer

    def _refuse(self, recipients: Sequence[str], answer: Answer) -> None:
        """Let this reply decide for these recipients. After the final dot, it may be good news."""
        refusal = Refusal(self._phase, answer.to(self._phase, self._target.host))
        for recipient in recipients:
            self._decided[recipient] = refusal
