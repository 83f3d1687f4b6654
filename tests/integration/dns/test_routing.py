"""The router: where destinations lead, how long that holds, and what it says about the resolver."""

import asyncio
import socket
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import ip_address
from random import Random

import pytest

from mailstrom_async import Config, DirectDelivery, RelayDelivery, ResolutionFailed, Timeouts
from mailstrom_async._engine import routing
from mailstrom_async._engine.routing import Router
from mailstrom_async._policy.hosts import Route
from mailstrom_async._status import Outcome
from mailstrom_async.dns import AddressAnswer, MXAnswer
from mailstrom_async.testing import DNSServer, Fault, Gate, Late, ManualClock, Records

SHORT = timedelta(seconds=0.2)
HERE = ip_address("127.0.0.1")
HERE_ONLY = DirectDelivery(allowed_networks=("127.0.0.0/8",))
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)


@pytest.fixture
def clock() -> ManualClock:
    """The clock by which answers age."""
    return ManualClock()


@pytest.fixture
def troubles() -> list[str | None]:
    """What was reported of the resolver."""
    return []


@pytest.fixture
async def build(resolver, clock, troubles, stack):
    """Makes a router; by default it delivers directly, to loopback."""

    def build(delivery=HERE_ONLY, *, asks=resolver, **settings) -> Router:
        config = Config(helo_name="app.example.org", delivery=delivery, **settings)
        router = Router(asks, config, clock, Random(1), on_trouble=troubles.append)
        stack.push_async_callback(router.aclose)
        return router

    return build


@pytest.fixture
def router(build) -> Router:
    """A router that delivers directly."""
    return build()


def know(server, *domains, hosts=("a.example.net", "b.example.net"), ttl=300):
    """Domains with these hosts as exchangers, which are all on loopback."""
    for host in hosts:
        server.records[host] = {"A": Records(str(HERE), ttl=ttl)}
    for domain in domains:
        server.records[domain] = {"MX": Records(*(f"10 {host}" for host in hosts), ttl=ttl)}


# Memory.


async def test_a_route_is_known_as_long_as_dns_says(server, router, clock):
    """Not a moment longer."""
    know(server, "example.net", ttl=300)
    route = await router.route("example.net")
    clock.advance(299 * SECOND)
    assert router.cached("example.net") is route
    clock.advance(SECOND)
    assert router.cached("example.net") is None


async def test_the_shortest_of_all_ttls_counts(server, router, clock):
    """MX, and addresses of every host."""
    know(server, "example.net", ttl=300)
    server.records["b.example.net"] = {"A": Records(str(HERE), ttl=10)}
    await router.route("example.net")
    clock.advance(10 * SECOND)

    assert router.cached("example.net") is None


async def test_a_ttl_of_zero_is_not_remembered(server, router):
    """Row B20."""
    know(server, "example.net", ttl=0)
    await router.route("example.net")

    assert router.cached("example.net") is None


async def test_no_clock_that_is_set_back_makes_a_route_hold_longer(server, router, clock):
    """Row C16: it is asked for again, once."""
    know(server, "example.net", ttl=300)
    await router.route("example.net")
    clock.advance(-DAY)

    assert router.cached("example.net") is None


async def test_a_verdict_is_remembered_too(server, router):
    """ "No such domain" for a minute: mail to a mistyped domain does not ask each time."""
    first = await router.route("missing.example.net")

    assert router.cached("missing.example.net") is first
    assert isinstance(first, Outcome)


@pytest.mark.parametrize("sick", [{"example.net": Fault.SERVFAIL}, {"a.example.net": Fault.SERVFAIL}])
async def test_what_could_not_be_looked_up_is_not_remembered(server, router, sick):
    """Neither that there is no answer, nor a route that lacks a host for the moment."""
    know(server, "example.net")
    server.records.update(sick)
    await router.route("example.net")

    assert router.cached("example.net") is None


async def test_the_memory_is_bounded(server, router, monkeypatch):
    """The oldest goes."""
    monkeypatch.setattr(routing, "REMEMBERED", 2)
    know(server, "d0.example.net", "d1.example.net", "d2.example.net")
    for number in range(3):
        await router.route(f"d{number}.example.net")

    assert [router.cached(f"d{number}.example.net") is None for number in range(3)] == [True, False, False]


# One lookup for all.


async def test_questions_for_one_destination_are_one_lookup(server, router):
    """A thousand deliveries to one domain ask once."""
    know(server, "example.net", ttl=0)
    routes = await asyncio.gather(*(router.route("example.net") for _ in range(1000)))

    assert all(route is routes[0] for route in routes)
    assert server.asked("example.net", "MX") == 1


async def test_who_stops_waiting_takes_the_answer_from_nobody(server, router):
    """The lookup goes on for the others."""
    know(server, "example.net")
    gate = Gate()
    server.records["example.net"] = {"MX": Late(gate, ["10 a.example.net"])}
    impatient, patient = (asyncio.create_task(router.route("example.net")) for _ in range(2))
    await gate.reached()
    impatient.cancel()
    await asyncio.wait([impatient])
    gate.open()

    assert isinstance(await patient, Route)


