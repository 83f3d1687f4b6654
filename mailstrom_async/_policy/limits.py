"""Which limits hold for a site."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mailstrom_async._config import Limits, LimitsFor, Rate


@dataclass(frozen=True, slots=True)
class SiteLimits:
    """What one site may get.

    Attributes:
        rate: None: no limit.
        rate_of: The place in `Limits.overrides` of the entry that the rate is from: all its sites share it. None: it is
            the site's own.
    """

    connections_per_host: int
    messages_per_connection: int
    recipients_per_transaction: int
    rate: Rate | None = None
    rate_of: int | None = None


def own_entries(overrides: Sequence[LimitsFor], destination: str) -> tuple[int, ...]:
    """The places of the entries that speak of this domain.

    The mail of domains of which the same entries speak is a site of its own, or their limits would hold for others that
    have the same exchangers.
    """
    return tuple(
        place
        for place, entry in enumerate(overrides)
        if entry.domain is not None and matches(entry.domain, destination)
    )


def site_limits(limits: Limits, destination: str, hosts: Iterable[str]) -> SiteLimits:
    """The limits of the site that a destination leads to: each from the first entry that applies and has it, those for
    the domain before those for an exchanger, at last from the general ones.

    Args:
        limits: The settings.
        destination: The domain.
        hosts: The names of the site's hosts.
    """
    names = list(hosts)
    entries = list(enumerate(limits.overrides))
    by_domain = [(n, entry) for n, entry in entries if entry.domain is not None and matches(entry.domain, destination)]
    by_host = [
        (n, entry) for n, entry in entries if entry.mx is not None and any(matches(entry.mx, name) for name in names)
    ]
    applying = [*by_domain, *by_host]
    rate_of, rate = next(((n, entry.rate) for n, entry in applying if entry.rate is not None), (None, limits.rate))
    of: list[LimitsFor | Limits] = [*(entry for _, entry in applying), limits]
    return SiteLimits(
        next(one.connections_per_host for one in of if one.connections_per_host is not None),
        next(one.messages_per_connection for one in of if one.messages_per_connection is not None),
        next(one.recipients_per_transaction for one in of if one.recipients_per_transaction is not None),
        rate,
        rate_of,
    )


def matches(pattern: str, name: str) -> bool:
    """Whether a name is the one, or lies below it if the pattern begins with "*."."""
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern
