"""What the scripted SMTP server can be told to do, and when."""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias, cast

from mailstrom_async._clock import Clock, SystemClock
from mailstrom_async.testing._records import SessionRecord

PATIENCE = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Context:
    """What a callable action is told.

    Attributes:
        moment: The most general name of the moment, such as "RCPT" or "end of data".
        session: The session as it is now (`tls`, `username`, `helo`, ...).
        command: The command line, without its end and without secrets; "" where the moment is no command.
        sender: The reverse-path of the transaction, if one has begun.
        recipient: The forward-path, at RCPT.
        recipients: The forward-paths accepted so far in this transaction.
        transaction: The number of this transaction in its session: 1 at the first MAIL, 0 before.
    """

    moment: str
    session: SessionRecord
    command: str = ""
    sender: str | None = None
    recipient: str | None = None
    recipients: tuple[str, ...] = ()
    transaction: int = 0


@dataclass(frozen=True, slots=True)
class Raw:
    """Send exactly these bytes. If they begin with a reply code, it decides as that reply would."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """Send a reply and then do something more: `Reply("421 4.3.2 bye", then=Close())`.

    At STARTTLS, `then` comes in place of the handshake: `Reply("220 go", then=Raw(b"this is no TLS"))`.
    """

    text: str
    then: "Action | None" = None


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait in real time, then act; by default as if nothing had been scripted."""

    span: timedelta
    then: "Action | None" = None


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer again. What the client sends is read and forgotten."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection in order (FIN), after what was written."""


@dataclass(frozen=True, slots=True)
class HalfClose:
    """Close our direction only and never answer again; read on until the client closes. Not possible in TLS."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Reset the connection (RST)."""


@dataclass(frozen=True, slots=True)
class Drip:
    """Send slowly, a byte each `interval`. A str is a reply; bytes go out as they are."""

    content: str | bytes
    interval: timedelta = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Flood:
    """Send the same bytes until the client goes away: `Flood(b"250-more\\r\\n")` is a reply without end."""

    content: bytes
    interval: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class StopReading:
    """Read nothing for a while (None: never again), so that what the client sends gets stuck; then go on as usual."""

    span: timedelta | None = None


@dataclass(frozen=True, slots=True)
class ReadSlowly:
    """From now on rest for `interval` after each piece that was read (some 256 KiB); else go on as usual."""

    interval: timedelta


@dataclass(frozen=True, slots=True)
class Take:
    """At "end of data": keep the message at once, then act: `Take(Delay(timedelta(minutes=11)))`.

    Other actions keep it only if and when they send a reply of 2yz.
    """

    then: "Action | None" = None


def TakeThenClose() -> Take:  # noqa: N802 - reads as the action that it is
    """At "end of data": keep the message, but close the connection without a reply. The client can't know."""
    return Take(Close())


class Gate:
    """Hold the session until the test opens the gate; then act, by default as if nothing had been scripted.

    gate = Gate()
    server.script["end of data"] = gate
    ...
    await gate.reached()                     # the client has sent everything and waits for the reply
    gate.open()
    """

    def __init__(self, then: "Action | None" = None) -> None:
        self.then = then
        self.arrivals = 0
        """How many sessions have come to the gate so far."""
        self._open = asyncio.Event()
        self._arrival = asyncio.Event()

    def open(self) -> None:
        """Let pass all who wait, and all who come."""
        self._open.set()

    def close(self) -> None:
        """Hold again those who come."""
        self._open.clear()

    async def reached(self, arrivals: int = 1, *, timeout: timedelta = PATIENCE) -> None:
        """Return once that many sessions have come to the gate, whether they still wait or not.

        Raises:
            TimeoutError: They did not come within `timeout`.
        """
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                while self.arrivals < arrivals:
                    self._arrival.clear()
                    await self._arrival.wait()
        except TimeoutError:
            raise TimeoutError(f"{self.arrivals} of {arrivals} sessions came to the gate within {timeout}") from None

    async def pass_through(self) -> None:
        """What a session does here."""
        self.arrivals += 1
        self._arrival.set()
        await self._open.wait()


