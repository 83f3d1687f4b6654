"""The resolver that the library uses: c-ares, through aiodns."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from ipaddress import ip_address
from typing import Literal

import aiodns
import pycares

from mailstrom_async._config import NAMED_NAMESERVERS
from mailstrom_async._errors import ResolutionFailed, ResolverError
from mailstrom_async.dns.base import MX, AddressAnswer, IPAddress, MXAnswer

LONGEST_TTL = timedelta(days=1)
NEGATIVE_TTL = timedelta(seconds=60)
"""How long "there is none" holds: c-ares does not tell what the zone says."""
TRIES = 3

NODATA, NXDOMAIN, BAD_NAME = 1, 4, 8

# RFC 1035 section 3.2.2, RFC 3596 section 2.1; those of pycares have no types.
TYPE_A, TYPE_MX, TYPE_AAAA = 1, 15, 28


class AiodnsResolver:
    """Looks names up with the given nameservers, or the system's.

    Args:
        nameservers: "ip", "ip:port", "[ipv6]:port", "google", "cloudflare" or "quad9"; none: the system's.
        timeout: For one lookup, all tries together.
    """

    def __init__(self, nameservers: Sequence[str] = (), *, timeout: timedelta) -> None:
        self._nameservers = [address for server in nameservers for address in NAMED_NAMESERVERS.get(server, (server,))]
        self._timeout = timeout
        self._resolver: aiodns.DNSResolver | None = None

    async def open(self) -> None:
        try:
            self._resolver = aiodns.DNSResolver(
                nameservers=self._nameservers or None,
                timeout=max(self._timeout.total_seconds() / TRIES / 2, 0.1),
                tries=TRIES,
            )
        except (aiodns.error.DNSError, pycares.AresError, ValueError, OSError) as error:
            servers = ", ".join(self._nameservers) or "the system's nameservers"
            raise ResolverError(f"the DNS resolver can't use {servers}: {error}; set nameservers") from error

    async def mx(self, domain: str) -> MXAnswer:
        records, exists, ttl = await self._query(domain, "MX", TYPE_MX)
        exchangers = tuple(MX(data.priority, data.exchange.rstrip(".").lower()) for data in records)  # type: ignore[attr-defined]
        return MXAnswer(exchangers, exists, ttl)

    async def addresses(self, host: str) -> AddressAnswer:
        answers = await asyncio.gather(
            self._query(host, "A", TYPE_A),
            self._query(host, "AAAA", TYPE_AAAA),
            return_exceptions=True,
        )
        found: list[IPAddress] = []
        ttls: list[timedelta] = []
        exists = False
        failure: ResolutionFailed | None = None
        for answer in answers:
            if isinstance(answer, ResolutionFailed):
                failure = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found.extend(ip_address(data.addr) for data in answer[0])  # type: ignore[attr-defined]
                exists = exists or answer[1]
                ttls.append(answer[2])
        if failure is not None and not found:
            raise failure
        return AddressAnswer(tuple(found), exists, min(ttls))

    async def aclose(self) -> None:
        resolver, self._resolver = self._resolver, None
        if resolver is not None:
            await resolver.close()

    async def _query(
        self, name: str, kind: Literal["MX", "A", "AAAA"], type_code: int
    ) -> tuple[list[object], bool, timedelta]:
        """The records of a type, whether the name exists, and how long that holds."""
        if self._resolver is None:
            raise ResolutionFailed(f"{name} {kind}: the resolver is not open")
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                result = await self._resolver.query_dns(name, kind)
        except TimeoutError:
            raise ResolutionFailed(f"looking up {name} {kind} took too long") from None
        except aiodns.error.DNSError as error:
            code = error.args[0] if error.args else 0
            if code == NODATA:
                return [], True, NEGATIVE_TTL
            if code in (NXDOMAIN, BAD_NAME):
                return [], False, NEGATIVE_TTL
            text = error.args[1] if len(error.args) > 1 else str(error)
            raise ResolutionFailed(f"looking up {name} {kind} failed: {text}") from error
        records = [record for record in result.answer if record.type == type_code]
        if not records and _circles(name, result):
            raise ResolutionFailed(f"looking up {name} {kind} failed: its CNAME records lead in a circle")
        ttl = min((timedelta(seconds=record.ttl) for record in result.answer), default=NEGATIVE_TTL)
        return [record.data for record in records], True, min(ttl, LONGEST_TTL)


def _circles(name: str, result: pycares.DNSResult) -> bool:
    # c-ares reports a circle of CNAMEs as a success without the records asked for (measured).
    aliases = {
        record.name.rstrip(".").lower(): record.data.cname.rstrip(".").lower()
        for record in result.answer
        if isinstance(record.data, pycares.CNAMERecordData)
    }
    seen: set[str] = set()
    name = name.rstrip(".").lower()
    while name in aliases:
        if name in seen:
            return True
        seen.add(name)
        name = aliases[name]
    return False
