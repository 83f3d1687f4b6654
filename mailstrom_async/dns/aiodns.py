"""The resolver that the library uses: c-ares, through aiodns."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from typing import Literal

import aiodns
import pycares

from mailstrom_async._config import NAMED_NAMESERVERS
from mailstrom_async._errors import ResolutionFailed, ResolverError
from mailstrom_async.dns.base import MX, AddressAnswer, MXAnswer

logger = logging.getLogger("mailstrom_async")

LONGEST_TTL = timedelta(days=1)
NEGATIVE_TTL = timedelta(seconds=60)
"""How long "there is none" holds: c-ares does not tell what the zone says."""
TRIES = 3
FIRST_PAUSE = 0.5
AT_ONCE = 64
LONG_SECONDS = 0.5
MOST_ALIASES = 10
"""CNAMEs behind one another. RFC 1034 section 3.6.2 wants none behind another; nobody needs that many."""
CHANNEL_LIFE = 60.0
"""Seconds. c-ares keeps answers by their TTL, but "no records of this type" for an hour, whatever the zone says (seen
in 1.34.9), and offers no way to make it forget. Only a new channel does."""

NODATA, NXDOMAIN, BAD_NAME = 1, 4, 8
REFUSED_CONNECTION, TIMEOUT, NO_SERVER = 11, 12, 26

# RFC 1035 section 3.2.2, RFC 3596 section 2.1; those of pycares have no types.
TYPE_A, TYPE_MX, TYPE_AAAA = 1, 15, 28


@dataclass(slots=True, eq=False)
class _Channel:
    resolver: aiodns.DNSResolver
    fresh_until: float
    lookups: int = 0


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one question brought: the records of the type asked for, the CNAMEs beside them, and how long that holds."""

    ttl: timedelta
    exists: bool = True
    records: tuple[object, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])


