"""The begin of a session: TCP, greeting, EHLO, STARTTLS, AUTH. aiosmtplib speaks; we listen strictly, and decide."""

import asyncio
import errno
import os
import ssl
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn, cast

import aiosmtplib
from aiosmtplib.protocol import SMTPProtocol

from mailstrom_async._config import Timeouts, TLSPolicy
from mailstrom_async._policy import tls
from mailstrom_async._policy.replies import Answer, ReplyQueue, printable
from mailstrom_async._reply import Phase
from mailstrom_async._status import TLSFacts
from mailstrom_async.smtp.base import Breakdown, Credentials, Refusal, SessionError, Target
from mailstrom_async.smtp.envelope import Offers
from mailstrom_async.smtp.manners import Manners
from mailstrom_async.smtp.session import SMTPSession
from mailstrom_async.smtp.transcript import Transcript
from mailstrom_async.smtp.wire import Wire

# Our own shortages, which say nothing about the host.
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}

UNFIT_MECHANISM = {504, 538}
"""Said of a mechanism, and not of the password: another one may be tried (RFC 4954 sections 4 and 6). 534 should be,
too, but is what Gmail says of a password that is none for applications."""


class HandshakeFailed(Exception):
    """STARTTLS broke off, on a connection that may also do without: another one is to be opened, in plaintext."""


class StrictProtocol(SMTPProtocol):
    """aiosmtplib's protocol, which takes "2500" for 250 and keeps a second reply for the next command, behind a reader
    that ends the conversation at the first such thing.

    Attributes:
        answer: The last reply. Before each phase it was a positive one, as nothing follows a negative one but the next
            try of the same phase (HELO, another login).
        secret: What is written now is not to be noted.
    """

    def __init__(self, transcript: Transcript) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.transcript = transcript
        self.replies = ReplyQueue()
        self.replies.expect()  # the greeting
        self.answer: Answer | None = None
        self.secret = False
        self._held = bytearray()  # the begin of a reply

    def write(self, data: bytes) -> None:
        self.replies.expect()
        self.transcript.ours("(credentials)" if self.secret else data)
        super().write(data)

    def data_received(self, data: bytes) -> None:
        self.replies.feed(data)
        self._held += data
        whole = bool(self.replies.ready)
        while self.replies.ready:
            self.answer = self.replies.ready.popleft()
            self.transcript.theirs(self.answer)
        if self.replies.in_step:
            if whole:
                super().data_received(bytes(self._held))
                self._held.clear()
        elif self.transport is not None:
            cast(asyncio.Transport, self.transport).abort()


