"""Finds the route of a destination, and remembers it for as long as DNS allows."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from random import Random
from typing import NamedTuple

from mailstrom_async._clock import Clock
from mailstrom_async._config import Config, DirectDelivery, RelayDelivery
from mailstrom_async._errors import ResolutionFailed
from mailstrom_async._policy.hosts import (
    Exchanger,
    Host,
    Route,
    exchangers,
    in_order,
    no_mail_host,
    no_such_domain,
    no_usable_host,
    not_resolved,
    permitted,
    prohibited,
)
from mailstrom_async._status import Outcome
from mailstrom_async.dns.base import AddressAnswer, IPAddress, Resolver
from mailstrom_async.smtp.base import Credentials, Target

REMEMBERED = 10_000
TROUBLE_AFTER = 3
"""Lookups that fail in a row, of different destinations, before the resolver itself counts as ill."""


class _Known(NamedTuple):
    route: Route | Outcome
    until: datetime


class Router:
    """Routes by destination. Concurrent questions for one destination are one lookup."""

    def __init__(
        self,
        resolver: Resolver,
        config: Config,
        clock: Clock,
        chance: Random,
        *,
        on_trouble: Callable[[str | None], None],
    ) -> None:
        self._resolver = resolver
        self._config = config
        self._clock = clock
        self._chance = chance
        self._on_trouble = on_trouble
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[Route | Outcome]] = {}
        self._failures: set[str] = set()

    def cached(self, destination: str) -> Route | Outcome | None:
        """The route, if it is known and still holds."""
        key = self._key(destination)
        known = self._known.get(key)
        if known is None:
            return None
        if known.until <= self._clock.now():
            del self._known[key]
            return None
        return known.route

    async def route(self, destination: str) -> Route | Outcome:
        """Where a destination leads; an `Outcome` says that, and why, it leads nowhere (now or for good)."""
        if (known := self.cached(destination)) is not None:
            return known
        key = self._key(destination)
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = self._lookups[key] = asyncio.create_task(self._find(key))
            lookup.add_done_callback(lambda _: self._lookups.pop(key, None))
        # Who stops waiting must not take the answer from the others; the lookup ends by its own timeout.
        return await asyncio.shield(lookup)

    def targets(self, route: Route) -> list[Target]:
        """What to try for one attempt, in order; equals in a new random order each time."""
        delivery = self._config.delivery
        most = self._config.limits.hosts_per_attempt
        if isinstance(delivery, DirectDelivery):
            return [
                Target(name, address, delivery.port, self._config.tls)
                for name, address in in_order(route.hosts, self._chance, most)
            ]
        credentials = None
        if delivery.username is not None:
            password = delivery.password.get_secret_value() if delivery.password is not None else None
            credentials = Credentials(delivery.username, password, delivery.oauth_token)
        return [
            Target(
                name,
                address,
                delivery.port,
                "none" if delivery.security == "none" else "verify",
                implicit_tls=delivery.security == "tls",
                credentials=credentials,
            )
            for name, address in in_order(route.hosts, self._chance, max(most, len(route.hosts)))
        ]

    def _key(self, destination: str) -> str:
        # A relay is one route for all destinations.
        return "" if isinstance(self._config.delivery, RelayDelivery) else destination

    async def _find(self, key: str) -> Route | Outcome:
        delivery = self._config.delivery
        try:
            async with asyncio.timeout(self._config.timeouts.dns.total_seconds()):
                if isinstance(delivery, RelayDelivery):
                    route, ttl = await self._find_relay(delivery)
                else:
                    route, ttl = await self._find_exchangers(key, delivery)
        except ResolutionFailed as error:
            return self._failed(key, str(error))
        except TimeoutError:
            return self._failed(key, f"looking up the mail exchangers of {key or 'the relay'} took too long")
        self._failures.clear()
        self._on_trouble(None)
        if ttl > timedelta(0):
            self._known[key] = _Known(route, self._clock.now() + ttl)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return route

    def _failed(self, key: str, reason: str) -> Outcome:
        self._failures.add(key)
        if len(self._failures) >= TROUBLE_AFTER or isinstance(self._config.delivery, RelayDelivery):
            self._failures = set(list(self._failures)[:TROUBLE_AFTER])
            self._on_trouble(reason)
        return not_resolved(reason)

    async def _find_exchangers(self, domain: str, delivery: DirectDelivery) -> tuple[Route | Outcome, timedelta]:
        answer = await self._resolver.mx(domain)
        if not answer.exists:
            return no_such_domain(domain), answer.ttl
        found = exchangers(domain, answer.records, self._config.helo_name)
        if isinstance(found, Outcome):
            return found, answer.ttl
        hosts, ttl, failure = await self._look_up(found)
        if not hosts:
            if failure is not None:
                raise failure
            return (no_usable_host(domain) if answer.records else no_mail_host(domain)), min(ttl, answer.ttl)
        allowed = [ip_network(network) for network in delivery.allowed_networks]
        usable = tuple(
            host._replace(addresses=addresses) for host in hosts if (addresses := permitted(host.addresses, allowed))
        )
        if not usable:
            if failure is not None:
                raise failure
            return prohibited(domain), min(ttl, answer.ttl)
        # A route with a host missing for the moment is used, but not remembered.
        ttl = timedelta(0) if failure is not None else min(ttl, answer.ttl)
        return Route(domain, usable, frozenset(host.name for host in usable)), ttl

    async def _find_relay(self, delivery: RelayDelivery) -> tuple[Route | Outcome, timedelta]:
        names = [delivery.host, *delivery.fallbacks]
        hosts, ttl, failure = await self._look_up([Exchanger(rank, name) for rank, name in enumerate(names)])
        if not hosts:
            if failure is not None:
                raise failure
            # The settings are at fault, or the relay's DNS: either can be mended, so no mail fails for it.
            raise ResolutionFailed(f"the relay {delivery.host} has no address; check RelayDelivery.host")
        return Route("", tuple(hosts), "relay"), timedelta(0) if failure is not None else ttl

    async def _look_up(
        self, wanted: list[Exchanger] | tuple[Exchanger, ...]
    ) -> tuple[list[Host], timedelta, ResolutionFailed | None]:
        """The hosts that have addresses, how long that holds, and a failure if one could not be looked up now."""
        answers = await asyncio.gather(*(self._addresses(name) for _, name in wanted), return_exceptions=True)
        hosts: list[Host] = []
        ttl = timedelta(days=1)
        failure: ResolutionFailed | None = None
        for exchanger, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, ResolutionFailed):
                failure = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                ttl = min(ttl, answer.ttl)
                if answer.addresses:
                    hosts.append(Host(exchanger.preference, exchanger.name, answer.addresses))
        return hosts, ttl, failure

    async def _addresses(self, name: str) -> AddressAnswer:
        literal: IPAddress
        try:
            literal = ip_address(name)
        except ValueError:
            if name == "localhost":  # RFC 6761 section 6.3: never a question for DNS
                return AddressAnswer((ip_address("127.0.0.1"), ip_address("::1")), True, timedelta(days=1))
            return await self._resolver.addresses(name)
        return AddressAnswer((literal,), True, timedelta(days=1))
