"""One mail transaction: from MAIL to the reply after the final dot (RFC 5321 section 3.3)."""

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from mailstrom_async._config import Timeouts
from mailstrom_async._envelope import QueuedMessage
from mailstrom_async._policy.replies import CLOSING, Answer
from mailstrom_async._reply import Phase
from mailstrom_async.smtp.base import Breakdown, Refusal, Target, TransactionResult
from mailstrom_async.smtp.wire import CHUNK, Broken, Wire

RSET = b"RSET\r\n"
DATA = b"DATA\r\n"
LONE_DOT = b".\r\n"

SMALL = 16 * 1024
"""Bytes of a content that fit into the kernel's buffer together with an envelope, unless the server reads nothing."""

START_INPUT = 354
_ENVELOPE = (Phase.MAIL, Phase.RCPT, Phase.DATA)
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

    @property
    def group(self) -> list[bytes]:
        """The commands that go out together (RFC 2920 section 3.1: DATA may be the last of a group)."""
        return [self.mail, *(command for _, command in self.rcpt), DATA]

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
            tuple((recipient, b"RCPT TO:<%b>\r\n" % _checked(recipient).encode(encoding)) for recipient in recipients),
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


def _nothing_follows() -> None:
    return None


class Transaction:
    """Carries one message to its recipients over a wire.

    Attributes:
        unfinished: The server may still hold an envelope of ours: RSET before the next one.
    """

    def __init__(
        self, wire: Wire, target: Target, timeouts: Timeouts, *, pipelining: bool, begun: bool = False
    ) -> None:
        """
        Args:
            pipelining: The server offers it.
            begun: The envelope went out with the content of the message before.
        """
        self.unfinished = True
        self._wire = wire
        self._target = target
        self._timeouts = timeouts
        self._pipelining = pipelining
        self._begun = begun
        self._write_next: Callable[[], Envelope | None] = _nothing_follows
        self._phase = Phase.MAIL
        self._envelope_until = math.inf
        self._unanswered = False  # the whole message is written, its reply is not here
        self._sent = False  # the kernel has all of it; what is unsent then belongs to the next one
        self._mixed = False  # what is unsent may belong to this message or to the next one
        self._reset_refused = False
        self._decided: dict[str, Refusal] = {}
        self._accepted: list[str] = []
        self._postponed: list[str] = []

    async def run(
        self,
        message: QueuedMessage,
        envelope: Envelope,
        *,
        reset: bool,
        reused: bool,
        write_next: Callable[[], Envelope | None],
    ) -> TransactionResult:
        """Send it, and sort the recipients by what was answered.

        Args:
            reset: Begin with RSET.
            reused: The session had a transaction before, so that no blame falls on the server if it is closed now.
            write_next: Called when the end of the content goes out: the envelope to send along.
        """
        self._write_next = write_next
        self._envelope_until = asyncio.get_running_loop().time() + self._timeouts.envelope.total_seconds()
        breakdown = None
        untouched = False
        try:
            await self._converse(message, envelope, reset=reset)
        except Broken as broken:
            if broken.cause == "protocol" and self._phase is not Phase.END_OF_DATA:
                # The replies before may have been paired with the wrong commands.
                self._decided.clear()
                self._postponed.clear()
            untouched = reused and self._before_mail(broken)
            breakdown = self._breakdown(broken)
            self._wire.abort()
        settled = self._decided.keys() | set(self._postponed)
        return TransactionResult(
            decided=self._decided,
            breakdown=breakdown if any(recipient not in settled for recipient, _ in envelope.rcpt) else None,
            postponed=tuple(self._postponed),
            untouched=untouched,
        )

    @property
    def in_doubt(self) -> bool:
        """The server may have the whole message, and its reply to it did not come."""
        return self._unanswered and (self._sent or self._mixed or not self._wire.unsent)

    def _before_mail(self, broken: Broken) -> bool:
        """The server had ended the session before it answered MAIL, by a 421 or without a word."""
        if self._phase is not Phase.MAIL or broken.cause != "network":
            return False
        return self._reset_refused or broken.answer is not None or self._wire.closed_by_server

    def _breakdown(self, broken: Broken) -> Breakdown:
        reason = f"{self._target} {broken.reason}, at {self._phase}"
        if broken.answer is not None:
            return Breakdown(self._phase, broken.cause, reason, broken.answer.to(self._phase, self._target.host))
        if self.in_doubt:
            reason += "; it had the whole message and may have taken it, so that it may arrive twice"
            return Breakdown(Phase.END_OF_DATA, "outcome_unknown", reason)
        return Breakdown(self._phase, broken.cause, reason)

    async def _converse(self, message: QueuedMessage, envelope: Envelope, *, reset: bool) -> None:
        if self._pipelining and not self._begun:
            self._wire.send([RSET, *envelope.group] if reset else envelope.group)
        if reset and not (await self._ask(Phase.MAIL, RSET)).positive:
            self._reset_refused = True
            raise Broken("network", "refused to begin another transaction")
        await self._mail(envelope)
        if self._all_refused():
            return
        await self._rcpt(envelope)
        if self._all_refused():
            return
        if await self._data():
            await (self._content(message) if self._accepted else self._nothing())
        elif self._pipelining and self._accepted:
            await self._confirm()

    def _all_refused(self) -> bool:
        """Nobody is left, and nothing is still to be read: a pipelined group is answered to its end."""
        return not self._accepted and not self._pipelining

    async def _mail(self, envelope: Envelope) -> None:
        answer = await self._ask(Phase.MAIL, envelope.mail)
        recipients = [recipient for recipient, _ in envelope.rcpt]
        if answer.positive:
            self._accepted = recipients
        else:
            self._decide(recipients, answer)

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
                self._decide([recipient], answer)

    async def _data(self) -> bool:
        """Whether the server waits for the content."""
        answer = await self._ask(Phase.DATA, DATA)
        if answer.code == START_INPUT:
            return True
        if answer.negative:
            self._decide(self._accepted, answer)
            return False
        raise Broken("protocol", f"answered {answer.code}, which is neither 354 nor a refusal")

    async def _confirm(self) -> None:
        """A refusal of DATA decides for those who were accepted. In a group it may be a recipient's, moved there by a
        reply too many before it; then what comes now is not the reply to RSET."""
        self._wire.transcript.ours(RSET)
        self._wire.send([RSET])
        try:
            answer = await self._wire.answer(self._timeouts.command.total_seconds())
        except Broken as broken:
            if broken.cause == "protocol":
                raise
            self._wire.abort()  # the conversation ends with the refusal, which stands
            return
        if answer.code == CLOSING:
            self._wire.abort()
        elif not answer.positive:
            raise Broken("protocol", f"answered {answer.code}, which is no reply to RSET")
        self.unfinished = False

    async def _nothing(self) -> None:
        """End the content before it begins: the server asks for it, though it refused all (RFC 2920 section 3.1)."""
        self._phase = Phase.END_OF_DATA
        self._wire.transcript.ours(LONE_DOT)
        self._wire.send([LONE_DOT])
        await self._answer(self._timeouts.end_of_data)
        self.unfinished = False

    async def _content(self, message: QueuedMessage) -> None:
        whole = await self._upload(message)
        if whole:
            self._phase = Phase.END_OF_DATA
        answer = await self._answer(self._timeouts.end_of_data)
        if not answer.negative and not (whole and answer.positive):
            raise Broken("protocol", f"answered {answer.code} {'to' if whole else 'before it had'} the whole message")
        self._phase = Phase.END_OF_DATA
        self._decide(self._accepted, answer)
        self.unfinished = False
        if not whole:
            self._wire.abort()

    async def _upload(self, message: QueuedMessage) -> bool:
        """Send the content; False: the server answered before it had all of it."""
        self._wire.transcript.ours(f"({len(message.content)} bytes of content)")
        self._wire.expect()
        if len(message.content) <= SMALL and not self._wire.encrypted:
            return await self._send_small(b"".join(message.on_the_wire(CHUNK)))
        return await self._send_large(message)

    async def _send_small(self, content: bytes) -> bool:
        """Send a content that the kernel takes at once, and the next envelope with it: one system call for both.

        Should the kernel not take all, what it did not take tells whether the content is gone. If the connection breaks
        meanwhile, nobody can tell, and the message is in doubt.
        """
        group = b"".join(self._next_group())
        self._unanswered = self._wire.write(content + group)
        self._sent = not self._wire.unsent
        if self._wire.unsent:
            self._mixed = bool(group)
            await self._wire.drain(self._timeouts.block.total_seconds())
            self._sent = self._wire.buffered <= len(group)
        return self._sent

    async def _send_large(self, message: QueuedMessage) -> bool:
        """Send a content piece by piece, and the next envelope when the kernel has all of it."""
        written = None
        for piece in message.on_the_wire(CHUNK):
            if written is not None:
                await self._wire.drain(self._timeouts.block.total_seconds())
                if self._wire.answered:
                    return False
            written = self._wire.write(piece)
        self._unanswered = bool(written)
        if self._wire.unsent:
            await self._wire.drain(self._timeouts.block.total_seconds())
        self._sent = self._unanswered and not self._wire.unsent
        if self._sent and (group := self._next_group()):
            self._wire.write(b"".join(group))
        return self._sent or not self._wire.unsent

    def _next_group(self) -> list[bytes]:
        """The next envelope, to be sent behind the end of the content where that is possible: the end of the content is
        the begin of another group (RFC 2920 section 3.1). Empty: there is none."""
        following = self._write_next() if self._pipelining and not self._postponed else None
        if following is None:
            return []
        self._wire.expect(len(following.group))
        return following.group

    async def _ask(self, phase: Phase, command: bytes) -> Answer:
        """Send a command, unless it went out with its group, and wait for its reply."""
        self._phase = phase
        self._wire.transcript.ours(command)
        if not self._pipelining:
            self._wire.send([command])
        return await self._answer(self._timeouts.data if phase is Phase.DATA else self._timeouts.command)

    async def _answer(self, timeout: timedelta) -> Answer:
        until = self._envelope_until if self._phase in _ENVELOPE else math.inf
        answer = await self._wire.answer(timeout.total_seconds(), until)
        self._unanswered = False
        if answer.code == CLOSING:
            raise Broken("network", f"ended the session with: {answer}", answer)
        if not answer.positive and not answer.negative and self._phase in (Phase.MAIL, Phase.RCPT):
            raise Broken("protocol", f"answered {answer.code}, which is neither yes nor no")
        return answer

    def _decide(self, recipients: Sequence[str], answer: Answer) -> None:
        """Let this reply decide for these recipients."""
        refusal = Refusal(self._phase, answer.to(self._phase, self._target.host))
        for recipient in recipients:
            self._decided[recipient] = refusal
