"""From what callers hand in to what the store takes: composed, with its times, and signed."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from email.message import EmailMessage
from functools import partial

from mailstrom_async._arguments import check_span, check_type
from mailstrom_async._config import Config
from mailstrom_async._email import Addresses, Email
from mailstrom_async._engine.signing import SigningPool
from mailstrom_async._engine.turns import Turns
from mailstrom_async._envelope import LANES, Lane
from mailstrom_async._errors import InvalidEmail, MailerStateError
from mailstrom_async._message.addresses import load_validator
from mailstrom_async._message.compose import Envelope, compose, domains_of, size_of
from mailstrom_async._message.dkim_keys import load_signers
from mailstrom_async._message.ids import Stamp, first_repeated
from mailstrom_async._queue.retry import LIFETIME
from mailstrom_async.storage.base import Acceptance

LARGE = 256 * 1024
"""Bytes from which on composing is left to a thread: it would hold the event loop up."""
CROWD = 500
"""Recipients from which on it is, too."""

AnyEmail = Email | EmailMessage | bytes


class Composer:
    """Composes and signs for one mailer, on the event loop on which it is opened."""

    def __init__(self, config: Config) -> None:
        self._keys = config.dkim
        self._helo_name = config.helo_name
        self._limits = config.limits
        self._lifetime = min(config.retry.lifetime, LIFETIME)
        self._domains = domains_of(config)
        self._tokens = Tokens()
        self._turns = Turns()
        self._signing: SigningPool | None = None

    def __repr__(self) -> str:
        return f"<Composer [{len(self._keys)} keys]>"

    async def open(self) -> None:
        """Raises DKIMKeyError."""
        load_validator()  # the first mail shall not hold the event loop up for it
        self._tokens = Tokens()  # what was left of an earlier life is known to the forks of this process, too
        self._turns = Turns()
        if self._keys:
            self._signing = SigningPool(await asyncio.to_thread(load_signers, self._keys))

    async def aclose(self) -> None:
        """Whoever waits for a signature gets a MailerStateError."""
        if self._signing is not None:
            signing, self._signing = self._signing, None
            await signing.aclose()

    async def prepare(
        self,
        email: AnyEmail,
        envelope: Envelope,
        now: datetime,
        *,
        not_before: datetime | None = None,
        expires_after: timedelta | None = None,
        lane: Lane = "default",
    ) -> Acceptance:
        """Compose one email; a large one in a thread, and when many come at once, each in its turn.

        Raises:
            InvalidEmail: It, its envelope, its times or its lane can't be.
        """
        if lane not in LANES:
            raise InvalidEmail("lane", f"is none of {', '.join(LANES)}: {str(lane)[:40]!r}")
        if not_before is not None:
            check_type("not_before", not_before, datetime, "an aware datetime such as datetime.now(UTC)")
            if not_before.tzinfo is None:
                raise InvalidEmail("not_before", "has no time zone; use an aware datetime")
        if expires_after is not None:
            check_span("expires_after", expires_after)
            if expires_after <= timedelta(0):
                raise InvalidEmail("expires_after", "must be longer than nothing")
        stamp = Stamp(now, self._tokens.next(), self._helo_name)
        composed = partial(compose, email, envelope, stamp, limits=self._limits, domains=self._domains)
        if _is_large(email, envelope):
            prepared = await asyncio.to_thread(composed)
        else:
            prepared = await self._turns.run(composed)
        due_at = max(now, not_before) if not_before is not None else now
        try:
            expires_at = due_at + (expires_after or self._lifetime)
        except OverflowError:
            raise InvalidEmail("expires_after", "ends behind the year 9999; give it less time") from None
        return Acceptance(prepared, now, due_at, expires_at, lane)

    async def prepare_all(self, emails: Sequence[AnyEmail], now: datetime, lane: Lane) -> list[Acceptance]:
        """Compose many. Raises InvalidEmail."""
        acceptances = [await self.prepare(email, Envelope(), now, lane=lane) for email in tuple(emails)]
        if (twice := first_repeated([acceptance.prepared.message_id for acceptance in acceptances])) is not None:
            # Not AlreadyQueued, which callers may take for success.
            raise InvalidEmail("message_id", f"two of these emails have {twice[:200]!r}; each needs one of its own")
        return acceptances

    @property
    def signs(self) -> bool:
        """There are keys."""
        return bool(self._keys)

    async def sign(self, acceptances: list[Acceptance]) -> list[Acceptance]:
        """The same with DKIM signatures, if there are keys. Raises MailerStateError: they are not at hand any more."""
        if not self._keys:
            return acceptances
        if self._signing is None:  # while a large mail was composed; without its signature it must not go
            raise MailerStateError("the mailer was closed before the mail was signed; send again when it is open")
        contents = [acceptance.prepared.content for acceptance in acceptances]
        signed = await self._signing.sign(contents, acceptances[0].queued_at)
        return [
            replace(acceptance, prepared=replace(acceptance.prepared, content=content))
            for acceptance, content in zip(acceptances, signed, strict=True)
        ]


class Tokens:
    """Random texts nobody can guess. Asking the system for each would cost a system call and the interpreter's lock.
    For one thread only: two could draw the same."""

    _SIZE = 32
    _AT_ONCE = 256

    def __init__(self) -> None:
        self._left: list[str] = []

    def next(self) -> str:
        if not self._left:
            random = secrets.token_hex(self._SIZE // 2 * self._AT_ONCE)
            self._left = [random[start : start + self._SIZE] for start in range(0, len(random), self._SIZE)]
        return self._left.pop()


def _is_large(email: AnyEmail, envelope: Envelope) -> bool:
    if len(envelope.recipients or ()) > CROWD:
        return True
    if isinstance(email, bytes):
        return len(email) > LARGE
    if isinstance(email, Email):
        return size_of(email) > LARGE or _about(email.to) + _about(email.cc) + _about(email.bcc) > CROWD
    return True


def _about(addresses: Addresses) -> int:
    """How many they are, about."""
    return len(addresses) // 16 if isinstance(addresses, str) else len(addresses)