class Opening:
    """One connection on its way to become a session."""

    def __init__(
        self,
        target: Target,
        helo_name: str,
        timeouts: Timeouts,
        *,
        policy: TLSPolicy,
        context: ssl.SSLContext,
        why_plaintext: str = "TLS is switched off",
        bdat_window: int = 0,
        manners: Manners | None = None,
    ) -> None:
        """
        Args:
            policy: What is demanded of this connection; after a failed handshake less than the target demands.
            why_plaintext: Why there is no TLS, if `policy` is "none".
            bdat_window: Messages that may be on their way at the same time; 0: CHUNKING is not used.
            manners: What is remembered of hosts.
        """
        self._target = target
        self._timeouts = timeouts
        self._policy: TLSPolicy = policy
        self._context = context
        self._transcript = Transcript()
        self._facts = TLSFacts(why=why_plaintext)
        self._bdat_window = bdat_window
        self._manners = manners
        self._protocol = StrictProtocol(self._transcript)
        self._transport: asyncio.BaseTransport | None = None
        self._smtp = aiosmtplib.SMTP(
            hostname=target.host,
            port=target.port,
            local_hostname=helo_name,
            start_tls=False,
            tls_context=context,
            timeout=timeouts.command.total_seconds(),
        )

    async def run(self) -> SMTPSession:
        """Raises SessionError, or HandshakeFailed where plaintext is allowed."""
        try:
            await self._dial()
            await self._greeting()
            await self._ehlo()
            if self._facts.version is None:
                await self._starttls()
            if self._target.credentials is not None:
                await self._auth(self._target.credentials)
            return self._session()
        except BaseException:
            self._abort()
            raise

    def _abort(self) -> None:
        if self._transport is not None:
            cast(asyncio.Transport, self._transport).abort()

    def _session(self) -> SMTPSession:
        extensions = self._smtp.esmtp_extensions
        size = extensions.get("size")
        offers = Offers(
            pipelining="pipelining" in extensions,
            chunking="chunking" in extensions,
            eight_bit_mime="8bitmime" in extensions,
            smtputf8="smtputf8" in extensions,
            size=None if size is None else int(size) if size.isascii() and size.isdigit() else 0,
        )
        wire = Wire(cast(asyncio.Transport, self._transport), self._transcript)
        return SMTPSession(
            wire,
            self._target,
            self._facts,
            offers,
            self._timeouts,
            bdat_window=self._bdat_window,
            manners=self._manners,
        )

    # The steps.

    async def _dial(self) -> None:
        seconds = self._timeouts.connect.total_seconds()
        implicit = self._target.implicit_tls
        loop = asyncio.get_running_loop()
        with self._during(Phase.CONNECT, self._timeouts.connect):
            async with asyncio.timeout(seconds):
                # The address that was checked, never a name that could lead elsewhere by now.
                self._transport, _ = await loop.create_connection(
                    lambda: self._protocol,
                    str(self._target.address),
                    self._target.port,
                    ssl=self._context if implicit else None,
                    server_hostname=self._target.host if implicit else None,
                    ssl_handshake_timeout=seconds if implicit else None,
                )
        self._smtp.protocol = self._protocol
        self._smtp.transport = self._transport
        if implicit:
            self._note_tls()

    async def _greeting(self) -> None:
        with self._during(Phase.GREETING, self._timeouts.greeting):
            response = await self._protocol.read_response(self._timeouts.greeting.total_seconds())
            if response.code != 220:
                raise aiosmtplib.SMTPConnectResponseError(response.code, response.message)

    async def _ehlo(self) -> None:
        with self._during(Phase.EHLO, self._timeouts.command):
            try:
                await self._smtp.ehlo()
            except aiosmtplib.SMTPHeloError as error:
                if not 500 <= error.code <= 599:
                    raise
                # RFC 5321 section 3.2: a server that does not know EHLO may know HELO. It offers nothing then.
                self._smtp.esmtp_extensions.clear()
                self._smtp.server_auth_methods.clear()
                await self._smtp.helo()

    async def _starttls(self) -> None:
        offered = self._smtp.supports_extension("starttls")
        decision = tls.before(self._policy, offered=offered)
        if decision == "starttls":
            await self._upgrade()
        elif not offered:
            self._without_tls(decision, "the server does not offer STARTTLS")

    async def _upgrade(self) -> None:
        seconds = self._timeouts.connect.total_seconds()
        try:
            await self._smtp.starttls(server_hostname=self._target.host, tls_context=self._context, timeout=seconds)
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            answer, replies = self._protocol.answer, self._protocol.replies
            if answer is None or not answer.negative or not replies.in_step:
                # Also if something came behind the 220, before TLS: it may be an attacker's.
                self._broken(replies.fault or _tls_problem(error))
            self._refused(answer)
            return
        self._transport = self._smtp.transport
        self._note_tls()
        # What was said before could have been said by anybody on the way (RFC 3207 section 4.2): aiosmtplib forgot it.
        await self._ehlo()

    def _refused(self, answer: Answer) -> None:
        """The server answered STARTTLS with a refusal; the session stands as it was."""
        self._without_tls(tls.REFUSED[self._policy], f"the server refused STARTTLS with: {answer}")

    def _broken(self, problem: str) -> NoReturn:
        """TLS began, and failed."""
        why = f"TLS failed: the server {problem}"
        if tls.BROKEN[self._policy] == "reconnect":
            raise HandshakeFailed(why)
        raise self._error(Breakdown(Phase.STARTTLS, "tls", f"{self._target}: {why}"))

    def _without_tls(self, decision: tls.Decision, why: str) -> None:
        self._facts = TLSFacts(why=why)
        if decision == "give up":
            raise self._error(Breakdown(Phase.STARTTLS, "tls", f"{self._target}: TLS is demanded, but {why}"))

    def _note_tls(self) -> None:
        ssl_object = cast(asyncio.BaseTransport, self._transport).get_extra_info("ssl_object")
        cipher = ssl_object.cipher()
        verified = tls.checks_certificate(self._policy)
        self._facts = TLSFacts(
            version=ssl_object.version(),
            cipher=cipher[0] if cipher else None,
            verified=verified,
            why=None if verified else f'the policy "{self._policy}" takes any certificate',
        )

    async def _auth(self, credentials: Credentials) -> None:
        if self._facts.version is None:
            raise self._error(
                Breakdown(
                    Phase.AUTH,
                    "policy",
                    f"{self._target}: the password was not sent, as the connection has no TLS ({self._facts.why})",
                )
            )
        methods = self._smtp.server_auth_methods
        with self._during(Phase.AUTH, self._timeouts.command):
            if credentials.oauth_token is not None:
                self._demand_auth("xoauth2" in methods, "XOAUTH2")
                token = await self._token(credentials.oauth_token)
                self._protocol.secret = True
                await self._smtp.auth_xoauth2(credentials.username, token)
            else:
                self._demand_auth(bool(self._smtp.supported_auth_methods), "CRAM-MD5, PLAIN or LOGIN")
                self._protocol.secret = True
                await self._log_in(credentials.username, credentials.password or "")
            self._protocol.secret = False

    async def _log_in(self, username: str, password: str) -> None:
        """By the first mechanism that the relay takes. Not as aiosmtplib's `login`, which presents a wrong password by
        all of them: a relay counts each, and locks the account after a few."""
        log_in = {"plain": self._smtp.auth_plain, "login": self._smtp.auth_login, "cram-md5": self._smtp.auth_crammd5}
        ways = [way for mechanism, way in log_in.items() if mechanism in self._smtp.supported_auth_methods]
        for way in ways:
            try:
                await way(username, password)
            except aiosmtplib.SMTPAuthenticationError as error:
                if error.code not in UNFIT_MECHANISM or way is ways[-1]:
                    raise
            else:
                return

    def _demand_auth(self, offered: bool, methods: str) -> None:
        if not offered:
            raise self._error(
                Breakdown(Phase.AUTH, "policy", f"{self._target} offers no login by {methods}, which the settings need")
            )

    async def _token(self, source: Callable[[], Awaitable[str]]) -> str:
        seconds = self._timeouts.command.total_seconds()
        try:
            async with asyncio.timeout(seconds):
                return await source()
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # we are cancelled, not something that the callable waited for
            # Only the kind of error: its text may hold what the token was asked for with.
            reason = f"the oauth_token callable of {self._target} raised {type(error).__name__}, so nobody could log in"
            raise self._error(Breakdown(Phase.AUTH, "local", reason)) from error

    # What went wrong.

    @contextmanager
    def _during(self, phase: Phase, timeout: timedelta) -> Generator[None]:
        """Turn what aiosmtplib and the system raise in this phase into a SessionError."""
        try:
            yield
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            raise self._error(self._diagnose(phase, error, timeout)) from error

    def _error(self, why: Refusal | Breakdown) -> SessionError:
        return SessionError(why, tls=self._facts, transcript=self._transcript.render())

    def _diagnose(self, phase: Phase, error: Exception, timeout: timedelta) -> Refusal | Breakdown:
        replies, answer = self._protocol.replies, self._protocol.answer
        if replies.farewell is not None:
            return Refusal(phase, replies.farewell.to(phase, self._target.host))
        if replies.fault is not None:
            return Breakdown(phase, "protocol", f"{self._target} {replies.fault}, at {phase}")
        if answer is not None and answer.negative:
            return Refusal(phase, answer.to(phase, self._target.host))
        if isinstance(error, aiosmtplib.SMTPResponseException):
            return Breakdown(phase, "protocol", f"{self._target} answered {answer or 'what is no reply'}, at {phase}")
        if isinstance(error, TimeoutError):
            return Breakdown(
                phase, "network", f"{self._target} gave no answer within {timeout.total_seconds():g} s, at {phase}"
            )
        if isinstance(error, ssl.SSLError):
            return Breakdown(phase, "tls", f"{self._target}: TLS failed: the server {_tls_problem(error)}")
        if isinstance(error, OSError):
            return self._network(phase, error)
        return Breakdown(phase, "protocol", f"{self._target}: {printable(str(error))}, at {phase}")

    def _network(self, phase: Phase, error: OSError) -> Breakdown:
        if error.errno in _OURS:
            return Breakdown(phase, "local", f"no connection to {self._target} could be opened here: {_words(error)}")
        if phase is not Phase.CONNECT:
            return Breakdown(phase, "network", f"{self._target} closed the connection, at {phase}")
        if isinstance(error, ConnectionRefusedError):
            return Breakdown(phase, "network", f"{self._target} refused the connection")
        return Breakdown(phase, "network", f"{self._target} can't be reached: {_words(error)}")


def _words(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno is not None else printable(str(error))


def _tls_problem(error: Exception) -> str:
    """What went wrong; continues "the server ..."."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that is not valid: {printable(error.verify_message)}"
    if isinstance(error, TimeoutError):
        return "did not go on with the handshake"
    if isinstance(error, ConnectionError):
        return "closed the connection"
    return f"and we can't agree: {printable(str(error)) or type(error).__name__}"
