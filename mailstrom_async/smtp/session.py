"""A session: a connection that is ready for transactions, and remembers what the server offered."""

from collections.abc import Sequence

from mailstrom_async._config import Timeouts
from mailstrom_async._envelope import QueuedMessage
from mailstrom_async._status import TLSFacts
from mailstrom_async.smtp.base import Following, Target, TransactionResult
from mailstrom_async.smtp.transaction import Envelope, Offers, Transaction, unfit
from mailstrom_async.smtp.wire import Broken, Wire

QUIT = b"QUIT\r\n"
# Nothing depends on the answer: every message of this session has its outcome.
QUIT_SECONDS = 1.0


class SMTPSession:
    """Implements `mailstrom_async.smtp.Session`. `SMTPConnector` makes them."""

    def __init__(self, wire: Wire, target: Target, tls: TLSFacts, offers: Offers, timeouts: Timeouts) -> None:
        self._wire = wire
        self._target = target
        self._tls = tls
        self._offers = offers
        self._timeouts = timeouts
        self._transactions = 0
        self._last: Transaction | None = None
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
        envelope = Envelope.write(message, recipients, self._offers)
        # Before the first transaction the opening is of interest: it may explain what follows.
        if self._transactions:
            self._wire.transcript.clear()
        refused = unfit(message, self._offers, self._target)
        if refused is not None:
            return TransactionResult({}, refused)
        begun = self._ahead is not None
        if begun and self._ahead != envelope:
            self._wire.abort()  # the server holds another envelope, and waits for its content
        self._ahead = None
        reused = self._transactions > 0
        reset = self._last is not None and self._last.unfinished
        self._transactions += 1
        self._last = Transaction(
            self._wire, self._target, self._timeouts, pipelining=self._offers.pipelining, begun=begun
        )
        try:
            return await self._last.run(
                message, envelope, reset=reset, reused=reused, write_next=lambda: self._write_next(following)
            )
        except BaseException:
            self._wire.abort()
            raise

    def _write_next(self, following: Following | None) -> Envelope | None:
        """The envelope that is to go out with the end of the content, if there is one."""
        named = following() if following is not None else None
        if named is None or unfit(named[0], self._offers, self._target) is not None:
            return None
        try:
            self._ahead = Envelope.write(*named, self._offers)
        except ValueError:
            return None  # its own transaction will raise it, and this one is not to suffer from it
        return self._ahead

    async def quit(self) -> None:
        try:
            if self._wire.usable and self._ahead is None:
                self._wire.send([QUIT])
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
