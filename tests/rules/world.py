"""A mailer and the small internet that it delivers into."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from mailstrom_async import (
    Attempt,
    Config,
    Delivered,
    Email,
    Limits,
    Mailstrom,
    MemoryStorage,
    MessageStatus,
    RecipientDeferred,
    RecipientDelivered,
    RecipientFailed,
    RecipientStatus,
    Timeouts,
)
from mailstrom_async.testing import FakeInternet, ManualClock, Scripted, SMTPServer

PATIENCE = timedelta(seconds=60)
MINUTE = timedelta(minutes=1)
DOMAIN = "example.net"
A, B, C, D = (f"{name}@{DOMAIN}" for name in "abcd")
OFFERS = ("8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "SIZE 52428800")
PIPELINED = ("PIPELINING", *OFFERS)
LONG = timedelta(seconds=20)
SHORT = timedelta(milliseconds=200)


class Seen(NamedTuple):
    """What a status says of a recipient, in short."""

    state: str
    cause: str | None = None
    enhanced: str | None = None
    code: int | None = None
    attempts: int = 1

    def __str__(self) -> str:
        letter = {"deferred": "D", "delivered": "V", "failed": "F"}.get(self.state, "Q")
        why = self.code if self.cause in ("smtp", None) else self.cause
        words = [letter, why, self.enhanced, f"({self.attempts})" if self.attempts != 1 else None]
        return " ".join(str(word) for word in words if word is not None)


def delivered(code: int = 250, attempts: int = 1) -> Seen:
    return Seen("delivered", None, None, code, attempts)


def deferred(cause: str, enhanced: str, code: int | None = None, attempts: int = 1) -> Seen:
    return Seen("deferred", cause, enhanced, code, attempts)


def failed(cause: str, enhanced: str, code: int | None = None, attempts: int = 1) -> Seen:
    return Seen("failed", cause, enhanced, code, attempts)


def seen(recipient: RecipientStatus) -> Seen:
    result = recipient.result
    if isinstance(result, Delivered):
        return delivered(result.reply.code, recipient.attempts)
    if result.state == "queued":
        return Seen("queued", attempts=recipient.attempts)
    code = result.reply.code if result.reply is not None else None
    return Seen(result.state, result.cause, result.enhanced, code, recipient.attempts)


class Mail:
    """A message that was sent, and what becomes of it."""

    def __init__(self, mailer: Mailstrom, message_id: str, clock: ManualClock, note: Callable[[str], None]) -> None:
        self.mailer = mailer
        self.message_id = message_id
        self._clock = clock
        self._note = note

    async def attempted(self) -> dict[str, Seen]:
        """Each recipient's state after the first attempt."""
        return self._read(await self.mailer.wait(self.message_id, until="attempted", timeout=PATIENCE))

    async def attempted_again(self) -> dict[str, Seen]:
        """Each recipient's state after one attempt more: the clock goes to when the next one is due."""
        before = await self.status()
        waiting = [recipient for recipient in before.recipients if recipient.result.state == "deferred"]
        due = max(recipient.result.next_attempt_at for recipient in waiting)
        self._clock.set(max(due, self._clock.now()))
        async with asyncio.timeout(PATIENCE.total_seconds()):
            while (status := await self.status()).recipients == before.recipients:  # noqa: ASYNC110
                await asyncio.sleep(0)
        return self._read(status)

    async def completed(self, step: timedelta | None = None) -> dict[str, Seen]:
        """Each recipient's state at the end, while the clock goes on (default: from one due time to the next)."""
        outcomes = (RecipientDelivered, RecipientDeferred, RecipientFailed)
        async with asyncio.timeout(PATIENCE.total_seconds()), self.mailer.events(*outcomes) as events:
            while not (status := await self.status()).completed:
                due = [r.result.next_attempt_at for r in status.recipients if r.result.state == "deferred"]
                if step is not None:
                    self._clock.advance(step)
                    await asyncio.sleep(0)
                    continue
                if due:
                    self._clock.set(max(self._clock.now(), min(due)))
                await anext(events)
        return self._read(status)

    async def status(self) -> MessageStatus:
        return await self.mailer.query_status(self.message_id)

    async def result(self, address: str = A) -> Any:
        (result,) = (r.result for r in (await self.status()).recipients if r.address == address)
        return result

    async def attempts(self) -> list[Attempt]:
        return await self.mailer.query_attempts(self.message_id)

    def _read(self, status: MessageStatus) -> dict[str, Seen]:
        states = {recipient.address: seen(recipient) for recipient in status.recipients}
        # In the table recipients are told apart by their place only.
        self._note(", ".join(str(state) for state in states.values()))
        return states