class Greylist:
    """Defer each pair of sender and recipient until `delay` has passed since it was first seen (RFC 6647).

        server.script["RCPT"] = Greylist(timedelta(minutes=5), clock)

    Args:
        delay: How long a pair that is new is deferred.
        clock: The clock that measures it: the test's `ManualClock`, or by default the real time.
        reply: What those hear who come too early.
    """

    def __init__(
        self, delay: timedelta, clock: Clock | None = None, *, reply: str = "451 4.7.1 Greylisted, come back later"
    ) -> None:
        self.delay = delay
        self.reply = reply
        self._clock = clock if clock is not None else SystemClock()
        self._first_seen: dict[tuple[str | None, str | None], datetime] = {}

    def __call__(self, context: Context) -> "Action | None":
        now = self._clock.now().astimezone(UTC)
        first = self._first_seen.setdefault((context.sender, context.recipient), now)
        return None if now - first >= self.delay else self.reply


Action: TypeAlias = (
    str
    | Raw
    | Reply
    | Delay
    | Hang
    | Close
    | HalfClose
    | Reset
    | Drip
    | Flood
    | StopReading
    | ReadSlowly
    | Take
    | Gate
    | Callable[[Context], "Action | None"]
)
"""What to do at a moment. A str is a reply; lines of a longer one are separated by a newline."""

Scripted: TypeAlias = Action | Sequence[Action | None] | None
"""An action; several, taken in turn over all sessions, and then the usual behaviour; or None, the usual behaviour."""

MOMENTS = (
    "connect",
    "greeting",
    "EHLO",
    "HELO",
    "STARTTLS",
    "AUTH",
    "MAIL",
    "RCPT",
    "DATA",
    "BDAT",
    "body",
    "end of data",
    "RSET",
    "NOOP",
    "VRFY",
    "QUIT",
)
_MOMENT = re.compile(
    r"(?:{})|mail from:<.*>|rcpt to:<.+>|rcpt #[1-9]\d*".format("|".join(moment.lower() for moment in MOMENTS))
)


class Script(MutableMapping[str, Scripted]):
    """Which action at which moment; may be changed while the server runs. Letter case does not count.

    Raises:
        ValueError: There is no such moment.
    """

    def __init__(self, script: Mapping[str, Scripted] | None = None) -> None:
        self._actions: dict[str, Scripted] = {}
        self._taken: dict[str, int] = {}
        self.update(script if script is not None else {})

    def __setitem__(self, moment: str, action: Scripted) -> None:
        key = moment.lower()
        if not _MOMENT.fullmatch(key):
            known = ", ".join(MOMENTS)
            raise ValueError(
                f"{moment!r} is no moment of a session; write one of {known}, "
                "MAIL FROM:<address>, RCPT TO:<address>, RCPT #n"
            )
        self._actions[key] = action
        self._taken[key] = 0

    def __getitem__(self, moment: str) -> Scripted:
        return self._actions[moment.lower()]

    def __delitem__(self, moment: str) -> None:
        del self._actions[moment.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._actions)

    def __len__(self) -> int:
        return len(self._actions)

    def next_action(self, *moments: str) -> Action | None:
        """The action for a moment, which has several names: the first with an action counts."""
        for moment in moments:
            key = moment.lower()
            scripted = self._actions.get(key)
            if isinstance(scripted, list | tuple):
                turns = cast("Sequence[Action | None]", scripted)
                taken = self._taken[key]
                self._taken[key] = taken + 1
                scripted = turns[taken] if taken < len(turns) else None
            if scripted is not None:
                return cast("Action", scripted)
        return None


def as_reply(text: str) -> bytes:
    """A reply in the form of RFC 5321 section 4.2.1: every line but the last with a hyphen behind the code."""
    code, rest = text[:3], text[3:].removeprefix(" ")
    *lines, last = rest.split("\n")
    parts = [f"{code}-{line.rstrip()}\r\n" for line in lines]
    parts.append(f"{code} {last.rstrip()}\r\n")
    return "".join(parts).encode("utf-8", "surrogateescape")
