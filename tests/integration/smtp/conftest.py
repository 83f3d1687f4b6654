"""What the tests of SMTP sessions share: a connector with short timeouts, messages, certificates, a raw server."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trustme

from mailstrom_async._config import Timeouts, TLSPolicy
from mailstrom_async._envelope import QueuedMessage
from mailstrom_async.smtp import Credentials, SessionError, SMTPConnector, Target
from mailstrom_async.smtp.session import SMTPSession
from mailstrom_async.testing import SMTPServer

NAME = "mx.example.test"
LONG = timedelta(seconds=20)

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

KEYS = count(1)  # of messages


@dataclass
class RawServer:
    """A server that is no SMTP server: each connection runs a coroutine of the test's own."""

    serve: Serve
    host: str = "127.0.0.1"
    port: int = 0
    connections: int = 0
    failures: list[BaseException] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["RawServer"]:
        tasks: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            self.connections += 1
            try:
                await self.serve(reader, writer)
            except (ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.transport.abort()
                tasks.discard(task)

        server = await asyncio.start_server(accept, self.host, 0, limit=2**20)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.wait_closed()


class Client:
    """Connects to test servers, and drops what was opened at the end."""

    def __init__(self, ca_file: Path) -> None:
        self.ca_file = ca_file
        self.sessions: list[SMTPSession] = []

    def connector(self, **timeouts: timedelta) -> SMTPConnector:
        spans = dict.fromkeys(("connect", "greeting", "command", "data", "block", "end_of_data"), LONG) | timeouts
        return SMTPConnector("client.example.test", Timeouts(**spans), ca_file=self.ca_file)

    def target(
        self,
        server: SMTPServer | RawServer,
        tls: TLSPolicy = "may",
        *,
        host: str = NAME,
        implicit_tls: bool = False,
        credentials: Credentials | None = None,
    ) -> Target:
        return Target(host, ip_address(server.host), server.port, tls, implicit_tls, credentials)

    async def connect(
        self,
        server: SMTPServer | RawServer,
        tls: TLSPolicy = "may",
        *,
        timeouts: dict[str, timedelta] | None = None,
        **target: Any,
    ) -> SMTPSession:
        session = await self.connector(**timeouts or {}).connect(self.target(server, tls, **target))
        self.sessions.append(session)
        return session

    async def failure(
        self,
        server: SMTPServer | RawServer,
        tls: TLSPolicy = "may",
        *,
        timeouts: dict[str, timedelta] | None = None,
        **target: Any,
    ) -> SessionError:
        """The error that `connect` ends in."""
        with pytest.raises(SessionError) as caught:
            await self.connect(server, tls, timeouts=timeouts, **target)
        return caught.value

    def message(
        self,
        content: bytes = b"Subject: Hello\r\n\r\nHello\r\n",
        *,
        sender: str = "sender@example.org",
        smtputf8: bool = False,
        eight_bit: bool = False,
    ) -> QueuedMessage:
        now = datetime.now(UTC)
        return QueuedMessage(next(KEYS), "1@example.org", sender, content, smtputf8, eight_bit, now, now)


@dataclass
class Certificates:
    """Certificates of one authority."""

    authority: trustme.CA
    ca_file: Path

    def server(self, *names: str, days: float = 1, authority: trustme.CA | None = None) -> ssl.SSLContext:
        """A server's context; `days` may be negative: expired."""
        ends = datetime.now(UTC) + timedelta(days=days)
        certificate = (authority or self.authority).issue_cert(
            *(names or (NAME,)), not_before=ends - timedelta(days=30), not_after=ends
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        return context


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate authority that the client trusts."""
    authority = trustme.CA()
    ca_file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return Certificates(authority, ca_file)


@pytest.fixture
async def client(certificates: Certificates) -> AsyncIterator[Client]:
    """Opens sessions, and drops them at the end."""
    client = Client(certificates.ca_file)
    yield client
    for session in client.sessions:
        session.abort()
    await asyncio.sleep(0)


@pytest.fixture
def raw_server() -> Callable[[Serve], RawServer]:
    """Makes a server out of a coroutine: `async with raw_server(serve).running() as server`."""
    return RawServer


@pytest.fixture(
    params=[
        pytest.param(("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "SIZE 52428800"), id="pipelined"),
        pytest.param(("8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "SIZE 52428800"), id="lock-step"),
    ]
)
def extensions(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What servers offer: with and without PIPELINING."""
    return request.param
