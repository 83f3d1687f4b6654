"""What DNS answers mean for delivery: which hosts, in which order, at which addresses."""

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from random import Random
from typing import NamedTuple

from mailstrom_async._status import Outcome

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

MOST_HOSTS = 10
"""Of a route; a domain with a hundred MX records does not get a hundred lookups."""

CARRIER_NAT = ip_network("100.64.0.0/10")
NAT64 = ip_network("64:ff9b::/96")


class Exchanger(NamedTuple):
    """A host that takes mail for a destination; the lower its preference, the sooner it is tried."""

    preference: int
    name: str


class Host(NamedTuple):
    """A host of a route, with the addresses that we may dial."""

    preference: int
    name: str
    addresses: tuple[IPAddress, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a destination leads now.

    Attributes:
        site: The same for all destinations that lead to the same hosts.
    """

    destination: str
    hosts: tuple[Host, ...]
    site: Hashable


def no_such_domain(domain: str) -> Outcome:
    """NXDOMAIN (RFC 3463: X.1.2, bad destination system address)."""
    return Outcome(state="failed", cause="dns", enhanced="5.1.2", reason=f"the domain {domain} does not exist")


def no_mail_host(domain: str) -> Outcome:
    """Neither MX nor address records."""
    return Outcome(
        state="failed",
        cause="dns",
        enhanced="5.1.2",
        reason=f"the domain {domain} has no mail exchanger and no address",
    )


def no_usable_host(domain: str) -> Outcome:
    """MX records, but no host of theirs exists (RFC 3463: X.4.4, unable to route)."""
    return Outcome(
        state="failed", cause="dns", enhanced="5.4.4", reason=f"none of the mail exchangers of {domain} has an address"
    )


def not_resolved(reason: str) -> Outcome:
    """DNS gives no answer now (RFC 3463: X.4.3, directory server failure)."""
    return Outcome(state="deferred", cause="dns", enhanced="4.4.3", reason=reason)


def _forbidden(domain: str, why: str) -> Outcome:
    return Outcome(state="failed", cause="policy", enhanced="5.4.6", reason=f"the mail exchangers of {domain} {why}")


def prohibited(domain: str) -> Outcome:
    """All addresses lie in networks where mail is not to be sent (RFC 3463: X.4.6, routing loop)."""
    return _forbidden(
        domain, "have only private, loopback or reserved addresses; DirectDelivery.allowed_networks opens such networks"
    )


def exchangers(domain: str, records: Collection[tuple[int, str]], own_name: str) -> tuple[Exchanger, ...] | Outcome:
    """The hosts to look up, best first; the domain itself if it has no MX records (RFC 5321 section 5.1).

    Args:
        domain: The destination.
        records: Preference and host of each MX record.
        own_name: Our own host name: it and what is worse than it would send the mail in a circle.
    """
    if not records:
        return (Exchanger(0, domain),)
    named = sorted({Exchanger(preference, host) for preference, host in records if host})
    if not named:
        # RFC 7505, null MX.
        return Outcome(
            state="failed", cause="dns", enhanced="5.1.10", reason=f"the domain {domain} takes no mail (null MX)"
        )
    usable = [exchanger for exchanger in named if not _is_address(exchanger.name)]
    if not usable:
        return no_usable_host(domain)
    ours = min((exchanger.preference for exchanger in usable if exchanger.name == own_name), default=math.inf)
    usable = [exchanger for exchanger in usable if exchanger.preference < ours]
    if not usable:
        return _forbidden(domain, f"lead back to {own_name}, this host itself")
    return tuple(usable[:MOST_HOSTS])


def permitted(addresses: Sequence[IPAddress], allowed: Collection[IPNetwork]) -> tuple[IPAddress, ...]:
    """The addresses that may be dialled. Whoever controls a domain's DNS must not reach our internal network."""
    return tuple(
        address
        for address in addresses
        if is_public(address) or any(address.version == network.version and address in network for network in allowed)
    )


def is_public(address: IPAddress) -> bool:
    """Whether an address is on the public internet, also by the IPv4 address that is embedded in it."""
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if embedded is None and address in NAT64:
            embedded = IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded)
    elif address in CARRIER_NAT:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def in_order(hosts: Sequence[Host], chance: Random, most: int) -> list[tuple[str, IPAddress]]:
    """The addresses to try, one after another: by preference, equals in random order, IPv6 and IPv4 by turns.

    Args:
        hosts: Of the route.
        chance: Spreads the load over equals (RFC 5321 section 5.1).
        most: At most so many addresses, but each host's first before any host's third.
    """
    shuffled = sorted(hosts, key=lambda host: (host.preference, chance.random()))
    soon = [(host.name, address) for host in shuffled for address in _by_turns(host.addresses, chance)[:2]]
    late = [(host.name, address) for host in shuffled for address in _by_turns(host.addresses, chance)[2:]]
    return [*soon, *late][:most]


def _by_turns(addresses: Sequence[IPAddress], chance: Random) -> list[IPAddress]:
    six = [address for address in addresses if address.version == 6]
    four = [address for address in addresses if address.version == 4]
    if len(addresses) > 2:
        chance.shuffle(six)
        chance.shuffle(four)
    turns: list[IPAddress] = []
    for index in range(max(len(six), len(four))):
        turns.extend(six[index : index + 1])
        turns.extend(four[index : index + 1])
    return turns


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