async def test_closing_ends_lookups(server, router, caplog):
    """Those that nobody waits for any more as well; nothing complains later."""
    gate = Gate()
    server.records["example.net"] = {"MX": Late(gate, [])}
    waiting = asyncio.create_task(router.route("example.net"))
    await gate.reached()
    waiting.cancel()
    await asyncio.wait([waiting])
    async with asyncio.timeout(10):  # less than the lookup may take
        await router.aclose()

    assert len(asyncio.all_tasks()) == len([task for task in asyncio.all_tasks() if not task.done()])
    assert router._lookups == {}
    assert caplog.records == []


async def test_no_more_than_ten_hosts_are_looked_up(server, router):
    """Row B16."""
    know(server, "example.net", hosts=[f"mx{number}.example.net" for number in range(40)])
    route = await router.route("example.net")

    assert len(route.hosts) == 10
    assert sum(question.kind == "A" for question in server.queries) == 10


async def test_unless_all_hosts_were_looked_up_none_is_no_verdict(server, router):
    """Row B19: ten of eleven do not exist, and the eleventh was not asked for."""
    server.records["example.net"] = {"MX": [f"{number} mx{number}.example.net" for number in range(11)]}
    outcome = await router.route("example.net")
    assert (outcome.state, outcome.enhanced) == ("deferred", "4.4.4")

    server.records["example.net"] = {"MX": [f"{number} mx{number}.example.net" for number in range(10)]}
    outcome = await router.route("example.net")
    assert (outcome.state, outcome.enhanced) == ("failed", "5.4.4")


# Sites.


async def test_domains_with_the_same_hosts_are_one_site(server, router):
    """In whatever order, and whoever else they belong to."""
    know(server, "one.example", "two.example")
    server.records["three.example"] = {"MX": ["20 a.example.net", "10 B.example.net."]}
    server.records["four.example"] = {"MX": ["10 a.example.net"]}
    one, two, three, four = [await router.route(f"{name}.example") for name in ("one", "two", "three", "four")]

    assert one.site == two.site == three.site != four.site
    assert len({one.site, four.site}) == 2


@pytest.mark.parametrize("trouble", [Fault.SERVFAIL, {"A": ["10.0.0.1"]}, None])
async def test_a_host_that_can_not_be_used_now_makes_no_other_site(server, router, trouble):
    """Or the limit of connections to the other host would count twice."""
    know(server, "example.net", ttl=0)
    before = await router.route("example.net")
    if trouble is None:
        del server.records["b.example.net"]
    else:
        server.records["b.example.net"] = trouble
    after = await router.route("example.net")

    assert [host.name for host in after.hosts] == ["a.example.net"]
    assert after.site == before.site


# Relays.


RELAY = RelayDelivery(host="relay.example.net", fallbacks=["spare.example.net"], security="none")


async def test_a_relay_is_one_route_for_all(server, build):
    """Its addresses may lie in any network; the fallback comes after it."""
    know(server, hosts=["relay.example.net", "spare.example.net"])
    router = build(RELAY)
    route = await router.route("example.net")

    assert router.cached("example.com") is route
    assert [target.host for target in router.targets(route)] == ["relay.example.net", "spare.example.net"]
    assert server.asked("relay.example.net", "MX") == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "relay.localhost"])
async def test_a_relay_here_needs_no_nameserver(server, build, troubles, host):
    """Addresses, and RFC 6761 section 6.3."""
    router = build(RelayDelivery(host=host, security="none"))
    route = await router.route("example.net")

    assert any(address.is_loopback for _, _, addresses in route.hosts for address in addresses)
    assert server.queries == []
    assert set(troubles) == {None}


@pytest.mark.parametrize("entry", [None, {"TXT": ["x"]}, Fault.SERVFAIL])
async def test_a_relay_without_an_address_defers_and_is_reported(server, build, troubles, entry):
    """A mistyped host name bounces no mail."""
    if entry is not None:
        server.records["relay.example.net"] = entry
    router = build(RelayDelivery(host="relay.example.net", security="none"))
    outcome = await router.route("example.net")

    assert (outcome.state, outcome.enhanced) == ("deferred", "4.4.3")
    assert "relay.example.net" in troubles[-1]


async def test_a_spare_relay_does_while_the_first_can_not_be_looked_up(server, build):
    """For the moment: the first is asked for again the next time."""
    know(server, hosts=["spare.example.net"])
    server.records["relay.example.net"] = Fault.SERVFAIL
    router = build(RELAY)

    assert [host.name for host in (await router.route("example.net")).hosts] == ["spare.example.net"]
    assert router.cached("example.net") is None


# The resolver's health.


