"""Opening sessions: one connection, or a second one without TLS where that is allowed."""

import asyncio
import ssl
import threading
from functools import partial
from pathlib import Path

from mailstrom_async._config import Timeouts
from mailstrom_async._policy import tls
from mailstrom_async._reply import Phase
from mailstrom_async.smtp.base import Breakdown, SessionError, Target
from mailstrom_async.smtp.manners import Manners
from mailstrom_async.smtp.opening import HandshakeFailed, Opening
from mailstrom_async.smtp.session import SMTPSession


class SMTPConnector:
    """Opens SMTP sessions over TCP. Implements `mailstrom_async.smtp.Connector`."""

    def __init__(
        self, helo_name: str, timeouts: Timeouts, *, ca_file: Path | None = None, bdat_window: int = 0
    ) -> None:
        """
        Args:
            helo_name: How we introduce ourselves.
            timeouts: How long to wait for whom.
            ca_file: The trusted certificate authorities, in PEM; None: the system's.
            bdat_window: As `Limits.bdat_window`.
        """
        self._bdat_window = bdat_window
        self._manners = Manners()
        self._helo_name = helo_name
        self._timeouts = timeouts
        self._contexts = Contexts(ca_file)

    async def connect(self, target: Target) -> SMTPSession:
        """Open a session. Where TLS is a mere wish and its handshake fails, a second connection does without it.

        Raises:
            SessionError: None could be opened; says why.
        """
        context = await self._context(target)
        opening = partial(
            Opening,
            target,
            self._helo_name,
            self._timeouts,
            context=context,
            bdat_window=self._bdat_window,
            manners=self._manners,
        )
        try:
            return await opening(policy=target.tls).run()
        except HandshakeFailed as failed:
            why = str(failed)
        return await opening(policy="none", why_plaintext=why).run()

    async def _context(self, target: Target) -> ssl.SSLContext:
        if not tls.checks_certificate(target.tls):
            return self._contexts.unverified
        if self._contexts.verifying is not None:
            return self._contexts.verifying
        try:
            return await asyncio.to_thread(self._contexts.load)
        except OSError as error:
            # ssl.SSLError is one, too.
            reason = (
                f"the certificate authorities can't be read from {self._contexts.source}: {error}; see Config.ca_file"
            )
            raise SessionError(Breakdown(Phase.CONNECT, "local", reason)) from error


class Contexts:
    """The two TLS contexts that all sessions share.

    Loading the system's authorities takes tens of milliseconds, so `load` belongs into a thread; several may be in it.

    Attributes:
        unverified: Takes any certificate.
        verifying: Takes one of the authorities' only; None until it is loaded.
    """

    def __init__(self, ca_file: Path | None) -> None:
        self.source = "the system's store" if ca_file is None else str(ca_file)
        self.unverified = _unverified()
        self.verifying: ssl.SSLContext | None = None
        self._ca_file = ca_file
        self._lock = threading.Lock()

    def load(self) -> ssl.SSLContext:
        """The verifying one. Raises OSError if the authorities can't be read; a later call may succeed."""
        with self._lock:
            if self.verifying is None:
                context = ssl.create_default_context(cafile=self._ca_file)
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                self.verifying = context
            return self.verifying


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
