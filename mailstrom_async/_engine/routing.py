"""Finds the route of a destination, and remembers it for as long as DNS allows."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from random import Random
from typing import NamedTuple

from mailstrom_async._clock import Clock
from mailstrom_async._config import Config, DirectDelivery, RelayDelivery
from mailstrom_async._engine.resolver_health import ResolverHealth
from mailstrom_async._errors import ResolutionFailed
from mailstrom_async._policy.hosts import (
    Exchanger,
    Host,
    IPNetwork,
    Route,
    dialable,
    exchangers,
    in_order,
    literal_of,
    no_mail_host,
    no_such_domain,
    no_usable_host,
    not_resolved,
    route_to_literal,
    to_look_up,
)
from mailstrom_async._status import Outcome
from mailstrom_async.dns.base import AddressAnswer, IPAddress, MXAnswer, Resolver
from mailstrom_async.smtp.base import Credentials, Target

logger = logging.getLogger("mailstrom_async")

REMEMBERED = 10_000
LONGEST_TTL = timedelta(days=1)
NOT_AT_ALL = timedelta(0)
ASK_AGAIN = timedelta(seconds=10)
"""Between two questions to a resolver that is ill."""


class _Known(NamedTuple):
    route: Route | Outcome
    since: datetime
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
        self._health = ResolverHealth(on_trouble)
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[Route | Outcome]] = {}

    def cached(self, destination: str) -> Route | Outcome | None:
        """The route, if it is known and still holds."""
        key = self._key(destination)
        known = self._known.get(key)
        if known is None:
            return None
        # A clock that was set back must not make an old route hold for longer.
        if not known.since <= self._clock.now() < known.until:
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

    async def watch(self) -> None:
        """Look after the resolver, as long as this runs: ask it something at the start, so that one that is down shows
        before the first mail does; when a domain gets no answer, to know whose trouble that is; and while it is ill, so
        that it is seen to recover even if no mail comes."""
        never = asyncio.Event()
        while True:
            try:
                await self._ask_anything()
            except Exception:
                logger.exception("the resolver failed unexpectedly")
            await self._health.doubted.wait()
            if self._health.ill:
                await self._clock.wait(never, self._clock.now() + ASK_AGAIN)

    async def aclose(self) -> None:
        """End the lookups that nobody waits for any more."""
        lookups = list(self._lookups.values())
        for lookup in lookups:
            lookup.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)

    def targets(self, route: Route, dialled: Mapping[str, int] | None = None) -> list[Target]:
        """What to try for one attempt, in order; equals in a new random order each time.

        Args:
            route: Where to.
            dialled: How often each host was tried lately; the load on equals is evened out.
        """
        delivery = self._config.delivery
        most = self._config.limits.hosts_per_attempt
        if isinstance(delivery, DirectDelivery):
            return [
                Target(name, address, delivery.port, self._config.tls)
                for name, address in in_order(route.hosts, self._chance, most, dialled)
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

    async def _ask_anything(self) -> None:
        self._health.asking()
        if isinstance(self._config.delivery, RelayDelivery):
            await self.route("")
            return
        # RFC 6761 section 6.4: every resolver knows that there is no such name. A new one each time, or caches answer.
        name = f"{self._chance.getrandbits(64):x}.invalid"
        try:
            async with asyncio.timeout(self._config.timeouts.dns.total_seconds()):
                await self._resolver.mx(name)
        except ResolutionFailed as error:
            self._health.failed("anything", error, vital=not error.answered)
        except TimeoutError:
            self._health.failed("anything", ResolutionFailed(f"looking up {name} took too long"), vital=True)
        else:
            self._health.answered()

    async def _find(self, key: str) -> Route | Outcome:
        delivery = self._config.delivery
        if isinstance(delivery, DirectDelivery) and (address := literal_of(key)) is not None:
            return route_to_literal(key, address, self._config.helo_name, _networks(delivery))
        try:
            async with asyncio.timeout(self._config.timeouts.dns.total_seconds()):
                if isinstance(delivery, RelayDelivery):
                    route, ttl = await self._find_relay(delivery)
                else:
                    route, ttl = await self._find_exchangers(key, delivery)
        except ResolutionFailed as error:
            return self._failed(key, error)
        except TimeoutError:
            reason = f"looking up the mail exchangers of {key or 'the relay'} took too long"
            return self._failed(key, ResolutionFailed(reason, answered=False))
        self._health.answered()
        if ttl > NOT_AT_ALL:
            now = self._clock.now()
            self._known[key] = _Known(route, now, now + min(ttl, LONGEST_TTL))
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return route

    def _failed(self, key: str, error: ResolutionFailed) -> Outcome:
        self._health.failed(key, error, vital=isinstance(self._config.delivery, RelayDelivery))
        return not_resolved(str(error))

    async def _find_exchangers(self, domain: str, delivery: DirectDelivery) -> tuple[Route | Outcome, timedelta]:
        answer = await self._exchangers(domain)
        if not answer.exists:
            return no_such_domain(domain), answer.ttl
        named = exchangers(domain, answer.records, self._config.helo_name)
        if isinstance(named, Outcome):
            return named, answer.ttl
        asked = to_look_up(named, self._chance)
        hosts, ttl, failure = await self._look_up(asked)
        ttl = min(ttl, answer.ttl)
        if hosts:
            usable = dialable(domain, hosts, self._config.helo_name, _networks(delivery))
        else:
            usable = no_usable_host(domain) if answer.records else no_mail_host(domain)
        if not isinstance(usable, Outcome):
            # A route with a host missing for the moment is used, but not remembered.
            site = frozenset(exchanger.name for exchanger in named)
            return Route(domain, usable, site), ttl if failure is None else NOT_AT_ALL
        if failure is not None:
            raise failure
        if unasked := len(named) - len(asked):
            return no_usable_host(domain, unasked), NOT_AT_ALL
        return usable, ttl

    async def _find_relay(self, delivery: RelayDelivery) -> tuple[Route | Outcome, timedelta]:
        names = [delivery.host, *delivery.fallbacks]
        hosts, ttl, failure = await self._look_up([Exchanger(rank, name) for rank, name in enumerate(names)])
        if not hosts:
            # If there is no such name, the settings are at fault, or the relay's DNS: either can be mended, so no mail
            # fails for it.
            raise failure or ResolutionFailed(
                f"the relay {delivery.host} has no address in DNS; check RelayDelivery.host; an address may stand there"
            )
        return Route("", tuple(hosts), "relay"), NOT_AT_ALL if failure is not None else ttl

    async def _look_up(self, wanted: Sequence[Exchanger]) -> tuple[list[Host], timedelta, ResolutionFailed | None]:
        """The hosts that have addresses, how long that holds, and a failure if one could not be looked up now."""
        answers = await asyncio.gather(*(self._addresses(name) for _, name in wanted), return_exceptions=True)
        hosts: list[Host] = []
        ttl = LONGEST_TTL
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

    async def _exchangers(self, domain: str) -> MXAnswer:
        if domain == "localhost":  # see _addresses
            return MXAnswer((), True, LONGEST_TTL)
        return await self._resolver.mx(domain)

    async def _addresses(self, name: str) -> AddressAnswer:
        literal: IPAddress
        try:
            literal = ip_address(name)
        except ValueError:
            if name == "localhost" or name.endswith(".localhost"):  # RFC 6761 section 6.3: never a question for DNS
                return AddressAnswer((ip_address("127.0.0.1"), ip_address("::1")), True, LONGEST_TTL)
            return await self._resolver.addresses(name)
        return AddressAnswer((literal,), True, LONGEST_TTL)


def _networks(delivery: DirectDelivery) -> list[IPNetwork]:
    return [ip_network(network) for network in delivery.allowed_networks]
