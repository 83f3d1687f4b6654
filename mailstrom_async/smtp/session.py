"""A session: a connection that is ready for transactions, and remembers what the server offered."""

import asyncio
from collections.abc import Sequence
from functools import partial

from mailstrom_async._config import Timeouts
from mailstrom_async._envelope import QueuedMessage
from mailstrom_async._reply import Phase
from mailstrom_async._status import TLSFacts
from mailstrom_async.smtp.base import Breakdown, Following, Target, TransactionResult
from mailstrom_async.smtp.envelope import Envelope, Offers, unfit
from mailstrom_async.smtp.manners import Manner, Manners
from mailstrom_async.smtp.transaction import Transaction
from mailstrom_async.smtp.window import Flight, Window
from mailstrom_async.smtp.wire import CHUNK, Broken, Wire

QUIT = b"QUIT\r\n"
# Nothing depends on the answer: every message of this session has its outcome.
QUIT_SECONDS = 1.0


class SMTPSession:
    """Implements `mailstrom_async.smtp.Session`. `SMTPConnector` makes them."""

    def __init__(
        self,
        wire: Wire,
        target: Target,
        tls: TLSFacts,
        offers: Offers,
        timeouts: Timeouts,
        *,
        bdat_window: int = 0,
        manners: Manners | None = None,
    ) -> None:
        """
        Args:
            bdat_window: As `Limits.bdat_window`.
            manners: What is remembered of hosts; None: nothing.
        """
        self._manners = manners if manners is not None else Manners()
        self._manner = self._manners.of(target.key, asyncio.get_running_loop().time())
        self._wire = wire
        self._target = target
        self._tls = tls
        self._offers = offers
        self._timeouts = timeouts
        self._transactions = 0
        self._last: Transaction | None = None
        self._following: Following | None = None  # who names what comes after that
        self._pipelining = offers.pipelining and self._manner >= Manner.GROUPED
        self._sends_ahead = self._pipelining and self._manner >= Manner.AHEAD
        streams = bdat_window and offers.chunking and offers.pipelining and self._manner is Manner.STREAMED
        self._window = Window(wire, target, timeouts, bdat_window) if streams else None
        self._flight: Flight | None = None
        self._held: int | None = None  # the key of a message that was named, and must be asked for before it is sent
        self._ahead: Envelope | None = None  # sent, and its transaction not yet begun

    @property
    def target(self) -> Target:
        return self._target

    @property
    def tls(self) -> TLSFacts:
        return self._tls

    @property
    def usable(self) -> bool:
        return self._wire.usable

    @property
    def in_doubt(self) -> bool:
        if self._window is not None:
            return self._flight is not None and self._window.in_doubt(self._flight)
        return self._last is not None and self._last.in_doubt

    @property
    def transactions(self) -> int:
        return self._transactions

    @property
    def transcript(self) -> tuple[str, ...]:
        return self._wire.transcript.render()

    async def transact(
        self, message: QueuedMessage, recipients: Sequence[str], following: Following | None = None
    ) -> TransactionResult:
        if self._window is not None:
            return await self._stream(self._window, message, recipients, following)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and not ahead.is_of(message, recipients):
            self._wire.abort()  # the server holds another envelope, and waits for its content
            ahead = None
        envelope = ahead or Envelope.write(message, recipients, self._offers)
        # Before the first transaction the opening is of interest: it may explain what follows.
        if self._transactions:
            self._wire.transcript.clear()
        if ahead is None and (refused := unfit(message, self._offers, self._target)) is not None:
            return TransactionResult({}, refused)
        self._following = following
        last = self._last
        self._last = transaction = Transaction(
            self._wire,
            self._target,
            self._timeouts,
            message,
            envelope,
            pipelining=self._pipelining,
            begun=ahead is not None,
            write_next=self._write_next,
        )
        self._transactions += 1
        try:
            result = await transaction.run(reset=last is not None and last.unfinished, reused=last is not None)
        except BaseException:
            self._wire.abort()
            raise
        if result.breakdown is not None:
            self._learn(result, result.breakdown, begun=ahead is not None)
        return result

    def _learn(self, result: TransactionResult, breakdown: Breakdown, *, begun: bool) -> None:
        """If the server broke off without a word where much was sent at once, that may be why."""
        if breakdown.reply is not None or (result.untouched and not begun):
            return
        in_envelope = breakdown.phase is not Phase.END_OF_DATA
        if self._ahead is not None or (begun and in_envelope):
            self._too_much(Manner.AHEAD)
        elif self._pipelining and in_envelope:
            self._too_much(Manner.GROUPED)

    def _too_much(self, manner: Manner) -> None:
        self._manners.too_much(self._target.key, manner, asyncio.get_running_loop().time())

    def _write_next(self) -> Envelope | None:
        """The envelope that is to go out with the end of the content, if there is one."""
        named = self._following() if self._following is not None and self._sends_ahead else None
        if named is None or unfit(named[0], self._offers, self._target) is not None:
            return None
        try:
            self._ahead = Envelope.write(*named, self._offers)
        except ValueError:
            return None  # its own transaction will raise it, and this one is not to suffer from it
        return self._ahead

    async def _stream(
        self, window: Window, message: QueuedMessage, recipients: Sequence[str], following: Following | None
    ) -> TransactionResult:
        """As `transact`, by BDAT, with others on their way at the same time."""
        is_next = window.next_is(message, recipients)
        if message.key == self._held:
            self._held = None
        envelope = None if is_next else Envelope.write(message, recipients, self._offers)
        if self._transactions:
            self._wire.transcript.clear()
        if envelope is None:
            flight = window.take()
        elif (refused := unfit(message, self._offers, self._target)) is not None:
            return TransactionResult({}, refused)
        else:
            flight = window.begin(message, envelope)
            self._transactions += 1
        self._flight = flight
        try:
            result = await window.run(
                flight, partial(self._refill, window, following), reused=envelope is None or self._transactions > 1
            )
        except BaseException:
            self._wire.abort()
            raise
        self._flight = None  # or its content would stay in memory while the session idles
        if result.breakdown is not None and result.breakdown.reply is None:
            self._too_much(Manner.STREAMED)
        return result

    def _refill(self, window: Window, following: Following | None) -> None:
        """Send ahead what is named, while there is room for it."""
        while following is not None and self._held is None and window.open:
            named = following()
            if named is None:
                return
            envelope = self._envelope_ahead(*named)
            if envelope is None:
                self._held = named[0].key
                return
            self._transactions += 1
            window.send_ahead(named[0], envelope)

    def _envelope_ahead(self, message: QueuedMessage, recipients: Sequence[str]) -> Envelope | None:
        """None: this one is not to be sent ahead, but when its own transaction is asked for."""
        if len(message.content) > CHUNK or unfit(message, self._offers, self._target) is not None:
            return None
        try:
            return Envelope.write(message, recipients, self._offers)
        except ValueError:
            return None  # its own transaction will raise it, and this one is not to suffer from it

    def sent_ahead(self, message: QueuedMessage) -> bool:
        return self._window is not None and self._window.sent(message)

    def abandon(self) -> Sequence[TransactionResult]:
        ahead = self._ahead is not None and not self._wire.answered
        if self._wire.broke_off and (ahead or self._window is not None):
            self._too_much(Manner.AHEAD if self._window is None else Manner.STREAMED)
        if self._window is not None:
            return self._window.abandon()
        self._wire.abort()
        return ()

    async def quit(self) -> None:
        try:
            if self._wire.usable and self._ahead is None and (self._window is None or self._window.empty):
                self._wire.send(QUIT)
                await self._wire.answer(QUIT_SECONDS)
        except Broken:
            # Deliberately nothing: the session ends, which is all that was wanted.
            pass
        finally:
            self._wire.abort()

    def abort(self) -> None:
        self._wire.abort()

    def __repr__(self) -> str:
        state = "usable" if self.usable else "closed"
        protection = self._tls.version or "plaintext"
        return f"<SMTPSession with {self._target} [{protection}, {self._transactions} transactions, {state}]>"