async def test_sick_domains_are_not_a_sick_resolver(server, router, troubles):
    """Not before the third in a row, all different; one answer says that it is well."""
    for name in "abc":
        server.records[f"sick-{name}.example"] = Fault.SERVFAIL
    for name in "abab":
        await router.route(f"sick-{name}.example")
    assert troubles == []
    await router.route("missing.example")
    assert troubles == [None]
    for name in "abc":
        await router.route(f"sick-{name}.example")
    assert "sick-c.example" in troubles[-1]
    await router.route("missing2.example")
    assert troubles[-1] is None


async def test_a_resolver_is_asked_until_it_is_well_again(server, router, watched, troubles, clock):
    """Row B31: without any mail."""
    for name in "abc":
        server.records[f"sick-{name}.example"] = Fault.SERVFAIL
        await router.route(f"sick-{name}.example")
    server.records["invalid"] = {}
    asked = len(server.queries)
    async with watched(router):
        await reported(troubles, well=True)
    assert [question.name.rpartition(".")[2] for question in server.queries[asked:]] == ["invalid"]


async def test_a_resolver_that_is_down_is_reported_before_any_mail(open_resolver, build, watched, troubles, clock):
    """Row B31: whether it leaves the question unanswered or refuses it; and that it is well again is, too."""
    with socket.socket() as kept, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        # TCP first, where ports are in use; it does not listen here, so that the server may.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        mute.bind(("127.0.0.1", port))
        router = build(asks=await open_resolver(f"127.0.0.1:{port}", timeout=SHORT))
        async with watched(router):
            await reported(troubles, well=False)
            mute.close()
            del troubles[:]
            await clock.until_waiting()
            clock.advance(MINUTE)
            await reported(troubles, well=False)
            async with DNSServer(port=port):
                await reported(troubles, well=True, clock=clock)


class OneSilence:
    """A resolver that has no answer about one domain."""

    def __init__(self, resolver):
        self.open, self.addresses, self.aclose = resolver.open, resolver.addresses, resolver.aclose
        self._resolver = resolver

    async def mx(self, domain: str) -> MXAnswer:
        if domain == "mute.example":
            raise ResolutionFailed("silence", answered=False)
        return await self._resolver.mx(domain)


async def test_a_mute_domain_raises_a_doubt_that_is_settled(server, build, resolver, watched, troubles):
    """One domain's nameservers do not answer, but the resolver does, and not from a memory of its own."""
    server.ttl = 300
    router = build(asks=OneSilence(resolver))
    async with watched(router):
        await reported(troubles, well=True)
        del troubles[:]
        assert (await router.route("mute.example")).state == "deferred"
        await reported(troubles, well=True)

    assert set(troubles) == {None}
    assert len({question.name for question in server.queries}) == 2
    assert all(question.name.endswith(".invalid") for question in server.queries)


async def reported(troubles, *, well, clock=None):
    """Return once the last report says so; meanwhile the clock goes on, if one is given."""
    async with asyncio.timeout(10):
        while not troubles or (troubles[-1] is None) is not well:
            if clock is not None and clock.deadlines:
                clock.advance(MINUTE)
            await asyncio.sleep(0)


@pytest.fixture
def watched():
    """Has a router look after its resolver."""

    @asynccontextmanager
    async def watched(router):
        watching = asyncio.create_task(router.watch())
        try:
            yield watching
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    return watched


class NoAnswer:
    """A resolver of somebody else's that waits for ever, or breaks."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def open(self) -> None:
        pass

    async def mx(self, domain: str) -> MXAnswer:
        if self.error is not None:
            raise self.error
        return await asyncio.get_running_loop().create_future()

    async def addresses(self, host: str) -> AddressAnswer:
        return await asyncio.get_running_loop().create_future()

    async def aclose(self) -> None:
        pass


async def test_no_lookup_takes_longer_than_it_may(build):
    """Row B5: `Timeouts.dns`, for all questions together."""
    router = build(asks=NoAnswer(), timeouts=Timeouts(dns=timedelta(milliseconds=50)))
    outcome = await router.route("example.net")

    assert (outcome.state, outcome.enhanced) == ("deferred", "4.4.3")
    assert "example.net took too long" in outcome.reason


async def test_a_resolver_that_waits_for_ever_is_reported(build, watched, troubles):
    """Row B31: one of somebody else's, which has no timeouts of its own."""
    async with watched(build(asks=NoAnswer(), timeouts=Timeouts(dns=timedelta(milliseconds=50)))):
        await reported(troubles, well=False)


async def test_a_resolver_that_breaks_does_not_end_the_watch(build, watched, caplog):
    """It is logged, and mail goes on to try."""
    async with watched(build(asks=NoAnswer(ValueError("broken")))) as watching:
        async with asyncio.timeout(10):
            while not caplog.records:  # noqa: ASYNC110
                await asyncio.sleep(0)

        assert not watching.done()
    assert "the resolver failed unexpectedly" in caplog.text
