"""One mail transaction: from MAIL to the reply after the final dot (RFC 5321 section 3.3)."""

import asyncio
from collections.abc import Callable

from mailstrom_async._config import Timeouts
from mailstrom_async._envelope import QueuedMessage
from mailstrom_async._policy.replies import CLOSING
from mailstrom_async._reply import Phase
from mailstrom_async.smtp.base import Target, TransactionResult
from mailstrom_async.smtp.envelope import DATA, RSET, Envelope
from mailstrom_async.smtp.ledger import Ledger
from mailstrom_async.smtp.wire import CHUNK, Broken, Wire

LONE_DOT = b".\r\n"

SMALL = 16 * 1024
"""Bytes of a content that fit into the kernel's buffer together with an envelope, unless the server reads nothing."""

WriteNext = Callable[[], Envelope | None]


class Transaction:
    """Carries one message to its recipients over a wire.

    Attributes:
        unfinished: The server may still hold an envelope of ours: RSET before the next one.
    """

    __slots__ = (
        "_ahead",
        "_begun",
        "_envelope",
        "_ledger",
        "_message",
        "_pipelining",
        "_reset_refused",
        "_sent",
        "_target",
        "_timeouts",
        "_unanswered",
        "_wire",
        "_write_next",
        "unfinished",
    )

    def __init__(
        self,
        wire: Wire,
        target: Target,
        timeouts: Timeouts,
        message: QueuedMessage,
        envelope: Envelope,
        *,
        pipelining: bool,
        begun: bool = False,
        write_next: WriteNext,
    ) -> None:
        """
        Args:
            pipelining: The server offers it.
            begun: The envelope went out with the content of the message before.
            write_next: Called when the end of the content goes out: the envelope to send along.
        """
        self.unfinished = True
        self._wire = wire
        self._target = target
        self._timeouts = timeouts
        self._message = message
        self._envelope = envelope
        self._pipelining = pipelining
        self._begun = begun
        self._write_next = write_next
        self._ledger = Ledger(envelope.recipients, target.host)
        self._unanswered = False  # the whole message is written, its reply is not here
        self._sent = False  # the kernel has all of it; what is unsent then belongs to the next one
        self._ahead = 0  # bytes of the next envelope that may be part of what is unsent
        self._reset_refused = False

    async def run(self, *, reset: bool, reused: bool) -> TransactionResult:
        """Send the message, and sort the recipients by what was answered.

        Args:
            reset: Begin with RSET.
            reused: The session had a transaction before, so that no blame falls on the server if it is closed now.
        """
        breakdown = None
        untouched = False
        ledger = self._ledger
        try:
            if not self._agreed_ahead():
                await self._agree(reset)
            if ledger.wants_content:
                await (self._content() if ledger.accepted else self._nothing())
            elif ledger.refused and ledger.accepted and self._pipelining:
                await self._confirm()
        except Broken as broken:
            if broken.cause == "protocol" and ledger.phase is not Phase.END_OF_DATA:
                ledger.forget()
            untouched = reused and self._before_mail(broken)
            breakdown = broken.at(ledger.phase, self._target, in_doubt=self.in_doubt)
            self._wire.abort()
        finally:
            del self._message  # a session keeps its last transaction while it idles, and the content may be large
        return TransactionResult(
            decided=ledger.decided,
            breakdown=breakdown if breakdown is not None and not ledger.settles_all else None,
            postponed=tuple(ledger.postponed),
            untouched=untouched,
        )

    @property
    def in_doubt(self) -> bool:
        """The server may have the whole message, and its reply to it did not come."""
        return self._unanswered and (self._sent or self._ahead > 0 or not self._wire.unsent)

    def _before_mail(self, broken: Broken) -> bool:
        """The server had ended the session before it answered MAIL, by a 421 or without a word."""
        if self._ledger.phase is not Phase.MAIL or broken.cause != "network":
            return False
        return self._reset_refused or broken.answer is not None or self._wire.closed

    def _agreed_ahead(self) -> bool:
        """The envelope, if it went out with the content of the message before and all of its replies are here."""
        commands = self._envelope.group
        answers = self._wire.take_all(len(commands)) if self._begun else ()
        if not answers:
            return False
        self._wire.transcript.exchange(commands, answers)
        self._ledger.take_all(answers)
        return True

    async def _agree(self, reset: bool) -> None:
        """The envelope: until DATA is answered, or, where commands go one by one, until nobody is left."""
        wire, ledger, commands, one_by_one = self._wire, self._ledger, self._envelope.group, not self._pipelining
        if not one_by_one and not self._begun:
            wire.expect(len(commands) + reset)
            wire.write(b"".join((RSET, *commands) if reset else commands))
        timeouts = self._timeouts
        until = asyncio.get_running_loop().time() + timeouts.envelope.total_seconds()
        if reset:
            await self._reset(one_by_one, until)
        for command in commands:
            wire.transcript.ours(command)
            if one_by_one:
                wire.send(command)
            seconds = timeouts.data if command is DATA else timeouts.command
            ledger.take(wire.take() or await wire.answer(seconds.total_seconds(), until))
            if one_by_one and command is not DATA and ledger.settles_all:
                return  # nobody is left, and nothing is still to be read

    async def _reset(self, one_by_one: bool, until: float) -> None:
        self._wire.transcript.ours(RSET)
        if one_by_one:
            self._wire.send(RSET)
        answer = await self._wire.answer(self._timeouts.command.total_seconds(), until)
        if answer.code == CLOSING:
            raise Broken("network", f"ended the session with: {answer}", answer)
        if not answer.positive:
            self._reset_refused = True
            raise Broken("network", "refused to begin another transaction")

    async def _confirm(self) -> None:
        """A refusal of DATA decides for those who were accepted. In a group it may be a recipient's, moved there by a
        reply too many before it; then what comes now is not the reply to RSET."""
        self._wire.transcript.ours(RSET)
        self._wire.send(RSET)
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
        self._ledger.content_sent()
        self._wire.transcript.ours(LONE_DOT)
        self._wire.send(LONE_DOT)
        answer = await self._wire.answer(self._timeouts.end_of_data.total_seconds())
        if answer.code == CLOSING:
            raise Broken("network", f"ended the session with: {answer}", answer)
        self.unfinished = False

    async def _content(self) -> None:
        wire, ledger, content = self._wire, self._ledger, self._message.content
        wire.transcript.content(len(content))
        if len(content) <= SMALL and not wire.encrypted:
            whole = self._send_small() or await self._taken_late()
        else:
            whole = await self._send_large()
        if whole:
            ledger.content_sent()
        answer = await wire.answer(self._timeouts.end_of_data.total_seconds())
        self._unanswered = False
        if not whole and answer.code != CLOSING:
            if not answer.negative:
                raise Broken("protocol", f"answered {answer.code} before it had the whole message")
            ledger.content_sent()
        ledger.take(answer)
        self.unfinished = False
        if not whole:
            wire.abort()

    def _send_small(self) -> bool:
        """Send a content that the kernel takes at once, and the next envelope with it: one system call for both.
        Whether the kernel took all of it."""
        wire, group = self._wire, self._next_group()
        wire.expect(1 + len(group))
        self._unanswered = wire.write(b"".join((self._message.stuffed, *group)))
        self._sent = not wire.unsent
        if not self._sent:
            self._ahead = sum(map(len, group))
        return self._sent

    async def _taken_late(self) -> bool:
        """Should the kernel not take all, what it did not take tells whether the content is gone. If the connection
        breaks meanwhile, nobody can tell, and the message is in doubt."""
        wire = self._wire
        await wire.drain(self._timeouts.block.total_seconds())
        # Dropped meanwhile, it has nothing in its buffer either.
        self._sent = not wire.unsent or (wire.usable and wire.buffered <= self._ahead)
        return self._sent

    async def _send_large(self) -> bool:
        """Send a content piece by piece, and the next envelope when the kernel has all of it. False: the server
        answered before it had the whole."""
        wire = self._wire
        wire.expect()
        written = None
        for piece in self._message.on_the_wire(CHUNK):
            if written is not None:
                await wire.drain(self._timeouts.block.total_seconds())
                if wire.answered:
                    return False
            written = wire.write(piece)
        self._unanswered = bool(written)
        if wire.unsent:
            await wire.drain(self._timeouts.block.total_seconds())
        self._sent = self._unanswered and not wire.unsent
        if self._sent and (group := self._next_group()):
            wire.expect(len(group))
            wire.write(b"".join(group))
        return self._sent or not wire.unsent

    def _next_group(self) -> tuple[bytes, ...]:
        """The next envelope, to be sent behind the end of the content where that is possible: the end of the content is
        the begin of another group (RFC 2920 section 3.1). Empty: there is none."""
        following = self._write_next() if self._pipelining and not self._ledger.postponed else None
        return () if following is None else following.group