class World:
    """Where mail goes in a test.

    Attributes:
        internet: Its exchangers and names.
        clock: The queue's; stands still until the test moves it.
    """

    def __init__(self, internet: FakeInternet, ca_file: Path, note: Callable[[str], None]) -> None:
        self.internet = internet
        self.clock = ManualClock()
        self.ca_file = ca_file
        self._note = note

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once a condition holds; it is looked at in every round of the event loop."""
        async with asyncio.timeout(PATIENCE.total_seconds()):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def exchanger(self, script: Mapping[str, Scripted] | None = None, **server: Any) -> SMTPServer:
        """The only exchanger of example.net."""
        (exchanger,) = await self.exchangers(script, **server)
        return exchanger

    async def exchangers(self, *scripts: Mapping[str, Scripted] | None, **server: Any) -> list[SMTPServer]:
        """Exchangers of example.net, the most preferred first: mx1.example.net, mx2.example.net, ..."""
        names = [f"mx{number}.{DOMAIN}" for number, _ in enumerate(scripts, 1)]
        self.internet.domain(DOMAIN, mx=names)
        return [
            await self.internet.exchanger(name, script, **server) for name, script in zip(names, scripts, strict=True)
        ]

    @asynccontextmanager
    async def mailer(
        self,
        *,
        timeouts: Mapping[str, timedelta] | None = None,
        limits: Mapping[str, int] | None = None,
        storage: MemoryStorage | None = None,
        **settings: Any,
    ) -> AsyncIterator[Mailstrom]:
        """A mailer that delivers into this world."""
        spans = dict.fromkeys(("connect", "greeting", "command", "data", "block", "end_of_data", "dns"), LONG)
        config = Config(
            **{
                "helo_name": "app.example.org",
                "delivery": self.internet.delivery,
                "ca_file": self.ca_file,
                "timeouts": Timeouts(**{**spans, **(timeouts or {})}),
                "limits": Limits(**(limits or {})),
                "shutdown_grace": timedelta(0),
                **settings,
            }
        )
        async with Mailstrom(config, storage or MemoryStorage(), clock=self.clock) as mailer:
            yield mailer

    @asynccontextmanager
    async def sent(self, *recipients: str, email: Email | bytes | None = None, **mailer: Any) -> AsyncIterator[Mail]:
        """A mail that a mailer with these settings was just given."""
        async with self.mailer(**mailer) as opened:
            yield await self.send(opened, *recipients, email=email)

    async def send(self, mailer: Mailstrom, *recipients: str, email: Email | bytes | None = None) -> Mail:
        """One mail more."""
        if email is None:
            email = Email(from_="App <app@example.org>", to=list(recipients) or [A], subject="Hello", text="Hello\n")
        message_id = await mailer.send_email(email, recipients=list(recipients) or None)
        return Mail(mailer, message_id, self.clock, self._note)


class Failure(NamedTuple):
    """How an exchanger failed, as `failing_host` saw it."""

    seen: Seen
    result: Any
    attempt: Attempt
    server: SMTPServer


async def failing_host(
    world: World,
    script: Mapping[str, Scripted] | None,
    *,
    timeouts: Mapping[str, timedelta] | None = None,
    policy: str = "may",
    second_tls: ssl.SSLContext | None = None,
    **server: Any,
) -> Failure:
    """An exchanger fails as scripted before it can be told of any recipient: alone, it makes the mail wait; with a
    second exchanger behind it, the mail is delivered there in the same attempt.

    Args:
        world: Where to.
        script: Of the failing exchanger.
        timeouts: Of the mailer.
        policy: `Config.tls`.
        second_tls: Of the second exchanger.
        server: More of `FakeInternet.exchanger` for the failing one.
    """
    alone = await world.internet.exchanger("mx.alone.example.com", script, **server)
    first = await world.internet.exchanger("mx1.backed.example.com", script, **server)
    second = await world.internet.exchanger("mx2.backed.example.com", tls=second_tls)
    world.internet.domain("alone.example.com", mx=["mx.alone.example.com"])
    world.internet.domain("backed.example.com", mx=["mx1.backed.example.com", "mx2.backed.example.com"])
    async with world.mailer(timeouts=timeouts, tls=policy) as mailer:
        waiting = await world.send(mailer, "x@alone.example.com")
        through = await world.send(mailer, "x@backed.example.com")
        seen = (await waiting.attempted())["x@alone.example.com"]
        assert await through.attempted() == {"x@backed.example.com": delivered()}
        assert (await through.result("x@backed.example.com")).host == "mx2.backed.example.com"
        result = await waiting.result("x@alone.example.com")
        (attempt,) = await waiting.attempts()
    assert attempt.host == "mx.alone.example.com"
    assert alone.messages == first.messages == []
    assert second.received == 1
    assert alone.violations == first.violations == second.violations == []
    return Failure(seen, result, attempt, alone)
