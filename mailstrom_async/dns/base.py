"""What the library asks of a DNS resolver."""

from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple, Protocol

IPAddress = IPv4Address | IPv6Address


class MX(NamedTuple):
    """A mail exchanger record (RFC 5321 section 5.1)."""

    preference: int
    host: str
    """In lower case, without a final dot; "" is the root, the mark of a null MX (RFC 7505)."""


@dataclass(frozen=True, slots=True)
class MXAnswer:
    """The MX records of a name, in no order.

    Attributes:
        exists: False: there is no such name (NXDOMAIN). True without records: the name has none of them (NODATA).
        ttl: How long the answer may be used.
    """

    records: tuple[MX, ...]
    exists: bool
    ttl: timedelta


@dataclass(frozen=True, slots=True)
class AddressAnswer:
    """The A and AAAA records of a name together; `exists` and `ttl` as in `MXAnswer`."""

    addresses: tuple[IPAddress, ...]
    exists: bool
    ttl: timedelta


class Resolver(Protocol):
    """**Protocol:** looks names up.

    "There is none" is an answer. Everything that may be different in a minute (SERVFAIL, REFUSED, timeout, no server, a
    broken answer) raises `ResolutionFailed`: it must never look like "there is none".
    """

    async def open(self) -> None:
        """Get ready on the running event loop. Raises ResolverError if it can't be used as configured."""
        ...

    async def mx(self, domain: str) -> MXAnswer:
        """The MX records of a domain (A-labels), CNAMEs followed.

        Raises:
            ResolutionFailed: It can't be known now.
        """
        ...

    async def addresses(self, host: str) -> AddressAnswer:
        """The addresses of a host. If only one family can be looked up now and has addresses, those.

        Raises:
            ResolutionFailed: It can't be known now.
        """
        ...

    async def aclose(self) -> None:
        """Close; lookups under way end with ResolutionFailed. A second call does nothing."""
        ...