class _Turns:
    """How many questions are asked at once. A thousand in one burst overflow the nameserver's buffer or ours, and each
    that is lost costs seconds. One that stays unanswered for long is not counted any more: it keeps nobody else back.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        await self._free.acquire()
        counted = True

        def count_no_more() -> None:
            nonlocal counted
            if counted:
                counted = False
                self._free.release()

        timer = asyncio.get_running_loop().call_later(LONG_SECONDS, count_no_more)
        try:
            yield
        finally:
            timer.cancel()
            count_no_more()


class AiodnsResolver:
    """Looks names up with the given nameservers, or the system's; in DNS only, not in /etc/hosts.

    Args:
        nameservers: "ip", "ip:port", "[ipv6]:port", "google", "cloudflare" or "quad9"; none: the system's.
        timeout: For one lookup, all tries together.
    """

    def __init__(self, nameservers: Sequence[str] = (), *, timeout: timedelta) -> None:
        self._nameservers = [address for server in nameservers for address in NAMED_NAMESERVERS.get(server, (server,))]
        self._timeout = timeout
        self._channel: _Channel | None = None
        self._retired: set[_Channel] = set()
        self._turns = _Turns()

    async def open(self) -> None:
        self._turns = _Turns()  # those of an earlier life may belong to another event loop
        try:
            self._channel = self._new_channel()
        except (aiodns.error.DNSError, pycares.AresError, ValueError, OSError) as error:
            servers = ", ".join(self._nameservers) or "the system's nameservers"
            raise ResolverError(f"the DNS resolver can't use {servers}: {error}; set nameservers") from error

    async def mx(self, domain: str) -> MXAnswer:
        answer = await self._look_up(domain, "MX")
        exchangers = tuple(MX(data.priority, _as_name(data.exchange)) for data in answer.records)  # type: ignore[attr-defined]
        return MXAnswer(exchangers, answer.exists, answer.ttl)

    async def addresses(self, host: str) -> AddressAnswer:
        answers = await asyncio.gather(self._look_up(host, "A"), self._look_up(host, "AAAA"), return_exceptions=True)
        known: list[_Answer] = []
        failure: ResolutionFailed | None = None
        for answer in answers:
            if isinstance(answer, ResolutionFailed):
                failure = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                known.append(answer)
        # A family without records says nothing about the life of the other's.
        telling = [answer for answer in known if answer.records]
        if failure is not None and not telling:
            raise failure
        return AddressAnswer(
            tuple(ip_address(data.addr) for answer in telling for data in answer.records),  # type: ignore[attr-defined]
            any(answer.exists for answer in known),
            min(answer.ttl for answer in telling or known),
        )

    async def aclose(self) -> None:
        channels = [*self._retired, self._channel]
        self._channel = None
        self._retired.clear()
        for channel in channels:
            if channel is not None:
                await channel.resolver.close()

    async def _look_up(self, name: str, kind: Literal["MX", "A", "AAAA"]) -> _Answer:
        """The records of a type, CNAMEs followed: nameservers do that (RFC 1034 section 5.3.1), but not all of them."""
        what = f"{name} {kind}"
        ttl = LONGEST_TTL
        aliases: dict[str, str] = {}
        asked = _as_name(name)
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                while True:
                    answer = await self._ask(asked, kind, what)
                    ttl = min(ttl, answer.ttl)
                    aliases.update(answer.aliases)
                    end = end_of_chain(_as_name(name), aliases)
                    if answer.records or not answer.exists or end == asked:
                        return _Answer(ttl, answer.exists, answer.records)
                    asked = end
        except TimeoutError:
            raise ResolutionFailed(f"looking up {what} took too long", answered=False) from None

    async def _ask(self, name: str, kind: Literal["MX", "A", "AAAA"], what: str) -> _Answer:
        channel = await self._fresh_channel()
        channel.lookups += 1
        try:
            result = await self._query(channel, name, kind)
        except aiodns.error.DNSError as error:
            code = error.args[0] if error.args else 0
            if code in (NODATA, NXDOMAIN, BAD_NAME):
                return _Answer(NEGATIVE_TTL, exists=code == NODATA)
            text = error.args[1] if len(error.args) > 1 else str(error)
            raise ResolutionFailed(
                f"looking up {what} failed: {text}", answered=code not in (REFUSED_CONNECTION, TIMEOUT, NO_SERVER)
            ) from error
        finally:
            channel.lookups -= 1
            if channel in self._retired and not channel.lookups:
                self._retired.discard(channel)
                await channel.resolver.close()
        wanted = {"MX": TYPE_MX, "A": TYPE_A, "AAAA": TYPE_AAAA}[kind]
        return _Answer(
            min((timedelta(seconds=record.ttl) for record in result.answer), default=NEGATIVE_TTL),
            records=tuple(record.data for record in result.answer if record.type == wanted),
            aliases={
                _as_name(record.name): _as_name(record.data.cname)
                for record in result.answer
                if isinstance(record.data, pycares.CNAMERecordData)
            },
        )

    async def _query(self, channel: _Channel, name: str, kind: Literal["MX", "A", "AAAA"]) -> pycares.DNSResult:
        """Asked until there is an answer, or until the time is over that the lookup has.

        c-ares goes by how fast a nameserver was lately: on one that answered three times at once it gives up after 1.2
        to 1.7 seconds and three tries, whatever is set (measured, 1.34.9). A short stall would defer mail by minutes.
        The pauses grow: a nameserver that has too much to do is not helped by a thousand names asked for all the time.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                async with self._turns.turn():
                    return await channel.resolver.query_dns(name, kind)
            except aiodns.error.DNSError as error:
                if error.args[:1] != (TIMEOUT,):
                    raise
            await asyncio.sleep(pause)
            pause *= 2
            if self._channel is None:
                raise ResolutionFailed("the resolver was closed meanwhile")

    async def _fresh_channel(self) -> _Channel:
        channel = self._channel
        if channel is None:
            raise ResolutionFailed("the resolver is not open")
        if asyncio.get_running_loop().time() < channel.fresh_until:
            return channel
        try:
            self._channel = self._new_channel()
        except (aiodns.error.DNSError, pycares.AresError, OSError) as error:
            logger.warning("the DNS resolver could not be renewed and goes on as it is: %s", error)
            channel.fresh_until += CHANNEL_LIFE
            return channel
        if channel.lookups:
            self._retired.add(channel)  # the last of its lookups closes it
        else:
            await channel.resolver.close()
        return self._channel

    def _new_channel(self) -> _Channel:
        resolver = aiodns.DNSResolver(
            nameservers=self._nameservers or None,
            # c-ares doubles it with each try.
            timeout=max(self._timeout.total_seconds() / TRIES / 2, 0.1),
            tries=TRIES,
        )
        return _Channel(resolver, asyncio.get_running_loop().time() + CHANNEL_LIFE)


def end_of_chain(name: str, aliases: Mapping[str, str]) -> str:
    """Where CNAMEs lead from a name; the name itself if it has none.

    Raises:
        ResolutionFailed: In a circle, or too far. Either is a mistake in a zone, which somebody may mend.
    """
    chain = [name]
    while chain[-1] in aliases:
        chain.append(aliases[chain[-1]])
        if chain[-1] in chain[:-1]:
            raise ResolutionFailed(f"looking up {name} failed: its CNAME records lead in a circle")
        if len(chain) > MOST_ALIASES + 1:
            raise ResolutionFailed(
                f"looking up {name} failed: it has more than {MOST_ALIASES} CNAME records in a chain"
            )
    return chain[-1]


def _as_name(text: str) -> str:
    return text.rstrip(".").lower()
