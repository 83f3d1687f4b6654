"""What DNS answers mean for delivery: which hosts, in which order, at which addresses."""

import math
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from random import Random
from typing import NamedTuple

from mailstrom_async._status import Outcome

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

MOST_HOSTS = 10
"""Of a route; a domain with a hundred MX records does not get a hundred lookups."""

NAT64 = ip_network("64:ff9b::/96")
GLOBAL_UNICAST = ip_network("2000::/3")
"""All that is assigned of IPv6 (RFC 4291 section 2.4). Older Pythons hold more for global than is."""

_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)*{_LABEL}")


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
        hosts: Those that can be dialled now.
        site: The same for all destinations whose records name the same hosts, whether or not each of them can be
            looked up just now, and in whatever order: a session that is open to one of them serves them all.
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


def no_usable_host(domain: str, unasked: int = 0) -> Outcome:
    """MX records, but none leads to an address (RFC 3463: X.4.4, unable to route). As in Postfix that is final: the
    domain's DNS was asked, and answered for each host.

    Args:
        unasked: Hosts beyond those that were looked up, which therefore may have addresses: then nothing is final.
    """
    if unasked:
        some = f"none of the first {MOST_HOSTS} mail exchangers of {domain} has an address"
        return Outcome(state="deferred", cause="dns", enhanced="4.4.4", reason=some)
    every = f"none of the mail exchangers of {domain} has an address"
    return Outcome(state="failed", cause="dns", enhanced="5.4.4", reason=every)


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


def leads_back(domain: str, own_name: str) -> Outcome:
    """The best exchanger is we ourselves (RFC 5321 section 5.1)."""
    return _forbidden(domain, f"lead back to {own_name}, this host itself")


def exchangers(domain: str, records: Collection[tuple[int, str]], own_name: str) -> tuple[Exchanger, ...] | Outcome:
    """The hosts that take mail for a domain, best first; the domain itself if it has no MX records (RFC 5321
    section 5.1).

    Args:
        domain: The destination.
        records: Preference and host of each MX record.
        own_name: Our own host name: it and what is worse than it would send the mail in a circle.
    """
    preferences: dict[str, int] = {}
    for preference, host in sorted(records) or [(0, domain)]:
        preferences.setdefault(host, preference)
    if not any(preferences):
        # RFC 7505, null MX. Beside others "." has no meaning, and is no host name.
        return Outcome(
            state="failed", cause="dns", enhanced="5.1.10", reason=f"the domain {domain} takes no mail (null MX)"
        )
    named = sorted(Exchanger(preference, host) for host, preference in preferences.items() if is_host_name(host))
    if not named:
        return no_usable_host(domain)
    ours = min((exchanger.preference for exchanger in named if exchanger.name == own_name), default=math.inf)
    usable = tuple(exchanger for exchanger in named if exchanger.preference < ours)
    return usable or leads_back(domain, own_name)


def to_look_up(named: Sequence[Exchanger], chance: Random) -> list[Exchanger]:
    """The best `MOST_HOSTS`; which of the equals, chance decides."""
    return sorted(named, key=lambda exchanger: (exchanger.preference, chance.random()))[:MOST_HOSTS]


def is_host_name(text: str) -> bool:
    """Whether an MX record names a host: letters, digits, hyphens, and underscores, which are common though wrong.

    An IP address is none (RFC 5321 section 5.1 wants a name), and what is dialled is always the answer to a lookup.
    """
    return _HOST_NAME.fullmatch(text) is not None and not text.rpartition(".")[2].isdecimal()


def dialable(
    domain: str, hosts: Sequence[Host], own_name: str, allowed: Collection[IPNetwork]
) -> tuple[Host, ...] | Outcome:
    """The hosts with the addresses that may be dialled.

    A host is we ourselves by its name (see `exchangers`), or by its address if we have no name and say EHLO with an
    address literal. The addresses that our name leads to say nothing: this library takes no mail, so a server there is
    another program, often the domain's true exchanger; and behind NAT we do not know our addresses anyway.

    Args:
        domain: The destination, for the reason given.
        hosts: What was looked up; at least one.
        own_name: As in EHLO.
        allowed: Networks that are open although they are not public.
    """
    literal = literal_of(own_name)
    ours = min(
        (host.preference for host in hosts if literal is not None and literal in host.addresses),
        default=math.inf,
    )
    others = [host for host in hosts if host.preference < ours]
    if not others:
        return leads_back(domain, own_name)
    usable = tuple(
        host._replace(addresses=addresses) for host in others if (addresses := permitted(host.addresses, allowed))
    )
    return usable or prohibited(domain)


def literal_of(destination: str) -> IPAddress | None:
    """The address in an address literal; None: it is a domain."""
    if not destination.startswith("["):
        return None
    return ip_address(destination.strip("[]").lower().removeprefix("ipv6:"))


def route_to_literal(
    destination: str, address: IPAddress, own_name: str, allowed: Collection[IPNetwork]
) -> Route | Outcome:
    """The route to an address literal: there and nowhere else, without DNS (RFC 5321 sections 4.1.3 and 5.1)."""
    if literal_of(own_name) == address:
        return leads_back(destination, own_name)
    if not permitted([address], allowed):
        reason = (
            f"the address {destination} is private, loopback or reserved; DirectDelivery.allowed_networks opens such "
            "networks"
        )
        return Outcome(state="failed", cause="policy", enhanced="5.4.6", reason=reason)
    return Route(destination, (Host(0, str(address), (address,)),), frozenset([str(address)]))


def permitted(addresses: Sequence[IPAddress], allowed: Collection[IPNetwork]) -> tuple[IPAddress, ...]:
    """The addresses that may be dialled. Whoever controls a domain's DNS must not reach our internal network."""
    return tuple(
        address for address in addresses if is_public(address) or any(address in network for network in allowed)
    )


def is_public(address: IPAddress) -> bool:
    """Whether an address is on the public internet, also by the IPv4 address that is embedded in it."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    embedded = address.ipv4_mapped or address.sixtofour
    if embedded is None and address in NAT64:
        embedded = IPv4Address(int(address) & 0xFFFFFFFF)
    if embedded is not None:
        return is_public(embedded)
    return address in GLOBAL_UNICAST and address.is_global


def in_order(
    hosts: Sequence[Host], chance: Random, most: int, dialled: Mapping[str, int] | None = None
) -> list[tuple[str, IPAddress]]:
    """The addresses to try, one after another: by preference, equals in random order, IPv6 and IPv4 by turns.

    Args:
        hosts: Of the route.
        chance: Spreads the load over equals (RFC 5321 section 5.1).
        most: At most so many addresses, but each host's first two before any host's third.
        dialled: How often each host was tried lately: of equals, the one that was tried least goes first.
    """
    dialled = dialled or {}
    ranked = sorted(hosts, key=lambda host: (host.preference, dialled.get(host.name, 0), chance.random()))
    turns = [[(host.name, address) for address in _by_turns(host.addresses, chance)] for host in ranked]
    soon = [pair for pairs in turns for pair in pairs[:2]]
    late = [pair for pairs in turns for pair in pairs[2:]]
    return [*soon, *late][:most]


def _by_turns(addresses: Sequence[IPAddress], chance: Random) -> list[IPAddress]:
    six = [address for address in addresses if address.version == 6]
    four = [address for address in addresses if address.version == 4]
    chance.shuffle(six)
    chance.shuffle(four)
    turns: list[IPAddress] = []
    for index in range(max(len(six), len(four))):
        turns.extend(six[index : index + 1])
        turns.extend(four[index : index + 1])
    return turns
