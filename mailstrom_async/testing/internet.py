"""A small internet on loopback: a nameserver, and mail exchangers."""

import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from mailstrom_async._config import DirectDelivery
from mailstrom_async.testing._actions import Scripted
from mailstrom_async.testing._zone import Answer, Entry
from mailstrom_async.testing.dns_server import DNSServer
from mailstrom_async.testing.smtp_server import EXTENSIONS, SMTPServer


class FakeInternet:
    """Domains and their mail exchangers, all on this machine, for a `Mailstrom` that delivers directly.

        async with FakeInternet() as internet:
            exchanger = await internet.exchanger("mx.example.net", {"RCPT": "450 4.2.1 come back later"})
            internet.domain("example.net", mx=["mx.example.net"])
            config = Config(helo_name="app.example.org", delivery=internet.delivery)
            async with Mailstrom(config, MemoryStorage()) as mailer:
                ...

    All exchangers listen on one port, each at its own address 127.0.0.x (which works on Linux without further ado), and
    close with the `async with`. The nameserver is `dns`: its records may be changed and made to fail like any
    `DNSServer`'s.

    Args:
        ttl: Of DNS records, in seconds; 0, so that changes hold at once.
    """

    def __init__(self, *, ttl: int = 0) -> None:
        self.dns = DNSServer(ttl=ttl)
        self.exchangers: dict[str, SMTPServer] = {}
        """By host name."""
        self._addresses: dict[str, str] = {}
        self._port = 0
        self._open = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<FakeInternet [{len(self.dns.records)} names, {len(self.exchangers)} exchangers]>"

    @property
    def delivery(self) -> DirectDelivery:
        """The setting that makes a `Mailstrom` deliver in here."""
        return DirectDelivery(
            port=self._port, nameservers=(self.dns.address,), allowed_networks=("127.0.0.0/8", "::1/128")
        )

    async def exchanger(
        self,
        name: str,
        script: Mapping[str, Scripted] | None = None,
        *,
        ipv6: bool = False,
        tls: ssl.SSLContext | None = None,
        extensions: Sequence[str] = EXTENSIONS,
        max_sessions: int | None = None,
    ) -> SMTPServer:
        """Start a mail exchanger, and give its name an address record.

        Args:
            name: Its host name. One that was `down` comes up.
            script: What it does at which moment, see `mailstrom_async.testing`.
            ipv6: It has the address ::1 alone. There is only one such address, so only one such exchanger.
            tls: As of `SMTPServer`, like the rest.
        """
        address = "::1" if ipv6 else self._address_of(name)
        server = SMTPServer(
            script, host=address, port=self._port, name=name, extensions=extensions, tls=tls, max_sessions=max_sessions
        )
        self.exchangers[name] = await self._open.enter_async_context(server)
        self._know(name, {"AAAA" if ipv6 else "A": [address]})
        return server

    def down(self, name: str) -> None:
        """Give a host an address at which nobody listens: connections are refused."""
        if name in self.exchangers:
            raise ValueError(f'{name} is up; to cut its connections, set script["connect"] = Reset()')
        self._know(name, {"A": [self._address_of(name)]})

    def domain(self, name: str, *, mx: Sequence[str]) -> None:
        """Write down the mail exchangers of a domain.

        Args:
            mx: Their host names, the most preferred first. With a preference in front it is that one:
                ["10 a.example.net", "10 b.example.net"] are equals. ["."] says: this domain takes no mail (RFC 7505).
        """
        records = [
            text if " " in text else f"{0 if text == '.' else 10 * rank} {text}" for rank, text in enumerate(mx, 1)
        ]
        self._know(name, {"MX": records})

    def _know(self, name: str, answers: Mapping[str, Answer]) -> None:
        known: Entry = self.dns.records.get(name, {})
        self.dns.records[name] = {**known, **answers} if isinstance(known, Mapping) else answers

    def _address_of(self, name: str) -> str:
        # From 127.0.0.2 on; what lies in 127.0.0.1 is the nameserver and the keeper of our port.
        number = len(self._addresses) + 2
        return self._addresses.setdefault(name, f"127.0.{number // 256}.{number % 256}")

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            # Bound at 127.0.0.1, the port is nobody else's there, nor any other FakeInternet's at 127.0.0.x.
            keeper = opened.enter_context(socket.socket())
            keeper.bind(("127.0.0.1", 0))
            self._port = keeper.getsockname()[1]
            await opened.enter_async_context(self.dns)
            self._open = opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._open.__aexit__(kind, error, traceback)
