"""An SMTP server that does what a test tells it."""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self

from mailstrom_async.testing._actions import PATIENCE, Script, Scripted
from mailstrom_async.testing._auth import Accounts
from mailstrom_async.testing._records import Ledger, ReceivedMessage, SessionRecord
from mailstrom_async.testing._smtp_session import Settings, SMTPSession

EXTENSIONS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "SIZE 52428800")


class SMTPServer:
    """A mail exchanger or relay on loopback, which takes every message unless its script says otherwise.

        async with SMTPServer({"RCPT": "450 4.2.0 come later"}) as server:
            ...                                        # what is under test delivers to server.host, server.port
            server.script["RCPT"] = None               # from now on recipients are accepted
            await server.wait_for_messages(1)

    It is strict: what a client must not do is answered with an error where a real server would, and noted in
    `violations` in any case. It is open while the `async with` lasts; then all sessions are aborted.

    Args:
        script: What to do at which moment, see `mailstrom_async.testing`. May be changed later through `script`.
        host: The loopback address to listen on.
        port: 0: a free one.
        name: How it calls itself.
        extensions: What it offers after EHLO, besides STARTTLS and AUTH. It knows CHUNKING, too, if that is among them.
        tls: A server context, as `CertificateAuthority.server_context` makes: STARTTLS is offered.
        implicit_tls: TLS from the first byte on, in place of STARTTLS.
        users: Passwords by username. AUTH is offered within TLS, and MAIL demands it.
        tokens: XOAUTH2 tokens by username.
        auth_without_tls: Offer AUTH in plaintext, too.
        max_sessions: How many connections at once; the others are greeted with 421.
        keep: Remember messages and sessions. False: only count them.
    """

    def __init__(
        self,
        script: Mapping[str, Scripted] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        name: str = "mx.example.test",
        extensions: Sequence[str] = EXTENSIONS,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        users: Mapping[str, str] | None = None,
        tokens: Mapping[str, str] | None = None,
        auth_without_tls: bool = False,
        max_sessions: int | None = None,
        keep: bool = True,
    ) -> None:
        if implicit_tls and tls is None:
            raise ValueError("implicit_tls needs a context: give tls=CertificateAuthority().server_context(name)")
        self.host = host
        self.port = port
        self.name = name
        self._settings = Settings(
            name,
            Script(script),
            list(extensions),
            tls,
            implicit_tls,
            Accounts(users or {}, tokens or {}, auth_without_tls),
            max_sessions,
        )
        self._ledger = Ledger(keep=keep)
        self._connections: set[SMTPSession] = set()
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        return f"<SMTPServer {self.name} at {self.host}:{self.port}, {self.received} messages>"

    @property
    def script(self) -> Script:
        """What to do at which moment: a mapping that may be changed at any time. None or `del`: the usual behaviour."""
        return self._settings.script

    @property
    def extensions(self) -> list[str]:
        """What is offered after the next EHLO; may be changed."""
        return self._settings.extensions

    @property
    def messages(self) -> list[ReceivedMessage]:
        """All messages that were taken, in order."""
        return self._ledger.messages

    @property
    def received(self) -> int:
        """How many messages were taken."""
        return self._ledger.received

    @property
    def sessions(self) -> list[SessionRecord]:
        """All connections, in order."""
        return self._ledger.sessions

    @property
    def connections(self) -> int:
        """How many connections were made."""
        return self._ledger.connections

    @property
    def max_concurrent_sessions(self) -> int:
        """How many connections there were at once at most."""
        return self._ledger.max_concurrent_sessions

    @property
    def violations(self) -> list[str]:
        """What clients did that SMTP forbids: bare CR or LF, NUL, long lines, commands out of order, plaintext behind
        STARTTLS, pipelining or parameters that were not offered. A good client leaves this empty."""
        return self._ledger.violations

    async def wait_for_messages(self, count: int, *, timeout: timedelta = PATIENCE) -> list[ReceivedMessage]:
        """Return all messages once there are `count`.

        Raises:
            TimeoutError: There were fewer after `timeout`.
        """
        await self._ledger.wait_for(count, timeout)
        return self.messages

    async def disconnect(self) -> None:
        """Close all connections in order, as servers do with idle ones. New ones are accepted."""
        closing = [connection for connection in self._connections if connection.stands]
        for connection in closing:
            connection.close()
        await asyncio.gather(*(connection.lost for connection in closing))

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, self.host, self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def _accept(self) -> SMTPSession:
        connection = SMTPSession(self._settings, self._ledger)
        self._connections.add(connection)
        connection.lost.add_done_callback(lambda _: self._connections.discard(connection))
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        for _ in range(3):
            await asyncio.sleep(0)  # asyncio forgets a connection that it is just accepting when its server closes
        self._server.close()
        closing = list(self._connections)
        for connection in closing:
            connection.abort()
        await asyncio.gather(*(connection.lost for connection in closing))
        await self._server.wait_closed()
        if self._ledger.failures and error is None:
            raise ExceptionGroup(f"the script of {self.name} failed", self._ledger.failures)
