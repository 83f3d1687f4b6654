"""A small internet whose DNS misbehaves, the clock of its mailers, and what they say became of a mail."""

from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

from mailstrom_async import Config, Email, Mailstrom, MemoryStorage, MessageStatus
from mailstrom_async.dns import MX, AddressAnswer, MXAnswer, Resolver
from mailstrom_async.testing import FakeInternet, ManualClock

PATIENCE = timedelta(seconds=60)
TO = "ada@example.net"

DELIVERED = "V"
NOT_RESOLVED = "D dns 4.4.3"
PROHIBITED = "F policy 5.4.6"


class DNSWorld(FakeInternet):
    """Has one exchanger, mx.example.net, that takes everything."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.clock = ManualClock()
        self._note = note

    @property
    def connections(self) -> int:
        """How often an exchanger was dialled."""
        return sum(exchanger.connections for exchanger in self.exchangers.values())

    def mailer(self, *, resolver: Resolver | None = None, **settings: Any) -> Mailstrom:
        """A mailer that delivers in here."""
        given = {"helo_name": "app.example.org", "delivery": self.delivery, **settings}
        return Mailstrom(Config(**given), MemoryStorage(), clock=self.clock, resolver=resolver)

    async def result(self, to: str = TO, **settings: Any) -> str:
        """What the first attempt on a mail does to its recipient."""
        async with self.mailer(**settings) as mailer:
            return await self.attempted(mailer, await mailer.send_email(email(to)))

    async def attempted(self, mailer: Mailstrom, message_id: str) -> str:
        """The recipient's state after the first attempt."""
        return self._read(await mailer.wait(message_id, until="attempted", timeout=PATIENCE))

    async def completed(self, mailer: Mailstrom, message_id: str) -> str:
        """The recipient's state at the end."""
        return self._read(await mailer.wait(message_id, timeout=PATIENCE))

    def _read(self, status: MessageStatus) -> str:
        """Such as "D dns 4.4.3", and "V (2)" for one that took two attempts."""
        (recipient,) = status.recipients
        result = recipient.result
        words = {"queued": "Q", "deferred": "D", "delivered": "V", "failed": "F"}[result.state]
        if result.state in ("deferred", "failed"):
            words += f" {result.cause} {result.enhanced}"
        if recipient.attempts != 1:
            words += f" ({recipient.attempts})"
        self._note(words)
        return words


def email(to: str = TO) -> Email:
    return Email(from_="app@example.org", to=to, subject="Hello", text="Hello")


class ForeverResolver:
    """A resolver whose answers hold for 68 years: mx.example.net, at 127.0.0.2."""

    TTL = timedelta(seconds=2**31 - 1)

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def open(self) -> None:
        pass

    async def mx(self, domain: str) -> MXAnswer:
        self.asked.append(domain)
        return MXAnswer((MX(10, "mx.example.net"),), True, self.TTL)

    async def addresses(self, host: str) -> AddressAnswer:
        return AddressAnswer((ip_address("127.0.0.2"),), True, self.TTL)

    async def aclose(self) -> None:
        pass
