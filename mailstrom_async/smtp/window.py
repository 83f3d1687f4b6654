"""Several messages at once on one connection, each with all of its content, before the first one is answered: MAIL,
RCPT and BDAT (RFC 3030) need not wait for one another (RFC 2920).

What it costs: when the connection is lost, each message that the server may have whole, and did not answer, may arrive
twice. So it is off unless asked for.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain

from mailstrom_async._config import Timeouts
from mailstrom_async._envelope import QueuedMessage
from mailstrom_async._policy.replies import CLOSING, Answer
from mailstrom_async._reply import Phase
from mailstrom_async.smtp.base import Target, TransactionResult
from mailstrom_async.smtp.envelope import RSET, Envelope
from mailstrom_async.smtp.ledger import Ledger
from mailstrom_async.smtp.wire import CHUNK, Broken, Wire

MOST_BYTES = 1024 * 1024
"""Content that is sent before the reply to what went before; a message alone may have more."""


class Flight:
    """A message on its way: what of it was sent, and what was answered."""

    __slots__ = ("commands", "envelope", "ledger", "message", "reset_refused", "resets", "until", "written")

    def __init__(self, message: QueuedMessage, envelope: Envelope, host: str, *, reset: bool) -> None:
        self.message = message
        self.envelope = envelope
        self.ledger = Ledger(envelope.recipients, host, chunked=True)
        self.resets = reset  # the reply to RSET comes first
        self.reset_refused = False
        self.written = False  # the whole content was given to the kernel, or waits for it
        self.until: float | None = (
            None  # when the replies to the envelope are overdue; counted from the first one's turn
        )
        announcement, _ = envelope.chunk(message)
        self.commands = chain((RSET,) if reset else (), envelope.commands, (announcement,))

    def take(self, answer: Answer) -> None:
        """Raises Broken if this reply ends the conversation."""
        if not self.resets:
            self.ledger.take(answer)
            return
        if answer.code == CLOSING:
            raise Broken("network", f"ended the session with: {answer}", answer)
        if not answer.positive:
            self.reset_refused = True
            raise Broken("network", "refused to begin another transaction")
        self.resets = False


class Window:
    """The messages of one connection that are not answered, in the order of their commands.

    An empty window is opened step by step: MAIL and RCPT are agreed on before the content goes, so that a session that
    the server closed while it idled harms nobody. Then it grows with each message that is answered, and before each one
    that is sent ahead stands RSET: whatever the server made of the message before it, this one begins anew.
    """

    def __init__(self, wire: Wire, target: Target, timeouts: Timeouts, size: int) -> None:
        """
        Args:
            size: Messages that may be unanswered.
        """
        self._wire = wire
        self._target = target
        self._timeouts = timeouts
        self._size = size
        self._allowed = 1
        self._flights: deque[Flight] = deque()
        self._ahead: deque[Flight] = deque()  # those of them that nobody has asked for yet, and who were answered since
        self._bytes = 0
        self._last: Flight | None = None
        self._unclean = False  # the server may hold an envelope of ours
        self._broken: Broken | None = None
        self._broke_at: Flight | None = None
        self._closed = False

    @property
    def empty(self) -> bool:
        """Everything that was sent is answered."""
        return not self._flights

    def next_is(self, message: QueuedMessage, recipients: Sequence[str]) -> bool:
        """It is the next of those that were sent ahead."""
        return self.sent(message) and self._ahead[0].envelope.recipients == tuple(recipients)

    def sent(self, message: QueuedMessage) -> bool:
        """It, perhaps to other recipients, is the next of those that were sent ahead."""
        return bool(self._ahead) and self._ahead[0].message.key == message.key

    @property
    def open(self) -> bool:
        """One more may be sent ahead."""
        return (
            len(self._flights) < self._allowed
            and self._bytes < MOST_BYTES
            and self._broken is None
            and self._wire.usable
            and not self._wire.unsent
        )

    def in_doubt(self, flight: Flight) -> bool:
        """The server may have the whole message, and its reply to it did not come."""
        return flight.written and not flight.ledger.ended and not (flight is self._last and self._wire.unsent)

    def send_ahead(self, message: QueuedMessage, envelope: Envelope) -> None:
        """Send a small message whole. It is to be asked for next, after those that were sent ahead before."""
        flight = self._add(message, envelope, reset=True)
        self._ahead.append(flight)
        announcement, end = envelope.chunk(message)
        self._wire.expect(len(envelope.commands) + 2)
        self._write(flight, b"".join((RSET, *envelope.commands, announcement, message.content, end)))

    def take(self) -> Flight:
        """The next of those that were sent ahead, to be run."""
        return self._ahead.popleft()

    def begin(self, message: QueuedMessage, envelope: Envelope) -> Flight:
        """A message of which nothing is sent yet, to be run."""
        return self._add(message, envelope, reset=self._unclean or bool(self._flights))

    async def run(self, flight: Flight, refill: Callable[[], None], *, reused: bool) -> TransactionResult:
        """Send what of a message is not sent, and wait until it is answered.

        Args:
            refill: Called when there may be room for another: sends ahead.
            reused: The session had a transaction before, so that no blame falls on the server if it is closed now.
        """
        try:
            if not flight.written and self._broken is None:
                await self._send(flight)
            while not flight.ledger.ended and self._broken is None:
                refill()
                await self._read()
            refill()  # its answer made room
        except Broken as broken:
            self._break(broken)
        return self._result(flight, reused=reused)

    def abandon(self) -> list[TransactionResult]:
        """Drop the connection; what became of the messages that were sent ahead and not asked for, in their order."""
        try:
            self._closed = self._wire.closed
            self._wire.abort()
            while self._flights and self._broken is None:
                self._route(self._wire.take() or self._wire.give_up())
        except Broken as broken:
            self._break(broken)
        given_up, self._ahead = self._ahead, deque()
        return [self._result(flight, reused=True) for flight in given_up]

    # Out

    def _add(self, message: QueuedMessage, envelope: Envelope, *, reset: bool) -> Flight:
        flight = Flight(message, envelope, self._target.host, reset=reset)
        self._flights.append(flight)
        self._bytes += len(message.content)
        self._unclean = True
        return flight

    def _write(self, flight: Flight, octets: bytes) -> None:
        flight.written = self._wire.write(octets)
        self._last = flight

    async def _send(self, flight: Flight) -> None:
        envelope = flight.envelope
        self._wire.expect(len(envelope.commands) + flight.resets)
        self._wire.write(b"".join((RSET if flight.resets else b"", *envelope.commands)))
        while flight.resets or flight.ledger.phase is not Phase.END_OF_DATA:
            await self._read()
        if not flight.ledger.accepted:
            self._remove(flight)  # nobody is left, and RSET tells the server so
            flight.ledger.ended = True
            return
        await self._send_content(flight)

    async def _send_content(self, flight: Flight) -> None:
        """One by one: nothing else is sent meanwhile, and the replies to all before have come."""
        wire, content = self._wire, flight.message.content
        announcement, end = flight.envelope.chunk(flight.message)
        wire.expect()
        rest = 0
        while len(content) - rest > CHUNK:
            wire.write(b"".join((announcement, content[rest : rest + CHUNK])))
            announcement, rest = b"", rest + CHUNK
            await wire.drain(self._timeouts.block.total_seconds())
            if wire.answered:
                self._refused_early(flight)
                return
        self._write(flight, b"".join((announcement, content[rest:], end)))
        if wire.unsent:
            await wire.drain(self._timeouts.block.total_seconds())
            if wire.unsent:
                self._refused_early(flight)

    def _refused_early(self, flight: Flight) -> None:
        """The server answered before it had the whole content. A refusal decides; nothing can follow it here."""
        self._wire.transcript.ours(next(flight.commands))
        self._route(self._wire.take() or self._wire.give_up())
        self._wire.abort()

    # In

    async def _read(self) -> None:
        """Take one reply, for whom it concerns."""
        flight = self._flights[0]
        phase = flight.ledger.phase
        self._wire.transcript.ours(next(flight.commands))
        answer = self._wire.take()
        if answer is None:
            if phase is Phase.END_OF_DATA:
                answer = await self._wire.answer(self._timeouts.end_of_data.total_seconds())
            else:
                if flight.until is None:
                    now = asyncio.get_running_loop().time()
                    flight.until = now + self._timeouts.envelope.total_seconds()
                answer = await self._wire.answer(self._timeouts.command.total_seconds(), flight.until)
        self._route(answer)

    def _route(self, answer: Answer) -> None:
        flight = self._flights[0]
        if flight.ledger.phase is Phase.END_OF_DATA and answer.positive and not self.in_doubt(flight):
            raise Broken("protocol", f"answered {answer.code} before it had the whole message")
        flight.take(answer)
        if flight.ledger.ended:
            self._remove(flight)
            taken = bool(flight.ledger.accepted) and answer.positive
            self._unclean = bool(self._flights) or not taken
            if taken:
                self._allowed = min(2 * self._allowed, self._size)

    def _remove(self, flight: Flight) -> None:
        self._flights.remove(flight)
        if flight is self._last:
            self._last = None
        self._bytes -= len(flight.message.content)

    # The end

    def _break(self, broken: Broken) -> None:
        if self._broken is None:
            self._broken = broken
            self._closed = self._closed or self._wire.closed
            self._broke_at = self._flights[0] if self._flights else None
            ledger = self._broke_at.ledger if self._broke_at is not None else None
            if ledger is not None and broken.cause == "protocol":
                ledger.forget()  # the replies before may have been paired with the wrong commands
        self._wire.abort()

    def _result(self, flight: Flight, *, reused: bool) -> TransactionResult:
        ledger = flight.ledger
        breakdown = None
        if not ledger.ended and not ledger.settles_all:
            broken = self._broken or Broken("network", "closed the connection")
            if flight is not self._broke_at and not (self.in_doubt(flight) and broken.answer is None):
                # Its turn never came: it was not sent whole, or the server had said good-bye before.
                return TransactionResult({}, untouched=True)
            if reused and self._before_mail(flight, broken):
                told = broken.at(ledger.phase, self._target, in_doubt=False) if broken.answer is not None else None
                return TransactionResult({}, told, untouched=True)
            breakdown = broken.at(ledger.phase, self._target, in_doubt=self.in_doubt(flight))
        return TransactionResult(ledger.decided, breakdown, tuple(ledger.postponed))

    def _before_mail(self, flight: Flight, broken: Broken) -> bool:
        """The server had ended the session before it answered MAIL, and either said so or can't have the content."""
        if flight.ledger.phase is not Phase.MAIL or broken.cause != "network":
            return False
        if broken.answer is not None:
            return True
        return not self.in_doubt(flight) and (flight.reset_refused or self._closed)
