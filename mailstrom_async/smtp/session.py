"""A session: a connection that is ready for transactions, and remembers what the server offered."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from mailstrom_async._config import Timeouts
from mailstrom_async._envelope import QueuedMessage
from mailstrom_async._status import TLSFacts
from mailstrom_async.smtp.base import Following, Target, TransactionResult
from mailstrom_async.smtp.envelope import Envelope, Offers, unfit
from mailstrom_async.smtp.transaction import Transaction
from mailstrom_async.smtp.window import Flight, Window
from mailstrom_async.smtp.wire import CHUNK, Broken, Wire

QUIT = b"QUIT\r\n"
# Nothing depends on the answer: every message of this session has its outcome.
QUIT_SECONDS = 1.0


class _Ahead(NamedTuple):
    """An envelope that was sent before its transaction began."""

    message: QueuedMessage
    envelope: Envelope

    def matches(self, message: QueuedMessage, recipients: Sequence[str]) -> bool:
        return self.message is message and self.envelope.recipients == tuple(recipients)


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
    ) -> None:
        self._wire = wire
        self._target = target
        self._tls = tls
        self._offers = offers
        self._timeouts = timeouts
        self._transactions = 0
        self._last: Transaction | None = None
        streams = bdat_window and offers.chunking and offers.pipelining
        self._window = Window(wire, target, timeouts, bdat_window) if streams else None
        self._flight: Flight | None = None
        self._held = False  # the next message was named, and has to be asked for before it is sent
        self._ahead: _Ahead | None = None  # sent, and its transaction not yet begun

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
        if ahead is not None and not ahead.matches(message, recipients):
            self._wire.abort()  # the server holds another envelope, and waits for its content
            ahead = None
        envelope = ahead.envelope if ahead is not None else Envelope.write(message, recipients, self._offers)
        # Before the first transaction the opening is of interest: it may explain what follows.
        if self._transactions:
            self._wire.transcript.clear()
        if ahead is None and (refused := unfit(message, self._offers, self._target)) is not None:
            return TransactionResult({}, refused)
        last = self._last
        self._last = transaction = Transaction(
            self._wire,
            self._target,
            self._timeouts,
            message,
            envelope,
            pipelining=self._offers.pipelining,
            begun=ahead is not None,
            write_next=partial(self._write_next, following),
        )
        self._transactions += 1
        try:
            return await transaction.run(reset=last is not None and last.unfinished, reused=last is not None)
        except BaseException:
            self._wire.abort()
            raise

    def _write_next(self, following: Following | None) -> Envelope | None:
        """The envelope that is to go out with the end of the content, if there is one."""
        named = following() if following is not None else None
        if named is None or unfit(named[0], self._offers, self._target) is not None:
            return None
        try:
            envelope = Envelope.write(*named, self._offers)
        except ValueError:
            return None  # its own transaction will raise it, and this one is not to suffer from it
        self._ahead = _Ahead(named[0], envelope)
        return envelope

    async def _stream(
        self, window: Window, message: QueuedMessage, recipients: Sequence[str], following: Following | None
    ) -> TransactionResult:
        """As `transact`, by BDAT, with others on their way at the same time."""
        if window.next_is(message, recipients):
            envelope = None
        else:
            envelope = Envelope.write(message, recipients, self._offers)
            self._held = False
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
            return await window.run(
                flight, partial(self._refill, window, following), reused=envelope is None or self._transactions > 1
            )
        except BaseException:
            self._wire.abort()
            raise

    def _refill(self, window: Window, following: Following | None) -> None:
        """Send ahead what is named, while there is room for it."""
        while following is not None and not self._held and window.open:
            named = following()
            if named is None:
                return
            envelope = self._envelope_ahead(*named)
            if envelope is None:
                self._held = True
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
